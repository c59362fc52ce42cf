"""Rows out of the store as JSON lines, in our own form and in those of others.

Owns the shapes of exported rows, one function for each; streams, and holds one row (or one conversation) at a time.
Never changes anything. What a shape cannot hold is left out: that is said in the documentation, not guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import BinaryIO

import orjson

from afterword.errors import UsageError
from afterword.records import Feedback, Interaction, Json, Record, Turn
from afterword.store.store import Store

Shape = Callable[[Store], Iterator[Json]]


def export(store: Store, what: str, format: str, out: BinaryIO) -> int:
    """Write all `what` (turns, feedback, interactions) in `format` to `out`; the number of rows.

    Raises UsageError for a pair that makes no sense, with those that do.
    """
    shape = EXPORTS.get((what, format))
    if shape is None:
        pairs = ", ".join(f"{w} as {f}" for w, f in EXPORTS)
        raise UsageError(f"{what!r} cannot be exported as {format!r}. Possible: {pairs}.")
    number = 0
    for row in shape(store):
        out.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        number += 1
    return number


def _own(kind: type[Record]) -> Shape:
    """Our own form: the record with the name of its table; `import --format afterword` reads it back."""
    return lambda store: ({"record": kind.TABLE, **row.to_dict()} for row in store.rows(kind))


def _prompt(turn: Turn) -> list[Json]:
    return list(turn.messages)


def _conversations(store: Store) -> Iterator[Json]:
    """One row for each conversation: from every turn that no other one continues, back to its beginning."""
    for turn in store.leaves():
        row: Json = {"messages": [*_whole(store, turn), turn.answer]}
        if turn.tools:
            row["tools"] = list(turn.tools)
        yield row


def _whole(store: Store, turn: Turn) -> list[Json]:
    """All messages before the answer: imported turns keep only the last ones, the rest is in the turns before."""
    tails: list[list[Json]] = []
    seen = {turn.id}
    while turn.previous is not None and turn.previous not in seen:
        before = store.find(Turn, turn.previous)
        cut = None if before is None else _position(turn, before.answer)
        if before is None or cut is None:
            break
        tails.append([before.answer, *turn.messages[cut + 1 :]])
        seen.add(before.id)
        turn = before
    return [*turn.messages, *(message for tail in reversed(tails) for message in tail)]


def _position(turn: Turn, answer: Json) -> int | None:
    """Where the answer of the turn before lies in this turn's messages, None when the history was rewritten."""
    last = next((i for i in range(len(turn.messages) - 1, -1, -1) if turn.messages[i].get("role") == "assistant"), None)
    return last if last is not None and turn.messages[last].get("content") == answer.get("content") else None


def _turn_completions(store: Store) -> Iterator[Json]:
    return ({"prompt": _prompt(turn), "completion": [turn.answer]} for turn in store.rows(Turn))


def _pairs(store: Store) -> Iterator[tuple[Interaction, Turn]]:
    gone = store.retracted()
    for interaction in store.rows(Interaction):
        if not gone.intersection(interaction.feedback):
            turn = store.find(Turn, interaction.turn)
            if turn is not None:
                yield interaction, turn


def _final_text(store: Store, interaction: Interaction) -> str | None:
    """The answer as the user left it, when there is one."""
    rows = (store.find(Feedback, name) for name in interaction.feedback)
    finals = [row.final_text for row in rows if row is not None and row.kind == "edited" and row.final_text]
    return finals[-1] if finals else None


def _triples(store: Store) -> Iterator[Json]:
    """(x, y, o): what was asked, what was answered, what the user did next."""
    for interaction, turn in _pairs(store):
        if interaction.hindsight:
            yield {
                "id": interaction.id,
                "original_conv_id": turn.conversation or turn.id,
                "turn_id": turn.id,
                "prompt": _prompt(turn),
                "completion": turn.answer,
                "user_response": interaction.hindsight,
                "weight": interaction.weight,
                "polarity": interaction.polarity,
                "split": interaction.split,
            }


def _wanted(store: Store) -> Iterator[tuple[Turn, Json]]:
    """Turns with the answer to imitate: the user's edit of it, or the answer itself where the user was content."""
    for interaction, turn in _pairs(store):
        final = _final_text(store, interaction)
        if final is not None:
            yield turn, {**turn.answer, "content": final}
        elif interaction.polarity > 0:
            yield turn, turn.answer


def _openai(store: Store) -> Iterator[Json]:
    for turn, answer in _wanted(store):
        row: Json = {"messages": [*turn.messages, answer]}
        if turn.tools:
            row["tools"] = list(turn.tools)
        yield row


def _completions(store: Store) -> Iterator[Json]:
    return ({"prompt": _prompt(turn), "completion": [answer]} for turn, answer in _wanted(store))


def _preferences(store: Store) -> Iterator[Json]:
    """What the user made of the answer is chosen, the answer as it was served is rejected."""
    for interaction, turn in _pairs(store):
        final = _final_text(store, interaction)
        if final is not None and final != turn.answer.get("content"):
            chosen = {**turn.answer, "content": final}
            yield {"prompt": _prompt(turn), "chosen": [chosen], "rejected": [turn.answer]}


_ACTIONS = (
    "accepted", "edited", "retried", "regenerated", "abandoned", "copied", "saved", "executed", "reverted", "stopped",
)  # fmt: skip


def _events(store: Store) -> Iterator[Json]:
    """The record of the mission's template, one for each feedback row that it can hold."""
    gone = store.retracted()
    for row in store.rows(Feedback):
        turn = store.find(Turn, row.turn)
        if turn is None or row.id in gone or not _holds(row):
            continue
        yield {
            "model_version": turn.adapter or turn.model,
            "task": turn.task,
            "prompt": _prompt(turn),
            "draft": turn.answer.get("content") or "",
            "user_action": row.kind if row.kind in _ACTIONS else None,
            "user_edit": row.final_text,
            "follow_up": row.text if row.kind in {"follow_up", "comment"} else None,
            "signal_weight": row.metadata.get("signal_weight"),
            "created_at": datetime.fromtimestamp(row.created_at, UTC).isoformat(),
            "user": row.user or turn.user,
            "conversation": turn.conversation,
        }


def _holds(row: Feedback) -> bool:
    """The template has no place for ratings, tests and exit codes other than success."""
    return row.kind in {"follow_up", "comment"} or (row.kind in _ACTIONS and not row.exit_code)


EXPORTS: dict[tuple[str, str], Shape] = {
    ("turns", "afterword"): _own(Turn),
    ("turns", "openai"): _conversations,
    ("turns", "trl-prompt-completion"): _turn_completions,
    ("feedback", "afterword"): _own(Feedback),
    ("feedback", "events"): _events,
    ("interactions", "afterword"): _own(Interaction),
    ("interactions", "openai"): _openai,
    ("interactions", "triples"): _triples,
    ("interactions", "trl-prompt-completion"): _completions,
    ("interactions", "trl-preference"): _preferences,
}
"""(what, format) -> the rows."""
