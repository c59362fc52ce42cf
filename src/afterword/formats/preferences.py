"""Turns preferences and votes on answers, as several formats have them, into records.

Of a preference the rejected answer is the turn and the chosen one its `demonstration`; a vote is a `rating`.
"""

from __future__ import annotations

from dataclasses import replace

from afterword.chat.canonical import text_of
from afterword.formats.parsing import MISSING_IDS, Hashed, bad, checked, role_of, shown, text, unix_time, weighed
from afterword.records import Feedback, Json, Record, Turn, content_hash, not_to_imitate


def pair(format: str, context: list[Json], chosen: Json, rejected: Json, about: Json, row: Json) -> Hashed:
    """A preference: the answer that was not wanted is the turn, the preferred one is shown to the teacher, unless the
    `row` or its own mark excludes it from imitation."""
    if all(chosen.get(name) == rejected.get(name) for name in ("content", "tool_calls")):
        raise bad("no_preference", "the two answers are the same")
    context, (chosen, rejected) = weighed(context, {}), weighed([chosen, rejected], row)
    if not context:
        raise bad("no_request", "`prompt` is missing: give the request of the two answers")
    if context[-1]["role"] == "assistant":
        raise bad("no_request", "the messages before the two answers end with an answer")
    tools, wanted = about.get("tools"), "" if not_to_imitate(chosen) else text_of(chosen.get("content"))
    moment = unix_time(about.get("created_at"))
    when: Json = {} if moment is None else {"created_at": moment}
    turn = Turn(
        id="", messages=tuple(context), answer=rejected, user=text(about.get("user")),
        model=text(about.get("model")) or "", conversation=text(about.get("id")),
        tools=tuple(tools) if isinstance(tools, list) and tools else None,
        source=f"import:{format}", missing_ids=MISSING_IDS, **when,
    )  # fmt: skip

    def named(name: str) -> list[Record]:
        shown = Feedback(
            id=f"fb-{name}", turn=name, kind="demonstration", text=wanted, user=turn.user, source="api",
            metadata={"preferred": format}, **when,
        )  # fmt: skip
        return [replace(turn, id=name), shown] if wanted else [replace(turn, id=name)]

    return Hashed(content_hash("pair", format, context, chosen, rejected), turn.user, named)


def answer_in(row: Json, name: str) -> Json:
    """The one answer in a field of a row: a message, a list of one, or a text."""
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


def voted(format: str, context: list[Json], answer: Json, vote: float | None, about: Json, row: Json) -> Hashed:
    """A turn with a rating, if there is one."""
    context, (answer,) = weighed(context, {}), weighed([answer], row)
    if not context or context[-1]["role"] == "assistant":
        raise bad("no_request", "`prompt` is missing: give the request of the answer")
    moment = unix_time(about.get("created_at"))
    when: Json = {} if moment is None else {"created_at": moment}
    tools = about.get("tools")
    turn = Turn(
        id="", messages=tuple(context), answer=answer, user=text(about.get("user")),
        model=text(about.get("model")) or "", conversation=text(about.get("id")),
        tools=tuple(tools) if isinstance(tools, list) and tools else None,
        source=f"import:{format}", missing_ids=MISSING_IDS, **when,
    )  # fmt: skip

    def named(name: str) -> list[Record]:
        if vote is None:
            return [replace(turn, id=name)]
        rating = Feedback(id=f"fb-{name}-{vote:+.0f}", turn=name, kind="rating", value=vote, user=turn.user, **when)
        return [replace(turn, id=name), rating]

    return Hashed(content_hash("voted", format, context, answer, about.get("id")), turn.user, named)
