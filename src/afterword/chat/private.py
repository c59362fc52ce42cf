"""Redacts turns, episodes and feedback before they are stored.

Owns the list of redacted fields; a redacted turn loses its token ids, because they spell the text. Pure; `chat.redact`
finds the private data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from afterword.chat.credentials import is_secret_value
from afterword.chat.redact import redact
from afterword.records import Episode, Feedback, Record, Turn

FIXED = frozenset({
    "role", "type", "id", "tool_call_id", "call_id", "name", "index", "status", "model", "format", "media_type",
    "mime_type", "detail", "object", "signature", "encrypted_content", "data", "file_data",
})  # fmt: skip
"""Fields of messages and of tool definitions that hold no words of anybody."""
FREE = frozenset({"arguments", "input", "output", "result", "response"})
"""Fields of messages below which every field holds what people, models and tools said, whatever its name."""
DEEPEST = 60
"""Levels of objects that are looked through one by one; what lies deeper becomes one text."""
LONGEST_JSON = 1_000_000
"""Characters of a text that is read as JSON."""
WORDS = ("text", "final_text", "output")
"""Fields of feedback that do."""
WHY = "redacted before storage"
_WARM = "a_b 0171 5079661 DE89 3704 0044 0532 0130 00"
"""A text for which every rule with a library behind it is tried."""


def redactor(mode: str) -> Callable[[Record], Record] | None:
    """Returns the function that redacts a record on its way to the store.

    Args:
        mode: "off", "rules" or "presidio".

    Returns:
        None for "off".

    Raises:
        ConfigError: If the mode is invalid or Presidio is missing.
    """
    if mode == "off":
        return None
    redact(_WARM, mode)  # says at once what is missing, and loads the libraries before the first record comes

    def clean(record: Record) -> Record:
        return without_private(record, mode)

    return clean


def without_private(record: Record, mode: str) -> Record:
    """Replaces private data in a turn, an episode or feedback by placeholders; other records are returned unchanged.

    A changed turn loses its token ids and log-probabilities: it is never trained as on-policy.

    Args:
        record: The record.
        mode: "rules" or "presidio".
    """
    if isinstance(record, Turn):
        messages = tuple(_cleaned(message, mode, FIXED) for message in record.messages)
        answer = _cleaned(record.answer, mode, FIXED)
        tools = record.tools and tuple(_cleaned(tool, mode, FIXED) for tool in record.tools)
        if (messages, answer, tools) == (record.messages, record.answer, record.tools):
            return record
        return replace(
            record, messages=messages, answer=answer, tools=tools, prompt_ids=None, completion_ids=None, logprobs=None,
            sampled_logprobs=None, missing_ids=record.missing_ids or WHY,
        )  # fmt: skip
    if isinstance(record, Feedback):
        said: dict[str, Any] = {name: clean_text(text, mode) for name in WORDS if (text := getattr(record, name))}
        said["metadata"] = _cleaned(record.metadata, mode, KEPT)
        return replace(record, **said) if any(said[name] != getattr(record, name) for name in said) else record
    if isinstance(record, Episode):
        metadata = _cleaned(record.metadata, mode, KEPT)
        return record if metadata == record.metadata else replace(record, metadata=metadata)
    return record


KEPT = frozenset({"user", "user_id", "userId", "hashed_ip", "task", "team", "channel", "train"})
"""Fields of metadata that say whose a row is and what it is for; they stay as the client chose them."""


def clean_text(text: str, mode: str) -> str:
    """Replaces private data in `text` by placeholders; a JSON object or list stays valid JSON."""
    if text[:1] in ("{", "[") or text[:64].lstrip()[:1] in ("{", "["):
        try:
            value = json.loads(text) if len(text) <= LONGEST_JSON else None
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict | list):
            cleaned = _cleaned(value, mode, frozenset())
            if cleaned != value:
                text = _dumped(cleaned, ascii_only=text.isascii())
            return text
    return redact(text, mode).text


def _dumped(value: Any, *, ascii_only: bool) -> str:
    """As JSON; a half of a surrogate pair, which no file may hold, stays an escape."""
    text = json.dumps(value, ensure_ascii=ascii_only)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def _cleaned(value: Any, mode: str, fixed: frozenset[str], name: str = "", depth: int = 0) -> Any:
    """A JSON value with placeholders in all of its texts and numbers but those of fields in `fixed`."""
    if isinstance(value, str):
        return _field(name, value, mode)
    if isinstance(value, int) and not isinstance(value, bool) and 10**3 <= value < 10**20:
        if value < 10**6 and name.lower() not in ("password", "passwd", "pwd", "passcode", "pin"):
            return value
        said = _field(name, str(value), mode)
        return value if said == str(value) else said
    if isinstance(value, dict | list | tuple) and depth > DEEPEST:
        return redact("\n".join(_texts(value)), mode).text
    if isinstance(value, dict):
        below = frozenset() if fixed is not KEPT else fixed
        named = str(value.get("name") or value.get("key") or "") if len(value) == 2 and "value" in value else ""
        return {
            key: part
            if key in fixed and not isinstance(part, dict | list)
            else _cleaned(
                part, mode, below if key in FREE else fixed, (key == "value" and named) or str(key), depth + 1
            )
            for key, part in value.items()
        }
    if isinstance(value, list | tuple):
        before = ["", *value][: len(value)]  # an argument behind a flag has the flag's name
        names = [one.lstrip("-") if isinstance(one, str) and one[:1] == "-" else name for one in before]
        return type(value)(_cleaned(part, mode, fixed, n, depth + 1) for n, part in zip(names, value, strict=True))
    return value


def _texts(value: Any) -> Iterator[str]:
    """The texts and numbers of a JSON value of any depth."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left.extend(reversed(list(one.values())))
        elif isinstance(one, list | tuple):
            left.extend(reversed(one))
        elif one is not None:
            yield str(one)


def _field(name: str, text: str, mode: str) -> str:
    """The text of a field called `name`: the name says what a value is that says nothing by itself."""
    if text.startswith("data:") and ";base64," in text[:100]:
        return text
    if not name or name in ("content", "text", "arguments", "output") or len(text) > MOST_NAMED:
        return clean_text(text, mode)
    if mode != "off" and (is_secret_value(name, text) or (name.lower() == "pin" and text.isdigit())):
        return "[SECRET]"
    cleaned = clean_text(text, mode)
    if cleaned != text:
        return cleaned
    label = f"{name.replace('_', ' ')[-40:]}: "
    said = redact(label + text, mode).text
    return said[len(label) :] if said.startswith(label) else cleaned


MOST_NAMED = 100
"""Characters of a value whose meaning its field's name may say."""
