"""The shapes in which turns, feedback and interactions leave: our own, OpenAI's, those of training libraries, triples
and the mission's events. One function for each, a generator over the store.

Owns field names of the outside world on the way out (chat logs of products are in `shapes_logs`). Holds one row, or
one conversation, at a time. What a shape cannot hold is left out: docs/import-export.md says what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from afterword.records import Feedback, Interaction, Json, Record, Turn
from afterword.store.store import Store
from afterword.store.users import speaker

Shape = Callable[[Store], Iterator[Json]]


def own(kind: type[Record]) -> Shape:
    """Our own form: the record with the name of its table; `import --format afterword` reads
    turns and feedback back."""
    return lambda store: ({"record": kind.TABLE, **row.to_dict()} for row in store.rows(kind))


def conversations(store: Store) -> Iterator[Json]:
    """One row for each conversation: from every turn that no other one continues, back to its beginning."""
    for turn, messages in threads(store):
        row: Json = {"messages": messages}
        if turn.tools:
            row["tools"] = list(turn.tools)
        yield row


def threads(store: Store) -> Iterator[tuple[Turn, list[Json]]]:
    """The last turn of each conversation (or branch of one) with all of its messages, the last answer included."""
    return ((turn, [*whole(store, turn), turn.answer]) for turn in store.leaves())


def whole(store: Store, turn: Turn) -> list[Json]:
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


def turn_completions(store: Store) -> Iterator[Json]:
    """TRL's prompt and completion, one row for each turn."""
    return ({"prompt": list(turn.messages), "completion": [turn.answer]} for turn in store.rows(Turn))


def pairs(store: Store) -> Iterator[tuple[Interaction, Turn]]:
    """Interactions with their turns, without those whose feedback was taken back."""
    gone = store.retracted()
    for interaction in store.rows(Interaction):
        if not gone.intersection(interaction.feedback):
            turn = store.find(Turn, interaction.turn)
            if turn is not None:
                yield interaction, turn


def final_text(store: Store, interaction: Interaction) -> str | None:
    """The answer as the user left it, when there is one."""
    rows = (store.find(Feedback, name) for name in interaction.feedback)
    finals = [row.final_text for row in rows if row is not None and row.kind == "edited" and row.final_text]
    return finals[-1] if finals else None


def triples(store: Store) -> Iterator[Json]:
    """(x, y, o): what was asked, what was answered, what the user did next."""
    for interaction, turn in pairs(store):
        if interaction.hindsight:
            yield {
                "id": interaction.id,
                "original_conv_id": turn.conversation or turn.id,
                "turn_id": turn.id,
                "prompt": list(turn.messages),
                "completion": turn.answer,
                "user_response": interaction.hindsight,
                **_lengths(turn),
                "weight": interaction.weight,
                "polarity": interaction.polarity,
                "split": interaction.split,
            }


def _lengths(turn: Turn) -> Json:
    """The three lengths of the schema, in characters."""
    asked, answered = (sum(len(text(m)) for m in part) for part in (turn.messages, (turn.answer,)))
    return {"prompt_len": asked, "completion_len": answered, "total_conv_len": asked + answered}


def text(message: Json) -> str:
    """The text of a message; parts that are none count as nothing."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _wanted(store: Store) -> Iterator[tuple[Turn, Json]]:
    """Turns with the answer to imitate: the user's edit of it, or the answer itself where the user was content."""
    for interaction, turn in pairs(store):
        final = final_text(store, interaction)
        if final is not None:
            yield turn, {**turn.answer, "content": final}
        elif interaction.polarity > 0:
            yield turn, turn.answer


def openai(store: Store) -> Iterator[Json]:
    """OpenAI's fine-tuning rows: the answer to imitate at the end."""
    for turn, answer in _wanted(store):
        row: Json = {"messages": [*turn.messages, answer]}
        if turn.tools:
            row["tools"] = list(turn.tools)
        yield row


def completions(store: Store) -> Iterator[Json]:
    """TRL's prompt and completion with the answer to imitate."""
    return ({"prompt": list(turn.messages), "completion": [answer]} for turn, answer in _wanted(store))


def preferred(store: Store) -> Iterator[tuple[Turn, Json]]:
    """Turns with the answer that the user would rather have had: an edit or a demonstration, unlike what was served."""
    for interaction, turn in pairs(store):
        rows = [row for name in interaction.feedback if (row := store.find(Feedback, name)) is not None]
        texts = [row.final_text if row.kind == "edited" else row.text for row in rows if row.kind in _SHOWN]
        if texts and texts[-1] and texts[-1] != text(turn.answer):
            yield turn, {"role": "assistant", "content": texts[-1]}


_SHOWN = ("edited", "demonstration")


def preferences(store: Store) -> Iterator[Json]:
    """TRL's preferences: the answer as it was served is the rejected one."""
    for turn, chosen in preferred(store):
        yield {"prompt": list(turn.messages), "chosen": [chosen], "rejected": [turn.answer]}


def openai_preferences(store: Store) -> Iterator[Json]:
    """OpenAI's preference rows."""
    for turn, chosen in preferred(store):
        given: Json = {"messages": list(turn.messages)}
        if turn.tools:
            given["tools"] = list(turn.tools)
        yield {"input": given, "preferred_output": [chosen], "non_preferred_output": [turn.answer]}


_ACTIONS = (
    "accepted", "edited", "retried", "regenerated", "abandoned", "copied", "saved", "executed", "reverted", "stopped",
)  # fmt: skip


def events(store: Store) -> Iterator[Json]:
    """The record of the mission's template, one for each feedback row that it can hold."""
    gone = store.retracted()
    for row in store.rows(Feedback):
        turn = store.find(Turn, row.turn)
        if turn is None or row.id in gone or not _holds(row):
            continue
        yield {
            "model_version": turn.adapter or turn.model,
            "task": turn.task,
            "prompt": list(turn.messages),
            "draft": turn.answer.get("content") or "",
            "user_action": row.kind if row.kind in _ACTIONS else None,
            "user_edit": row.final_text,
            "follow_up": row.text if row.kind in {"follow_up", "comment"} else None,
            "signal_weight": row.metadata.get("signal_weight"),
            "created_at": datetime.fromtimestamp(row.created_at, UTC).isoformat(),
            "user": speaker((row,), turn.user),
            "conversation": turn.conversation,
        }


def _holds(row: Feedback) -> bool:
    """The template has no place for ratings, tests and exit codes other than success."""
    return row.kind in {"follow_up", "comment"} or (row.kind in _ACTIONS and not row.exit_code)
