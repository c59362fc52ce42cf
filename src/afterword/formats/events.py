"""Reads events: one record for a prompt, a draft and the user's reaction (`user_action`, `user_edit`, `follow_up`).

Read from files and from `POST /v1/feedback` alike: a turn, and one or two feedback rows on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from afterword.formats.export_filter import ExportFilter
from afterword.formats.format import Export, Format
from afterword.formats.parsing import MISSING_IDS, Hashed, bad, checked, iso_time, shown, text, unix_time, weighed
from afterword.kinds import ACTIONS
from afterword.records import Feedback, Json, Record, Turn, content_hash, not_to_imitate
from afterword.store.attribution import speaker

_KINDS = frozenset(ACTIONS.values())
_COMMENTS = ("follow_up", "comment")
_TEXTS = ("model_version", "task", "user_edit", "follow_up", "user", "conversation")


def recognise(row: Json) -> bool:
    """A prompt with a draft."""
    return {"draft", "prompt"} <= row.keys()


def read(row: Json) -> Hashed:
    """A turn and the feedback on it. Two records that differ only in what the user did are two events on one turn.

    Raises:
        UsageError: With `param` for the invalid field.
    """
    prompt, draft = row.get("prompt"), row.get("draft")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) and prompt else prompt
    if not isinstance(messages, list) or not messages:
        raise bad("no_messages", f"`prompt` is {shown(prompt, 60)}; it must be a text or messages", param="prompt")
    if not isinstance(draft, str):
        raise bad("no_messages", f"`draft` is {shown(draft, 60)}; it must be a text", param="draft")
    for name in _TEXTS:
        value = row.get(name)
        if value is not None and type(value) is not str and text(value) is None:
            raise bad("bad_value", f"`{name}` is {shown(value, 60)}; it must be a text", param=name)
    moment = unix_time(row.get("created_at"))
    if moment is None and row.get("created_at") not in (None, ""):
        given = shown(row["created_at"], 60)
        raise bad(
            "bad_time", f"`created_at` is {given}; it must be Unix seconds or an ISO 8601 time", param="created_at"
        )
    when: Json = {} if moment is None else {"created_at": moment}
    version, task = text(row.get("model_version")), text(row.get("task"))
    (answer,) = weighed([{"role": "assistant", "content": draft}], row)
    turn = Turn(
        id="", messages=tuple(checked(m) for m in messages), answer=answer,
        model=version or "", task=task, user=text(row.get("user")), conversation=text(row.get("conversation")),
        source="import:events", missing_ids=MISSING_IDS, **when,
    )  # fmt: skip
    feedback = _feedback(row, {"user": turn.user, "occurred_at": moment, **when})

    def records(name: str) -> list[Record]:
        rows = (Feedback(id=f"fb-{name}-{end}", turn=name, **fields) for end, fields in feedback.items())
        return [replace(turn, id=name), *rows]

    digest = content_hash("events", version, task, messages, draft, row.get("created_at"))
    return Hashed(digest, turn.user, records, former=lambda: _former(row, turn, feedback))


def _feedback(row: Json, shared: Json) -> dict[str, Json]:
    """What the user did: the end of the feedback's id -> its fields."""
    action = row.get("user_action")
    kind = ACTIONS.get(action.replace("_", " ").strip().lower()) if isinstance(action, str) else None
    if kind is None and action not in (None, ""):
        known = ", ".join(sorted(ACTIONS))
        raise bad("unknown_action", f"`user_action` is {shown(action, 60)}; known: {known}", param="user_action")
    edit, follow_up = text(row.get("user_edit")), text(row.get("follow_up"))
    if kind == "edited" and edit is None:
        raise bad("no_edit", "`user_action` is an edit; give the edited text as `user_edit`", param="user_edit")
    weight = row.get("signal_weight")
    if weight is not None and not _is_share(weight):
        raise bad(
            "bad_weight", f"`signal_weight` is {shown(weight, 60)}; it lies between 0 and 1", param="signal_weight"
        )
    shared = {**shared, "metadata": {} if weight is None else {"signal_weight": weight}}
    fields: dict[str, Json] = {}
    if kind is not None:
        final = edit if kind == "edited" else None
        code = 0 if kind == "executed" else None
        fields["action"] = {"kind": kind, "final_text": final, "exit_code": code, **shared}
    if follow_up is not None:
        fields["follow-up"] = {"kind": "follow_up", "text": follow_up, **shared}
    return fields


def _is_share(value: Any) -> bool:
    """A number from 0 to 1; NaN is none, nor is true."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= 1.0


def _former(row: Json, turn: Turn, feedback: dict[str, Json]) -> tuple[str, list[Record]]:
    """The turn's id and the rows as version 0.1 stored them from HTTP, where a name of their own was made for them."""
    name = content_hash("events", row)
    ends = {"action": "", "follow-up": "-f"}
    weight = {"signal_weight": None if row.get("signal_weight") is None else float(row["signal_weight"])}
    rows: list[Record] = [
        Feedback(id=f"fb-{name}{ends[end]}", turn=f"turn-{name}", **{**fields, "metadata": weight})
        for end, fields in feedback.items()
    ]
    return f"turn-{name}", [replace(turn, id=f"turn-{name}", finish_reason="stop", missing_ids="imported"), *rows]


def write(rows: ExportFilter) -> Iterator[Json]:
    """One record for each feedback row that it can hold: no ratings, no tests, no exit code but success."""
    for row, turn in rows.feedback():
        holds = row.kind in _COMMENTS or (row.kind in _KINDS and not row.exit_code)
        if turn is None or not holds:
            continue
        if not_to_imitate(turn.answer) and row.kind not in {*_COMMENTS, "edited"}:
            rows.left_out["excluded"] += 1  # the record has no place for the mark, and praises the draft
            continue
        yield {
            "model_version": turn.adapter or turn.model,
            "task": turn.task,
            "prompt": list(turn.messages),
            "draft": turn.answer.get("content") or "",
            "user_action": row.kind if row.kind in _KINDS else None,
            "user_edit": row.final_text,
            "follow_up": row.text if row.kind in _COMMENTS else None,
            "signal_weight": row.metadata.get("signal_weight"),
            "created_at": iso_time(row.created_at),
            "user": speaker((row,), turn.user),
            "conversation": turn.conversation,
        }


FORMAT = Format(
    name="events",
    read=read,
    recognise=recognise,
    exports=(Export(what="feedback", write=write),),
    events=True,
)
