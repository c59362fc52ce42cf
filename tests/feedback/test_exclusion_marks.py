"""Answers that a file excludes from imitation are context, may carry blame, and leave in no shape as what to say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from afterword.feedback.collect.collect import collect
from afterword.records import Feedback, Interaction, Turn, not_to_imitate
from afterword.store import Store
from tests.feedback.import_rows import load, out

WRONG, RIGHT = "It is 3 m tall.", "It is 300 m tall."
HUMAN = {"from": "human", "value": "How tall is the tower?"}
ASK: dict[str, Any] = {"role": "user", "content": "How tall is the tower?"}


def chat(mark: dict[str, Any], follow_up: str = "No, that is wrong, it is 300 m.") -> dict[str, Any]:
    said = [ASK, {"role": "assistant", "content": WRONG, **mark}, {"role": "user", "content": follow_up}]
    return {"messages": [*said, {"role": "assistant", "content": RIGHT, "weight": 1}]}


def talk(mark: dict[str, Any], **row: Any) -> dict[str, Any]:
    return {"conversations": [HUMAN, {"from": "gpt", "value": WRONG, **mark}], **row}


@pytest.mark.parametrize(
    "row",
    [
        chat({"weight": 0}), chat({"weight": 0.0}), chat({"weight": "0"}), chat({"train": False}),
        chat({"training": False}),
        chat({"loss": False}), chat({"mask": True}), chat({"ignore": 1}), chat({"skip": "true"}),
        talk({"weight": 0}), talk({"train": False}), talk({"masked": True}), talk({}, weight=0), talk({}, train=False),
        talk({}, mask="gpt"), talk({}, status="discarded"),
        {"messages": [ASK, {"role": "assistant", "content": WRONG}], "ignore": True},
        {"prompt": ASK["content"], "completion": WRONG, "label": True, "weight": 0},
        {"prompt": ASK["content"], "chosen": RIGHT, "rejected": WRONG, "train": False},
        {"prompt": [ASK], "completion": WRONG, "user_response": "Thanks!", "train": False},
        {"prompt": ASK["content"], "draft": WRONG, "user_action": "accepted", "skip": True},
        {"conversation": [ASK, {"role": "assistant", "content": WRONG, "weight": 0}], "conversation_hash": "c1"},
    ],
)  # fmt: skip
def test_a_mark_is_honoured_from_import_to_export(tmp_path: Path, row: dict[str, Any]) -> None:
    with Store.open(tmp_path / "afterword.db") as store:
        load(store, tmp_path, [row])
        first = next(store.rows(Turn))
        assert first.answer["content"] == WRONG and not_to_imitate(first.answer)
        pairs = out(store, "turns", "trl-prompt-completion")
        assert WRONG not in [pair["completion"][0]["content"] for pair in pairs]
        assert WRONG not in json.dumps([json.loads(row["output"]) for row in out(store, "turns", "tensorzero")])
        for shape in ("sharegpt", "wildchat"):
            assert WRONG not in json.dumps(out(store, "turns", shape)), shape
        for leaving in out(store, "turns", "openai"):
            assert all(m["weight"] == 0 for m in leaving["messages"] if m["content"] == WRONG)


@pytest.mark.parametrize(
    "row", [chat({"weight": 1}), chat({"weight": 0.5}), chat({"train": True}), chat({"mask": False}),
            talk({}, mask="human"), talk({"loss": True}), talk({"weight": None})],
)  # fmt: skip
def test_what_is_not_excluded_stays(tmp_path: Path, row: dict[str, Any]) -> None:
    with Store.open(tmp_path / "afterword.db") as store:
        load(store, tmp_path, [row])
        assert not any(not_to_imitate(turn.answer) for turn in store.rows(Turn))
        assert WRONG in json.dumps(list(out(store, "turns", "sharegpt")))


@pytest.mark.parametrize(
    "row", [chat({"weight": "zero"}), chat({"weight": [0]}), chat({"loss_weight": "off"}), talk({}, weight="zero"),
            {"prompt": ASK["content"], "completion": WRONG, "label": True, "weight": "zero"}],
)  # fmt: skip
def test_a_weight_that_is_no_number_rejects_its_row(tmp_path: Path, row: dict[str, Any]) -> None:
    with Store.open(tmp_path / "afterword.db") as store:
        assert load(store, tmp_path, [row, chat({"weight": "0.00"})]).rejected == {"bad_weight": 1}
        assert not_to_imitate(next(store.rows(Turn)).answer)


def test_praise_of_an_excluded_answer_teaches_nothing_and_blame_does(tmp_path: Path) -> None:
    with Store.open(tmp_path / "afterword.db") as store:
        load(store, tmp_path, [chat({"weight": 0}, "Thanks a lot, perfect!"), chat({"weight": 0})])
        funnel = collect(store)
        assert funnel.skipped == {"excluded": 1}
        (made,) = store.rows(Interaction)
        assert made.polarity < 0 and made.hindsight


def test_a_preferred_answer_that_is_excluded_is_not_shown_to_a_teacher(tmp_path: Path) -> None:
    rows = [{"prompt": ASK["content"], "rejected": WRONG, "chosen": RIGHT, "train": False},
            {"prompt": "And now?", "rejected": WRONG, "chosen": [{"role": "assistant", "content": RIGHT, "weight": 0}]},
            {"prompt": "Is it tall?", "completion": WRONG, "label": True, "weight": 0}]  # fmt: skip
    with Store.open(tmp_path / "afterword.db") as store:
        assert load(store, tmp_path, rows).turns == 3
        assert [f.kind for f in store.rows(Feedback)] == ["rating"]
        assert collect(store).skipped == {"excluded": 1} and not store.count(Interaction)


def test_a_conversation_leaves_up_to_the_first_excluded_answer(tmp_path: Path) -> None:
    row = chat({})
    more = [{"role": "user", "content": "And how wide?"}, {"role": "assistant", "content": "9 m.", "weight": 0}]
    with Store.open(tmp_path / "afterword.db") as store:
        load(store, tmp_path, [{"messages": [*row["messages"], *more]}])
        (leaving,) = out(store, "turns", "sharegpt")
        assert [part["value"] for part in leaving["conversations"]][-1] == RIGHT
