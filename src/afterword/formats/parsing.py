"""Shared by the readers of all formats: conversations and trees of messages, roles, times, votes, invalid rows.

Pure; never reads a file, never stores.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from afterword.errors import UsageError
from afterword.records import Feedback, Json, Record, Turn, content_hash
from afterword.store.codec import calendar_time

MISSING_IDS = "imported: the file has no token ids"


@dataclass(slots=True, kw_only=True)
class Conversation:
    """Messages in OpenAI's form with the row's feedback on them."""

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
    left_out: Counter[str] = field(default_factory=Counter)
    """Parts of the conversation that are not stored, by reason."""
    notes: dict[int, Json] = field(default_factory=dict)
    """Index of a user's message -> what the row says about it; kept as metadata of the follow-up."""


@dataclass(frozen=True, slots=True)
class Hashed:
    """Records of a row without an id of its own; `naming.RowNames` gives them one."""

    digest: str
    """32 hex digits over the content of the row."""
    user: str | None
    records: Callable[[str], list[Record]]
    """Id of the turn -> its records."""
    former: Callable[[], tuple[str, list[Record]]] | None = None
    """Id of the turn that an older version gave the same row, and the records as it stored them."""


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
    system: str = ""
    """The system prompt, where it stands beside the messages."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Parts of the chat that are not stored, by reason."""

    def add(self, key: str, node: Node) -> None:
        """Take a message; of two under one key the first stays, the other is counted."""
        if key in self.nodes:
            self.left_out["same_id"] += 1
        else:
            self.nodes[key] = node


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """Feedback from a file of its own, on a message of a chat."""

    chat: str
    message: str
    fields: Json
    """Fields of `Feedback`."""
    owner: str | None = None
    """Whose chat it is, as its own export says."""
    user: str | None = None
    """Who gave the feedback."""
    moment: float | None = None
    tree: Tree | None = None
    """The chat as it was then, when the row carries it."""


def shown(value: Any, width: int = 120) -> str:
    """A value of a row as it would stand in the file, cut to `width` characters."""
    try:
        return json.dumps(value, ensure_ascii=False, default=str)[:width]  # orjson refuses broken Unicode
    except (RecursionError, ValueError, TypeError):  # nested too deeply, or keys that JSON does not have
        return f"({type(value).__name__} that cannot be shown)"


def bad(code: str, message: str, param: str | None = None) -> UsageError:
    """The error for an invalid row: a code that is counted, a sentence, and the invalid field."""
    return UsageError(message, code=code, param=param)


def text(value: Any) -> str | None:
    """A text or a number as a text; None when it is neither, or empty."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and value != "" else None


def listed(row: Json, *names: str) -> list[Any]:
    """The first of these fields that is a list; an empty one is refused."""
    for name in names:
        value = parsed(row.get(name))  # a table may keep the list as a text
        if isinstance(value, list):
            if not value:
                raise bad("empty", f"`{name}` is empty")
            return value
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
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def iso_time(seconds: float) -> str:
    """Unix seconds as an ISO 8601 text (UTC); the nearest time that a calendar knows."""
    return datetime.fromtimestamp(calendar_time(seconds), UTC).isoformat()


ROLES = {"system", "developer", "user", "assistant", "tool", "function"}


def checked(message: Any) -> Json:
    """The message, if it is one in OpenAI's form."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str) or message["role"] not in ROLES:
        raise bad("bad_message", f"not a message with a known role: {shown(message, 120)}")
    content = message.get("content")
    if content is not None and not isinstance(content, str | list):
        raise bad("bad_message", f"the content is neither text nor parts: {shown(content, 120)}")
    if isinstance(content, list) and not all(isinstance(part, dict) for part in content):
        raise bad("bad_message", f"a part of the content is no object: {shown(content, 120)}")
    if isinstance(content, list) and not all(map(_has_its_text, content)):
        raise bad("bad_message", f"a part of type `text` has no text: {shown(content, 120)}")
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise bad("bad_message", f"the tool calls are no list of objects: {shown(calls, 120)}")
    return message


def _has_its_text(part: Json) -> bool:
    """Is this part of a content a text, or no part of that type?"""
    return part.get("type") != "text" or isinstance(part.get("text"), str)


_SPEAKERS = {
    **dict.fromkeys(("user", "human", "prompter", "person", "customer", "client", "me", "you", "usr"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "ai", "bot", "chatbot", "model", "llm", "agent", "machine",
                     "function_call",
                     "tool_call", "tool_calls", "tool_use"), "assistant"),
    **dict.fromkeys(("system", "sys", "system_prompt", "system_message"), "system"),
    **dict.fromkeys(("tool", "observation", "function_response", "tool_response", "tool_result", "tool_output",
                     "ipython"), "tool"),
    "developer": "developer", "function": "function",
}  # fmt: skip
_MODELS = ("gpt", "chatgpt", "openai", "bing", "bard", "claude", "gemini", "copilot", "llama", "mistral", "qwen",
           "deepseek", "grok", "assistant")  # fmt: skip
"""Products and models whose name stands for the assistant, also with a version behind it (`gpt-4o`)."""
_VERSIONED = re.compile(rf"(?:{'|'.join(_MODELS)})(?:[\W_]?\d.*|[\W_].*)?", re.DOTALL)


def role_of(speaker: Any) -> str | None:
    """The role that a speaker's name stands for, in any capitals ("Human", "AI", "gpt-4"); None for an unknown one."""
    if not isinstance(speaker, str):
        return None
    if known := _SPEAKERS.get(speaker):  # by far the most
        return known
    name = speaker.strip().lower().replace("-", "_").replace(" ", "_")
    return _SPEAKERS.get(name) or ("assistant" if _VERSIONED.fullmatch(name) else None)


_OFF = ("weight", "train", "training", "trainable", "train_on", "loss", "loss_weight")
"""Fields that exclude an answer when they are 0 or false: OpenAI, Together, Mistral; Axolotl; xtuner, ms-swift."""
_ON = ("mask", "masked", "ignore", "ignored", "skip", "exclude", "excluded", "is_masked", "discard", "discarded")
"""Fields that exclude an answer when they are true."""

_WEIGHTS = ("weight", "loss_weight")
"""Fields whose value must be readable: an unreadable one would train on what a file may exclude."""
_NO, _YES = ("0", "0.0", "false", "no", "none"), ("1", "true", "yes")


def is_excluded(part: Json) -> bool:
    """Does a message or a row bear a mark that its answers must not be imitated? Rejects a weight that is no number."""
    if part.get("status") == "discarded":  # Argilla
        return True
    for name in _WEIGHTS:
        if not _is_weight(part.get(name)):
            raise bad("bad_weight", f"`{name}` is {shown(part[name], 60)}; it must be a number, or true or false", name)
    return any(_is_no(part[name]) for name in _OFF if name in part) or any(
        _is_yes(part[name]) for name in _ON if name in part
    )


def _is_weight(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in (*_NO, *_YES, "") or _number(value) is not None
    return value is None or isinstance(value, bool | int | float)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _is_no(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in _NO or _number(value) == 0
    return isinstance(value, bool | int | float) and not value


def _is_yes(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in _YES
    return isinstance(value, bool | int | float) and bool(value)


def weighed(messages: list[Json], row: Json, parts: list[Any] | None = None) -> list[Json]:
    """The messages with `weight` 0 on each answer that the row, or its own part of it, excludes. NeMo's `mask` names
    the speaker excluded from training.
    """
    whole = is_excluded({name: value for name, value in row.items() if name != "mask" or not isinstance(value, str)})
    whole = whole or role_of(row.get("mask")) == "assistant"
    marks = messages if parts is None else [part if isinstance(part, dict) else {} for part in parts]
    return [
        {**message, "weight": 0} if message["role"] == "assistant" and (whole or is_excluded(mark)) else message
        for message, mark in zip(messages, marks, strict=True)
    ]


_VOTES = ("rating", "label", "feedback", "vote", "thumb", "thumbs", "reaction", "annotation")
"""Fields by which logs keep what users thought of an answer. Rows of plain messages have no agreed form of them."""


def unread_votes(row: Json, parts: list[Any]) -> Counter[str]:
    """Votes beside plain messages, which are not read, by their field."""
    holders = (row, *(part for part in parts if isinstance(part, dict)))
    return Counter(name for one in holders for name in _VOTES if one.get(name) not in (None, "", [], {}))


def message_of(part: Any) -> Json:
    """A message in OpenAI's form, or with another name of its role (`Human`) or of its fields (`from`, `value`)."""
    if not isinstance(part, dict):
        return checked(part)
    speaker = next((part[name] for name in ("role", "from", "sender", "speaker") if part.get(name) is not None), None)
    role = speaker if isinstance(speaker, str) and speaker in ROLES else role_of(speaker)
    if role is None:
        raise bad("bad_message", f"not a message with a known role: {shown(part, 120)}")
    if "content" not in part:
        said = next((part[name] for name in ("value", "text") if isinstance(part.get(name), str)), None)
        part = part if said is None else {**part, "content": said}
    return checked(part if part.get("role") == role else {**part, "role": role})


def thumb(value: Any) -> float | None:
    """1.0 for a thumb up, -1.0 for one down, in the forms that products give it; None when it is neither."""
    if isinstance(value, bool):
        return 1.0 if value else -1.0
    if isinstance(value, int | float):
        return float(value) if value in (1, -1) else None
    return _THUMBS.get(re.sub(r"[\s_]", "", value.lower())) if isinstance(value, str) else None


_THUMBS = {
    **dict.fromkeys(("1", "up", "thumbup", "thumbsup", "like", "liked", "positive", "good", "upvote"), 1.0),
    **dict.fromkeys(("-1", "down", "thumbdown", "thumbsdown", "dislike", "disliked", "negative", "bad", "downvote",
                     "flag"), -1.0),
}  # fmt: skip


def rated(value: float, comment: Any, reasons: list[str], about: Json) -> Json:
    """A rating with its reason: what the user wrote, else the labels of the reasons that the user chose."""
    said = comment.strip() if isinstance(comment, str) else ""
    kept = {name: v for name, v in about.items() if v not in (None, "", [], {})}
    return {"kind": "rating", "value": value, "text": said or "; ".join(reasons) or None, "metadata": kept}


def label(reason: Any, table: Json | None = None) -> list[str]:
    """A reason's code as the words that a user chose (`too_verbose` -> "Too verbose"), in a list; empty for none."""
    code = reason.get("key") if isinstance(reason, dict) else reason
    if not isinstance(code, str) or code.strip().lower() in ("", "other"):
        return []
    words = (table or {}).get(code) or " ".join(re.split(r"[\s_-]+", code.strip()))
    return [words[:1].upper() + words[1:]]


def parents(items: Any, below: str) -> dict[str, str]:
    """Message -> the message before it, from the lists of successors where there is no other source."""
    found: dict[str, str] = {}
    for key, entry in items:
        following = entry.get(below) if isinstance(entry, dict) else None
        for child in following if isinstance(following, list) else ():
            if isinstance(child, str) and child != key:
                found.setdefault(child, key)
    return found


def spoken(content: Any) -> str | list[Json] | None:
    """Content as a message may hold it: a text, or a list of parts; None for anything else."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else None
    return parts if parts and all(isinstance(part, dict) and _has_its_text(part) for part in parts) else None


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
        raise bad("no_id", f"the row has no id for feedback to refer to: {shown(identifier, 60)}")
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
    raise bad("value_range", f"the value {shown(value, 60)} is no rating: true, false, or a number in -1 .. 1", "value")


def feedback_of(identifier: Any, turn: Any, fields: Json, moment: float | None, **more: Any) -> Feedback:
    """Feedback with the id of the row, or a hash of its content; `fields` are its kind and content."""
    about = text(turn)
    if about is None:
        raise bad("no_id", f"feedback needs the id of its turn, got {shown(turn, 60)}", "turn")
    name = text(identifier) or "fb-" + content_hash("feedback", about, fields, moment, more)
    when: Json = {} if moment is None else {"created_at": moment}
    return Feedback(id=name, turn=about, occurred_at=moment, **fields, **more, **when)


def extra_fields(row: Json, known: frozenset[str]) -> Json:
    """Fields of a row that its product does not have: the sender's own, kept as metadata. `known`: in camel case."""
    extra = {name: value for name, value in row.items() if name not in known and _camel(name) not in known}
    return {**extra, **(row["metadata"] if "metadata" in known and isinstance(row.get("metadata"), dict) else {})}


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(part.capitalize() for part in others)


def dumps(value: Any) -> str:
    """JSON as a text."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # a whole number beyond 64 bits, broken Unicode
        return json.dumps(value, default=str)


def mapping(value: Any) -> Json:
    """An object, also one that a table keeps as a text; empty when it is none."""
    found = parsed(value)
    return found if isinstance(found, dict) else {}


def words(value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value:
        raise bad("no_text", f"a string is required, got {shown(value, 60)}")
    return value
