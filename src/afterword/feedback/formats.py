"""The formats that can be imported: one function for each, from a row of the file to a `Conversation` or to records.

Owns field names of the outside world. Pure; never reads a file, never stores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from afterword.errors import UsageError
from afterword.records import RECORDS, Feedback, Json, Record, Turn, content_hash

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


def _bad(code: str, message: str) -> UsageError:
    return UsageError(message, code=code)


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and value != "" else None


def _list(row: Json, *names: str) -> list[Any]:
    for name in names:
        if isinstance(row.get(name), list):
            if not row[name]:
                raise _bad("empty", f"`{name}` is empty")
            return list(row[name])
    raise _bad(
        "no_messages",
        f"no list {' or '.join(f'`{n}`' for n in names)} in the row (it has {', '.join(row) or 'nothing'})",
    )


def unix_time(value: Any) -> float | None:
    """Seconds from a number (of seconds or milliseconds) or an ISO 8601 text; None when it is neither."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e14:
        return float(value) / (1000 if value > 1e11 else 1)
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


_ROLES = {"system", "developer", "user", "assistant", "tool", "function"}


def _message(message: Any) -> Json:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise _bad("bad_message", f"not a message with a known role: {message!r:.120}")
    content = message.get("content")
    if content is not None and not isinstance(content, str | list):
        raise _bad("bad_message", f"the content is neither text nor parts: {content!r:.120}")
    if isinstance(content, list) and not all(isinstance(part, dict) for part in content):
        raise _bad("bad_message", f"a part of the content is no object: {content!r:.120}")
    return message


def _openai(row: Json) -> Conversation:
    tools = row.get("tools")
    return Conversation(
        messages=[_message(m) for m in _list(row, "messages")],
        key=_text(row.get("id")) or "",
        model=_text(row.get("model")) or "",
        user=_text(row.get("user")),
        tools=tuple(tools) if isinstance(tools, list) and tools else None,
        created_at=unix_time(row.get("created_at", row.get("created"))),
    )


_FROM = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "model": "assistant", "bing": "assistant", "bard": "assistant", "claude": "assistant", "system": "system",
    "function_call": "assistant", "tool_call": "assistant", "observation": "tool", "tool": "tool",
    "function_response": "tool",
}  # fmt: skip


def _sharegpt(row: Json) -> Conversation:
    messages: list[Json] = []
    if isinstance(row.get("system"), str) and row["system"]:
        messages.append({"role": "system", "content": row["system"]})
    for part in _list(row, "conversations", "conversation"):
        role = _FROM.get(str(part.get("from", part.get("role")))) if isinstance(part, dict) else None
        value = part.get("value", part.get("content")) if role else None
        if role is None or not isinstance(value, str):
            raise _bad("bad_message", f"not a {{from, value}} message with a known speaker: {part!r:.120}")
        messages.append({"role": role, "content": value})
    return Conversation(
        messages=messages,
        key=_text(row.get("id")) or _text(row.get("conversation_id")) or "",
        model=_text(row.get("model")) or "",
        user=_text(row.get("user")),
    )


def _wildchat(row: Json) -> Conversation:
    parts = _list(row, "conversation")
    messages = [{"role": m.get("role"), "content": m.get("content")} if isinstance(m, dict) else m for m in parts]
    first = parts[0] if isinstance(parts[0], dict) else {}
    return Conversation(
        messages=[_message(m) for m in messages],
        key=_text(row.get("conversation_hash")) or _text(row.get("conversation_id")) or "",
        model=_text(row.get("model")) or "",
        user=_text(row.get("hashed_ip")) or _text(first.get("hashed_ip")),
        created_at=unix_time(row.get("timestamp")),
    )


def _triples(row: Json) -> Conversation:
    prompt, completion, response = row.get("prompt"), row.get("completion"), row.get("user_response")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, list) or not messages:
        raise _bad("no_messages", "`prompt` is neither a text nor a list of messages")
    answer = completion[0] if isinstance(completion, list) and len(completion) == 1 else completion
    if isinstance(answer, str):
        answer = {"role": "assistant", "content": answer}
    if not isinstance(answer, dict) or answer.get("role") != "assistant":
        raise _bad("no_messages", f"`completion` is neither a text nor one assistant message: {completion!r:.120}")
    if isinstance(response, list) and len(response) == 1:
        response = response[0]
    if isinstance(response, dict):
        response = response.get("content")
    if not isinstance(response, str):
        raise _bad("no_messages", f"`user_response` is no text: {response!r:.120}")
    follow_up = [{"role": "user", "content": response}] if response else []
    return Conversation(
        messages=[_message(m) for m in (*messages, answer, *follow_up)],
        key=_text(row.get("id")) or "",
        name=_text(row.get("original_conv_id")),
        only_last=True,
    )


ACTIONS = {
    "accepted": "accepted", "accepted unchanged": "accepted", "accept": "accepted", "edited": "edited",
    "edit": "edited", "accepted after edit": "edited", "retry": "retried", "retried": "retried",
    "reformulated": "retried", "regenerated": "regenerated", "abandoned": "abandoned", "copied": "copied",
    "saved": "saved", "executed": "executed", "ran": "executed", "executed successfully": "executed",
    "reverted": "reverted", "user reverted": "reverted", "stopped": "stopped",
}  # fmt: skip
"""`user_action` of the mission's record -> kind."""


def _events(row: Json) -> list[Record]:
    prompt, draft = row.get("prompt"), row.get("draft")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, list) or not messages or not isinstance(draft, str):
        raise _bad("no_messages", "`prompt` (a text or messages) and `draft` (a text) are needed")
    action = row.get("user_action")
    kind = ACTIONS.get(action.replace("_", " ").strip().lower()) if isinstance(action, str) else None
    if kind is None and action not in {None, ""}:
        raise _bad("unknown_action", f"`user_action` is {action!r:.60}; known: {', '.join(sorted(ACTIONS))}")
    moment = unix_time(row.get("created_at"))
    when: Json = {} if moment is None else {"created_at": moment}
    version, task = _text(row.get("model_version")), _text(row.get("task"))
    name = "imp-" + content_hash("events", version, task, messages, draft, row.get("created_at"))
    turn = Turn(
        id=name, messages=tuple(_message(m) for m in messages), answer={"role": "assistant", "content": draft},
        model=version or "", task=task, user=_text(row.get("user")), conversation=_text(row.get("conversation")),
        source="import:events", missing_ids=MISSING_IDS, **when,
    )  # fmt: skip
    return [turn, *_event_feedback(row, turn, kind, when)]


def _event_feedback(row: Json, turn: Turn, kind: str | None, when: Json) -> list[Record]:
    edit, follow_up = _text(row.get("user_edit")), _text(row.get("follow_up"))
    weight = row.get("signal_weight")
    extra: Json = {
        "turn": turn.id, "user": turn.user, "occurred_at": when.get("created_at"),
        "metadata": {} if weight is None else {"signal_weight": weight}, **when,
    }  # fmt: skip
    rows: list[Record] = []
    if kind is not None:
        final = edit if kind == "edited" else None
        code = 0 if kind == "executed" else None
        rows.append(Feedback(id=f"fb-{turn.id}-action", kind=kind, final_text=final, exit_code=code, **extra))
    if follow_up is not None:
        rows.append(Feedback(id=f"fb-{turn.id}-follow-up", kind="follow_up", text=follow_up, **extra))
    return rows


_TABLES = {kind.TABLE: kind for kind in RECORDS}


def _afterword(row: Json) -> list[Record]:
    kind = _TABLES.get(str(row.get("record")))
    if kind is None:
        raise _bad("unknown_record", f"`record` is {row.get('record')!r:.60}; known: {', '.join(_TABLES)}")
    try:
        return [kind.from_dict({name: value for name, value in row.items() if name != "record"})]
    except TypeError as error:
        raise _bad("bad_record", f"not a record of {kind.TABLE}: {error}") from error


Parser = Callable[[Json], "Conversation | list[Record]"]

FORMATS: dict[str, Parser] = {
    "openai": _openai, "sharegpt": _sharegpt, "wildchat": _wildchat, "wildfeedback": _sharegpt,
    "triples": _triples, "events": _events, "afterword": _afterword,
}  # fmt: skip


def detect_format(row: Any) -> str | None:
    """The format of a row by its keys, None when it is like none of them."""
    if not isinstance(row, dict):
        return None
    keys = row.keys()
    if "conversation" in keys and keys & {"conversation_hash", "hashed_ip", "openai_moderation"}:
        return "wildchat"
    signs = (
        ("afterword", {"record", "id", "schema"}), ("events", {"draft", "prompt"}),
        ("triples", {"prompt", "completion", "user_response"}), ("sharegpt", {"conversations"}),
        ("wildfeedback", {"conversation"}), ("openai", {"messages"}),
    )  # fmt: skip
    return next((name for name, needed in signs if needed <= keys), None)
