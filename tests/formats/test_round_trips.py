"""What a format writes it reads again: the same ids and content, except for the fields that it cannot hold."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afterword.feedback.importing.imports import import_file
from afterword.formats import registry
from afterword.formats.export import export
from afterword.formats.format import Format
from afterword.formats.parsing import Conversation
from afterword.formats.registry import ALL, EXPORTS, detect_format
from afterword.records import Feedback, Interaction, Json, Record, Turn
from afterword.store import Store

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).map(
    lambda text: f"w{text}w"  # not blank, and no JSON that a reader would take apart
)
TIMES = st.integers(1_600_000_000, 1_800_000_000).map(float)
FEEDBACK = st.one_of(
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["accepted", "retried", "abandoned", "copied", "saved", "stopped"])}
    ),
    st.fixed_dictionaries({"kind": st.just("edited"), "final_text": WORDS}),
    st.fixed_dictionaries({"kind": st.sampled_from(["comment", "follow_up", "demonstration"]), "text": WORDS}),
    st.fixed_dictionaries({"kind": st.just("rating"), "value": st.sampled_from([-1.0, -0.25, 0.5, 1.0])}),
    st.fixed_dictionaries({"kind": st.just("executed"), "exit_code": st.just(0)}),
)


@st.composite
def turns(draw: st.DrawFn) -> Turn:
    """A turn of one or two exchanges."""
    asked: list[Json] = [{"role": "system", "content": draw(WORDS)}] if draw(st.booleans()) else []
    asked.append({"role": "user", "content": draw(WORDS)})
    if draw(st.booleans()):
        asked += [{"role": "assistant", "content": draw(WORDS)}, {"role": "user", "content": draw(WORDS)}]
    return Turn(
        id="t1", messages=tuple(asked), answer={"role": "assistant", "content": draw(WORDS)}, model="m",
        task=draw(st.none() | WORDS), user=draw(st.none() | WORDS), conversation=draw(st.none() | WORDS),
        sampling=draw(st.sampled_from([{}, {"temperature": 0.5}])), created_at=draw(TIMES),
        usage=draw(st.sampled_from([{}, {"completion_tokens": 3}])),
    )  # fmt: skip


def interaction(feedback: Feedback) -> Interaction:
    """What teaches: the words, or that the answer was good."""
    polarity = 1 if feedback.kind in ("accepted", "copied", "saved", "executed") else -1
    return Interaction(id="i1", turn="t1", feedback=(feedback.id,), kind=feedback.kind, polarity=polarity, weight=1.0,
                       hindsight=feedback.text or "", split="train")  # fmt: skip


def written(turn: Turn, feedback: Feedback, what: str, name: str) -> list[Json]:
    """The rows of an export."""
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "a.db") as store:
        store.write(turn, feedback, interaction(feedback))
        out = io.BytesIO()
        export(store, what, name, out)
        return [orjson.loads(line) for line in out.getvalue().splitlines()]


def read(rows: list[Json]) -> tuple[list[Record], Any]:
    """The records of an import, twice: the second one adds nothing."""
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "b.db") as store:
        file = Path(folder) / "rows.jsonl"
        file.write_bytes(b"\n".join(map(orjson.dumps, rows)))
        summary = import_file(store, file)
        again = import_file(store, file)
        assert not summary.rejected and not summary.left_out, (summary, rows)
        assert (again.stored, again.conflicts) == (0, 0)
        return [row for kind in (Turn, Feedback) for row in store.rows(kind)], summary


CANNOT_HOLD: dict[tuple[str, str], tuple[str, set[str]]] = {
    ("turns", "afterword"): ("all", set()),
    ("feedback", "afterword"): ("all", set()),
    ("turns", "langfuse"): ("id", {"source", "thread", "missing_ids"}),
    ("turns", "tensorzero"): ("id", {"source", "thread", "missing_ids", "usage"}),
    ("feedback", "langfuse"): ("id", {"metadata", "occurred_at", "exit_code"}),
    ("feedback", "tensorzero"): ("id", {"metadata", "occurred_at", "exit_code", "text of a rating"}),
    ("feedback", "events"): ("content", {"id", "metadata", "occurred_at", "sampling", "usage", "finish_reason"}),
    ("turns", "openai"): ("content", {"id", "user", "model", "task", "conversation", "sampling", "usage", "time"}),
    ("turns", "sharegpt"): ("content", {"id", "task", "sampling", "usage", "time"}),
    ("turns", "wildchat"): ("content", {"id", "system message", "user (a hash)", "task"}),
    ("turns", "trl-prompt-completion"): ("content", {"id", "user", "model", "task", "sampling", "usage", "time"}),
    ("interactions", "openai"): ("content", {"id", "user", "model", "task", "time", "the answer of an edit"}),
    ("interactions", "openai-preference"): ("content", {"id", "user", "model", "task", "time"}),
    ("interactions", "trl-prompt-completion"): ("content", {"id", "user", "model", "time", "the answer of an edit"}),
    ("interactions", "trl-preference"): ("content", {"id", "user", "model", "task", "time"}),
    ("interactions", "wildfeedback"): ("content", {"id", "user", "model", "task", "time", "system message"}),
    ("interactions", "triples"): ("content", {"id", "user", "model", "task", "time"}),
}
"""Export -> whether ids come back, and the fields that its rows have no place for."""
DERIVED = ("interactions", "afterword")
"""Refused on the way in: interactions are made anew from feedback."""


def test_every_export_says_what_it_cannot_hold() -> None:
    assert set(CANNOT_HOLD) | {DERIVED, ("episodes", "afterword")} == set(EXPORTS)


@pytest.mark.parametrize(("what", "name"), CANNOT_HOLD)
@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(turn=turns(), fields=FEEDBACK, user=st.booleans())
def test_what_is_written_is_read_again(what: str, name: str, turn: Turn, fields: Json, user: bool) -> None:
    feedback = Feedback(id="f1", turn="t1", user=turn.user if user else None, created_at=turn.created_at, **fields)
    rows = written(turn, feedback, what, name)
    if not rows:
        assert what != "turns", "every turn may leave"
        return
    records, summary = read(rows)
    assert registry.ALIASES.get(name, name).startswith(summary.format)
    level, _ = CANNOT_HOLD[what, name]
    if level == "all":
        assert records == ([turn] if what == "turns" else [feedback])
    elif level == "id":
        (record,) = records
        _compare_with_id(record, turn, feedback)
    else:
        _compare_content(what, name, records, turn, feedback)


def _compare_with_id(record: Record, turn: Turn, feedback: Feedback) -> None:
    if isinstance(record, Turn):
        same = ("id", "messages", "answer", "model", "user", "created_at", "sampling")
        assert [getattr(record, n) for n in same] == [getattr(turn, n) for n in same]
        assert record.conversation == (turn.conversation or record.conversation)
        assert record.task == (turn.task or record.task)
        return
    assert isinstance(record, Feedback)
    assert (record.id, record.turn, record.user) == ("f1", "t1", feedback.user)
    assert record.created_at == feedback.created_at
    assert record.value == feedback.value
    said = feedback.final_text or feedback.text
    assert (record.final_text or record.text) == said
    kinds = {feedback.kind, "comment" if feedback.kind == "follow_up" else feedback.kind}
    kinds |= {"demonstration"} if feedback.kind == "edited" else set()  # TensorZero has no corrections
    assert record.kind in kinds


def _compare_content(what: str, name: str, records: list[Record], turn: Turn, feedback: Feedback) -> None:
    found = [record for record in records if isinstance(record, Turn)]
    preferred = feedback.final_text or (feedback.text if feedback.kind == "demonstration" else None)
    answer = turn.answer["content"]
    if what == "interactions" and name in ("openai", "trl-prompt-completion"):
        answer = preferred if feedback.kind == "edited" else answer  # the answer to imitate
    last = found[-1]
    asked = list(turn.messages)
    if name in ("wildchat", "wildfeedback"):
        asked = [message for message in asked if message["role"] != "system"]
    assert list(last.messages) == asked and last.answer["content"] == answer
    rows = [record for record in records if isinstance(record, Feedback) and record.turn == last.id]
    if name in ("openai-preference", "trl-preference", "wildfeedback"):
        assert [(row.kind, row.text) for row in rows] == [("demonstration", preferred)]
    elif name == "triples":
        assert [(row.kind, row.text) for row in rows] == [("follow_up", feedback.text)]
    elif name == "events":
        (row,) = rows
        assert row.kind == ("follow_up" if feedback.kind == "comment" else feedback.kind)
        assert (row.text, row.final_text) == (feedback.text, feedback.final_text)
        same = ("task", "user", "conversation", "model")
        assert [getattr(last, n) for n in same] == [getattr(turn, n) for n in same] or turn.user is None
    else:
        assert not rows


# ---- the page says: one file, one line


def test_a_format_is_one_module_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_diary(row: Json) -> Conversation:
        said = [{"role": "user", "content": row["asked"]}, {"role": "assistant", "content": row["said"]}]
        return Conversation(messages=said, user=row.get("who"))

    diary = Format(name="diary", read=read_diary, recognise=lambda row: {"asked", "said"} <= row.keys())
    monkeypatch.setattr(registry, "ALL", (*ALL, diary))
    monkeypatch.setitem(registry.FORMATS, "diary", diary)
    row = {"asked": "How?", "said": "So.", "who": "ada"}
    assert detect_format(row) == "diary"
    (tmp_path / "diary.jsonl").write_bytes(orjson.dumps(row))
    with Store.open(tmp_path / "a.db") as store:
        summary = import_file(store, tmp_path / "diary.jsonl")
        assert (summary.format, summary.stored) == ("diary", 1)
        assert next(store.rows(Turn)).user == "ada"
