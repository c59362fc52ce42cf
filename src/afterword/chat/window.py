"""A conversation that is too long for its model: what of it may be dropped, oldest first.

Owns what belongs together and what always stays: system messages, the last message of the user, and after it the newest
step of an agent. A tool call leaves together with its results. Pure; never counts tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from afterword.chat.canonical import text_of

Message = dict[str, Any]
_INSTRUCTIONS = ("system", "developer")
_RESULTS = ("tool", "function")


def droppable(messages: Sequence[Message]) -> list[list[int]]:
    """Groups of indices that may be dropped, in the order in which they should be: turns (a user's message with all
    that answered it), then the steps of an agent (a call with its results) after the last message of the user."""
    users = [i for i, message in enumerate(messages) if message.get("role") == "user"]
    last = users[-1] if users else -1
    turns: list[list[int]] = []
    steps: list[list[int]] = []
    for index, message in enumerate(messages):
        role = message.get("role")
        if role in _INSTRUCTIONS or index == last:
            continue
        groups = turns if index < last else steps
        if groups and (role in _RESULTS or (groups is turns and role != "user")):
            groups[-1].append(index)
        else:
            groups.append([index])
    return [*turns, *steps[:-1]]


def fit(messages: Sequence[Message], share: float) -> list[Message]:
    """The messages without their oldest groups, so that about `share` of the text is left; at least one group is
    dropped. All of them when none may be."""
    groups = droppable(messages)
    sizes = [_size(message) for message in messages]
    left, goal = sum(sizes), share * sum(sizes)
    gone: set[int] = set()
    for group in groups:
        if gone and left <= goal:
            break
        gone.update(group)
        left -= sum(sizes[index] for index in group)
    return [message for index, message in enumerate(messages) if index not in gone]


def _size(message: Message) -> int:
    """Characters, as a measure of tokens."""
    calls = message.get("tool_calls") or message.get("function_call")
    return 16 + len(text_of(message.get("content"))) + (len(orjson.dumps(calls)) if calls else 0)
