"""Exports of TensorZero: inferences become turns, the rows of its four feedback tables feedback.

Owns the field names of this product, in its tables, its HTTP answers and its downloads. The id of an inference
becomes the id of the turn, so that feedback finds it, also when it comes in another file or over HTTP. Pure; never
stores.
"""

from __future__ import annotations

from typing import Any

from afterword.formats.parsing import (
    bad,
    dumps,
    feedback_of,
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


def is_tensorzero(row: Json) -> bool:
    """An inference (`input`, `output`, a function or an episode), or feedback on one."""
    keys = row.keys()
    if {"input", "output"} <= keys:
        return bool(keys & {"function_name", "variant_name", "episode_id"})
    return "value" in keys and bool(keys & {"inference_id", "target_id", "episode_id"})


def tensorzero(row: Json) -> list[Record]:
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


def _feedback(row: Json) -> Feedback:
    value, metric = row["value"], row.get("metric_name")
    turn = row.get("inference_id") or row.get("target_id") or row.get("episode_id")
    if metric == "demonstration" or (metric is None and "inference_id" in row):
        fields: Json = {"kind": "demonstration", "text": _spoken(_answer(parsed(value)))}
    elif metric == "comment" or (metric is None and isinstance(value, str)):
        fields = {"kind": "comment", "text": words(value)}
    else:
        fields = rating(value)
    tags = mapping(row.get("tags"))
    moment = unix_time(row.get("timestamp")) or _uuid_time(row.get("id"))
    extra = {"metric_name": metric} if metric else {}
    return feedback_of(
        row.get("id") or row.get("feedback_id"), turn, fields, moment,
        user=text(tags.get("user_id")) or text(tags.get("user")),
        metadata={**extra, **({"tags": tags} if tags else {})},
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
