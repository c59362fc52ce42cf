"""TensorZero: inferences are turns, the rows of its four feedback tables and of its feedback API are feedback.

The id of an inference becomes the id of the turn, so that feedback finds it, also from another file or over HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from afterword.formats.export_filter import ExportFilter, plain_text
from afterword.formats.format import Export, Format
from afterword.formats.parsing import (
    bad,
    dumps,
    extra_fields,
    feedback_of,
    iso_time,
    mapping,
    parsed,
    rating,
    shown,
    text,
    turn_of,
    unix_time,
    words,
)
from afterword.records import Feedback, Json, Record


def recognise(row: Json) -> bool:
    """An inference (`input`, `output`, a function or an episode), or feedback on one."""
    keys = row.keys()
    if {"input", "output"} <= keys:
        return bool(keys & {"function_name", "variant_name", "episode_id"})
    return "value" in keys and bool(keys & {"inference_id", "target_id", "episode_id"})


def read(row: Json) -> list[Record]:
    """A row of ChatInference or JsonInference, or of one of the four feedback tables."""
    if "value" in row and "input" not in row:
        return [_feedback(row)]
    given = parsed(row.get("input"))
    if not isinstance(given, dict) or not isinstance(given.get("messages"), list):
        raise bad("no_messages", f"`input` has no `messages`: {shown(row.get('input'), 120)}")
    messages: list[Json] = []
    if given.get("system"):
        system = given["system"]
        messages.append({"role": "system", "content": system if isinstance(system, str) else dumps(system)})
    for message in given["messages"]:
        messages += _message(message)
    tags, params = mapping(row.get("tags")), mapping(row.get("inference_params"))
    about: Json = {
        "user": text(tags.get("user_id")) or text(tags.get("user")), "conversation": text(row.get("episode_id")),
        "task": text(row.get("function_name")), "model": text(row.get("variant_name")) or "",
        "sampling": mapping(params.get("chat_completion")),
    }  # fmt: skip
    identifier = row.get("inference_id") or row.get("id")
    moment = unix_time(row.get("timestamp")) or _uuid_time(identifier)
    return [turn_of("tensorzero", identifier, messages, _answer(parsed(row.get("output"))), moment, about)]


def _message(message: Any) -> list[Json]:
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant", "system"):
        raise bad("bad_message", f"not a message with a known role: {shown(message, 120)}")
    content = message.get("content")
    if isinstance(content, str):
        return [{"role": message["role"], "content": content}]
    if not isinstance(content, list):
        return [{"role": message["role"], "content": dumps(content)}]
    results = [b for b in content if isinstance(b, dict) and b.get("type") == "tool_result"]
    found: list[Json] = [
        {"role": "tool", "tool_call_id": text(b.get("id")) or "", "content": str(b.get("result", ""))} for b in results
    ]
    said, calls = _blocks(content)
    if said or calls or not results:
        found.append({"role": message["role"], "content": said, **({"tool_calls": calls} if calls else {})})
    return found


def _answer(output: Any) -> Json:
    if isinstance(output, dict):
        raw = output.get("raw")
        output = raw if isinstance(raw, str) else dumps(output.get("parsed", output))
    if isinstance(output, str):
        return {"role": "assistant", "content": output}
    if not isinstance(output, list):
        raise bad("no_answer", f"`output` is neither text nor blocks: {shown(output, 120)}")
    said, calls = _blocks(output)
    return {"role": "assistant", "content": said, **({"tool_calls": calls} if calls else {})}


def _blocks(content: list[Any]) -> tuple[str, list[Json]]:
    """The text of content blocks, and the tool calls among them in OpenAI's form. Thoughts are no answer."""
    texts, calls = [], []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind in ("text", "raw_text"):
            said = next((block[k] for k in ("text", "value", "arguments") if block.get(k) is not None), "")
            texts.append(said if isinstance(said, str) else dumps(said))
        elif kind == "template":
            texts.append(dumps(block.get("arguments")))
        elif kind == "tool_call":
            given = block.get("raw_arguments") or block.get("arguments") or "{}"
            function = {
                "name": text(block.get("name")) or text(block.get("raw_name")) or "",
                "arguments": given if isinstance(given, str) else dumps(given),
            }
            calls.append({"id": text(block.get("id")) or "", "type": "function", "function": function})
    return "\n".join(texts), calls


_COLUMNS = frozenset((
    "id", "feedback_id", "inference_id", "target_id", "episode_id", "target_type", "metric_name", "value", "tags",
    "timestamp", "dryrun", "internal", "snapshot_hash", "user", "metadata",
))  # fmt: skip
"""Fields of its feedback. Whatever else a row has is kept in the metadata."""


def _feedback(row: Json) -> Feedback:
    value, metric = row["value"], row.get("metric_name")
    turn = row.get("inference_id") or row.get("target_id") or row.get("episode_id")
    if metric == "demonstration" or (metric is None and "inference_id" in row):
        fields: Json = {"kind": "demonstration", "text": _spoken(_answer(parsed(value)))}
    elif isinstance(value, str):
        fields = {"kind": "comment", "text": words(value)}
    else:
        fields = rating(value)
    tags = mapping(row.get("tags"))
    moment = unix_time(row.get("timestamp")) or _uuid_time(row.get("id"))
    extra = {"metric_name": metric} if metric else {}
    return feedback_of(
        row.get("id") or row.get("feedback_id"), turn, fields, moment,
        user=text(row.get("user")) or text(tags.get("user_id")) or text(tags.get("user")),
        metadata={**extra_fields(row, _COLUMNS), **extra, **({"tags": tags} if tags else {})},
    )  # fmt: skip


def _uuid_time(value: Any) -> float | None:
    """The time in a UUIDv7."""
    digits = value.replace("-", "") if isinstance(value, str) else ""
    if len(digits) != 32 or digits[12] != "7":
        return None
    try:
        return int(digits[:12], 16) / 1000
    except ValueError:
        return None


def _spoken(answer: Json) -> str:
    return words(answer["content"] or (dumps(answer["tool_calls"]) if answer.get("tool_calls") else ""))


def write_turns(rows: ExportFilter) -> Iterator[Json]:
    """Rows of ChatInference."""
    for turn in rows.imitable():
        system = [plain_text(m) for m in turn.messages if m["role"] in ("system", "developer")]
        given: Json = {"messages": [_written(m) for m in turn.messages if m["role"] not in ("system", "developer")]}
        if system:
            given["system"] = "\n\n".join(system)
        yield {
            "id": turn.id, "function_name": turn.task or "chat", "variant_name": turn.adapter or turn.model,
            "episode_id": turn.conversation or turn.id, "input": dumps(given),
            "output": dumps(_written_blocks(turn.answer)),
            "inference_params": dumps({"chat_completion": turn.sampling}), "timestamp": iso_time(turn.created_at),
            "tags": {} if turn.user is None else {"user_id": turn.user},
        }  # fmt: skip


def _written(message: Json) -> Json:
    if message["role"] in ("tool", "function"):
        result = {"type": "tool_result", "id": message.get("tool_call_id", ""), "name": message.get("name", ""),
                  "result": plain_text(message)}  # fmt: skip
        return {"role": "user", "content": [result]}
    return {"role": message["role"], "content": _written_blocks(message)}


def _written_blocks(message: Json) -> list[Json]:
    said = plain_text(message)
    blocks: list[Json] = [{"type": "text", "text": said}] if said else []
    for call in message.get("tool_calls") or []:
        function = call.get("function", {})
        blocks.append({
            "type": "tool_call", "id": call.get("id", ""), "name": function.get("name", ""),
            "raw_name": function.get("name", ""), "raw_arguments": function.get("arguments", "{}"),
        })  # fmt: skip
    return blocks


def write_feedback(rows: ExportFilter) -> Iterator[Json]:
    """Rows of the float, comment and demonstration tables, which hold numbers and texts only."""
    for row, _ in rows.feedback():
        said = row.final_text if row.kind == "edited" else row.text
        shared: Json = {"id": row.id, "timestamp": iso_time(row.occurred_at or row.created_at),
                        "tags": {} if row.user is None else {"user_id": row.user}}  # fmt: skip
        if row.kind == "rating" and row.value is not None:
            name = str(row.metadata.get("metric_name") or row.metadata.get("name") or "rating")
            yield {**shared, "target_id": row.turn, "metric_name": name, "value": row.value}
        elif row.kind in ("edited", "demonstration") and said:
            yield {**shared, "inference_id": row.turn, "value": dumps([{"type": "text", "text": said}])}
        elif row.kind in ("follow_up", "comment") and said:
            yield {**shared, "target_id": row.turn, "target_type": "inference", "value": said}


FORMAT = Format(
    name="tensorzero",
    read=read,
    recognise=recognise,
    exports=(Export(what="turns", write=write_turns), Export(what="feedback", write=write_feedback)),
    linked=True,
    events=True,
)
