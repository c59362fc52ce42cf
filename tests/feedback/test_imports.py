"""The formats row by row: what is recognised, kept and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterword.errors import UsageError
from afterword.feedback.importing.unfold import LOOP, history_of
from afterword.formats.parsing import unix_time
from afterword.formats.registry import FORMATS, detect_format
from afterword.records import Feedback, Turn
from afterword.store import Store
from tests.feedback.import_rows import ROWS, load, said, talk


@pytest.mark.parametrize("format", ROWS)
def test_every_format_is_recognised_and_imported(store: Store, tmp_path: Path, format: str) -> None:
    summary = load(store, tmp_path, [ROWS[format]])
    assert summary.format == format == detect_format(ROWS[format])
    assert not summary.rejected and summary.rejects is None
    assert (summary.turns, summary.feedback) == (
        (1, 1) if format == "triples" else (1, 2) if format == "events" else (2, 1)
    )
    turn = next(t for t in store.rows(Turn) if t.answer["content"] == "So.")
    assert turn.messages[-1] == {"role": "user", "content": "How?"}
    assert turn.source == f"import:{format}" and not turn.on_policy and turn.missing_ids
    found = {f.kind: f for f in store.rows(Feedback, turn=turn.id)}
    assert found["follow_up"].text == "Shorter."


def test_what_a_row_says_about_itself_is_kept(store: Store, tmp_path: Path) -> None:
    load(store, tmp_path, [ROWS["wildchat"]])
    first, second = store.rows(Turn)
    assert (first.user, first.model, first.created_at) == ("ip", "m", 1714557600.0)
    assert (first.previous, second.previous) == (None, first.id) and first.conversation == second.conversation
    assert [f.next_turn for f in store.rows(Feedback)] == [second.id]
    load(store, tmp_path, [ROWS["events"]])
    event = store.newest(Turn)
    assert event is not None and (event.task, event.model) == ("code", "v3")
    kinds = {f.kind: f for f in store.rows(Feedback, turn=event.id)}
    assert kinds["edited"].final_text == "So!" and kinds["edited"].metadata == {"signal_weight": 0.8}
    assert kinds["edited"].occurred_at == 1782259200.0


@pytest.mark.parametrize("weight", [-3, 1.5, "high", True, [1]])
def test_a_weight_that_is_none_is_rejected(store: Store, tmp_path: Path, weight: Any) -> None:
    row = {"prompt": "p", "draft": "d", "user_action": "accepted", "signal_weight": weight}
    summary = load(store, tmp_path, [row, {**row, "signal_weight": 0}, {**row, "draft": "e", "signal_weight": None}])
    assert summary.rejected == {"bad_weight": 1} and summary.turns == 2
    nan = b'{"prompt": "p", "draft": "f", "user_action": "accepted", "signal_weight": NaN}'
    assert load(store, tmp_path, nan).rejected == {"bad_weight": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "empty"), ({"messages": "x"}, "no_messages"),
        ({"messages": [{"role": "boss"}]}, "bad_message"),
        ({"messages": [3]}, "bad_message"), ({"messages": [{"role": "user", "content": 3}]}, "bad_message"),
        ({"messages": [{"role": "user", "content": [3]}]}, "bad_message"), ([1], "no_object"), (3, "no_object"),
    ],
)  # fmt: skip
def test_bad_openai_rows_are_counted_and_written_down(store: Store, tmp_path: Path, row: Any, reason: str) -> None:
    summary = load(store, tmp_path, [ROWS["openai"], row], "openai")
    assert summary.rejected == {reason: 1} and summary.turns == 2
    assert summary.rejects is not None
    written = json.loads(Path(summary.rejects).read_text(encoding="utf-8"))
    assert written["where"] == "line 2" and written["reason"] == reason and written["detail"] and written["row"]


@pytest.mark.parametrize(
    ("format", "change", "reason"),
    [
        ("sharegpt", {"conversations": [{"from": "stranger", "value": "x"}]}, "bad_message"),
        ("sharegpt", {"conversations": ["x"]}, "bad_message"),
        ("sharegpt", {"conversations": [{"from": "gpt", "value": None}]}, "bad_message"),
        ("wildchat", {"conversation": ["x"]}, "bad_message"),
        ("triples", {"prompt": 3}, "no_messages"), ("triples", {"completion": ["a", "b"]}, "no_messages"),
        ("triples", {"user_response": None}, "no_messages"),
        ("events", {"draft": None}, "no_messages"), ("events", {"user_action": "danced"}, "unknown_action"),
    ],
)  # fmt: skip
def test_bad_rows_of_other_formats(
    store: Store, tmp_path: Path, format: str, change: dict[str, Any], reason: str
) -> None:
    assert load(store, tmp_path, [{**ROWS[format], **change}], format).rejected == {reason: 1}
    assert store.counts()["turns"] == 0


def test_triples_in_other_shapes(store: Store, tmp_path: Path) -> None:
    row = {"prompt": "How?", "completion": [{"role": "assistant", "content": "So."}],
           "user_response": [{"role": "user", "content": "Shorter."}]}  # fmt: skip
    assert load(store, tmp_path, [row, {**row, "user_response": ""}]).feedback == 1


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        ("accepted unchanged", "accepted"),
        ("retry", "retried"),
        ("Accepted_after_edit", "edited"),
        ("executed", "executed"),
    ],
)
def test_actions_of_the_template(store: Store, tmp_path: Path, action: str, kind: str) -> None:
    load(store, tmp_path, [{"prompt": said("How?"), "draft": "So.", "user_action": action, "user_edit": "So!"}])
    found = next(store.rows(Feedback))
    assert found.kind == kind and found.exit_code == (0 if kind == "executed" else None)


def test_tools_and_conversations_that_begin_in_the_middle(store: Store, tmp_path: Path) -> None:
    parts = [("gpt", "And so on."), ("human", "Weather?"), ("function_call", "{}"), ("observation", "rain"),
             ("gpt", "It rains."), ("gpt", "A lot."), ("human", "Where?"), ("human", "When?")]  # fmt: skip
    summary = load(store, tmp_path, [{"conversations": [{"from": f, "value": v} for f, v in parts]}])
    assert (summary.turns, summary.feedback, summary.without_request, summary.messages) == (3, 1, 1, 8)
    assert next(store.rows(Feedback)).text == "Where?\n\nWhen?"


def test_a_long_conversation_takes_linear_space(store: Store, tmp_path: Path) -> None:
    row = {"conversations": [{"from": "system", "value": "Be nice."}, *talk(0, 500)["conversations"]]}
    load(store, tmp_path, [row])
    turns = list(store.rows(Turn))
    assert len(turns) == 500 and max(len(t.messages) for t in turns) == 10
    assert turns[-1].messages[0]["role"] == "system" and turns[-1].messages[1]["role"] == "user"
    assert turns[-1].previous == turns[-2].id


@pytest.mark.parametrize("action", [[], ["accepted"], {"kind": "edited"}, 3])
def test_an_action_of_another_type_rejects_its_row_alone(store: Store, tmp_path: Path, action: Any) -> None:
    rows = [{"prompt": "p", "draft": "d", "user_action": action}, {"prompt": "p", "draft": "d", "user_action": "saved"}]
    summary = load(store, tmp_path, rows)
    assert (summary.rejected, summary.turns, summary.feedback) == ({"unknown_action": 1}, 1, 1)


def test_votes_beside_plain_messages_are_counted_and_not_guessed_at(store: Store, tmp_path: Path) -> None:
    talks = [{**ROWS["openai"], "rating": -1, "label": None}, {"messages": said("How?", "So."), "label": False}]
    talks[1]["messages"][1]["feedback"] = {"thumb": "down"}
    assert load(store, tmp_path, talks).left_out == {"rating": 1, "label": 1, "feedback": 1}
    part = {"from": "gpt", "value": "So.", "rating": 5}
    row = {"conversations": [{"from": "human", "value": "How?"}, part], "vote": "up"}
    assert load(store, tmp_path, [row], name="b").left_out == {"rating": 1, "vote": 1}


def test_of_a_tool_loop_of_hundreds_of_steps_each_answer_keeps_the_question_and_the_last_steps() -> None:
    steps = [{"role": role, "content": f"{role} {n}"} for n in range(300) for role in ("assistant", "tool")]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Go."}, *steps]
    kept = history_of(messages, len(messages) - 1)
    assert [m["content"] for m in kept[:2]] == ["Be brief.", "Go."] and kept[2]["role"] == "assistant"
    assert LOOP <= len(kept) <= LOOP + 2 and list(kept[2:]) == messages[-1 - len(kept[2:]) : -1]


def test_a_long_tool_loop_keeps_its_question(store: Store, tmp_path: Path) -> None:
    loop = [{"from": who, "value": "x"} for _ in range(10) for who in ("function_call", "observation")]
    row = {
        "conversations": [
            *talk(0, 8)["conversations"],
            {"from": "human", "value": "Q"},
            *loop,
            {"from": "gpt", "value": "A"},
        ]
    }
    load(store, tmp_path, [row])
    last = store.newest(Turn)
    assert last is not None and last.messages[0] == {"role": "user", "content": "Q"} and len(last.messages) == 21


def test_a_row_that_is_no_object_has_no_format() -> None:
    assert detect_format([1]) is None and detect_format({"x": 1}) is None


def test_bad_records_of_our_own(store: Store, tmp_path: Path) -> None:
    rows = [{"record": "songs", "id": "1", "schema": 1}, {"record": "turns", "id": "1", "schema": 1, "tempo": 3},
            {"record": "feedback", "id": 3, "schema": 1, "turn": "t", "kind": "accepted"}]  # fmt: skip
    summary = load(store, tmp_path, rows)
    assert summary.rejected == {"unknown_record": 1, "bad_record": 1, "bad_row": 1} and summary.stored == 0
    assert summary.to_dict()["rejected"] == {"bad_record": 1, "bad_row": 1, "unknown_record": 1}


OWN = {"record": "turns", "id": "t1", "schema": 1, "messages": said("Hi"), "answer": said("", "Yo")[1]}
SAID = {"record": "feedback", "id": "f1", "schema": 1, "turn": "t1", "kind": "comment", "text": "no"}


ODD_TURNS: list[dict[str, Any]] = [
            {"messages": "abc"}, {"messages": [3]}, {"answer": 3}, {"answer": {"content": 7}}, {"sampling": 3},
            {"messages": [{"role": "user", "content": [3]}]}, {"answer": {"content": None, "tool_calls": 3}},
            {"prompt_ids": ["a"]}, {"completion_ids": [2**40]}, {"logprobs": [None, "x"]}, {"tools": 3}, {"user": 3},
            {"consent": "no"}, {"seconds": "x"}, {"finish_reason": 7}, {"created_at": 1e300}, {"created_at": "x"},
            {"created_at": -1e12}, {"created_at": None}, {"schema": "9"}, {"schema": 99}, {"id": 3}, {"model": None},
]  # fmt: skip
ODD_FEEDBACK: list[dict[str, Any]] = [
            {"text": 3}, {"final_text": []}, {"value": "x"}, {"value": True}, {"exit_code": 1.5}, {"metadata": 3},
            {"occurred_at": "soon"}, {"occurred_at": 1e300}, {"source": 3}, {"kind": None}, {"user": ["x"]},
            {"output": 3}, {"turn": None},
]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "change"), [*((OWN, change) for change in ODD_TURNS), *((SAID, change) for change in ODD_FEEDBACK)]
)
def test_our_own_form_is_checked_field_by_field(
    store: Store, tmp_path: Path, row: dict[str, Any], change: dict[str, Any]
) -> None:
    summary = load(store, tmp_path, [{**row, **change}, row], "afterword")
    assert sum(summary.rejected.values()) == 1 and summary.stored == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(1714557600, 1714557600.0), (1714557600000, 1714557600.0), ("2024-05-01T10:00:00+00:00", 1714557600.0),
     ("2024-05-01 10:00:00", 1714557600.0), ("soon", None),
     (True, None), (-1, None), (float("nan"), None), (None, None)],
)  # fmt: skip
def test_times(value: Any, seconds: float | None) -> None:
    assert unix_time(value) == seconds


def test_every_format_of_the_contract_is_there() -> None:
    assert set(FORMATS) >= {
        "openai", "sharegpt", "wildchat", "wildfeedback", "triples", "events", "tensorzero", "langfuse", "afterword",
    }  # fmt: skip


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                    max_leaves=8)  # fmt: skip


@settings(max_examples=150)
@given(row=st.dictionaries(st.sampled_from(sorted({k for r in ROWS.values() for k in r} | {"record", "schema"})), JSON))
def test_any_row_is_parsed_or_refused_by_every_format(row: dict[str, Any]) -> None:
    for format in FORMATS.values():
        try:
            parsed = format.read(row)
        except UsageError as error:
            assert error.message
        else:
            assert parsed is not None
