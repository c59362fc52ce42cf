"""Identifies the requester: user, conversation, team and task, and the unit of canary assignment.

Owns the headers and body fields that are read. Pure; never looks at a release.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from afterword.chat.canonical import text_of, thread_hashes
from afterword.chat.wrapped import user_words
from afterword.config import CONVERSATION_FROM, USER_FROM
from afterword.errors import UsageError
from afterword.records import Json, content_hash

_BODY = "body."
_LONGEST = 512
"""Characters of a name that another product gives; ours may be longer."""
_NOBODY = frozenset(("null", "none", "undefined"))
"""What a front end without a name writes."""


class NameSources(NamedTuple):
    """Headers, and body fields such as `body.metadata.user_id`, that name user and conversation."""

    user: Sequence[str] = USER_FROM
    conversation: Sequence[str] = CONVERSATION_FROM


KNOWN_SOURCES = NameSources()


def name_of(headers: Mapping[str, str], field: str, value: Any, where: str) -> str | None:
    """Reads a name from our header, else from its body field.

    Args:
        headers: Headers of the request.
        field: Suffix of the header `x-afterword-FIELD`.
        value: Value of the body field.
        where: Path of the body field, for errors.

    Returns:
        The name; None when neither has one.

    Raises:
        UsageError: If the header is not UTF-8 or the body field is not a string.
    """
    header = headers.get(f"x-afterword-{field}")
    if header and not _is_blank(header):
        if not _is_text(header):
            where = f"x-afterword-{field}"
            raise UsageError(
                f"the header `{where}` has the invalid value {header!r:.80}: encode it as UTF-8.", param=where
            )
        return header
    if value is not None and not isinstance(value, str):
        raise UsageError(f"`{where}` must be a string, got {value!r:.80}.", param=where)
    return value if value and not _is_blank(value) else None


def name_from(
    headers: Mapping[str, str], field: str, body: Json, value: Any, where: str, sources: Sequence[str]
) -> str | None:
    """Reads a name from our header, headers in `sources`, its body field, then other fields in `sources`.

    Invalid names from other products' fields are ignored.

    Args:
        headers: Headers of the request.
        field: Suffix of the header `x-afterword-FIELD`.
        body: Body of the request.
        value: Value of our own body field.
        where: Path of that field, for errors.
        sources: Further headers and `body.` fields, in order.

    Returns:
        The name; None when no source has one.

    Raises:
        UsageError: If our header is not UTF-8 or our body field is not a string.
    """
    ours = name_of(headers, field, None, where)
    theirs = (headers.get(source) for source in sources if not source.startswith(_BODY))
    named = ours or next((text for text in map(_usable, theirs) if text), None)
    if named or (named := name_of({}, field, value, where)):
        return named
    fields = (_field(body, source) for source in sources if source.startswith(_BODY))
    return next((text for text in map(_usable, fields) if text), None)


def _field(body: Json, source: str) -> Any:
    value: Any = body
    for name in source.split(".")[1:]:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _usable(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return None
    text = value.strip()
    return text if 0 < len(text) <= _LONGEST and _is_text(text) and not _is_blank(text) else None


def _is_blank(text: str) -> bool:
    """Placeholders that a front end left as they are name nobody."""
    return text.strip().lower() in _NOBODY or "{{" in text or "${" in text or not text.strip()


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Requester(NamedTuple):
    """The sender of a request, as far as the gateway knows."""

    unit: str = ""
    """Whom shares are taken by; "" takes part in none."""
    user: str | None = None
    team: str | None = None
    task: str | None = None


ANYBODY = Requester()


def unit_of(key: str | None, user: str | None, conversation: str | None, messages: list[Json]) -> str:
    """Computes the unit of canary assignment: stable for a user or a conversation, within one API key.

    It hashes the user, else the named conversation, else the first user message: clients send their history again, so
    that message stays the same. System prompts and retrieved text are excluded, because they change.

    Args:
        key: Public id of the API key.
        user: User name.
        conversation: Conversation name.
        messages: Messages of the request.

    Returns:
        32 hex digits.
    """
    if user is not None:
        return content_hash("user", key, user)
    if conversation is not None:
        return content_hash("conversation", key, conversation)
    first = next((message for message in messages if message["role"] == "user"), messages[-1])
    text = text_of(first.get("content"))
    words = {**first, "content": user_words(text)[0]} if text else first
    return thread_hashes((key, None), [words])[-1]
