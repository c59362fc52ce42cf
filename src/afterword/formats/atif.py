"""Reads ATIF trajectories (Agent Trajectory Interchange Format, `schema_version` "ATIF-v1.x"): one object is one run.

Steps of the source `user` and `system` are messages. Each step of the source `agent` is an answer, and its
`observation` is what came back. Steps that a summary copied (`is_copied_context`) are history, not answers. Token ids
of another model are not taken.
"""

from __future__ import annotations

from typing import Any

from afterword.formats.agent_runs import AgentAnswer, AgentRun, call, result, run_records
from afterword.formats.format import Format
from afterword.formats.parsing import bad, dumps, listed, mapping, shown, text, unix_time
from afterword.records import Json, Record, content_hash


def recognise(row: Json) -> bool:
    """An object with the version of the schema and steps."""
    version = row.get("schema_version")
    return isinstance(version, str) and version.startswith("ATIF-v1") and "steps" in row


def read(row: Json) -> list[Record]:
    """The run."""
    agent = mapping(row.get("agent"))
    history: list[Json] = []
    answers: list[AgentAnswer] = []
    definitions = _objects(agent.get("tool_definitions"))
    tools: Json = {"tools": tuple(definitions)} if definitions else {}
    steps = listed(row, "steps")
    times = [moment for step in steps if (moment := unix_time(mapping(step).get("timestamp"))) is not None]
    for step in steps:
        said, back = _messages(step)
        if said["role"] == "assistant" and history and not step.get("is_copied_context"):
            answers.append(AgentAnswer(
                messages=tuple(history), answer=said, created_at=unix_time(step.get("timestamp")),
                model=text(step.get("model_name")) or text(agent.get("model_name")) or "",
                about={**tools, "usage": _usage(step),
                       "finish_reason": "tool_calls" if "tool_calls" in said else "stop"},
            ))  # fmt: skip
        history += [said, *back]
    extra, final = mapping(row.get("extra")), mapping(mapping(row.get("final_metrics")).get("extra"))
    session = text(row.get("trajectory_id")) or text(row.get("session_id"))
    return run_records(AgentRun(
        format="atif", name=session or content_hash("atif", row), answers=answers,
        started_at=min(times, default=None), ended_at=max(times, default=0.0),
        harness=" ".join(filter(None, (text(agent.get("name")), text(agent.get("version"))))) or None,
        metadata=extra, reward=extra.get("reward", final.get("reward")),
    ))  # fmt: skip


def _messages(step: Any) -> tuple[Json, list[Json]]:
    """The message of a step, and the results that follow it."""
    if not isinstance(step, dict) or step.get("source") not in ("user", "system", "agent"):
        raise bad("bad_message", f"a step's `source` is user, system or agent: {shown(step, 120)}")
    said: Json = {"role": "assistant" if step["source"] == "agent" else step["source"], "content": _content(step)}
    calls = _objects(step.get("tool_calls"))
    if said["role"] == "assistant" and calls:
        said["tool_calls"] = [call(c.get("tool_call_id"), c.get("function_name"), c.get("arguments")) for c in calls]
    results = _objects(mapping(step.get("observation")).get("results"))
    named = {c["id"] for c in said.get("tool_calls", ())}
    return said, [
        result(one["source_call_id"], one.get("content")) if one.get("source_call_id") in named
        else {"role": "user", "content": result(None, one.get("content"))["content"]}  # of no call: a terminal's screen
        for one in results
    ]  # fmt: skip


def _content(step: Json) -> str:
    """A text, or the texts of its parts; pictures are named by their source."""
    message = step.get("message")
    if isinstance(message, str):
        return message
    return "\n".join(part["text"] if isinstance(part.get("text"), str) else dumps(part) for part in _objects(message))


def _usage(step: Json) -> Json:
    metrics = mapping(step.get("metrics"))
    return {
        name: metrics[name] for name in ("prompt_tokens", "completion_tokens") if isinstance(metrics.get(name), int)
    }


def _objects(value: Any) -> list[Json]:
    """A list of objects; empty for anything else."""
    return value if isinstance(value, list) and all(isinstance(one, dict) for one in value) else []


FORMAT = Format(name="atif", read=read, recognise=recognise)
