"""Reads OpenTelemetry spans of the semantic conventions `gen_ai` in OTLP's JSON (a row is an export request with
`resourceSpans`, as the collector's file exporter writes it, or one span with `traceId`).

Spans of the operations `chat`, `generate_content` and `text_completion` with `gen_ai.input.messages` and
`gen_ai.output.messages` are answers; a trace is a run. The attributes `afterword.reward`, `afterword.task`,
`afterword.seed` and `user.id` of any of its spans are those of the run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from afterword.formats.agent_runs import AgentAnswer, AgentRun, call, result, run_records
from afterword.formats.format import Format
from afterword.formats.parsing import bad, dumps, mapping, parsed, shown, text
from afterword.records import Json, Record

OPERATIONS = ("chat", "generate_content", "text_completion")
_INPUT, _OUTPUT, _SYSTEM = "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions"
_METADATA = {"afterword.task": "task_id", "afterword.seed": "seed", "afterword.reward": "reward", "user.id": "user"}


def recognise(row: Json) -> bool:
    """An export request, or a span with attributes of `gen_ai`."""
    if isinstance(row.get("resourceSpans"), list):
        return True
    return "traceId" in row and any(name.startswith("gen_ai.") for name in _attributes(row))


def read(row: Json) -> list[Record]:
    """The runs of a row; empty when none of its spans is an answer."""
    traces: dict[str, list[tuple[Json, Json]]] = defaultdict(list)
    harness: dict[str, str] = {}
    unreadable = 0
    for span, service in _spans(row):
        attributes = _attributes(span)
        name = str(span.get("traceId"))
        if service:
            harness[name] = service
        if attributes.get("gen_ai.operation.name") in OPERATIONS and _OUTPUT not in attributes:
            unreadable += 1
            continue
        traces[name].append((span, attributes))
    found: list[Record] = []
    for name, spans in traces.items():
        answers = sorted((one for one in spans if _OUTPUT in one[1]), key=lambda one: _seconds(one[0], "end"))
        if answers:
            found += run_records(_run(name, spans, answers, harness.get(name)))
    if unreadable and not found:
        raise bad(
            "no_text", f"{unreadable} spans of answers have no `{_OUTPUT}`: switch the capture of message content on "
            "in the instrumentation",
        )  # fmt: skip
    return found


def _run(name: str, spans: list[tuple[Json, Json]], answers: list[tuple[Json, Json]], harness: str | None) -> AgentRun:
    metadata = {new: found[old] for _, found in spans for old, new in _METADATA.items() if old in found}
    roots = [span for span, _ in spans if not span.get("parentSpanId")]
    return AgentRun(
        format="otel", name=name, answers=[_answer(span, found) for span, found in answers], harness=harness,
        started_at=_seconds(roots[0] if roots else answers[0][0], "start"),
        ended_at=_seconds(roots[0], "end") if roots and len(spans) > 1 else None, metadata=metadata,
    )  # fmt: skip


def _spans(row: Json) -> Iterator[tuple[Json, str | None]]:
    """Each span with the name of its service."""
    if not isinstance(row.get("resourceSpans"), list):
        yield row, None
        return
    for resource in map(mapping, row["resourceSpans"]):
        service = text(_attributes(mapping(resource.get("resource"))).get("service.name"))
        for scope in map(mapping, resource.get("scopeSpans") or ()):
            for span in scope.get("spans") or ():
                yield mapping(span), service


def _attributes(owner: Json) -> Json:
    """OTLP's list of keys with typed values, or a plain object, as an object."""
    given = owner.get("attributes")
    if isinstance(given, dict):
        return given
    pairs = given if isinstance(given, list) else ()
    return {str(one.get("key")): _value(one.get("value")) for one in map(mapping, pairs)}


def _value(value: Any) -> Any:
    """OTLP's AnyValue."""
    for kind, inner in mapping(value).items():
        if kind == "arrayValue":
            return [_value(one) for one in mapping(inner).get("values") or ()]
        if kind == "kvlistValue":
            return {str(one.get("key")): _value(one.get("value")) for one in mapping(inner).get("values") or ()}
        return int(inner) if kind == "intValue" else inner
    return None


def _seconds(span: Json, which: str) -> float:
    value = span.get(f"{which}TimeUnixNano")
    try:
        return int(value or 0) / 1e9
    except (TypeError, ValueError):
        raise bad("bad_time", f"`{which}TimeUnixNano` is no number: {shown(value, 60)}") from None


def _answer(span: Json, found: Json) -> AgentAnswer:
    output = parsed(found[_OUTPUT])
    if not isinstance(output, list) or not output:
        raise bad("no_answer", f"`{_OUTPUT}` holds no message: {shown(output, 120)}")
    system = parsed(found.get(_SYSTEM))
    head = [{"role": "system", "content": _texts(system)}] if isinstance(system, list) and system else []
    given = parsed(found.get(_INPUT))
    messages = [one for message in (given if isinstance(given, list) else ()) for one in _messages(message)]
    answer = next(iter(_messages(output[0])), None)
    if answer is None:
        raise bad("no_answer", f"`{_OUTPUT}` holds no message: {shown(output, 120)}")
    tools = parsed(found.get("gen_ai.tool.definitions"))
    named = {"gen_ai.usage.input_tokens": "prompt_tokens", "gen_ai.usage.output_tokens": "completion_tokens"}
    sampled = {f"gen_ai.request.{name}": name for name in ("temperature", "top_p", "max_tokens", "seed")}
    reason = mapping(output[0]).get("finish_reason")
    about: Json = {
        "usage": {new: found[old] for old, new in named.items() if isinstance(found.get(old), int)},
        "sampling": {new: found[old] for old, new in sampled.items() if isinstance(found.get(old), int | float)},
        "finish_reason": "tool_calls" if reason in ("tool_call", "tool_calls") else text(reason),
    }  # fmt: skip
    if isinstance(tools, list) and tools and all(isinstance(one, dict) for one in tools):
        about["tools"] = tuple(tools)
    return AgentAnswer(
        messages=[*head, *messages], answer=answer, created_at=_seconds(span, "end"), about=about,
        model=text(found.get("gen_ai.response.model")) or text(found.get("gen_ai.request.model")) or "",
    )  # fmt: skip


def _messages(message: Any) -> Iterator[Json]:
    """A message with parts as OpenAI's messages: the results of tools are messages of their own."""
    role, parts = mapping(message).get("role"), mapping(message).get("parts")
    if not isinstance(role, str) or not isinstance(parts, list):
        raise bad("bad_message", f"a message has a role and parts: {shown(message, 120)}")
    calls = [
        call(p.get("id"), p.get("name"), p.get("arguments"))
        for p in map(mapping, parts)
        if p.get("type") == "tool_call"
    ]
    for part in map(mapping, parts):
        if part.get("type") == "tool_call_response":
            yield result(part.get("id"), part.get("response", part.get("result")))
    words = _texts(parts)
    if words or calls:
        yield {"role": role, "content": words, **({"tool_calls": calls} if calls else {})}


def _texts(parts: list[Any]) -> str:
    """The texts of parts; thoughts are left out, other media are kept as JSON."""
    kept = []
    for part in map(mapping, parts):
        if part.get("type") == "text" and isinstance(part.get("content"), str):
            kept.append(part["content"])
        elif part.get("type") not in ("tool_call", "tool_call_response", "reasoning"):
            kept.append(dumps(part))
    return "\n".join(kept)


FORMAT = Format(name="otel", read=read, recognise=recognise)
