"""The logs of TensorZero and Langfuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from afterword.formats.naming import WAITING, Traces
from afterword.records import Feedback, Turn
from afterword.store import Store
from tests.feedback.import_rows import load, reasons, said

UUID = "0192b1f4-3c5e-7d10-8a54-2f6b0c7d9e11"


SECONDS = int("0192b1f43c5e", 16) / 1000


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
    assert reasons(summary) == {"value_range": 1}
    found = {f.id: (f.turn, f.kind, f.value, f.text) for f in store.rows(Feedback)}
    (nameless,) = found.keys() - {"1", "2", "3", "4", "5"}
    assert nameless.startswith("fb-") and found.pop(nameless) == (UUID, "rating", 1.0, None)
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


def test_a_trace_of_many_generations_is_noted_before_a_mark_passes_it(store: Store) -> None:
    """A kill may come at any time; what is not noted when the mark moves on would be passed over."""
    traces = Traces(store)
    for n in range(WAITING):
        turn = Turn(id=f"g{n}", messages=(), answer={}, created_at=float(n))
        traces.link({"id": f"g{n}", "traceId": "long", "type": "GENERATION"}, [turn])
    assert store.turn_of_trace("long") == f"g{WAITING - 1}"


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


def test_a_score_on_a_trace_is_about_its_last_generation(store: Store, tmp_path: Path) -> None:
    """The blob export gives observations and scores as rows of files of their own; scores often name the trace only."""
    row: dict[str, Any] = {"trace_id": "t", "type": "GENERATION", "user_id": "u1", "input": "How?", "output": "So."}
    observations = [
        {**row, "id": "o2", "start_time": "2026-01-02 03:04:07.000000"},
        {**row, "id": "o1", "start_time": "2026-01-02 03:04:06.000000", "output": "cooking"},
        {**row, "id": "o0", "type": "SPAN"},
    ]
    score = {"id": "s1", "trace_id": "t", "observation_id": None, "name": "thumb", "data_type": "BOOLEAN", "value": 0}
    other = {**score, "id": "s2", "observation_id": "o1"}
    unknown = {**score, "id": "s3", "trace_id": "elsewhere"}
    session = {**score, "id": "s9", "trace_id": None, "session_id": "s"}
    load(store, tmp_path, observations, name="observations.jsonl")
    apart = load(store, tmp_path, [score, other, unknown, session], name="scores.jsonl")  # the trace is remembered
    assert reasons(apart) == {"no_trace": 1}
    assert {f.id: f.turn for f in store.rows(Feedback)} == {"s1": "o2", "s2": "o1", "s3": "elsewhere"}
    late = {**row, "id": "o3", "start_time": "2026-01-02 03:04:09.000000"}
    load(store, tmp_path, [late, {**score, "id": "s4"}], name="late.jsonl")
    again = load(store, tmp_path, [score], name="again.jsonl")
    assert store.get(Feedback, "s4").turn == "o3" and (again.duplicates, again.conflicts) == (1, 0)
    load(store, tmp_path, [{**TRACE, "id": "tr-9", "scores": []}, {**score, "id": "s5", "trace_id": "tr-9"}], name="t")
    assert store.get(Feedback, "s5").turn == "tr-9"  # a whole trace is a turn of its own
