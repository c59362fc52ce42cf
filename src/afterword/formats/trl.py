"""TRL's rows: preferences (`chosen`, `rejected`), and completions (`prompt`, `completion`, `label`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from afterword.formats.export_filter import ExportFilter
from afterword.formats.format import Export, Format
from afterword.formats.parsing import Hashed, bad, message_of, shown
from afterword.formats.preferences import pair, voted
from afterword.records import Json

_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant|System):[ \t]?")
"""How a conversation is written as one text (Anthropic's preference data)."""


def recognise(row: Json) -> bool:
    """A preference, or a completion with or without a label."""
    return {"chosen", "rejected"} <= row.keys() or {"prompt", "completion"} <= row.keys()


def read(row: Json) -> Hashed:
    """`chosen` and `rejected`, texts or messages, with the `prompt` apart or inside; or `completion` and `label`."""
    if "chosen" not in row and "rejected" not in row:
        return _labelled(row)
    context = _prompt(row["prompt"]) if row.get("prompt") not in (None, "", []) else []
    chosen, rejected = _said(row, "chosen", bool(context)), _said(row, "rejected", bool(context))
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if shared:  # both carry the prompt, also when it stands apart
        context = chosen[:shared] if len(chosen[:shared]) >= len(context) else [*context, *chosen[:shared]]
    return pair("trl", context, _one(chosen[shared:], "chosen"), _one(rejected[shared:], "rejected"), _about(row), row)


def _about(row: Json) -> Json:
    return {name: row.get(name) for name in ("id", "user", "created_at", "model", "tools")}


def _prompt(value: Any) -> list[Json]:
    """A text, one written with speakers, or messages."""
    if isinstance(value, str):
        return _transcript(value) or [{"role": "user", "content": value}]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        raise bad("no_messages", f"`prompt` is neither a text nor a list of messages: {shown(value, 120)}")
    return [message_of(message) for message in value]


def _said(row: Json, name: str, prompted: bool) -> list[Json]:
    """The messages of `chosen` or `rejected`."""
    value = row.get(name)
    if isinstance(value, str):
        spoken = _transcript(value)
        if not spoken and not prompted:
            raise bad("no_request", f"`{name}` is a text without a `prompt`: give the request")
        return spoken or [{"role": "assistant", "content": value}]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        raise bad("no_messages", f"`{name}` is neither a text nor a list of messages: {shown(value, 120)}")
    return [message_of(message) for message in value]


def _one(messages: list[Json], name: str) -> Json:
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in messages)
        raise bad("no_messages", f"`{name}` must end in one answer, behind the prompt it has: {roles or 'nothing'}")
    return messages[0]


def _transcript(words: str) -> list[Json]:
    """A conversation in one text as messages; empty when the text is none. An empty answer at its end is the place
    where the model is to write."""
    marks = list(_SPEAKER.finditer(words))
    if not marks or words[: marks[0].start()].strip():
        return []
    found: list[Json] = []
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        said = words[mark.end() : following.start() if following else len(words)].strip()
        role = {"Human": "user", "Assistant": "assistant", "System": "system"}[mark[1]]
        if said or following is not None:
            found.append({"role": role, "content": said})
    return found


def _labelled(row: Json) -> Hashed:
    context = _prompt(row.get("prompt"))
    answer = _one(_said(row, "completion", prompted=True), "completion")
    label = row.get("label")
    if label is not None and label not in (0, 1):
        raise bad("value_range", f"`label` is {shown(label, 60)}; it is true for a good answer and false for a bad one")
    vote = None if label is None else 1.0 if label else -1.0
    return voted("trl", context, answer, vote, _about(row), row)


def write_answers(rows: ExportFilter) -> Iterator[Json]:
    """Prompt and completion, one row for each turn that may be imitated."""
    return ({"prompt": list(turn.messages), "completion": [turn.answer]} for turn in rows.imitable())


def write_wanted(rows: ExportFilter) -> Iterator[Json]:
    """Prompt and completion, with the answer to imitate."""
    return ({"prompt": list(turn.messages), "completion": [answer]} for turn, answer in rows.wanted())


def write_preferences(rows: ExportFilter) -> Iterator[Json]:
    """Preferences; the answer that was served is the rejected one."""
    for turn, chosen in rows.preferred():
        yield {"prompt": list(turn.messages), "chosen": [chosen], "rejected": [turn.answer]}


FORMAT = Format(
    name="trl",
    read=read,
    recognise=recognise,
    exports=(
        Export(what="turns", write=write_answers, name="trl-prompt-completion", training=True),
        Export(what="interactions", write=write_wanted, name="trl-prompt-completion", training=True),
        Export(what="interactions", write=write_preferences, name="trl-preference", training=True),
    ),
    aliases=("trl-preference", "trl-prompt-completion", "kto"),
)
