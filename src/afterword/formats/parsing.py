"""What the parsers of all formats share: a conversation or a tree of messages, roles, times, and rejected rows.

Pure; never reads a file, never stores.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from afterword.errors import UsageError
from afterword.records import Feedback, Json, Record, Turn

MISSING_IDS = "imported: the file has no token ids"


@dataclass(slots=True, kw_only=True)
class Conversation:
    """Messages in OpenAI's form with what the row says about them."""

    messages: list[Json]
    key: str = ""
    """The row's own id."""
    name: str | None = None
    """The conversation that it is a part of, when the row is not all of it."""
    only_last: bool = False
    """Only the last answer is a turn of this row; those before it are other rows."""
    model: str = ""
    user: str | None = None
    tools: tuple[Json, ...] | None = None
    created_at: float | None = None
    turns: dict[int, Json] = field(default_factory=dict)
    """Index of an answer -> what the row says about that one turn: fields of `Turn`."""
    notes: dict[int, Json] = field(default_factory=dict)
    """Index of a user's message -> what the row says about it; kept as metadata of the follow-up."""


@dataclass(frozen=True, slots=True)
class Hashed:
    """Records of a row that has no id of its own: they are made once their name is known."""

    digest: str
    """32 hex digits over what the row says."""
    user: str | None
    records: Callable[[str], list[Record]]


@dataclass(slots=True, kw_only=True)
class Node:
    """One message of a tree."""

    parent: str | None
    """The key of the message before it; None at the beginning."""
    message: Json | None = None
    """In OpenAI's form. None: left out (hidden, an error, a plan), what follows belongs to the message before it."""
    created_at: float | None = None
    turn: Json = field(default_factory=dict)
    """What is known of an answer: fields of `Turn`."""
    feedback: list[Json] = field(default_factory=list)
    """What its user did with an answer: fields of `Feedback`."""
    attempt: str = ""
    """Answers to one message are attempts at the same only if this is equal: the model, the place in a comparison."""


@dataclass(slots=True, kw_only=True)
class Tree:
    """A chat in which a message may have several continuations: answers generated again, questions written anew."""

    key: str
    """The chat's own id."""
    nodes: dict[str, Node]
    """In the order of the file."""
    current: str | None = None
    """Where the branch ends that the user saw last; None when the file does not say."""
    user: str | None = None
    model: str = ""
    tools: tuple[Json, ...] | None = None
    created_at: float | None = None
    notes: Counter[str] = field(default_factory=Counter)
    """What of the chat was left out or repaired, by reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """Feedback from a file of its own, on a message of a chat."""

    chat: str
    message: str
    fields: Json
    """Fields of `Feedback`."""
    user: str | None = None
    moment: float | None = None
    tree: Tree | None = None
    """The chat as it was then, when the row carries it."""


def shown(value: Any, width: int = 120) -> str:
    """A value of a row as it would stand in the file, cut to `width` characters."""
    try:
        return json.dumps(value, ensure_ascii=False, default=str)[:width]  # orjson refuses broken Unicode
    except (RecursionError, ValueError, TypeError):  # nested too deeply, or keys that JSON does not have
        return f"({type(value).__name__} that cannot be shown)"


def bad(code: str, message: str) -> UsageError:
    """The refusal of a row: a code that is counted, and a sentence."""
    return UsageError(message, code=code)


def text(value: Any) -> str | None:
    """A text or a number as a text; None when it is neither, or empty."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and value != "" else None


def listed(row: Json, *names: str) -> list[Any]:
    """The first of these fields that is a list; an empty one is refused."""
    for name in names:
        if isinstance(row.get(name), list):
            if not row[name]:
                raise bad("empty", f"`{name}` is empty")
            return list(row[name])
    raise bad(
        "no_messages",
        f"no list {' or '.join(f'`{n}`' for n in names)} in the row (it has {', '.join(row) or 'nothing'})",
    )


def unix_time(value: Any) -> float | None:
    """Seconds from a number (of seconds or milliseconds), an ISO 8601 text or a `datetime`; None when it is neither."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e14:
        return float(value) / (1000 if value > 1e11 else 1)
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


ROLES = {"system", "developer", "user", "assistant", "tool", "function"}


def checked(message: Any) -> Json:
    """The message, if it is one in OpenAI's form."""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise bad("bad_message", f"not a message with a known role: {shown(message, 120)}")
    content = message.get("content")
    if content is not None and not isinstance(content, str | list):
        raise bad("bad_message", f"the content is neither text nor parts: {shown(content, 120)}")
    if isinstance(content, list) and not all(isinstance(part, dict) for part in content):
        raise bad("bad_message", f"a part of the content is no object: {shown(content, 120)}")
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise bad("bad_message", f"the tool calls are no list of objects: {shown(calls, 120)}")
    return message


def parsed(value: Any) -> Any:
    """JSON that a table keeps as a text; any other value, or text that is none, as it is."""
    if isinstance(value, str) and value[:1] in "[{":
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def turn_of(
    format: str, identifier: Any, messages: list[Json], answer: Json, moment: float | None, about: Json
) -> Turn:
    """A turn that keeps the id of the row, so that feedback finds it."""
    name = text(identifier)
    if name is None:
        raise bad("no_id", f"the row has no id by which feedback could find it: {shown(identifier, 60)}")
    if not messages:
        raise bad("no_messages", "`input` holds no message")
    when: Json = {} if moment is None else {"created_at": moment}
    return Turn(
        id=name, messages=tuple(messages), answer=answer, source=f"import:{format}", missing_ids=MISSING_IDS,
        **about, **when,
    )  # fmt: skip


def rating(value: Any) -> Json:
    """A number or yes/no as the fields of a rating."""
    if isinstance(value, bool):
        return {"kind": "rating", "value": 1.0 if value else -1.0}
    if isinstance(value, int | float) and -1 <= value <= 1:
        return {"kind": "rating", "value": float(value)}
    raise bad("value_range", f"the value {shown(value, 60)} is no rating: true, false, or a number in -1 .. 1")


def feedback_of(identifier: Any, turn: Any, fields: Json, moment: float | None, **more: Any) -> Feedback:
    """Feedback with the id of the row; `fields` say its kind and what it carries."""
    name, about = text(identifier), text(turn)
    if name is None or about is None:
        raise bad(
            "no_id", f"feedback needs an id and what it is about, got {shown(identifier, 60)} and {shown(turn, 60)}"
        )
    when: Json = {} if moment is None else {"created_at": moment}
    return Feedback(id=name, turn=about, occurred_at=moment, **fields, **more, **when)


def dumps(value: Any) -> str:
    """JSON as a text."""
    return orjson.dumps(value).decode()


def mapping(value: Any) -> Json:
    """An object, also one that a table keeps as a text; empty when it is none."""
    found = parsed(value)
    return found if isinstance(found, dict) else {}


def words(value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value:
        raise bad("no_text", f"a text is needed, got {shown(value, 60)}")
    return value
