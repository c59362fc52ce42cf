"""The chat logs that can be imported: one function for each format, from a row of the file to a `Conversation` or to
records; and the table of all formats.

Owns field names of the outside world (TensorZero and Langfuse have files of their own). Pure; never reads a file,
never stores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from afterword.feedback.langfuse import is_langfuse, langfuse
from afterword.feedback.native_format import afterword
from afterword.feedback.tensorzero import is_tensorzero, tensorzero
from afterword.formats.anthropic import is_anthropic, messages_of, with_answer
from afterword.formats.chatgpt import chatgpt, is_chatgpt
from afterword.formats.claude import claude
from afterword.formats.librechat import is_librechat, librechat
from afterword.formats.open_webui import is_open_webui, open_webui
from afterword.formats.parsing import (
    MISSING_IDS,
    Conversation,
    Hashed,
    Remark,
    Tree,
    bad,
    checked,
    listed,
    message_of,
    role_of,
    shown,
    text,
    unix_time,
    unread_votes,
    weighed,
)
from afterword.formats.preferences import is_lmsys, is_trl, lmsys, pair, trl
from afterword.records import Feedback, Json, Record, Turn, content_hash


def _openai(row: Json) -> Conversation | Hashed:
    if "preferred_output" in row:
        given = row.get("input")
        given = given if isinstance(given, dict) else {}
        context = [message_of(m) for m in listed(given, "messages")]
        return pair("openai", context, _said(row, "preferred_output"), _said(row, "non_preferred_output"), given, row)
    row, left_out = with_answer(row), Counter[str]()
    if is_anthropic(row):
        messages = messages_of({**row, "messages": listed(row, "messages")}, left_out)
    else:
        messages = [message_of(m) for m in listed(row, "messages")]
    tools = row.get("tools")
    return Conversation(
        messages=weighed(messages, row),
        left_out=left_out + unread_votes(row, messages),
        key=text(row.get("id")) or "",
        model=text(row.get("model")) or "",
        user=text(row.get("user")),
        tools=tuple(tools) if isinstance(tools, list) and tools else None,
        created_at=unix_time(row.get("created_at", row.get("created"))),
    )


def _said(row: Json, name: str) -> Json:
    """The one answer of a preference row: a message, a list of one, or a text."""
    value = row.get(name)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict) and "value" in value:
        value = {"role": role_of(value.get("from")), "content": value["value"]}
    if isinstance(value, str):
        value = {"role": "assistant", "content": value}
    if not isinstance(value, dict) or value.get("role") != "assistant":
        raise bad("no_messages", f"`{name}` is no answer: {shown(row.get(name), 120)}")
    return checked(value)


def _sharegpt(row: Json) -> Conversation:
    messages = _spoken(row)
    return Conversation(
        messages=messages,
        left_out=unread_votes(
            row, next((row[n] for n in ("conversations", "conversation") if isinstance(row.get(n), list)), [])
        ),
        key=text(row.get("id")) or text(row.get("conversation_id")) or "",
        model=text(row.get("model")) or "",
        user=text(row.get("user")),
        created_at=unix_time(row.get("created_at")),
    )


def _spoken(row: Json) -> list[Json]:
    messages: list[Json] = []
    if isinstance(row.get("system"), str) and row["system"]:
        messages.append({"role": "system", "content": row["system"]})
    marks: list[Any] = [{}] * len(messages)
    texts = row.get("data")
    if is_ultrachat(row) and isinstance(texts, list):  # by turns: the user, the model
        return messages + [{"role": ("user", "assistant")[n % 2], "content": said} for n, said in enumerate(texts)]
    for part in listed(row, "conversations", "conversation"):
        role = role_of(_first(part, "from", "role", "sender", "speaker")) if isinstance(part, dict) else None
        value = _first(part, "value", "content", "text") if role else None
        if role is None or not isinstance(value, str):
            raise bad("bad_message", f"not a {{from, value}} message with a known speaker: {shown(part, 120)}")
        messages.append({"role": role, "content": value})
        marks.append(part)
    return weighed(messages, row, marks)


def is_ultrachat(row: Json) -> bool:
    """A conversation as a list of texts, as UltraChat has it."""
    texts = row.get("data")
    return isinstance(texts, list) and len(texts) > 1 and all(isinstance(said, str) and said for said in texts)


def _first(part: Json, *names: str) -> Any:
    return next((part[name] for name in names if name in part), None)


def _wildfeedback(row: Json) -> Conversation | Hashed:
    """A conversation, a pair (`chosen` and `rejected` after a conversation), or its annotated utterances."""
    if UTTERANCES in row:
        return _annotated(row[UTTERANCES])
    if "chosen" in row and "rejected" in row:
        return pair("wildfeedback", _spoken(row), _said(row, "chosen"), _said(row, "rejected"), row, row)
    return _sharegpt(row)


UTTERANCES = "utterances"
"""Where `gathered` puts the rows of one conversation."""
_VERDICTS = ("Satisfaction", "Disatisfaction")


def is_utterance(row: Any) -> bool:
    """A row of the annotations: one utterance, numbered from 0 within its conversation."""
    return isinstance(row, dict) and {"UtterranceId", "Role", "Content"} <= row.keys()


def _annotated(rows: list[Json]) -> Conversation:
    messages, notes = [], {}
    for i, row in enumerate(rows):
        role = role_of(row["Role"])
        if role not in ("user", "assistant") or not isinstance(row["Content"], str):
            raise bad("bad_message", f"not an utterance of the user or the agent: {shown(row, 120)}")
        messages.append({"role": role, "content": row["Content"]})
        said = {name.lower(): row[name] for name in _VERDICTS if isinstance(row.get(name), bool | str)}
        if role == "user" and said:
            notes[i] = said
    return Conversation(messages=messages, key="", notes=notes)


def _wildchat(row: Json) -> Conversation:
    parts = listed(row, "conversation")
    messages = [{"role": m.get("role"), "content": m.get("content")} if isinstance(m, dict) else m for m in parts]
    first = parts[0] if isinstance(parts[0], dict) else {}
    turns = {
        i: _served(m) for i, m in enumerate(parts) if isinstance(m, dict) and role_of(m.get("role")) == "assistant"
    }
    return Conversation(
        messages=weighed([message_of(m) for m in messages], row, parts),
        key=text(row.get("conversation_hash")) or text(row.get("conversation_id")) or "",
        model=text(row.get("model")) or "",
        user=text(row.get("hashed_ip")) or text(first.get("hashed_ip")),
        created_at=unix_time(row.get("timestamp")),
        turns=turns,
    )


def _served(message: Json) -> Json:
    """What WildChat's later columns say about one answer."""
    moment = unix_time(message.get("timestamp")) or unix_time(message.get("created"))
    found: Json = {} if moment is None else {"created_at": moment}
    sampling = {name: message[name] for name in ("temperature", "top_p") if isinstance(message.get(name), int | float)}
    if sampling:
        found["sampling"] = sampling
    if isinstance(message.get("usage"), dict):
        found["usage"] = {k: v for k, v in message["usage"].items() if v is not None}
    return found


def _triples(row: Json) -> Conversation:
    prompt, completion, response = row.get("prompt"), row.get("completion"), row.get("user_response")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, list) or not messages:
        raise bad("no_messages", "`prompt` is neither a text nor a list of messages")
    answer = completion[0] if isinstance(completion, list) and len(completion) == 1 else completion
    if isinstance(answer, str):
        answer = {"role": "assistant", "content": answer}
    if not isinstance(answer, dict) or answer.get("role") != "assistant":
        raise bad("no_messages", f"`completion` is neither a text nor one assistant message: {shown(completion, 120)}")
    if isinstance(response, list) and len(response) == 1:
        response = response[0]
    if isinstance(response, dict):
        response = response.get("content")
    if not isinstance(response, str):
        raise bad("no_messages", f"`user_response` is no text: {shown(response, 120)}")
    follow_up = [{"role": "user", "content": response}] if response else []
    return Conversation(
        messages=weighed([checked(m) for m in (*messages, answer, *follow_up)], row),
        key=text(row.get("id")) or "",
        name=text(row.get("original_conv_id")),
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


def _events(row: Json) -> Hashed:
    prompt, draft = row.get("prompt"), row.get("draft")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, list) or not messages or not isinstance(draft, str):
        raise bad("no_messages", "`prompt` (a text or messages) and `draft` (a text) are needed")
    action = row.get("user_action")
    kind = ACTIONS.get(action.replace("_", " ").strip().lower()) if isinstance(action, str) else None
    if kind is None and action not in (None, ""):
        raise bad("unknown_action", f"`user_action` is {shown(action, 60)}; known: {', '.join(sorted(ACTIONS))}")
    moment = unix_time(row.get("created_at"))
    when: Json = {} if moment is None else {"created_at": moment}
    version, task = text(row.get("model_version")), text(row.get("task"))
    (answer,) = weighed([{"role": "assistant", "content": draft}], row)
    turn = Turn(
        id="", messages=tuple(checked(m) for m in messages), answer=answer,
        model=version or "", task=task, user=text(row.get("user")), conversation=text(row.get("conversation")),
        source="import:events", missing_ids=MISSING_IDS, **when,
    )  # fmt: skip
    after = _event_feedback(row, kind, {"user": turn.user, "occurred_at": when.get("created_at"), **when})

    def named(name: str) -> list[Record]:
        rows = (Feedback(id=f"fb-{name}-{end}", turn=name, **fields) for end, fields in after.items())
        return [replace(turn, id=name), *rows]

    return Hashed(content_hash("events", version, task, messages, draft, row.get("created_at")), turn.user, named)


def _is_share(value: Any) -> bool:
    """A number from 0 to 1; NaN is none, nor is true."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= 1.0


def _event_feedback(row: Json, kind: str | None, shared: Json) -> dict[str, Json]:
    """What the user did: the end of the feedback's id -> its fields."""
    edit, follow_up = text(row.get("user_edit")), text(row.get("follow_up"))
    weight = row.get("signal_weight")
    if weight is not None and not _is_share(weight):
        raise bad("bad_weight", f"`signal_weight` is {shown(weight, 60)}; it lies between 0 and 1")
    shared = {**shared, "metadata": {} if weight is None else {"signal_weight": weight}}
    found: dict[str, Json] = {}
    if kind is not None:
        final = edit if kind == "edited" else None
        code = 0 if kind == "executed" else None
        found["action"] = {"kind": kind, "final_text": final, "exit_code": code, **shared}
    if follow_up is not None:
        found["follow-up"] = {"kind": "follow_up", "text": follow_up, **shared}
    return found


Parser = Callable[[Json], "Conversation | Tree | Remark | Hashed | list[Record]"]
"""A row of a file -> a conversation, a chat with branches, records that have ids, or records that need a name."""

FORMATS: dict[str, Parser] = {
    "openai": _openai, "sharegpt": _sharegpt, "wildchat": _wildchat, "wildfeedback": _wildfeedback,
    "triples": _triples, "events": _events, "tensorzero": tensorzero, "langfuse": langfuse, "afterword": afterword,
    "anthropic": _openai, "open-webui": open_webui, "chatgpt": chatgpt, "claude": claude, "librechat": librechat,
    "trl": trl, "lmsys": lmsys,
}  # fmt: skip

ALIASES = {
    "openwebui": "open-webui", "trl-preference": "trl", "trl-prompt-completion": "trl", "kto": "trl", "arena": "lmsys",
}  # fmt: skip
"""Other names of a format."""

_SIGNS = (
    ("afterword", {"record", "id", "schema"}), ("events", {"draft", "prompt"}),
    ("triples", {"prompt", "completion", "user_response"}), ("wildfeedback", {"conversations", "chosen", "rejected"}),
    ("sharegpt", {"conversations"}), ("wildfeedback", {"conversation"}), ("wildfeedback", {UTTERANCES}),
    ("openai", {"messages"}), ("openai", {"input", "preferred_output", "non_preferred_output"}),
)  # fmt: skip


_PRODUCTS: tuple[tuple[str, Callable[[Json], bool]], ...] = (
    ("chatgpt", is_chatgpt), ("claude", lambda row: "chat_messages" in row), ("open-webui", is_open_webui),
    ("librechat", is_librechat), ("lmsys", is_lmsys),
)  # fmt: skip
_LAST: tuple[tuple[str, Callable[[Json], bool]], ...] = (
    ("trl", is_trl), ("sharegpt", is_ultrachat), ("tensorzero", is_tensorzero), ("langfuse", is_langfuse),
    ("openai", lambda row: isinstance(row.get("request"), dict) and "messages" in row["request"]),
)  # fmt: skip
"""What is asked when no keys told the format."""


def detect_format(row: Any) -> str | None:
    """The format of a row by its keys, None when it is like none of them."""
    if not isinstance(row, dict):
        return None
    keys = row.keys()
    product = next((name for name, is_one in _PRODUCTS if is_one(row)), None)
    if product is not None:
        return product
    if "conversation" in keys and keys & {"conversation_hash", "hashed_ip", "openai_moderation"}:
        return "wildchat"
    found = next((name for name, needed in _SIGNS if needed <= keys), None)
    if found is None:
        found = next((name for name, is_one in _LAST if is_one(row)), None)
    return found
