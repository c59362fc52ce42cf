"""WildFeedback: conversations, preference pairs after a conversation, and annotated utterances."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from afterword.formats import sharegpt
from afterword.formats.export_filter import ExportFilter
from afterword.formats.format import Export, Format
from afterword.formats.parsing import Conversation, Hashed, bad, role_of, shown
from afterword.formats.preferences import answer_in, pair
from afterword.records import Json

UTTERANCES = "utterances"
"""Where an import puts the rows of one annotated conversation."""
_VERDICTS = ("Satisfaction", "Disatisfaction")


def recognise(row: Json) -> bool:
    """A pair, a conversation, or annotated utterances."""
    keys = row.keys()
    if "conversations" in keys:
        return {"chosen", "rejected"} <= keys
    return "conversation" in keys or UTTERANCES in keys


def read(row: Json) -> Conversation | Hashed:
    """A conversation, a pair (`chosen` and `rejected` after a conversation), or its annotated utterances."""
    if UTTERANCES in row:
        return _annotated(row[UTTERANCES])
    if "chosen" in row and "rejected" in row:
        chosen, rejected = answer_in(row, "chosen"), answer_in(row, "rejected")
        return pair("wildfeedback", sharegpt.messages_in(row), chosen, rejected, row, row)
    return sharegpt.read(row)


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


def write(rows: ExportFilter) -> Iterator[Json]:
    """Preference pairs: the conversation, the answer that the user preferred, the answer that was served."""
    for turn, chosen in rows.preferred():
        yield {
            "conversations": sharegpt.parts_of(list(turn.messages)),
            "chosen": sharegpt.part_of(chosen),
            "rejected": sharegpt.part_of(turn.answer),
        }


FORMAT = Format(
    name="wildfeedback",
    read=read,
    recognise=recognise,
    exports=(Export(what="interactions", write=write, training=True),),
)
