"""Detects that a request exceeds the model's context, and drops the oldest messages to make it fit.

System messages, the last user message and the newest agent step after it always stay; a tool call is dropped together
with its results. Never sends a request, never counts tokens.
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
    """True when an upstream error says that the messages exceed the model's context."""
    if error.answered not in (400, 413, 422, 500):
        return False
    if {error.error.get("code"), error.error.get("type")} & set(_CODES):
        return True
    return _WORDS.search(str(error.error["message"])) is not None


def shorter(messages: Sequence[Json], error: UpstreamRejected, attempt: int) -> list[Json] | None:
    """Drops the oldest messages for the next attempt.

    Args:
        messages: Messages of the attempt before.
        error: Its error; token counts in its message decide how much is dropped.
        attempt: Number of the next attempt, from 1.

    Returns:
        The remaining messages; None when nothing more may be dropped.
    """
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
    """Groups the messages that may be dropped, in the order of dropping.

    Returns:
        Groups of indices: first turns (a user message and all answers to it), then agent steps (a call and its results)
            after the last user message.
    """
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
    """Drops the oldest groups of messages until about `share` of the text remains.

    Args:
        messages: The conversation.
        share: Share of the text to keep, 0 to 1.

    Returns:
        The remaining messages; at least one group is dropped where one may be.
    """
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
