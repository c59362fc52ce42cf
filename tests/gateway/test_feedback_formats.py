"""A record is the same turn and the same feedback from a file and over HTTP: one reader for both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.gateway.gateway_setup import Setup

from afterword.feedback.importing.imports import import_file
from afterword.kinds import ACTIONS
from afterword.records import Feedback, Json, Turn, content_hash
from afterword.store import Store

AT = "2026-01-01T00:00:00Z"
EVENT: Json = {"model_version": "m1", "task": "email", "prompt": "Write to Bob", "draft": "Dear Bob",
               "user_action": "edited", "user_edit": "Hi Bob", "follow_up": "Less formal", "signal_weight": 0.8,
               "created_at": AT}  # fmt: skip
SCORE: Json = {"id": "s1", "traceId": "t1", "observationId": "o1", "name": "q", "timestamp": AT}
TABLE: Json = {"id": "t1", "inference_id": "i1", "timestamp": AT}

RECORDS: dict[str, list[Json]] = {
    "events": [
        EVENT,
        {**EVENT, "user": "ada", "conversation": "c"},
        {**EVENT, "prompt": [{"role": "user", "content": "Again"}]},
        *({"prompt": "p", "draft": name, "user_action": name, "user_edit": "e"} for name in sorted(ACTIONS)),
        {"prompt": "p", "draft": "no action", "user_action": ""},
        {"prompt": "p", "draft": "d", "user_action": "accepted"},
        {"prompt": "p", "draft": "d", "user_action": "retry"},
    ],
    "langfuse": [
        {**SCORE, "id": "1", "value": 1, "dataType": "BOOLEAN", "source": "ANNOTATION"},
        {**SCORE, "id": "2", "value": -0.5, "comment": "Meh", "authorUserId": "ada", "app": "ours"},
        {**SCORE, "id": "3", "comment": "Only words"},
        {**SCORE, "id": "4", "value": 0, "dataType": "CORRECTION", "stringValue": "Better so."},
        {**SCORE, "id": "5", "value": 0, "data_type": "TEXT", "string_value": "Too long"},
        {**SCORE, "id": "6", "name": "demonstration", "value": "So."},
        {**SCORE, "id": "7", "observationId": None, "value": True},
        {"observationId": "o1", "name": "without an id", "value": 0.25},
    ],
    "tensorzero": [
        {**TABLE, "id": "1", "metric_name": "solved", "value": False, "tags": {"user_id": "u1"}, "app": "ours"},
        {**TABLE, "id": "2", "metric_name": "quality", "value": 0.25},
        {**TABLE, "id": "3", "metric_name": "comment", "value": "Too long."},
        {**TABLE, "id": "4", "metric_name": "demonstration", "value": "Blue."},
        {**TABLE, "id": "5", "value": '[{"type": "text", "text": "So."}]'},
        {"id": "6", "target_id": "i1", "target_type": "inference", "value": "why?"},
        {"inference_id": "i1", "metric_name": "without an id", "value": True},
    ],
    "afterword": [
        {"id": "1", "turn": "t1", "kind": "rating", "value": -1, "app": "ours", "metadata": {"page": 3}},
        {"record": "feedback", "id": "2", "turn": "t1", "kind": "follow_up", "text": "So?", "next_turn": "t2",
         "created_at": 1767225600.0, "schema": 1, "source": "detector"},
        {"turn": "t1", "kind": "edited", "final_text": "So.", "occurred_at": AT},
        {"turn": "t1", "kind": "tests", "exit_code": 1, "output": "no", "user": "ada", "source": "end_user"},
    ],
}  # fmt: skip


def rows_of(store: Store) -> list[Json]:
    """Turns and feedback without the time at which they arrived."""
    rows = [row.to_dict() for kind in (Turn, Feedback) for row in store.rows(kind)]
    return sorted(({k: v for k, v in row.items() if k != "created_at"} for row in rows), key=lambda row: str(row["id"]))


@pytest.mark.parametrize("format", RECORDS)
def test_the_same_records_give_the_same_rows_from_a_file_and_over_http(
    gateway: Setup, tmp_path: Path, format: str
) -> None:
    records = RECORDS[format]
    results = gateway.post("/v1/feedback", {"events": records}).json()["results"]
    assert {result["status"] for result in results} <= {"stored", "held"}, results
    file = tmp_path / "records.jsonl"
    file.write_bytes(b"\n".join(map(orjson.dumps, records)))
    with Store.open(tmp_path / "other.db") as other:
        summary = import_file(other, file)
        assert (summary.format, dict(summary.rejected), summary.conflicts) == (format, {}, 0)
        assert rows_of(other) == rows_of(gateway.store)
    again = import_file(gateway.store, file)
    assert again.stored == 0 and again.conflicts == 0, "what came over HTTP is known in a file"


def test_a_score_on_a_trace_is_about_its_last_generation_over_http_too(gateway: Setup, tmp_path: Path) -> None:
    generation = {"id": "o1", "trace_id": "t1", "type": "GENERATION", "input": "How?", "output": "So."}
    file = tmp_path / "observations.jsonl"
    file.write_bytes(orjson.dumps(generation))
    import_file(gateway.store, file)
    score = {"id": "s1", "traceId": "t1", "name": "q", "value": 1, "dataType": "BOOLEAN"}
    assert gateway.post("/v1/feedback", score).json() == {"id": "s1", "turn": "o1", "status": "stored"}


def test_records_that_an_older_version_stored_over_http_are_known_again(gateway: Setup) -> None:
    """It hashed the whole record to a name of its own."""
    name = content_hash("events", EVENT)
    at, weight = 1767225600.0, {"signal_weight": 0.8}
    shared: Json = {"turn": f"turn-{name}", "occurred_at": at, "metadata": weight, "source": "api"}
    gateway.store.write(
        Turn(id=f"turn-{name}", messages=({"role": "user", "content": "Write to Bob"},), task="email", model="m1",
             answer={"role": "assistant", "content": "Dear Bob"}, finish_reason="stop", source="import:events",
             missing_ids="imported", created_at=at),
        Feedback(id=f"fb-{name}", kind="edited", final_text="Hi Bob", **shared),
        Feedback(id=f"fb-{name}-f", kind="follow_up", text="Less formal", **shared),
    )  # fmt: skip
    assert gateway.post("/v1/feedback", EVENT).json()["status"] == "duplicate"
    assert gateway.store.count(Turn) == 1 and gateway.store.count(Feedback) == 2


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]},
        {"id": "o1", "trace_id": "t", "type": "GENERATION", "input": "How?", "output": "So.", "user_id": "u"},
        {"record": "turns", "id": "t", "schema": 1, "messages": [], "answer": {}},
    ],
)
def test_rows_that_are_no_feedback_are_refused_over_http(gateway: Setup, row: dict[str, Any]) -> None:
    answer = gateway.post("/v1/feedback", row)
    assert answer.status_code == 422, answer.text
    assert gateway.store.count(Turn) == 0


@pytest.mark.parametrize(
    "row, param",
    [
        ({"prompt": "Hi", "user_action": "accepted"}, "draft"),
        ({"draft": "Hello", "user_action": "accepted"}, "prompt"),
        ({"prompt": "Hi", "draft": "Hello", "user_action": "accepted", "weight": "zero"}, "weight"),
        ({"kind": "rating", "value": 1, "prompt": "Hi"}, "turn"),
    ],
)
def test_an_invalid_field_of_a_record_is_named_over_http(gateway: Setup, row: dict[str, Any], param: str) -> None:
    answer = gateway.post("/v1/feedback", row)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)
