"""Turns and feedback without private data, for those who want none of it on disk.

Owns which texts of a record are looked at and what a redacted turn gives up: token ids spell the text, so they go too.
Pure; never stores. What is found is `chat.redact`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from afterword.chat.redact import redact
from afterword.records import Feedback, Record, Turn

TEXTS = frozenset({"content", "text", "arguments", "refusal", "reasoning_content"})
"""Fields of messages that hold what people and models said."""
WORDS = ("text", "final_text", "output")
"""Fields of feedback that do."""
WHY = "redacted before storage"


def redactor(mode: str) -> Callable[[Record], Record] | None:
    """What a record passes on its way to the store; None for "off". ConfigError when the mode cannot be used."""
    if mode == "off":
        return None
    redact("x", mode)  # says at once what is missing

    def clean(record: Record) -> Record:
        return without_private(record, mode)

    return clean


def without_private(record: Record, mode: str) -> Record:
    """A turn or feedback with placeholders where private data stood, any other record as it is.

    A turn of which anything was taken out has no token ids or log-probabilities any more: it is never trained as
    on-policy.
    """
    if isinstance(record, Turn):
        messages = tuple(_cleaned(message, mode) for message in record.messages)
        answer = _cleaned(record.answer, mode)
        if (messages, answer) == (record.messages, record.answer):
            return record
        return replace(
            record, messages=messages, answer=answer, prompt_ids=None, completion_ids=None, logprobs=None,
            missing_ids=record.missing_ids or WHY,
        )  # fmt: skip
    if isinstance(record, Feedback):
        said: dict[str, Any] = {name: redact(text, mode).text for name in WORDS if (text := getattr(record, name))}
        said["metadata"] = _all_cleaned(record.metadata, mode)
        return replace(record, **said) if any(said[name] != getattr(record, name) for name in said) else record
    return record


KEPT = frozenset({"user", "user_id", "userId", "hashed_ip", "task", "team", "channel", "train"})
"""Fields of metadata that say whose a row is and what it is for; they stay as the client chose them."""


def _all_cleaned(value: Any, mode: str) -> Any:
    """A JSON value with placeholders in all of its texts but those of `KEPT`."""
    if isinstance(value, str):
        return redact(value, mode).text
    if isinstance(value, dict):
        return {key: part if key in KEPT else _all_cleaned(part, mode) for key, part in value.items()}
    return [_all_cleaned(part, mode) for part in value] if isinstance(value, list) else value


def _cleaned(value: Any, mode: str, name: str = "") -> Any:
    if isinstance(value, str):
        return redact(value, mode).text if name in TEXTS else value
    if isinstance(value, dict):
        return {key: _cleaned(part, mode, key) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_cleaned(part, mode, name) for part in value)
    return value
