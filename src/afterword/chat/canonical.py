"""Normalises a chat message and hashes conversations by prefix.

Each hash covers a message and its parent's hash, so that one lookup finds a history that a client sent again. The scope
(API key and user) is the root: two users with the same words never share a thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from afterword.errors import UsageError

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_SPEAKS = ("system", "developer", "user")
"""Roles whose messages are nothing without content."""
_KEPT = ("name", "tool_calls", "tool_call_id", "function_call")


def text_of(content: Any) -> str:
    """Returns the text of a message's content: text parts joined, None as ""; images and audio are ignored."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = (part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text")
    return "".join(text for text in texts if isinstance(text, str))


def canonical(message: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields that identify a message: role, content, tool calls. Text parts become one string."""
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        content = text_of(content)
    if isinstance(content, str):
        content = content.strip()
    kept = {key: message[key] for key in _KEPT if message.get(key)}
    return {"role": message.get("role"), "content": content or "", **kept}


def thread_hashes(scope: Sequence[str | None], messages: Iterable[dict[str, Any]]) -> list[str]:
    """Hashes each prefix of a conversation.

    Args:
        scope: API key and user.
        messages: The conversation.

    Returns:
        One hash (32 hex digits) for each prefix; the last covers all messages.
    """
    parent = hashlib.blake2b(orjson.dumps(list(scope)), digest_size=16).digest()
    hashes: list[str] = []
    for message in messages:
        parent = _link(parent, message)
        hashes.append(parent.hex())
    return hashes


def _link(parent: bytes, message: dict[str, Any]) -> bytes:
    body = orjson.dumps(canonical(message), option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(parent + body, digest_size=16).digest()


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """Validates a conversation.

    Returns:
        The messages, unchanged.

    Raises:
        UsageError: With the first invalid field in `param`.
    """
    if not isinstance(messages, list) or not messages:
        raise UsageError(
            f"`messages` must be a non-empty list of message objects, got {messages!r:.80}. "
            'Send at least one, e.g. [{"role": "user", "content": "Hello"}].',
            param="messages",
        )
    for index, message in enumerate(messages):
        _check_message(index, message)
    return messages


def _check_message(index: int, message: Any) -> None:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise UsageError(f"`{where}` must be an object, got {message!r:.80}.", param=where)
    if message.get("role") not in ROLES:
        raise UsageError(
            f"`{where}.role` has the invalid value {message.get('role')!r:.80}; use one of {', '.join(ROLES)}.",
            param=f"{where}.role",
        )
    content = message.get("content")
    # An answer may have no content: a refusal, audio, a tool call, tokens that ran out while the model was thinking.
    if content is None and message["role"] in _SPEAKS:
        raise UsageError(f"`{where}.content` is missing: add a string or a list of parts.", param=f"{where}.content")
    if content is not None and not isinstance(content, str | list):
        raise UsageError(
            f"`{where}.content` must be a string or a list of parts, got {type(content).__name__}.",
            param=f"{where}.content",
        )
    for number, part in enumerate(content if isinstance(content, list) else ()):
        _check_part(f"{where}.content[{number}]", part)


def _check_part(where: str, part: Any) -> None:
    if not isinstance(part, dict):
        raise UsageError(f"`{where}` must be an object, got {part!r:.80}.", param=where)
    if part.get("type") == "text" and not isinstance(part.get("text"), str):
        raise UsageError(f"`{where}.text` must be a string, got {part.get('text')!r:.80}.", param=f"{where}.text")
