"""Whose request it is: what channels and the shares of a canary go by.

Owns the unit: who always gets the same arm. Pure; never looks at a release.
"""

from __future__ import annotations

from typing import NamedTuple

from afterword.chat.canonical import thread_hashes
from afterword.records import Json, content_hash


class Who(NamedTuple):
    """The asker, as far as the gateway knows."""

    unit: str = ""
    """Whom shares are taken by; "" takes part in none."""
    user: str | None = None
    team: str | None = None
    task: str | None = None


ANYBODY = Who()


def unit_of(key: str | None, user: str | None, conversation: str | None, messages: list[Json]) -> str:
    """A hash of the user, else of the named conversation, else of how the conversation began, within one API key.

    The last is sticky because clients send their history again: the first message of a user stays the same.
    """
    if user is not None:
        return content_hash("user", key, user)
    if conversation is not None:
        return content_hash("conversation", key, conversation)
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), len(messages) - 1)
    return thread_hashes((key, None), messages[: first + 1])[-1]
