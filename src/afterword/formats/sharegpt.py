"""ShareGPT's conversations (`conversations` of `from` and `value`), and UltraChat's lists of texts (`data`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from afterword.formats.export_filter import ExportFilter, plain_text
from afterword.formats.format import Export, Format
from afterword.formats.parsing import (
    Conversation,
    bad,
    dumps,
    listed,
    role_of,
    shown,
    text,
    unix_time,
    unread_votes,
    weighed,
)
from afterword.records import Json

_LISTS = ("conversations", "conversation")


def recognise(row: Json) -> bool:
    """Conversations of `from` and `value`, or a list of texts."""
    return "conversations" in row or (is_ultrachat(row) and not row.keys() & {"messages", "input", "request"})


def is_ultrachat(row: Json) -> bool:
    """Is `data` a list of texts, which the user and the model say in turn?"""
    texts = row.get("data")
    return isinstance(texts, list) and len(texts) > 1 and all(isinstance(said, str) and said for said in texts)


def read(row: Json) -> Conversation:
    """A conversation."""
    parts: list[Any] = next((row[name] for name in _LISTS if isinstance(row.get(name), list)), [])
    return Conversation(
        messages=messages_in(row),
        left_out=unread_votes(row, parts),
        key=text(row.get("id")) or text(row.get("conversation_id")) or "",
        model=text(row.get("model")) or "",
        user=text(row.get("user")),
        created_at=unix_time(row.get("created_at")),
    )


def messages_in(row: Json) -> list[Json]:
    """The messages of a row in OpenAI's form, `weight` 0 on answers that the row excludes from training."""
    messages: list[Json] = []
    if isinstance(row.get("system"), str) and row["system"]:
        messages.append({"role": "system", "content": row["system"]})
    marks: list[Any] = [{}] * len(messages)
    texts = row.get("data")
    if is_ultrachat(row) and isinstance(texts, list):  # by turns: the user, the model
        return messages + [{"role": ("user", "assistant")[n % 2], "content": said} for n, said in enumerate(texts)]
    for part in listed(row, *_LISTS):
        role = role_of(_first(part, "from", "role", "sender", "speaker")) if isinstance(part, dict) else None
        value = _first(part, "value", "content", "text") if role else None
        if role is None or not isinstance(value, str):
            raise bad("bad_message", f"not a {{from, value}} message with a known speaker: {shown(part, 120)}")
        messages.append({"role": role, "content": value})
        marks.append(part)
    return weighed(messages, row, marks)


def _first(part: Json, *names: str) -> Any:
    return next((part[name] for name in names if name in part), None)


_SPEAKERS = {"user": "human", "assistant": "gpt", "tool": "observation", "function": "observation"}


def write(rows: ExportFilter) -> Iterator[Json]:
    """One conversation a row, the system message in a field of its own."""
    for turn, messages in rows.imitable_threads():
        system = [m for m in messages if m["role"] in ("system", "developer")]
        row: Json = {"id": turn.conversation or turn.id, "model": turn.model, "user": turn.user}
        if system:
            row["system"] = "\n\n".join(plain_text(m) for m in system)
        row["conversations"] = parts_of(messages)
        yield {k: v for k, v in row.items() if v is not None}


def parts_of(messages: list[Json]) -> list[Json]:
    """The messages as `{from, value}`, without those of the system."""
    return [part_of(message) for message in messages if message["role"] in _SPEAKERS]


def part_of(message: Json) -> Json:
    """One message as `{from, value}`; an answer of tool calls only is a `function_call`."""
    calls = message.get("tool_calls")
    if calls and not plain_text(message):
        return {"from": "function_call", "value": dumps([c.get("function", c) for c in calls])}
    return {"from": _SPEAKERS[message["role"]], "value": plain_text(message)}


FORMAT = Format(
    name="sharegpt",
    read=read,
    recognise=recognise,
    exports=(Export(what="turns", write=write, training=True),),
)
