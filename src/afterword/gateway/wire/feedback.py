"""Parses events of `POST /v1/feedback`: our own, and rows of other products, read as by `import`.

Never stores, never interprets an event.
"""

from __future__ import annotations

from typing import Any

from afterword.errors import UsageError
from afterword.formats import events, native
from afterword.formats.parsing import Hashed, shown
from afterword.formats.registry import FORMATS, detect_format
from afterword.records import Feedback, Record, Turn

MAX_EVENTS = 1000
_OF_RECORDS = frozenset(("prompt", "draft", "user_action"))


def parse_event(event: Any) -> list[Record] | Hashed:
    """Parses one event.

    Returns:
        Its records; `Hashed` records still need their ids.

    Raises:
        UsageError: With `param` for the invalid field.
    """
    if not isinstance(event, dict):
        raise UsageError(f"an event must be an object, got {shown(event, 80)}.")
    if native.is_record(event) and event["record"] == Feedback.TABLE:
        record = native.read_record(event)
        if isinstance(record, Feedback) and record.kind == "retraction":
            raise UsageError(
                "the kind 'retraction' is invalid here: retract with DELETE /v1/feedback/{id}.", param="kind"
            )
        return [record]
    format = FORMATS.get(detect_format(event) or "") if "kind" not in event else None
    if format is None and not {"kind", "turn"} & event.keys() and not _OF_RECORDS.isdisjoint(event):
        format = events.FORMAT  # its reader names the missing field
    if format is None or format is native.FORMAT:
        return [native.read_event(event)]
    found = format.read(event) if format.events else None
    if isinstance(found, Hashed):
        return found
    if not isinstance(found, list) or any(isinstance(record, Turn) for record in found):
        raise UsageError(
            f"a row of `{format.name}` is not feedback: use `afterword import FILE` for chats and traces. This path "
            "accepts events with `turn` and `kind`, feedback of TensorZero, scores of Langfuse, and `events` records."
        )
    return found
