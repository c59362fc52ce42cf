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
from afterword.formats.export import export
from afterword.formats.registry import EXPORTS, TRAINING
from afterword.records import Feedback, Interaction, Review, Skip, Turn
from afterword.store import Store
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


def asked(name: str, *said_: str, answer: str, **extra: Any) -> Turn:
    return Turn(id=name, messages=tuple(said(*said_)), answer={"role": "assistant", "content": answer}, **extra)


PRIVATE = ("I take lithium, is wine allowed?", "Ask your doctor first.")


@pytest.mark.parametrize(
    "extra", [{"previous": "a"}, {}, {"user": "other"}], ids=["continued", "not recognised", "another name"]
)
def test_a_history_with_words_that_were_said_without_consent_stays_here(store: Store, extra: dict[str, Any]) -> None:
    """The client sends its history again: the later turn, with consent, carries the earlier one, without."""
    store.write(
        asked("a", *PRIVATE[:1], answer=PRIVATE[1], consent=False),
        asked("b", *PRIVATE, "And a walk?", answer="A walk is fine.", **extra),
        asked("c", *PRIVATE, "And a walk?", "A walk is fine.", "How long?", answer="An hour.", previous="b"),
        asked("d", "How long?", answer="Quite long."),
        *(Feedback(id=f"e-{n}", turn=n, kind="edited", final_text=f"Better {n}.") for n in "abcd"),
        *(made(n, f"e-{n}") for n in "abcd"),
    )  # fmt: skip
    for what, form in EXPORTS:
        if form == "afterword":
            continue
        sink = io.BytesIO()
        done = export(store, what, form, sink, split="all")
        text = sink.getvalue().decode()
        assert not any(words in text for words in (*PRIVATE, "lithium", "A walk is fine.", "An hour.")), (what, form)
        assert form == "triples" or ("Better d." if what in ("feedback", "interactions") else "Quite long.") in text
        # Of a conversation, what is left out is counted once, with the reason of its first turn.
        found = {"no_consent": 1, "no_consent_before": 2}
        chains = what == "turns" and form in ("openai", "sharegpt", "wildchat")
        assert done.left_out == found or (chains and sum(done.left_out.values()) in (1, 2))


def test_a_history_that_was_shortened_is_known_by_its_words_and_common_words_are_no_secret(store: Store) -> None:
    system = {"role": "system", "content": "Be kind."}
    store.write(
        asked("a", "Hello", answer="Hello! How can I help?", consent=False),
        asked("b", *PRIVATE[:1], answer=PRIVATE[1], consent=False),
        asked("c", "Hello", answer="Hello! How can I help?"),
        asked("d", "Hello", "Hello! How can I help?", "Name a river.", answer="The Danube."),
        asked("e", "?", PRIVATE[1], "Why?", answer="It may be unsafe."),
        Turn(id="f", messages=(system, *said("Hi")), answer={"role": "assistant", "content": "Yo"}, consent=False),
        Turn(id="g", messages=(system, *said("So?")), answer={"role": "assistant", "content": "So."}),
        asked("h", answer="", consent=False), asked("i", "x", "", "y", answer="z"),
    )  # fmt: skip
    sink = io.BytesIO()
    done = export(store, "turns", "langfuse", sink)
    assert [orjson.loads(line)["id"] for line in sink.getvalue().splitlines()] == ["c", "d", "g", "i"]
    assert done.left_out == {"no_consent": 4, "no_consent_before": 1}


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
