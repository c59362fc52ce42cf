"""Reads traces of the OpenAI Agents SDK: objects `trace` and `trace.span` as its processors export them.

A row is one of them, or a batch of them under `data`.

Spans of the type `generation` (the chat model) are answers. Spans of the type `response` hold no text in the SDK's
export: they are counted as rejected where a row is nothing else. Other spans say nothing that the messages do not.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from afterword.formats.agent_runs import AgentAnswer, AgentRun, run_records
from afterword.formats.format import Format
from afterword.formats.parsing import bad, mapping, parsed, shown, text, unix_time
from afterword.records import Json, Record

_KINDS = ("trace", "trace.span")


def recognise(row: Json) -> bool:
    """A trace, a span, or a batch of them."""
    if row.get("object") in _KINDS:
        return True
    batch = row.get("data")
    return isinstance(batch, list) and bool(batch) and all(mapping(one).get("object") in _KINDS for one in batch)


def read(row: Json) -> list[Record]:
    """The runs of a row; empty for a span that is no answer."""
    items = row["data"] if isinstance(row.get("data"), list) else [row]
    spans: dict[str, list[Json]] = defaultdict(list)
    traces: dict[str, Json] = {}
    silent = 0
    for item in items:
        if item.get("object") == "trace":
            traces[str(item.get("id"))] = item
        elif mapping(item.get("span_data")).get("type") == "generation":
            spans[str(item.get("trace_id"))].append(item)
        else:
            silent += mapping(item.get("span_data")).get("type") == "response"
    if silent and not spans:
        raise bad(
            "no_text", "spans of the type `response` have only the id of an answer: export the responses themselves, "
            "or run the agent with OpenAIChatCompletionsModel",
        )  # fmt: skip
    names = dict.fromkeys((*traces, *spans))
    return [row for name in names for row in run_records(_run(name, spans.get(name, []), traces.get(name, {})))]


def _run(name: str, spans: list[Json], trace: Json) -> AgentRun:
    spans = sorted(spans, key=lambda one: unix_time(one.get("started_at")) or 0.0)
    metadata = mapping(trace.get("metadata"))
    about = {"workflow": trace.get("workflow_name"), "group": trace.get("group_id")}
    return AgentRun(
        format="agents-sdk", name=name, answers=[_answer(one) for one in spans], harness="openai-agents",
        started_at=unix_time(spans[0].get("started_at")) if spans else None,
        metadata=metadata | {key: value for key, value in about.items() if value},
    )  # fmt: skip


def _answer(span: Json) -> AgentAnswer:
    data = span["span_data"]
    given, output = parsed(data.get("input")), parsed(data.get("output"))
    if not isinstance(given, list) or not isinstance(output, list) or not output:
        raise bad(
            "no_messages", f"span {span.get('id')} has no input and output: {shown(data, 120)}. The SDK leaves them "
            "out unless `trace_include_sensitive_data` is set",
        )  # fmt: skip
    usage = mapping(data.get("usage"))
    names = {"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens"}
    config = mapping(data.get("model_config"))
    sampling = {name: config[name] for name in ("temperature", "top_p", "max_tokens") if _number(config.get(name))}
    return AgentAnswer(
        messages=[_plain(one) for one in given], answer=_plain(output[0]), model=text(data.get("model")) or "",
        created_at=unix_time(span.get("ended_at")),
        about={"usage": {new: usage[old] for old, new in names.items() if _number(usage.get(old))},
               "sampling": sampling,
               "finish_reason": "tool_calls" if mapping(output[0]).get("tool_calls") else "stop"},
    )  # fmt: skip


def _plain(message: Any) -> Any:
    """A message without the fields that only answers have, so that an answer equals what is sent back."""
    if not isinstance(message, dict):
        return message
    kept = {name: message[name] for name in ("role", "content", "tool_calls", "tool_call_id", "name")
            if message.get(name) is not None}  # fmt: skip
    return kept if "content" in kept or "tool_calls" in kept else {**kept, "content": ""}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


FORMAT = Format(name="agents-sdk", read=read, recognise=recognise)
