"""Files of preferences: TRL's rows (`chosen` and `rejected` with or without a `prompt`; `completion` with a `label`),
and arena battles of two models (LMSYS).

Owns their field names, and what a preference becomes: the answer that was not wanted is the turn, the preferred one is
shown to the teacher.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from afterword.chat.canonical import text_of
from afterword.formats.parsing import (
    MISSING_IDS,
    Hashed,
    bad,
    message_of,
    parsed,
    shown,
    text,
    unix_time,
    weighed,
)
from afterword.records import Feedback, Json, Record, Turn, content_hash, not_to_imitate

_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant|System):[ \t]?")
"""How a conversation is written as one text (Anthropic's preference data)."""


def pair(format: str, context: list[Json], chosen: Json, rejected: Json, about: Json, row: Json) -> Hashed:
    """A preference: the answer that was not wanted is the turn, the preferred one is shown to the teacher, unless the
    `row` or its own mark excludes it from imitation."""
    if all(chosen.get(name) == rejected.get(name) for name in ("content", "tool_calls")):
        raise bad("no_preference", "the two answers are the same")
    context, (chosen, rejected) = weighed(context, {}), weighed([chosen, rejected], row)
    if not context:
        raise bad("no_request", "the row does not say what the two answers are answers to: give it a `prompt`")
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


def is_trl(row: Json) -> bool:
    """A preference, or a completion with or without a label."""
    return {"chosen", "rejected"} <= row.keys() or {"prompt", "completion"} <= row.keys()


def trl(row: Json) -> Hashed:
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
            raise bad("no_request", f"`{name}` is a text, and there is no `prompt` that says what it is an answer to")
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
    return _voted("trl", context, answer, vote, _about(row), row)


def _voted(format: str, context: list[Json], answer: Json, vote: float | None, about: Json, row: Json) -> Hashed:
    """A turn with a rating, if there is one."""
    context, (answer,) = weighed(context, {}), weighed([answer], row)
    if not context or context[-1]["role"] == "assistant":
        raise bad("no_request", "the row does not say what the answer is an answer to")
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


def is_lmsys(row: Json) -> bool:
    """A battle of two models."""
    return {"conversation_a", "conversation_b"} <= row.keys() or {"response_a", "response_b"} <= row.keys()


def lmsys(row: Json) -> Hashed:
    """A battle: the vote is about the last answer of each side. One of equal requests is a preference; in a longer
    one, whose histories differ, each side has its rating. A tie says nothing of either."""
    first, second = _side(row, "a"), _side(row, "b")
    winner = _winner(row)
    about = {"id": text(row.get("question_id")) or text(row.get("id")), "user": _judge(row),
             "created_at": row.get("tstamp", row.get("timestamp"))}  # fmt: skip
    sides = {
        "a": (first, {**about, "model": row.get("model_a")}), "b": (second, {**about, "model": row.get("model_b")}),
    }  # fmt: skip
    found: list[Hashed] = []
    for side, (messages, described) in sides.items():
        lost = winner not in (side, "tie")
        other = sides["b" if side == "a" else "a"][0]
        if lost and winner != "neither" and messages[:-1] == other[:-1]:
            found.append(pair("lmsys", messages[:-1], other[-1], messages[-1], described, row))
        else:
            vote = None if winner == "tie" else -1.0 if lost else 1.0
            found.append(_voted("lmsys", messages[:-1], messages[-1], vote, described, row))
    digest = content_hash(
        "battle", about["id"], winner, *(f.digest for f in found), row.get("model_a"), row.get("model_b")
    )

    def named(name: str) -> list[Record]:
        return [record for n, one in enumerate(found) for record in one.records(f"{name}-{'ab'[n]}")]

    return Hashed(digest, text(about["user"]), named)


def _judge(row: Json) -> str | None:
    return text(row.get("judge")) or text(row.get("user"))


def _side(row: Json, side: str) -> list[Json]:
    """The conversation of one side up to the answer that was judged."""
    given = parsed(row.get(f"conversation_{side}"))
    if given is None:
        asked, answered = _texts(row.get("prompt")), _texts(row.get(f"response_{side}"))
        if len(asked) != len(answered):
            raise bad("no_answer", f"{len(asked)} questions, but {len(answered)} answers in `response_{side}`")
        given = [m for q, a in zip(asked, answered, strict=True) for m in _exchange(q, a)]
    if not isinstance(given, list) or not given:
        raise bad("no_messages", f"`conversation_{side}` lists no message: {shown(given, 80)}")
    messages = [message_of(message) for message in given]
    number, answers = row.get("turn"), [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    if not answers:
        raise bad("no_answer", f"`conversation_{side}` has no answer")
    judged = number if isinstance(number, int) and 0 < number <= len(answers) else len(answers)
    return messages[: answers[judged - 1] + 1]


def _texts(value: Any) -> list[str]:
    """The texts of a list, which may itself stand in a text. A missing one is empty: those behind it keep their place,
    and an answer its question."""
    found = parsed(value)
    if isinstance(found, list) and all(said is None or isinstance(said, str) for said in found):
        return [said or "" for said in found]
    return [value] if isinstance(value, str) else []


def _exchange(question: str, answer: str) -> list[Json]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _winner(row: Json) -> str:
    """`a`, `b`, `tie` or `neither`."""
    said = row.get("winner")
    if said is None:
        flags = {"winner_model_a": "a", "winner_model_b": "b", "winner_tie": "tie"}
        said = next((name for flag, name in flags.items() if row.get(flag) in (1, True, "1")), None)
    name = re.sub(r"\W+", "_", said.lower()).strip("_") if isinstance(said, str) else ""
    known = _WINNERS.get(name)
    if known is None:
        raise bad("no_winner", f"`winner` is {shown(said, 60)}; known: model_a, model_b, tie, tie (bothbad)")
    return known


_WINNERS = {
    "a": "a", "model_a": "a", "b": "b", "model_b": "b", "tie": "tie", "both_good": "tie", "tie_bothbad": "neither",
    "tie_both_bad": "neither", "bothbad": "neither", "both_bad": "neither",
}  # fmt: skip
