"""Arena battles of two models (LMSYS)."""

from __future__ import annotations

import re
from typing import Any

from afterword.formats.format import Format
from afterword.formats.parsing import Hashed, bad, message_of, parsed, shown, text
from afterword.formats.preferences import pair, voted
from afterword.records import Json, Record, content_hash


def recognise(row: Json) -> bool:
    """A battle of two models."""
    return {"conversation_a", "conversation_b"} <= row.keys() or {"response_a", "response_b"} <= row.keys()


def read(row: Json) -> Hashed:
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
            found.append(voted("lmsys", messages[:-1], messages[-1], vote, described, row))
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


FORMAT = Format(name="lmsys", read=read, recognise=recognise, aliases=("arena",))
