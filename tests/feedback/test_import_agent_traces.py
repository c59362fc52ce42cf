"""Traces of agents become episodes with linked turns: OpenAI Agents SDK, OpenTelemetry gen_ai spans, ATIF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from afterword.config import TrainConfig
from afterword.errors import NothingToDo, UsageError
from afterword.feedback.collect.collect import collect
from afterword.feedback.importing.imports import import_file
from afterword.feedback.select.plan import plan_training
from afterword.feedback.settings import CollectSettings
from afterword.formats.registry import FORMATS, detect_format
from afterword.records import Episode, Interaction, Turn
from afterword.store import Store
from afterword.store.episodes import EpisodeView, episode_views

SYSTEM = {"role": "system", "content": "You are a clerk."}
ASKED = {"role": "user", "content": "Weather in Rome?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"city": "Rome"}'}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "18 degrees, rain"}


def atif() -> dict[str, Any]:
    return {
        "schema_version": "ATIF-v1.4", "session_id": "s-1",
        "agent": {"name": "clerk", "version": "2.0", "model_name": "big-model"},
        "steps": [
            {"step_id": 1, "timestamp": "2026-11-30T10:00:00Z", "source": "system", "message": SYSTEM["content"]},
            {"step_id": 2, "timestamp": "2026-11-30T10:00:01Z", "source": "user", "message": ASKED["content"]},
            {"step_id": 3, "timestamp": "2026-11-30T10:00:02Z", "source": "agent", "message": "Let me look.",
             "reasoning_content": "A tool knows.",
             "tool_calls": [{"tool_call_id": "c1", "function_name": "look", "arguments": {"city": "Rome"}}],
             "observation": {"results": [{"source_call_id": "c1", "content": RESULT["content"]}]},
             "metrics": {"prompt_tokens": 20, "completion_tokens": 6, "completion_token_ids": [1, 2]}},
            {"step_id": 4, "timestamp": "2026-11-30T10:00:05Z", "source": "agent", "message": "It rains."},
        ],
        "final_metrics": {"total_steps": 4, "extra": {"reward": 0.5}},
        "extra": {"task_id": "weather/rome", "seed": 3},
    }  # fmt: skip


def sdk() -> list[dict[str, Any]]:
    """As `Trace.export()` and `Span.export()` of openai-agents 0.24 write them."""
    usage = {"input_tokens": 20, "output_tokens": 6}

    def span(name: str, data: dict[str, Any], start: int) -> dict[str, Any]:
        return {"object": "trace.span", "id": name, "trace_id": "trace_1", "parent_id": None,
                "started_at": f"2026-11-30T10:00:{start:02d}+00:00",
                "ended_at": f"2026-11-30T10:00:{start + 1:02d}+00:00",
                "span_data": data, "error": None}  # fmt: skip

    first = {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL], "refusal": None, "audio": None}
    back = {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]}
    last = {"role": "assistant", "content": "It rains.", "refusal": None}
    settings = {"temperature": 0.5, "base_url": "http://127.0.0.1:8400/v1"}
    return [
        {"object": "trace", "id": "trace_1", "workflow_name": "Agent workflow", "group_id": None,
         "metadata": {"task_id": "weather/rome", "seed": 3, "reward": 0.5}},
        span("span_1", {"type": "agent", "name": "clerk", "handoffs": [], "tools": ["look"], "output_type": "str"}, 1),
        span("span_2", {"type": "generation", "input": [SYSTEM, ASKED], "output": [first], "model": "big-model",
                        "model_config": settings, "usage": usage}, 1),
        span("span_3", {"type": "function", "name": "look", "input": '{"city": "Rome"}', "output": "18 degrees, rain",
                        "mcp_data": None}, 2),
        span("span_4", {"type": "generation", "input": [SYSTEM, ASKED, back, RESULT], "output": [last],
                        "model": "big-model", "model_config": settings, "usage": usage}, 3),
    ]  # fmt: skip


def otel() -> dict[str, Any]:
    """OTLP's JSON with the attributes of the semantic conventions 1.38."""

    def span(name: str, parent: str, start: int, **attributes: Any) -> dict[str, Any]:
        def value(one: Any) -> dict[str, Any]:
            return {"intValue": str(one)} if isinstance(one, int) else (
                {"doubleValue": one} if isinstance(one, float) else
                {"arrayValue": {"values": [{"stringValue": each} for each in one]}} if isinstance(one, list) else
                {"stringValue": one}
            )  # fmt: skip

        keys = {key.replace("__", "."): one for key, one in attributes.items()}
        return {"traceId": "5b8e", "spanId": name, "parentSpanId": parent, "name": name, "kind": 3,
                "startTimeUnixNano": str(1764496800000000000 + start * 10**9),
                "endTimeUnixNano": str(1764496801000000000 + start * 10**9),
                "attributes": [{"key": key, "value": value(one)} for key, one in keys.items()]}  # fmt: skip

    def text(words: str) -> dict[str, Any]:
        return {"type": "text", "content": words}

    tool_call = {"type": "tool_call", "id": "c1", "name": "look", "arguments": {"city": "Rome"}}
    first = {"role": "assistant", "parts": [text("Let me look."), tool_call]}
    answered = {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": RESULT["content"]}]}
    asked = {"role": "user", "parts": [text(ASKED["content"])]}
    shared = {"gen_ai__operation__name": "chat", "gen_ai__request__model": "big-model",
              "gen_ai__request__temperature": 0.5, "gen_ai__usage__input_tokens": 20, "gen_ai__usage__output_tokens": 6,
              "gen_ai__system_instructions": json.dumps([text(SYSTEM["content"])])}  # fmt: skip
    root = span("run", "", 0, gen_ai__operation__name="invoke_agent", afterword__task="weather/rome", afterword__seed=3,
                afterword__reward=0.5)  # fmt: skip
    root["endTimeUnixNano"] = str(1764496810000000000)
    return {"resourceSpans": [{
        "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "clerk"}}]},
        "scopeSpans": [{"scope": {"name": "x"}, "spans": [
            span("chat 1", "run", 1, **shared, gen_ai__input__messages=json.dumps([asked]),
                 gen_ai__output__messages=json.dumps([{**first, "finish_reason": "tool_call"}]),
                 gen_ai__response__finish_reasons=["tool_calls"]),
            span("execute_tool look", "run", 2, gen_ai__operation__name="execute_tool", gen_ai__tool__name="look"),
            span("chat 2", "run", 3, **shared, gen_ai__input__messages=json.dumps([asked, first, answered]),
                 gen_ai__output__messages=json.dumps(
                     [{"role": "assistant", "parts": [text("It rains.")], "finish_reason": "stop"}])),
            root,
        ]}],
    }]}  # fmt: skip


FILES: dict[str, Any] = {"atif": atif(), "agents-sdk": {"data": sdk()}, "otel": otel()}


def imported(store: Store, tmp_path: Path, rows: Any, format: str = "auto") -> Any:
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (rows if isinstance(rows, list) else [rows])), "utf-8")
    return import_file(store, path, format)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "afterword.db") as found:
        yield found


def the_episode(store: Store) -> EpisodeView:
    (view,) = episode_views(store)
    return view


@pytest.mark.parametrize("format", sorted(FILES))
def test_a_trace_becomes_one_episode_with_linked_turns(store: Store, tmp_path: Path, format: str) -> None:
    found = imported(store, tmp_path, FILES[format])
    assert (found.format, found.rejected.total(), found.turns) == (format, 0, 2)
    view = the_episode(store)
    first, second = view.turns
    assert [one.parent for one in view.turns] == [None, first.turn.id] and len(view.branches()) == 1
    assert first.turn.messages == (SYSTEM, ASKED)
    assert first.turn.answer["content"] == "Let me look."
    (call,) = first.turn.answer["tool_calls"]
    assert (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])) == (
        "c1", "look", {"city": "Rome"},
    )  # fmt: skip
    assert second.turn.messages[-1] == RESULT and second.turn.answer["content"] == "It rains."
    assert (first.turn.finish_reason, second.turn.finish_reason) == ("tool_calls", "stop")
    assert first.turn.usage == {"prompt_tokens": 20, "completion_tokens": 6}
    assert first.turn.model == "big-model" and first.turn.source == f"import:{format}"
    assert 1764496800 < first.turn.created_at < second.turn.created_at < 1.8e9
    assert not first.turn.on_policy and first.turn.missing_ids
    assert (view.episode.task_id, view.episode.seed, view.episode.outcome) == ("weather/rome", 3, 0.5)
    assert view.episode.status == "finished" and view.episode.harness in ("clerk 2.0", "openai-agents", "clerk")


@pytest.mark.parametrize("format", sorted(FILES))
def test_importing_again_stores_nothing_twice(store: Store, tmp_path: Path, format: str) -> None:
    imported(store, tmp_path, FILES[format])
    counts = store.count(Turn), store.count(Episode)
    (tmp_path / "again").mkdir()
    found = imported(store, tmp_path / "again", FILES[format])
    assert (found.stored, found.conflicts) == (0, 0) and (store.count(Turn), store.count(Episode)) == counts


@pytest.mark.parametrize("format", sorted(FILES))
def test_imported_runs_are_trained_off_policy_alone(store: Store, tmp_path: Path, format: str) -> None:
    imported(store, tmp_path, FILES[format])
    collect(store, CollectSettings(holdout=0.0, episode_idle=1.0))
    first, second = sorted(store.rows(Interaction), key=lambda row: row.hindsight, reverse=True)
    assert "18 degrees" in first.hindsight and second.hindsight == ""
    assert not first.on_policy and first.episode_id == second.episode_id
    settings = TrainConfig(recipe="episode-sdpo", min_interactions=1)
    with pytest.raises(NothingToDo, match="without served token ids"):
        plan_training(store, settings)
    plan = plan_training(store, TrainConfig(recipe="episode-sdpo", min_interactions=1, off_policy=True))
    assert set(plan.interactions) == {first.id, second.id}


def test_spans_in_rows_of_their_own_find_each_other(store: Store, tmp_path: Path) -> None:
    found = imported(store, tmp_path, sdk())
    assert (found.rows, found.turns, found.rejected.total(), found.conflicts) == (5, 2, 0, 0)
    first, second = the_episode(store).turns
    assert second.parent == first.turn.id
    spans = otel()["resourceSpans"][0]["scopeSpans"][0]["spans"]
    (tmp_path / "spans").mkdir()
    with Store.open(tmp_path / "spans" / "afterword.db") as other:
        assert imported(other, tmp_path / "spans", spans).turns == 2
        first, second = the_episode(other).turns
        assert second.parent == first.turn.id


def test_atif_keeps_what_a_terminal_says_and_leaves_out_copied_steps(store: Store, tmp_path: Path) -> None:
    row = atif()
    row["steps"][2]["is_copied_context"] = True
    row["steps"].insert(3, {"step_id": 9, "source": "agent", "message": [{"type": "text", "text": "ls"}],
                            "observation": {"results": [{"content": "a.txt"}]}})  # fmt: skip
    imported(store, tmp_path, row)
    first, second = the_episode(store).turns
    assert first.turn.answer["content"] == "ls" and first.turn.messages[-1] == RESULT
    assert second.turn.messages[-1] == {"role": "user", "content": "a.txt"}
    assert second.parent == first.turn.id


@pytest.mark.parametrize(("row", "code"), [
    ({**atif(), "steps": []}, "empty"),
    ({**atif(), "steps": ["x"]}, "bad_message"),
    ({**atif(), "steps": [{"source": "oracle", "message": "x"}]}, "bad_message"),
    ({**atif(), "extra": {"reward": "good"}}, "bad_reward"),
    ({**atif(), "extra": {"reward": float("nan")}}, "bad_reward"),
    ({"data": [{**sdk()[2], "span_data": {**sdk()[2]["span_data"], "input": None}}]}, "no_messages"),
    ({"data": [{**sdk()[2], "span_data": {"type": "response", "response_id": "resp_1", "usage": None}}]}, "no_text"),
    ({"traceId": "1", "attributes": {"gen_ai.operation.name": "chat"}}, "no_text"),
    ({"traceId": "1", "attributes": {"gen_ai.operation.name": "chat", "gen_ai.output.messages": "[]"}}, "no_answer"),
    ({"traceId": "1", "endTimeUnixNano": "soon",
      "attributes": {"gen_ai.operation.name": "chat", "gen_ai.output.messages": '[{"role": "assistant"}]'}},
     "bad_time"),
])  # fmt: skip
def test_what_is_invalid_is_rejected_with_its_reason(row: dict[str, Any], code: str) -> None:
    format = detect_format(row)
    assert format is not None
    with pytest.raises(UsageError) as error:
        FORMATS[format].read(row)
    assert error.value.code == code


def test_rows_of_other_formats_are_not_taken_for_traces() -> None:
    assert detect_format({"messages": [ASKED], "schema_version": 1}) == "openai"
    assert detect_format({"data": [{"object": "list"}]}) is None
