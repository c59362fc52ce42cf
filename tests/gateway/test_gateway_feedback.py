"""POST /v1/feedback: each event has a status, is on disk before the 202, and is never stored twice."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.gateway_setup import Setup

from afterword.errors import UsageError
from afterword.formats.parsing import MISSING_IDS, Hashed
from afterword.gateway.wire.feedback import parse_event
from afterword.records import FEEDBACK_KINDS, Feedback, Json, Record, Turn
from afterword.store import Store
from afterword.store.erasure.erase import Eraser

PATH = "/v1/feedback"


def records_of(event: Any) -> list[Record]:
    """The records of an event; those without ids under one of ours."""
    found = parse_event(event)
    return found.records("t") if isinstance(found, Hashed) else found


def test_an_event_is_stored_once(gateway: Setup) -> None:
    turn = gateway.chat("Hi")["id"]
    event = {"id": "fb-1", "turn": turn, "kind": "rating", "value": -0.5, "user": "ada", "app": "mine",
             "metadata": {"page": 3}, "occurred_at": "2026-11-21T10:00:00+00:00"}  # fmt: skip
    first = gateway.post(PATH, event)
    assert first.status_code == 202 and first.json() == {"id": "fb-1", "turn": turn, "status": "stored"}
    assert gateway.post(PATH, event).json()["status"] == "duplicate"
    conflict = gateway.post(PATH, {**event, "value": 1})
    assert conflict.status_code == 409 and "other content" in conflict.json()["error"]["message"]
    (row,) = gateway.feedback()
    assert row.metadata == {"app": "mine", "page": 3} and row.occurred_at == 1795255200.0


def test_without_an_id_the_content_is_the_id(gateway: Setup) -> None:
    turn = gateway.chat("Hi")["id"]
    event = {"turn": turn, "kind": "copied"}
    first, second = gateway.post(PATH, event).json(), gateway.post(PATH, event).json()
    assert first["status"] == "stored" and second["status"] == "duplicate" and first["id"] == second["id"]


def test_feedback_may_be_earlier_than_its_turn(gateway: Setup) -> None:
    assert gateway.post(PATH, {"turn": "chatcmpl-later", "kind": "accepted"}).json()["status"] == "held"
    assert gateway.get("/health").json()["store"]["held_feedback"] == 1
    assert list(gateway.store.undecided()) == []
    gateway.store.write(Turn(id="chatcmpl-later", messages=(), answer={}))
    assert [event.turn for event in gateway.store.undecided()] == ["chatcmpl-later"]
    assert gateway.get("/health").json()["store"]["held_feedback"] == 0


def test_a_batch_has_a_status_for_each(gateway: Setup) -> None:
    turn = gateway.chat("Hi")["id"]
    gateway.post(PATH, {"id": "fb-0", "turn": turn, "kind": "copied"})
    events: list[Any] = [
        {"id": "fb-1", "turn": turn, "kind": "accepted"},
        {"id": "fb-1", "turn": turn, "kind": "accepted"},
        {"id": "fb-0", "turn": turn, "kind": "saved"},
        {"turn": "nowhere", "kind": "saved"},
        {"turn": turn, "kind": "edited"},
        7,
    ]
    response = gateway.post(PATH, {"events": events})
    assert response.status_code == 202
    results = response.json()["results"]
    assert [r["status"] for r in results] == ["stored", "duplicate", "rejected", "held", "rejected", "rejected"]
    assert "conflict" in results[2]["why"] and "final_text" in results[4]["why"] and "object" in results[5]["why"]
    assert gateway.store.count(Feedback) == 3
    metrics = gateway.get("/metrics").text
    assert 'afterword_feedback_total{kind="accepted",status="stored"} 1.0' in metrics


def test_only_rejected_events_write_nothing(gateway: Setup) -> None:
    response = gateway.post(PATH, {"events": [{"kind": "accepted"}]})
    assert response.status_code == 202 and response.json()["results"][0]["status"] == "rejected"


@pytest.mark.parametrize("events", [[], {}, "x", [{"turn": "t", "kind": "copied"}] * 1001])
def test_a_batch_out_of_shape_is_refused(gateway: Setup, events: Any) -> None:
    response = gateway.post(PATH, {"events": events})
    assert response.status_code == 422 and response.json()["error"]["param"] == "events"


@pytest.mark.parametrize(
    ("event", "param"),
    [
        ({"turn": "t", "kind": "edited"}, "final_text"),
        ({"turn": "t", "kind": "edited", "final_text": ""}, "final_text"),
        ({"turn": "t", "kind": "rating"}, "value"),
        ({"turn": "t", "kind": "rating", "value": 1.5}, "value"),
        ({"turn": "t", "kind": "rating", "value": True}, "value"),
        ({"turn": "t", "kind": "rating", "value": "good"}, "value"),
        ({"turn": "t", "kind": "follow_up"}, "text"),
        ({"turn": "t", "kind": "comment", "text": 3}, "text"),
        ({"turn": "t", "kind": "executed"}, "exit_code"),
        ({"turn": "t", "kind": "tests", "exit_code": 1.5}, "exit_code"),
        ({"turn": "t", "kind": "tests", "exit_code": True}, "exit_code"),
        ({"turn": "t", "kind": "liked"}, "kind"),
        ({"turn": "t", "kind": "retraction"}, "kind"),
        ({"turn": "t"}, "kind"),
        ({"kind": "copied"}, "turn"),
        ({"turn": "t", "kind": "copied", "source": "me"}, "source"),
        ({"turn": "t", "kind": "copied", "metadata": 3}, "metadata"),
        ({"turn": "t", "kind": "copied", "occurred_at": "tomorrow"}, "occurred_at"),
        ({"turn": "t", "kind": "copied", "occurred_at": []}, "occurred_at"),
        ([], None),
    ],
)
def test_unusable_events_say_why(gateway: Setup, event: Any, param: str | None) -> None:
    response = gateway.post(PATH, event)
    assert response.status_code == 422, response.text
    assert response.json()["error"]["param"] == param
    assert gateway.store.count(Feedback) == 0


def test_not_a_number_and_not_json(gateway: Setup) -> None:
    for value in ("NaN", "Infinity", "1e999"):
        body = b'{"turn": "t", "kind": "rating", "value": %s}' % value.encode()
        response = httpx.post(gateway.url + PATH, content=body)
        assert response.status_code == 422 and "finite" in response.json()["error"]["message"]
    response = httpx.post(gateway.url + PATH, content=b"{")
    assert response.status_code == 400


def test_retraction_is_a_new_row(gateway: Setup) -> None:
    turn = gateway.chat("Hi")["id"]
    gateway.post(PATH, {"id": "fb-1", "turn": turn, "kind": "accepted"})
    url = gateway.url + PATH
    first = httpx.delete(f"{url}/fb-1")
    assert first.status_code == 200 and first.json()["status"] == "stored" and first.json()["retracts"] == "fb-1"
    assert httpx.delete(f"{url}/fb-1").json()["status"] == "duplicate"
    assert gateway.store.retracted() == {"fb-1"} and gateway.store.count(Feedback) == 2
    assert httpx.delete(f"{url}/{first.json()['id']}").status_code == 422
    assert httpx.delete(f"{url}/fb-9").status_code == 404


def test_tensorzero_feedback_as_it_is(gateway: Setup) -> None:
    turn = gateway.chat("Hi")["id"]
    sent = [
        {"inference_id": turn, "metric_name": "thumbs_up", "value": False},
        {"inference_id": turn, "metric_name": "quality", "value": 0.25},
        {"inference_id": turn, "metric_name": "comment", "value": "Too long."},
        {"inference_id": turn, "metric_name": "demonstration", "value": "Blue."},
    ]
    assert {r["status"] for r in gateway.post(PATH, {"events": sent}).json()["results"]} == {"stored"}
    assert [(f.kind, f.value, f.text) for f in gateway.feedback()] == [
        ("rating", -1.0, None),
        ("rating", 0.25, None),
        ("comment", None, "Too long."),
        ("demonstration", None, "Blue."),
    ]
    assert gateway.feedback()[0].metadata["metric_name"] == "thumbs_up"


def test_langfuse_scores_as_they_are(gateway: Setup) -> None:
    turn = gateway.chat("Hi")["id"]
    sent = [
        {"id": "s1", "traceId": "trace", "observationId": turn, "name": "q", "value": 1, "dataType": "BOOLEAN"},
        {"id": "s2", "traceId": turn, "name": "q", "value": -0.5, "comment": "Meh"},
        {"id": "s3", "traceId": turn, "name": "q", "comment": "Only words"},
        {"id": "s4", "observationId": turn, "name": "q", "value": 9},
    ]
    results = gateway.post(PATH, {"events": sent}).json()["results"]
    assert [r["status"] for r in results] == ["stored", "stored", "stored", "rejected"]
    assert [(f.id, f.turn, f.kind, f.value, f.text) for f in gateway.feedback()] == [
        ("s1", turn, "rating", 1.0, None),
        ("s2", turn, "rating", -0.5, "Meh"),
        ("s3", turn, "comment", None, "Only words"),
    ]


EVENT = {
    "model_version": "m1", "task": "email", "prompt": "Write to Bob", "draft": "Dear Bob", "user_action": "edited",
    "user_edit": "Hi Bob", "follow_up": "Less formal", "signal_weight": 0.8, "created_at": "2026-01-01T00:00:00",
}  # fmt: skip


def test_the_events_record_makes_a_turn_and_its_feedback(gateway: Setup) -> None:
    assert gateway.post(PATH, EVENT).json()["status"] == "stored"
    assert gateway.post(PATH, EVENT).json()["status"] == "duplicate"
    (turn,) = gateway.turns()
    assert (turn.source, turn.task, turn.model, turn.missing_ids) == ("import:events", "email", "m1", MISSING_IDS)
    assert turn.created_at == 1767225600.0 and turn.answer["content"] == "Dear Bob"
    edit, follow = gateway.feedback(turn=turn.id)
    assert (edit.kind, edit.final_text, follow.kind, follow.text) == ("edited", "Hi Bob", "follow_up", "Less formal")
    assert edit.metadata == {"signal_weight": 0.8}


def test_other_products_say_whose_it_is_too() -> None:
    turn, edit, follow = records_of({**EVENT, "user": "ada", "conversation": "c1"})
    assert isinstance(turn, Turn) and isinstance(edit, Feedback) and isinstance(follow, Feedback)
    assert (turn.user, turn.conversation, edit.user, follow.user) == ("ada", "c1", "ada", "ada")
    rated = {"inference_id": "t", "metric_name": "solved", "value": True, "tags": {"user_id": "ada"}}
    found = [records_of(event)[0] for event in (rated, {**rated, "user": "bob"}, {**rated, "tags": 3})]
    assert [row.user for row in found if isinstance(row, Feedback)] == ["ada", "bob", None]
    with pytest.raises(UsageError, match="user"):
        parse_event({**EVENT, "user": [3]})


@pytest.mark.parametrize(
    "change",
    [{"prompt": ""}, {"draft": None}, {"user_action": "loved"}, {"user_edit": None}, {"follow_up": [3]},
     {"signal_weight": "high"}, {"signal_weight": -1}, {"signal_weight": 1.5}, {"created_at": "never"},
     {"created_at": 1e300}, {"created_at": -1e12}],
)  # fmt: skip
def test_unusable_events_records(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        parse_event({**EVENT, **change})


def test_an_events_record_without_a_time_or_words() -> None:
    plain = {"prompt": "p", "draft": "d", "user_action": "accepted"}
    turn, accepted = records_of(plain)
    assert isinstance(turn, Turn) and isinstance(accepted, Feedback)
    assert accepted.kind == "accepted" and accepted.occurred_at is None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_KEYS = st.sampled_from(
    ["id", "turn", "kind", "text", "final_text", "value", "exit_code", "occurred_at", "metadata", "source", "traceId",
     "inference_id", "user_action", "prompt", "draft", "dataType", "name", "comment", "x"]
)  # fmt: skip


@given(st.dictionaries(_KEYS, _JSON | st.sampled_from(FEEDBACK_KINDS)))
def test_any_json_is_an_event_or_says_why_not(event: dict[str, Any]) -> None:
    try:
        records = records_of(event)
    except UsageError as error:
        assert error.message
        return
    assert all(isinstance(record, Feedback | Turn) for record in records)
    json.dumps([record.to_dict() for record in records])


def test_the_202_means_on_disk(gateway: Setup) -> None:
    turn = gateway.chat("Hi")["id"]
    for number in range(20):
        gateway.post(PATH, {"id": f"fb-{number}", "turn": turn, "kind": "copied"})
        with Store.open(gateway.settings.database) as other:
            assert other.find(Feedback, f"fb-{number}") is not None


def test_feedback_on_a_forgotten_turn_is_refused_for_good(gateway: Setup) -> None:
    turn = gateway.chat("My name is Ada Lovelace.", user="ada")["id"]
    event = {"id": "fb-1", "turn": turn, "kind": "comment", "text": "Ada wants less", "user": "ada"}
    assert gateway.post(PATH, event).json()["status"] == "stored"
    with Eraser(gateway.store.path) as eraser:
        eraser.redact("ada", "era-1")
    for sent in (event, {**event, "id": "fb-2"}, {**event, "text": "other", "id": "fb-1"}):
        reply = gateway.post(PATH, sent)
        assert reply.status_code == 202 and reply.json()["status"] == "rejected"
        assert "forgotten" in reply.json()["why"]
    assert gateway.feedback() == []
    assert httpx.delete(f"{gateway.url}{PATH}/fb-1").status_code == 404
    assert gateway.chat("Hello again", user="ada")["id"] != turn


HUGE = "1" + "0" * 400


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ("[" * 200_000, 400, "not valid JSON"),
        ('{"turn": "t", "kind": "rating", "value": ' + HUGE + "}", 422, "`value` must be a finite number"),
        ('{"turn": "t", "kind": "executed", "exit_code": ' + HUGE + "}", 422, "cannot be stored"),
        ('{"turn": "t", "kind": "copied", "metadata": {"a": %s}}' % ("[" * 600 + "]" * 600), 422, "cannot be stored"),
        ('{"turn": "t", "kind": "comment", "text": "\\ud800"}', 422, "cannot be stored"),
    ],
)
def test_events_that_nobody_can_store(gateway: Setup, body: str, status: int, says: str) -> None:
    response = httpx.post(gateway.url + "/v1/feedback", content=body)
    assert response.status_code == status and says in response.json()["error"]["message"]
    assert gateway.feedback() == []


@pytest.mark.parametrize(
    "bad", ['"text": "\\ud800"', f'"value": {HUGE}', f'"metadata": {{"a": {"[" * 300 + "]" * 300}}}']
)
def test_one_such_event_does_not_reject_the_others(gateway: Setup, bad: str) -> None:
    events = ['{"id": "a", "turn": "t", "kind": "copied"}', '{"turn": "t", "kind": "comment", ' + bad + "}",
              '{"id": "c", "turn": "t", "kind": "saved"}']  # fmt: skip
    response = httpx.post(gateway.url + "/v1/feedback", content='{"events": [' + ", ".join(events) + "]}")
    assert response.status_code == 202
    assert [result["status"] for result in response.json()["results"]] == ["held", "rejected", "held"]
    assert [event.id for event in gateway.feedback()] == ["a", "c"]


@pytest.mark.parametrize(
    ("up", "down"),
    [
        ({"id": "v", "kind": "rating", "value": 1}, {"id": "v", "kind": "rating", "value": -1}),
        ({"kind": "rating", "value": 1}, {"kind": "rating", "value": -1}),
        ({"id": "v", "name": "user", "value": 1, "dataType": "BOOLEAN"},
         {"id": "v", "name": "user", "value": 0, "dataType": "BOOLEAN"}),
        ({"id": "v", "metric_name": "ok", "value": True}, {"id": "v", "metric_name": "ok", "value": False}),
        ({"metric_name": "ok", "value": True}, {"metric_name": "ok", "value": False}),
    ],
)  # fmt: skip
def test_a_changed_vote_is_stored_and_up_down_up_is_up(gateway: Setup, up: Json, down: Json) -> None:
    about = gateway.chat("Why?", user="ada")["id"]
    field = "turn" if "kind" in up else "traceId" if "name" in up else "inference_id"

    def send(event: Json) -> str:
        answer = gateway.post("/v1/feedback", {**event, field: about, "user": "ada"})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["status"])

    assert [send(up), send(up), send(down), send(down), send(up)] == [
        "stored", "duplicate", "stored", "duplicate", "stored",
    ]  # fmt: skip
    out = gateway.store.superseded()
    assert [event.value for event in gateway.feedback() if event.id not in out] == [1.0]
    assert len(gateway.feedback()) == 3, "earlier votes stay as history"


def test_taking_a_changed_vote_back_takes_back_all_of_it(gateway: Setup) -> None:
    about = gateway.chat("Why?", user="ada")["id"]
    for value in (1, -1):
        gateway.post("/v1/feedback", {"id": "v", "turn": about, "kind": "rating", "value": value})
    assert httpx.delete(f"{gateway.url}/v1/feedback/v").json()["status"] == "stored"
    assert gateway.store.retracted() == {"v", "v#v2"}
    again = gateway.post("/v1/feedback", {"id": "v", "turn": about, "kind": "rating", "value": -1})
    assert again.json()["status"] == "stored", "a vote after that counts"
