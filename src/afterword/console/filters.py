"""Formats values for people in templates: times, numbers, shares, texts of messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from afterword.chat.canonical import text_of
from afterword.store.codec import calendar_time


def when(seconds: float | None) -> str:
    """A time as `2026-11-30 14:05` (UTC); "never" for None."""
    if seconds is None:
        return "never"
    return datetime.fromtimestamp(calendar_time(seconds), UTC).strftime("%Y-%m-%d %H:%M")


def iso(seconds: float) -> str:
    """A time for the `datetime` attribute."""
    return datetime.fromtimestamp(calendar_time(seconds), UTC).isoformat(timespec="seconds")


def ago(seconds: float | None) -> str:
    """How long ago, in the largest unit."""
    if seconds is None:
        return "never"
    past = max(time.time() - seconds, 0.0)
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if past >= size:
            return f"{past / size:.0f} {unit} ago"
    return "now"


def count(number: float) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{number:,.0f}".replace(",", "\u202f")


def share(value: float | None) -> str:
    """A share as a percentage; a dash for None."""
    return "–" if value is None else f"{100 * value:.0f} %"


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a message, with its tool calls."""
    parts = [text_of(message.get("content"))]
    for call in message.get("tool_calls") or ():
        called = call.get("function", {}) if isinstance(call, Mapping) else {}
        parts.append(f"[calls {called.get('name', '?')}: {called.get('arguments', '')}]")
    return "\n".join(part for part in parts if part)


def excerpt(text: str, length: int = 160) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def question(messages: Any) -> str:
    """The newest message of the user."""
    return next((message_text(one) for one in reversed(messages) if one.get("role") == "user"), "")


def sign(polarity: int) -> str:
    """A polarity in words."""
    return {1: "content", -1: "wants something else"}.get(polarity, "unclear")


def vote(value: float) -> str:
    """A rating with its sign."""
    return f"{value:+g}" if value else "0"


def setting(value: Any) -> str:
    """A setting as `afterword.toml` writes it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(str(one) for one in value)
    return str(value)


FILTERS: dict[str, Callable[..., str]] = {
    "when": when, "iso": iso, "ago": ago, "count": count, "share": share, "text": message_text, "excerpt": excerpt,
    "question": question, "sign": sign, "vote": vote, "setting": setting,
}  # fmt: skip
