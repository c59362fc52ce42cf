"""A run that was killed is finished, unless somebody took back what it was learning from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from afterword.config import TrainConfig
from afterword.records import Feedback, Interaction, Record, Review, Turn
from afterword.store import Store
from afterword.store.erasure.erase import Eraser
from afterword.train.stage import Plan, _unfinished


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "afterword.db") as opened:
        for n in (1, 2):
            opened.write(
                Turn(id=f"t{n}", messages=(), answer={"role": "assistant", "content": "Hi"}, user=f"u{n}"),
                Feedback(id=f"f{n}", turn=f"t{n}", kind="follow_up", text="Shorter."),
                Interaction(id=f"i{n}", turn=f"t{n}", feedback=(f"f{n}",), kind="follow_up", hindsight="Shorter.",
                            polarity=-1, weight=1.0, split="train"),
            )  # fmt: skip
        settings = {name: getattr(TrainConfig(), name) for name in TrainConfig.__dataclass_fields__}
        plan = Plan("cand-1", ("i1", "i2"), None, "m", settings)
        (tmp_path / "runs" / "cand-1").mkdir(parents=True)
        data = {name: getattr(plan, name) for name in Plan.__dataclass_fields__}
        (tmp_path / "runs" / "cand-1" / "run.json").write_text(json.dumps(data), encoding="utf-8")
        yield opened


def test_a_killed_run_is_found(store: Store, tmp_path: Path) -> None:
    found = _unfinished(store, tmp_path)
    assert found is not None and found.interactions == ("i1", "i2")


@pytest.mark.parametrize(
    "row",
    [
        Feedback(id="x", turn="t1", kind="retraction", retracts="f1"),
        Review(id="v", interaction="i2", decision="reject"),
    ],
    ids=["retracted", "rejected"],
)
def test_what_was_taken_back_is_not_trained_to_its_end(store: Store, tmp_path: Path, row: Record) -> None:
    store.write(row)
    assert _unfinished(store, tmp_path) is None
    assert len(store.usable("train")) == 1


def test_nor_what_was_erased(store: Store, tmp_path: Path) -> None:
    with Eraser(store.path) as eraser:
        eraser.redact("u1", "era-1")
    assert _unfinished(store, tmp_path) is None
    assert [row.id for row in store.usable("train")] == ["i2"]
