"""A run that was killed is finished, unless somebody took back what it was learning from."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from afterword.config import TrainConfig
from afterword.records import Candidate, Feedback, Interaction, Record, Review, TrainingPlan, Turn
from afterword.store import Store
from afterword.store.erasure.erase import Eraser
from afterword.train.run_state import interrupted_run, read_runs, write_run
from afterword.train.stage import plan_settings


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
        plan = TrainingPlan(
            candidate="cand-1", interactions=("i1", "i2"), parent=None, model="m", settings=asdict(TrainConfig())
        )
        write_run(tmp_path, plan, "running")
        yield opened


def test_a_killed_run_is_found(store: Store, tmp_path: Path) -> None:
    found = interrupted_run(store, tmp_path)
    assert found is not None and found.plan.interactions == ("i1", "i2")


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
    assert interrupted_run(store, tmp_path) is None
    assert len(store.usable("train")) == 1


def test_nor_what_was_erased(store: Store, tmp_path: Path) -> None:
    with Eraser(store.path) as eraser:
        eraser.redact("u1", "era-1")
    assert interrupted_run(store, tmp_path) is None
    assert [row.id for row in store.usable("train")] == ["i2"]


def test_the_status_of_a_run_decides_not_the_times_of_its_files(store: Store, tmp_path: Path) -> None:
    (first,) = read_runs(tmp_path)
    assert first.status == "running" and first.code_version
    write_run(tmp_path, replace(first.plan, candidate="cand-2"), "running")
    os.utime(tmp_path / "runs" / "cand-1" / "run.json")  # touched later, started earlier
    newest = interrupted_run(store, tmp_path)
    assert newest is not None and newest.plan.candidate == "cand-2"
    write_run(tmp_path, newest.plan, "failed")
    found = interrupted_run(store, tmp_path)
    assert found is not None and found.plan.candidate == "cand-1"
    store.write(Candidate(id="cand-1", path="adapters/cand-1", base="m", parent=None, interactions=(), recipe={}))
    assert interrupted_run(store, tmp_path) is None  # killed between the row and its status
    assert [(run.plan.candidate, run.status) for run in read_runs(tmp_path)] == [
        ("cand-2", "failed"), ("cand-1", "running"),
    ]  # fmt: skip


def test_a_folder_of_a_version_before_is_read(store: Store, tmp_path: Path) -> None:
    """Without a status; a failed run was marked by a file, settings had their old names."""
    folder = tmp_path / "runs" / "cand-1"
    settings = {**asdict(TrainConfig()), "passes": 3}
    del settings["epochs"]
    old = {"candidate": "cand-1", "interactions": ["i1"], "parent": None, "model": "m", "settings": settings,
           "weights": {}, "selection": {}, "replayed": 0}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(old), encoding="utf-8")
    (run,) = read_runs(tmp_path)
    assert run.status == "running" and run.code_version is None and run.plan.interactions == ("i1",)
    assert interrupted_run(store, tmp_path) == run and plan_settings(run.plan).epochs == 3
    (folder / "given-up").touch()
    assert read_runs(tmp_path)[0].status == "failed" and interrupted_run(store, tmp_path) is None
    write_run(tmp_path, run.plan, "running")  # asked for again
    again = interrupted_run(store, tmp_path)
    assert again is not None and again.plan == run.plan
