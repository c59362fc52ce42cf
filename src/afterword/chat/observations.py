"""Reads observations of an environment after an action: the messages between an answer and the next request. Pure."""

from __future__ import annotations

from afterword.chat.canonical import text_of
from afterword.records import Json, Turn, content_hash
from afterword.store.episodes import EpisodeTurn, EpisodeView


def messages_after(turn: Turn, following: Turn) -> tuple[Json, ...]:
    """Messages of a later request that came after the answer of `turn`.

    Args:
        turn: A turn.
        following: A turn that continues it.

    Returns:
        Tool results and user messages behind the answer; those behind the last answer where the history was edited.
    """
    behind = len(turn.messages)
    messages = following.messages
    if len(messages) > behind and messages[behind].get("role") == "assistant":
        return tuple(messages[behind + 1 :])
    last = max((k for k, message in enumerate(messages) if message.get("role") == "assistant"), default=-1)
    return tuple(messages[last + 1 :])


def observation_after(turn: Turn, following: Turn) -> str:
    """The same as one text, each message on lines of its own; system messages are left out."""
    said = (
        text_of(message.get("content"))
        for message in messages_after(turn, following)
        if message.get("role") not in ("assistant", "system", "developer")
    )
    return "\n".join(text for text in said if text.strip())


def state_of(view: EpisodeView, one: EpisodeTurn) -> str:
    """Hash of what the environment said last: equal in two turns that stand at the same place.

    Args:
        view: An episode.
        one: One of its turns.
    """
    parent = next((other for other in view.turns if other.turn.id == one.parent), None)
    shown = one.turn.messages if parent is None else messages_after(parent.turn, one.turn)
    return content_hash([[message.get("role"), text_of(message.get("content"))] for message in shown])
