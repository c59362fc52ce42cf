"""A model server that refuses a request because it is too long: recognised, and what to ask with instead.

Owns the wordings of servers and how much is dropped at a time. Never sends a request.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import orjson

from afterword.chat.canonical import text_of
from afterword.records import Json
from afterword.sampling import UpstreamRejected

REMEDY = (
    'Send fewer messages, start a new conversation, or set serve.on_full_context = "drop_oldest" to have the oldest '
    "turns left out."
)
ATTEMPTS = 6
"""Requests with less and less of the history; the last has only what must stay."""
_CODES = ("context_length_exceeded", "exceed_context_size_error")
_WORDS = re.compile(
    r"(maximum|max|available|exceed\w{0,3}).{0,40}(context|model.?len|sequence.?len|prompt.?len)|context.?(length|window|size)"
    r"|(prompt|input|messages?|request) (is|are) too (long|large)|too many (input )?tokens",
    re.IGNORECASE | re.DOTALL,
)
_NUMBER = re.compile(r"(?<![\w.])\d{2,9}(?![\w.]*\d)")
_MARGIN = 0.9
_SHRINK = 0.7


def is_full(error: UpstreamRejected) -> bool:
    """Does a refusal say that the messages are longer than the model's context?"""
    if error.answered not in (400, 413, 422, 500):
        return False
    if {error.error.get("code"), error.error.get("type")} & set(_CODES):
        return True
    return _WORDS.search(str(error.error["message"])) is not None


def shorter(messages: Sequence[Json], error: UpstreamRejected, attempt: int) -> list[Json] | None:
    """What to send at the next attempt (from 1); None when nothing more may be dropped."""
    if not droppable(messages) or attempt > ATTEMPTS:
        return None
    return fit(messages, 0.0 if attempt == ATTEMPTS else _share(str(error.error["message"])))


def _share(message: str) -> float:
    """How much of the text may stay, from the numbers that a refusal names: what the model reads, what was sent."""
    numbers = [int(found) for found in _NUMBER.findall(message)]
    numbers = [number for number in numbers if number * 4 >= max(numbers)]
    if len(set(numbers)) < 2:
        return _SHRINK
    sent = max(numbers)
    limit = numbers[0] if numbers[0] < sent else min(numbers)
    return _MARGIN * limit / sent


# ---- what may be dropped

_INSTRUCTIONS = ("system", "developer")
_RESULTS = ("tool", "function")


def droppable(messages: Sequence[Json]) -> list[list[int]]:
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


def fit(messages: Sequence[Json], share: float) -> list[Json]:
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


def _size(message: Json) -> int:
    """Characters, as a measure of tokens."""
    calls = message.get("tool_calls") or message.get("function_call")
    return 16 + len(text_of(message.get("content"))) + (len(orjson.dumps(calls)) if calls else 0)
