"""The schemas of other products and data sets, in and out again."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard

from afterword.errors import UsageError
from afterword.feedback import collect, sink
from afterword.feedback.files import Bad, Source
from afterword.feedback.imports import ImportSummary, files_of, import_file
from afterword.records import Feedback, Interaction, Turn
from afterword.store import Store
from afterword.store.containers import container
from afterword.store.export import export

ARROW = pytest.importorskip("pyarrow")
PARQUET = pytest.importorskip("pyarrow.parquet")

UUID = "0192b1f4-3c5e-7d10-8a54-2f6b0c7d9e11"
SECONDS = int("0192b1f43c5e", 16) / 1000


def said(*texts: str) -> list[dict[str, Any]]:
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "data" / "afterword.db") as opened:
        yield opened


def load(store: Store, tmp_path: Path, rows: list[Any], format: str = "auto", name: str = "log.jsonl") -> ImportSummary:
    path = tmp_path / name
    path.write_bytes(b"\n".join(orjson.dumps(row) for row in rows))
    return import_file(store, path, format)


def reasons(summary: ImportSummary) -> dict[str, int]:
    return dict(summary.rejected)


def out(store: Store, what: str, format: str) -> list[dict[str, Any]]:
    sink = io.BytesIO()
    export(store, what, format, sink)
    return [orjson.loads(line) for line in sink.getvalue().splitlines()]


# ---- TensorZero

INFERENCE = {
    "id": UUID, "function_name": "support", "variant_name": "small", "episode_id": "ep-1",
    "input": json.dumps({"system": "Be nice.", "messages": [
        {"role": "user", "content": [{"type": "text", "text": "How?"}]}]}),
    "output": json.dumps([{"type": "thought", "text": "hm"}, {"type": "text", "text": "So."}]),
    "inference_params": json.dumps({"chat_completion": {"temperature": 0.5}}), "tags": {"user_id": "u1"},
}  # fmt: skip
SECOND = {
    **INFERENCE, "id": "inf-2", "timestamp": "2026-01-02 03:04:05",
    "input": {"system": {"tone": "nice"}, "messages": [
        {"role": "user", "content": "How?"}, {"role": "assistant", "content": [{"type": "text", "value": "So."}]},
        {"role": "user", "content": [{"type": "text", "text": "Shorter."}]}]},
    "output": [{"type": "tool_call", "id": "c", "name": "look", "arguments": {"q": 1}}],
}  # fmt: skip


def test_tensorzero_inferences(store: Store, tmp_path: Path) -> None:
    summary = load(store, tmp_path, [INFERENCE, SECOND])
    assert (summary.format, summary.turns, reasons(summary)) == ("tensorzero", 2, {})
    first, second = store.get(Turn, UUID), store.get(Turn, "inf-2")
    assert first.messages == ({"role": "system", "content": "Be nice."}, *said("How?"))
    assert first.answer == {"role": "assistant", "content": "So."} and first.sampling == {"temperature": 0.5}
    assert (first.user, first.conversation, first.task, first.model) == ("u1", "ep-1", "support", "small")
    assert first.created_at == SECONDS and second.created_at == 1767323045.0
    assert second.answer["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"q":1}'}


def test_a_request_that_carries_the_history_is_a_follow_up(store: Store, tmp_path: Path) -> None:
    system = {"system": "Be nice.", "messages": [
        {"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."},
        {"role": "user", "content": "Shorter."}]}  # fmt: skip
    follower = {**SECOND, "input": system}
    summary = load(store, tmp_path, [INFERENCE, follower])
    (row,) = store.rows(Feedback)
    assert (row.turn, row.kind, row.text, row.next_turn, row.user) == (UUID, "follow_up", "Shorter.", "inf-2", "u1")
    assert store.get(Turn, "inf-2").previous == UUID and summary.feedback == 1
    stranger = {**follower, "id": "inf-3", "tags": {"user_id": "u2"}}
    assert load(store, tmp_path, [stranger], name="b.jsonl").feedback == 0  # never across users
    late = {**follower, "id": "inf-4", "output": "Now?"}
    assert load(store, tmp_path, [late], name="c.jsonl").feedback == 1  # found in the store


def test_tensorzero_feedback(store: Store, tmp_path: Path) -> None:
    rows = [
        {"id": "1", "target_id": UUID, "metric_name": "solved", "value": False, "tags": {"user_id": "u1"}},
        {"id": "2", "target_id": UUID, "metric_name": "score", "value": 0.25, "timestamp": "2026-01-02T03:04:05Z"},
        {"id": "3", "target_id": UUID, "target_type": "inference", "value": "too long"},
        {"id": "4", "inference_id": UUID, "value": json.dumps([{"type": "text", "text": "Briefly so."}])},
        {"id": "5", "inference_id": UUID, "metric_name": "comment", "value": "why?"},
        {"id": "6", "target_id": UUID, "metric_name": "seconds", "value": 17.5},
        {"target_id": UUID, "metric_name": "solved", "value": True},
    ]
    summary = load(store, tmp_path, rows, "tensorzero")
    assert reasons(summary) == {"value_range": 1, "no_id": 1}
    found = {f.id: (f.turn, f.kind, f.value, f.text) for f in store.rows(Feedback)}
    assert found == {
        "1": (UUID, "rating", -1.0, None), "2": (UUID, "rating", 0.25, None), "3": (UUID, "comment", None, "too long"),
        "4": (UUID, "demonstration", None, "Briefly so."), "5": (UUID, "comment", None, "why?"),
    }  # fmt: skip
    assert store.get(Feedback, "2").occurred_at == 1767323045.0 and store.get(Feedback, "1").user == "u1"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": None}, "no_id"), ({"input": "{}"}, "no_messages"), ({"input": {"messages": []}}, "no_messages"),
        ({"input": {"messages": [{"role": "boss", "content": "x"}]}}, "bad_message"), ({"output": 3}, "no_answer"),
    ],
)  # fmt: skip
def test_bad_tensorzero_rows(store: Store, tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    assert reasons(load(store, tmp_path, [{**INFERENCE, **change}], "tensorzero")) == {reason: 1}


def test_tensorzero_tools_json_functions_and_templates(store: Store, tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": [{"type": "template", "name": "t", "arguments": {"city": "Rome"}}]},
        {"role": "assistant", "content": [{"type": "tool_call", "id": "c", "name": "w", "raw_arguments": "{}"}]},
        {"role": "user", "content": [{"type": "tool_result", "id": "c", "name": "w", "result": "rain"}]},
        {"role": "user", "content": {"q": 1}},
    ]
    row = {**INFERENCE, "input": {"messages": messages}, "output": {"raw": '{"a":1}', "parsed": {"a": 1}}}
    load(store, tmp_path, [row])
    turn = store.get(Turn, UUID)
    assert [m["role"] for m in turn.messages] == ["user", "assistant", "tool", "user"]
    assert turn.messages[2] == {"role": "tool", "tool_call_id": "c", "content": "rain"}
    assert turn.answer["content"] == '{"a":1}' and turn.messages[0]["content"] == '{"city":"Rome"}'


# ---- Langfuse

TRACE = {
    "id": "tr-1", "timestamp": "2026-01-02T03:04:05.000Z", "name": "chat", "userId": "u1", "sessionId": "s1",
    "input": "ignored", "output": "ignored",
    "observations": [
        {"id": "ob-2", "type": "GENERATION", "startTime": "2026-01-02T03:04:07Z", "model": "m2",
         "modelParameters": {"temperature": 0.1}, "input": {"messages": said("How?")},
         "output": {"role": "assistant", "content": "So."}},
        {"id": "ob-1", "type": "GENERATION", "startTime": "2026-01-02T03:04:06Z", "input": said("Route this."),
         "output": {"choices": [{"message": {"role": "assistant", "content": "support"}}]}},
        {"id": "ob-0", "type": "SPAN", "input": None, "output": None},
    ],
    "scores": [{"id": "sc-1", "name": "thumb", "value": 1, "dataType": "BOOLEAN", "observationId": "ob-2"},
               {"id": "sc-2", "name": "note", "stringValue": "too long", "value": 0, "dataType": "TEXT"}],
}  # fmt: skip


def test_langfuse_traces(store: Store, tmp_path: Path) -> None:
    summary = load(store, tmp_path, [TRACE])
    assert (summary.format, summary.turns, summary.feedback, reasons(summary)) == ("langfuse", 2, 2, {})
    last, first = store.get(Turn, "tr-1"), store.get(Turn, "ob-1")
    assert last.messages == tuple(said("How?")) and last.answer["content"] == "So."
    assert (last.user, last.conversation, last.task, last.model) == ("u1", "s1", "chat", "m2")
    assert last.created_at == 1767323047.0 and last.sampling == {"temperature": 0.1}
    assert first.answer["content"] == "support" and first.user == "u1"
    found = {f.id: (f.turn, f.kind, f.value, f.text) for f in store.rows(Feedback)}
    assert found == {"sc-1": ("tr-1", "rating", 1.0, None), "sc-2": ("tr-1", "comment", None, "too long")}


def test_langfuse_rows_of_the_blob_export(store: Store, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "o1", "trace_id": "t", "type": "GENERATION", "start_time": "2026-01-02 03:04:05.000000",
         "provided_model_name": "m", "model_parameters": '{"top_p":0.9}', "user_id": "u1", "session_id": "s",
         "input": json.dumps(said("How?")), "output": "So.", "usage_details": {"output": 3}},
        {"id": "o2", "trace_id": "t", "type": "GENERATION", "start_time": "2026-01-02 03:05:05.000000",
         "user_id": "u1", "session_id": "s", "input": json.dumps(said("How?", "So.", "Shorter.")),
         "output": json.dumps({"role": "assistant", "content": "S."})},
        {"id": "o3", "trace_id": "t", "type": "SPAN", "input": "", "output": ""},
        {"id": "s1", "trace_id": "t", "observation_id": "o1", "name": "x", "data_type": "NUMERIC", "value": -0.5,
         "source": "ANNOTATION", "comment": "meh", "timestamp": "2026-01-02 03:04:09.000000"},
        {"id": "s2", "trace_id": "t", "observation_id": "o2", "name": "fix", "data_type": "CORRECTION", "value": 0,
         "string_value": "S!"},
        {"id": "s3", "trace_id": "t", "name": "c", "data_type": "CATEGORICAL", "value": 2, "string_value": "good"},
        {"id": "s4", "trace_id": "t", "name": "n", "data_type": "NUMERIC", "value": 5},
    ]  # fmt: skip
    summary = load(store, tmp_path, rows)
    assert reasons(summary) == {"no_generation": 1, "categorical": 1, "value_range": 1}
    turn = store.get(Turn, "o1")
    assert (turn.sampling, turn.usage, turn.created_at) == ({"top_p": 0.9}, {"output": 3}, 1767323045.0)
    found = {f.id: (f.turn, f.kind, f.value, f.text, f.final_text, f.source) for f in store.rows(Feedback)}
    assert found == {
        "fb-o1-o2": ("o1", "follow_up", None, "Shorter.", None, "detector"),
        "s1": ("o1", "rating", -0.5, "meh", None, "reviewer"), "s2": ("o2", "edited", None, None, "S!", "api"),
    }  # fmt: skip


def test_a_downloaded_trace_and_one_without_observations(store: Store, tmp_path: Path) -> None:
    inner = {k: v for k, v in TRACE.items() if k not in ("observations", "scores")}
    downloaded = {"trace": {**inner, "id": "tr-2"}, "observations": TRACE["observations"], "scores": []}
    bare = {**inner, "id": "tr-3", "input": "How?", "output": {"answer": 3}}
    summary = load(store, tmp_path, [downloaded, bare])
    assert summary.turns == 3 and not summary.rejected
    assert store.get(Turn, "tr-2").answer["content"] == "So."
    assert store.get(Turn, "tr-3").answer["content"] == '{"answer":3}'


@pytest.mark.parametrize("change", [{"input": None}, {"output": ""}, {"input": [3]}, {"id": None}, {"output": 3}])
def test_bad_langfuse_rows(store: Store, tmp_path: Path, change: dict[str, Any]) -> None:
    row = {"id": "t", "userId": "u", "input": "How?", "output": "So.", **change}
    assert sum(load(store, tmp_path, [row], "langfuse").rejected.values()) == 1 and store.count(Turn) == 0


# ---- data sets


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


# ---- out and in again


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
        written = export(full, "turns", format, rows, to=path)
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


# ---- Parquet, folders


def test_parquet_that_is_cut_or_damaged(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = ARROW.Table.from_pylist([{"messages": said(f"How {n}? " + "x" * n, "So.")} for n in range(3000)])
    PARQUET.write_table(table, path, row_group_size=500, compression="none", use_dictionary=False)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match="no whole Parquet file"):
        import_file(store, path)
    middle = len(data) // 2
    path.write_bytes(data[:middle] + b"\xff" * 4000 + data[middle + 4000 :])
    summary = import_file(store, path)
    assert 0 < summary.turns < 3000 and summary.rejected["broken_archive"] == 1


@pytest.mark.parametrize("skip", [0, 1, 499, 500, 1250, 3000, 4000])
def test_rows_are_passed_over_in_every_container(tmp_path: Path, skip: int) -> None:
    rows = [{"messages": said(f"How {n}?", "So.")} for n in range(3000)]
    lines = b"\n".join(orjson.dumps(row) for row in rows)
    PARQUET.write_table(ARROW.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=500)
    (tmp_path / "a.jsonl").write_bytes(b"\n\nnot json\n" + lines)
    (tmp_path / "a.json").write_bytes(orjson.dumps(rows))
    (tmp_path / "a.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.zst").write_bytes(zstandard.compress(lines))
    for file in tmp_path.iterdir():
        whole, rest = Source(file), Source(file)
        everything = list(whole.rows())
        assert list(rest.rows(skip)) == everything[skip:], file.name
        assert sum(isinstance(item, Bad) for item in everything) == (file.name == "a.jsonl")
        whole.close()
        rest.close()


def test_folders_are_read_file_by_file(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    (folder / "2026" / ".git").mkdir(parents=True)
    row = json.dumps({"messages": said("How?", "So.")})
    for name in ("b.jsonl", "a.json", "2026/c.JSONL", "notes.md", "2026/.git/d.json", ".hidden.json"):
        (folder / name).write_text(row, encoding="utf-8")
    found = files_of(folder)
    assert [(p.relative_to(folder).as_posix(), n) for p, n in found] == [
        ("2026/c.JSONL", "logs/2026/c.JSONL"), ("a.json", "logs/a.json"), ("b.jsonl", "logs/b.jsonl"),
    ]  # fmt: skip
    assert files_of(folder / "notes.md") == [(folder / "notes.md", "notes.md")]
    with pytest.raises(UsageError, match="holds no file named"):
        files_of(tmp_path / "data")


KILLED = """
import os, signal, sys
from pathlib import Path
from afterword.feedback import sink
from afterword.feedback.imports import import_file
from afterword.store import Store
sink.GROUP = 50
if len(sys.argv) > 3:
    sink.IN_ORDER, sink.WINDOW = 100, 200
calls = 0
def progress(position, size):
    global calls
    calls += 1
    if calls == 12:
        os.kill(os.getpid(), signal.SIGKILL)
with Store.open(Path(sys.argv[1])) as store:
    import_file(store, Path(sys.argv[2]), progress=progress)
"""


@pytest.mark.parametrize("name", ["log.jsonl", "log.json", "log.jsonl.gz", "log.parquet"])
def test_a_killed_import_goes_on_where_its_last_commit_was(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows: list[Any] = [{"messages": said(f"How {n}?", "So.", "Shorter.", "S.")} for n in range(600)]
    rows[10] = rows[500] = {"messages": []}
    with container(path) as lines:
        for row in rows:
            lines.write(orjson.dumps(row) + b"\n")
    database = tmp_path / "data" / "afterword.db"
    done = subprocess.run([sys.executable, "-c", KILLED, str(database), str(path)], check=False, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL
    with Store.open(database) as store, Store.open(tmp_path / "clean" / "a.db") as clean:
        before = store.count(Turn)
        summary, whole = import_file(store, path), import_file(clean, path)
        assert 0 < before < 1196 and summary.resumed_at > 50
        assert store.counts() == clean.counts() and store.count(Turn) == 1196 and store.count(Feedback) == 598
        assert (summary.rows, summary.turns, reasons(summary)) == (600, 1196, reasons(whole))
        assert summary.stored + summary.duplicates == whole.stored and summary.conflicts == 0
        assert summary.rejects is not None and whole.rejects is not None
        assert Path(summary.rejects).read_bytes() == Path(whole.rejects).read_bytes()
        assert not list((tmp_path / "data" / "imports").glob("*.json"))


def test_an_import_that_is_killed_between_windows_goes_on_behind_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps({"messages": said(f"How {n}?", "So.", "Hm.", "S.")}) for n in range(600)))
    database = tmp_path / "data" / "afterword.db"
    command = [sys.executable, "-c", KILLED, str(database), str(path), "windows"]
    assert subprocess.run(command, check=False, env=dict(os.environ)).returncode == -signal.SIGKILL
    with Store.open(database) as store:
        before = store.count(Turn)
        summary = import_file(store, path)
        assert 0 < before < 1200 and summary.resumed_at > 50
        assert summary.stored + summary.duplicates == 1800 and summary.conflicts == 0
        assert (store.count(Turn), store.count(Feedback)) == (1200, 600)


def test_behind_its_beginning_a_file_is_stored_in_windows_that_are_sorted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("GROUP", 10), ("IN_ORDER", 30), ("WINDOW", 60)):
        monkeypatch.setattr(sink, name, value)
    path = tmp_path / "log.jsonl"
    rows = [{"id": str(n % 150), "model": f"m{n}", "messages": said(f"How {n % 150}?", "So.", "Hm.", "S.")}
            for n in range(200)]  # fmt: skip
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    with Store.open(tmp_path / "a.db") as store:
        summary = import_file(store, path)
        turns = list(store.rows(Turn))
    assert (summary.turns, summary.stored, summary.rows) == (400, 450, 200)
    assert summary.duplicates + summary.conflicts == 150 and summary.conflicts == 100
    # Of a conversation that comes twice the first stays, and a turn stands behind the one it continues.
    assert {turn.model for turn in turns} == {f"m{n}" for n in range(150)}
    places = {turn.id: place for place, turn in enumerate(turns)}
    assert all(places[turn.previous] == place - 1 for place, turn in enumerate(turns) if turn.previous)
    ids = [turn.id for turn in turns]
    assert [turn.model for turn in turns[:20:2]] == [f"m{n}" for n in range(10)] and ids[:20] != sorted(ids[:20])
    assert ids[20:60] == sorted(ids[20:60]) and ids[20:] != sorted(ids[20:])


def test_a_window_of_few_large_rows_is_stored_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("GROUP", 4), ("IN_ORDER", 0), ("WINDOW_BYTES", 10_000)):
        monkeypatch.setattr(sink, name, value)
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps({"messages": said(f"{n}" * 2000, "So.")}) for n in range(10, 40)))
    held: list[int] = []
    with Store.open(tmp_path / "a.db") as store:
        import_file(store, path, progress=lambda position, size: held.append(store.count(Turn)))
        assert store.count(Turn) == 30
    assert max(held) >= 12, "nothing was stored before the end of the file"


def test_a_mark_of_another_database_or_another_file_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps({"messages": said(f"How {n}?", "So.")}) for n in range(600)))
    database = tmp_path / "data" / "afterword.db"
    subprocess.run([sys.executable, "-c", KILLED, str(database), str(path)], check=False, env=dict(os.environ))
    for file in database.parent.glob("afterword.db*"):
        file.unlink()
    with Store.open(database) as store:
        summary = import_file(store, path)
        assert (summary.resumed_at, summary.stored) == (0, 600)
    subprocess.run([sys.executable, "-c", KILLED, str(database), str(path)], check=False, env=dict(os.environ))
    path.write_bytes(path.read_bytes() + b"\n" + orjson.dumps({"messages": said("New?", "So.")}))
    with Store.open(database) as store:
        summary = import_file(store, path)
        assert (summary.resumed_at, summary.stored, summary.duplicates) == (0, 1, 600)
