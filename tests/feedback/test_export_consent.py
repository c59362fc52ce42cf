"""What does not leave in a file that others train on: no consent, rejected, taken back, held out, private."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from afterword.chat.private import redactor
from afterword.cli import main
from afterword.records import Feedback, Interaction, Review, Skip, Turn
from afterword.store import Store
from afterword.store.export import EXPORTS, TRAINING, export
from tests.feedback.import_rows import out, said

MAIL = "ana.reis@example.com"


def turn(name: str, answer: str, *history: str, **extra: Any) -> Turn:
    values: dict[str, Any] = {"messages": tuple(said(*history, "How?")), "user": "ada", "created_at": 1.0, **extra}
    return Turn(id=name, answer={"role": "assistant", "content": answer}, **values)


def made(name: str, feedback: str, split: Any = "train") -> Interaction:
    return Interaction(id=f"i-{name}", turn=name, feedback=(feedback,), kind="edited", hindsight="I changed it.",
                       polarity=1, weight=0.5, split=split, created_at=3.0, user="ada")  # fmt: skip


@pytest.fixture
def full(store: Store) -> Store:
    """One usable edit with private words, and one for each reason that keeps others back."""
    names = ("good", "silent", "refused", "back", "denied", "apart")
    edits = [Feedback(id=f"e-{n}", turn=n, kind="edited", final_text=f"{n}, ask {MAIL}.", user="ada") for n in names]
    store.write(
        *(turn(n, f"So {n}, not {MAIL}.", consent=n != "silent", conversation=f"c-{n}") for n in names), *edits,
        *(made(n, f"e-{n}", "holdout" if n == "apart" else "train") for n in names),
        Review(id="r", interaction="i-refused", decision="reject", by="eve", why="a quotation"),
        Feedback(id="x", turn="back", kind="retraction", retracts="e-back"),
    )  # fmt: skip
    store.write(Skip(id="s", feedback="f", turn="denied", reason="contradictory", detail="both", created_at=9.0))
    return store


LEFT = {"no_consent": 1, "rejected": 1, "retracted": 1, "contradicted": 1}
INTERACTIONS = [form for what, form in EXPORTS if what == "interactions" and form != "afterword"]


@pytest.mark.parametrize("format", INTERACTIONS)
def test_interactions_that_may_not_teach_stay_here(full: Store, format: str) -> None:
    for split, names in (("train", {"good"}), ("holdout", {"apart"}), ("all", {"good", "apart"})):
        sink = io.BytesIO()
        done = export(full, "interactions", format, sink, clean=redactor("rules"), split=split)
        text = sink.getvalue().decode()
        assert done.rows == len(names) and {n for n in ("good", "apart", "silent", "refused") if n in text} == names
        assert MAIL not in text and "[EMAIL]" in text
        other = {"train": {"holdout": 1}, "holdout": {"train": 1}, "all": {}}[split]
        assert done.left_out == LEFT | other
    assert MAIL in json.dumps(out(full, "interactions", format)) or format == "triples"


@pytest.mark.parametrize("format", [form for what, form in EXPORTS if what == "turns" and form != "afterword"])
def test_turns_without_consent_stay_here(full: Store, format: str) -> None:
    sink = io.BytesIO()
    done = export(full, "turns", format, sink, clean=redactor("rules"))
    text = sink.getvalue().decode()
    training = ("turns", format) in TRAINING
    assert done.left_out == {"no_consent": 1} | ({"holdout": 1} if training else {})
    assert "silent" not in text and "refused" in text and ("apart" not in text) == training == (MAIL not in text)


@pytest.mark.parametrize("format", ["events", "tensorzero", "langfuse"])
def test_feedback_on_turns_without_consent_stays_here(full: Store, format: str) -> None:
    sink = io.BytesIO()
    done = export(full, "feedback", format, sink)
    assert done.left_out == {"no_consent": 1, "retracted": 1} and b"silent" not in sink.getvalue()


def test_our_own_form_and_a_persons_own_data_are_complete(full: Store, capsys: pytest.CaptureFixture[str]) -> None:
    for what in ("turns", "interactions"):
        assert len(out(full, what, "afterword", clean=redactor("rules"), split="train")) == 6
    assert main(["export", "--user", "ada", "--dir", str(full.path.parent)]) == 0
    rows = [orjson.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [sum(row["record"] == name for row in rows) for name in ("turns", "feedback", "interactions")] == [6, 7, 6]
    assert sum(MAIL in json.dumps(row) for row in rows) == 12


def test_a_conversation_ends_before_its_first_turn_without_consent(store: Store) -> None:
    store.write(
        turn("a", "one"), turn("b", "two", "How?", "one", previous="a"),
        turn("c", "three", "How?", "one", "How?", "two", previous="b", consent=False),
        turn("d", "four", "How?", "one", "How?", "two", "How?", "three", previous="c"),
        turn("e", "five", "How?", "one", "How?", "two", previous="b", consent=False),
        turn("f", "six", consent=False), turn("g", "seven"),
    )  # fmt: skip
    rows = out(store, "turns", "openai")
    assert [[m["content"] for m in row["messages"]] for row in rows] == [
        ["How?", "one", "How?", "two"],
        ["How?", "seven"],
    ]
    sink = io.BytesIO()
    assert export(store, "turns", "openai", sink).left_out == {"no_consent": 3}


def test_the_command_says_what_it_left_out(full: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home, path = str(full.path.parent), tmp_path / "pairs.jsonl"
    command = ["export", "interactions", "--format", "trl-preference", "--output", str(path), "--dir", home]
    assert main(command) == 0
    said_ = " ".join(capsys.readouterr().err.split())
    assert (
        "1 rows written" in said_
        and "1 rejected" in said_
        and "1 holdout; held-out ones leave with --split all" in said_
    )
    assert main([*command, "--split", "all", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["left_out"]) == (2, LEFT) and MAIL not in path.read_text(encoding="utf-8")
    assert main([*command, "--set", "collect.redact=off"]) == 0
    assert MAIL in path.read_text(encoding="utf-8")
    assert main(["export", "turns", "--split", "all", "--dir", home]) == 2
    assert "interactions as trl-preference" in " ".join(capsys.readouterr().err.split())
