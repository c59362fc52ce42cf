"""WildChat, WildFeedback and preference pairs; and every shape out and in again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from afterword.errors import UsageError
from afterword.feedback.collect.collect import collect
from afterword.feedback.importing.imports import import_file
from afterword.formats.containers import container
from afterword.formats.export import export
from afterword.records import Feedback, Interaction, Turn
from afterword.store import Store
from tests.feedback.import_rows import load, out, reasons, said

ARROW = pytest.importorskip("pyarrow")
PARQUET = pytest.importorskip("pyarrow.parquet")


def test_preferences_of_openai_and_wildfeedback(store: Store, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    openai = {"input": {"messages": said("How?"), "tools": tools}, "preferred_output": [said("", "Briefly so.")[1]],
              "non_preferred_output": [said("", "So and so.")[1]]}  # fmt: skip
    wild = {"conversations": [{"from": "human", "value": "Why?"}], "chosen": {"from": "gpt", "value": "Hence."},
            "rejected": {"from": "gpt", "value": "Thus."}}  # fmt: skip
    assert load(store, tmp_path, [openai]).format == "openai"
    assert load(store, tmp_path, [wild], name="w.jsonl").format == "wildfeedback"
    found = [(t.messages[-1]["content"], t.answer["content"], f.kind, f.text) for t in store.rows(Turn)
             for f in store.rows(Feedback, turn=t.id)]  # fmt: skip
    assert found == [
        ("How?", "So and so.", "demonstration", "Briefly so."), ("Why?", "Thus.", "demonstration", "Hence."),
    ]  # fmt: skip
    assert next(store.rows(Turn)).tools == tuple(tools)
    bad = [
        {**wild, "chosen": {"from": "human", "value": "x"}},
        {**wild, "conversations": [{"from": "gpt", "value": "x"}]},
    ]
    assert reasons(load(store, tmp_path, bad, "wildfeedback", "b.jsonl")) == {"no_messages": 1, "no_request": 1}


def utterances(n: int, texts: list[str]) -> list[dict[str, Any]]:
    return [{"UtterranceId": i, "TurnId": i // 2, "Role": "Agent" if i % 2 else "User", "Content": f"{text} {n}",
             "Satisfaction": i > 1, "Disatisfaction": False} for i, text in enumerate(texts)]  # fmt: skip


def test_annotated_utterances_are_put_together(store: Store, tmp_path: Path) -> None:
    rows = [row for n in range(30) for row in utterances(n, ["How?", "So.", "Shorter.", "S."])]
    summary = load(store, tmp_path, rows)
    assert (summary.format, summary.rows, summary.turns, summary.feedback) == ("wildfeedback", 30, 60, 30)
    follow_up = next(store.rows(Feedback))
    assert follow_up.text == "Shorter. 0" and follow_up.metadata == {"satisfaction": True, "disatisfaction": False}
    bad = [{**row, "Role": "Judge"} for row in utterances(1, ["x"])]
    assert reasons(load(store, tmp_path, [*utterances(9, ["a", "b"]), *bad], name="b.jsonl")) == {"bad_message": 1}


def wildchat(n: int) -> dict[str, Any]:
    shared = {"country": "X", "header": {"accept-language": "en", "user-agent": "a"}, "language": "English",
              "redacted": False, "state": None, "toxic": False, "turn_identifier": 7}  # fmt: skip
    talk: list[dict[str, Any]] = [
        {**shared, **m, "hashed_ip": None} for m in said("How?", "So.", "Shorter.", f"S {n}.")
    ]
    talk[0]["hashed_ip"] = "ip"
    for i in (1, 3):
        talk[i] |= {"timestamp": f"2024-05-01T10:00:0{i}Z", "created": 1714557600 + i, "openai_id": "chatcmpl-1",
                    "temperature": 0.5, "top_p": 1.0, "token_counter": 9, "system_fingerprint": None,
                    "usage": {"total_tokens": 9, "prompt_tokens": None}}  # fmt: skip
    return {"conversation_hash": f"h{n}", "model": "m", "timestamp": "2024-05-01T10:00:00Z", "conversation": talk,
            "turn": 2, "language": "English", "openai_moderation": [{"flagged": False}], "detoxify_moderation": [],
            "toxic": False, "redacted": False, "state": "X", "country": "X", "hashed_ip": "ip",
            "header": shared["header"]}  # fmt: skip


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_wildchat_with_its_later_columns(store: Store, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"train-00000.{suffix}"
    with container(path) as rows:
        for n in range(5):
            rows.write(orjson.dumps(wildchat(n)) + b"\n")
    summary = import_file(store, path)
    assert (summary.format, summary.turns, summary.feedback, reasons(summary)) == ("wildchat", 10, 5, {})
    first, second = list(store.rows(Turn))[:2]
    assert (first.user, first.created_at, second.created_at) == ("ip", 1714557601.0, 1714557603.0)
    assert first.sampling == {"temperature": 0.5, "top_p": 1.0} and first.usage == {"total_tokens": 9}


def test_times_of_a_parquet_column(store: Store, tmp_path: Path) -> None:
    from datetime import UTC, datetime

    row = {**wildchat(0), "timestamp": datetime(2024, 5, 1, 10, tzinfo=UTC)}
    row["conversation"] = [{k: v for k, v in m.items() if k in ("role", "content")} for m in row["conversation"]]
    path = tmp_path / "a.parquet"
    PARQUET.write_table(ARROW.Table.from_pylist([row]), path)
    import_file(store, path)
    assert next(store.rows(Turn)).created_at == 1714557600.0


@pytest.fixture
def full(store: Store, tmp_path: Path) -> Store:
    """Chats of two users with every kind of words, collected."""
    rows = [{"id": f"c{n}", "user": f"u{n % 2}", "messages": [
        {"role": "system", "content": "Be nice."}, *said(f"How {n}?", f"So {n}.", f"Shorter {n}.", f"S {n}.")]}
        for n in range(4)]  # fmt: skip
    load(store, tmp_path, rows)
    first = list(store.rows(Turn))[1]
    store.write(
        Feedback(id="e", turn=first.id, kind="edited", final_text="So, so.", user="u0"),
        Feedback(id="d", turn=list(store.rows(Turn))[3].id, kind="demonstration", text="Like so."),
        Feedback(id="r", turn=first.id, kind="rating", value=0.5),
        Feedback(id="x", turn=first.id, kind="rating", value=-1.0),
        Feedback(id="y", turn=first.id, kind="retraction", retracts="x"),
    )
    collect(store)
    return store


def conversations(store: Store) -> list[list[tuple[str, str]]]:
    return sorted([(m["role"], m["content"]) for m in row["messages"]] for row in out(store, "turns", "openai"))


@pytest.mark.parametrize("suffix", ["jsonl", "json", "jsonl.gz", "json.zst", "parquet"])
@pytest.mark.parametrize("format", ["openai", "sharegpt", "wildchat", "tensorzero", "langfuse", "afterword"])
def test_turns_come_back(full: Store, tmp_path: Path, format: str, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    with container(path) as rows:
        written = export(full, "turns", format, rows, to=path, split="all").rows
    assert [p.name for p in tmp_path.glob("out*")] == [path.name] and full.exports()[-1][2:] == (path, "turns", format)
    with Store.open(tmp_path / "copy" / "a.db") as copy:
        summary = import_file(copy, path)
        assert (summary.format, summary.rows, reasons(summary)) == (format, written, {})
        wanted = conversations(full)
        if format == "wildchat":  # it has no place for a system message
            wanted = [[m for m in talk if m[0] != "system"] for talk in wanted]
        assert conversations(copy) == wanted
        if format != "openai":
            assert copy.tally(Turn, "user").keys() == (full.tally(Turn, "user") if format != "wildchat" else
                                                       copy.tally(Turn, "user")).keys()  # fmt: skip
        if format not in ("afterword",):
            assert copy.count(Feedback, kind="follow_up") == full.count(Feedback, kind="follow_up")


def test_a_user_leaves_wildchats_shape_only_as_a_hash(full: Store, store: Store) -> None:
    rows = out(full, "turns", "wildchat")
    assert len({row["hashed_ip"] for row in rows}) == 2 and all(len(row["hashed_ip"]) == 64 for row in rows)
    assert {"conversation_hash", "turn", "openai_moderation", "toxic", "header"} <= rows[0].keys()


@pytest.mark.parametrize("format", ["tensorzero", "langfuse", "events", "afterword"])
def test_feedback_comes_back(full: Store, tmp_path: Path, format: str) -> None:
    rows = out(full, "feedback", format)
    with Store.open(tmp_path / "copy.db") as copy:
        summary = load(copy, tmp_path, rows, name="f.jsonl")
        assert summary.format == format and not summary.rejected
        kinds = copy.tally(Feedback, "kind")
        if format == "afterword":
            assert kinds == full.tally(Feedback, "kind")
        elif format != "events":
            assert kinds.get("rating") == 1 and copy.get(Feedback, "r").value == 0.5
            edit = copy.get(Feedback, "e")
            assert (edit.final_text or edit.text) == "So, so." and edit.turn == full.get(Feedback, "e").turn


@pytest.mark.parametrize("format", ["openai-preference", "wildfeedback"])
def test_preferences_come_back(full: Store, tmp_path: Path, format: str) -> None:
    rows = out(full, "interactions", format)
    assert len(rows) == 2
    with Store.open(tmp_path / "copy.db") as copy:
        summary = load(copy, tmp_path, rows, name="p.jsonl")
        assert summary.format == format.split("-")[0] and not summary.rejected
        assert {f.text for f in copy.rows(Feedback)} == {"So, so.", "Like so."}
        assert {t.answer["content"] for t in copy.rows(Turn)} == {"S 0.", "S 1."}


def test_triples_have_the_lengths_of_their_schema(full: Store) -> None:
    row = out(full, "interactions", "triples")[0]
    assert row["prompt_len"] + row["completion_len"] == row["total_conv_len"] > 10
    assert full.count(Interaction) >= 4


def test_an_export_that_fails_leaves_no_file(full: Store, tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    with pytest.raises(UsageError, match=r"make no table.*jsonl"), container(path) as rows:
        rows.write(b'{"a": 1}\n')
        rows.write(b'{"a": [1]}\n')
    with pytest.raises(UsageError, match="cannot write"), container(tmp_path / "none" / "a.jsonl"):
        pass
    with pytest.raises(KeyboardInterrupt), container(tmp_path / "out.jsonl"):
        raise KeyboardInterrupt
    assert list(tmp_path.glob("out*")) == []
    with container(tmp_path / "out.json"):
        pass
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == []
