"""The shapes in which turns, feedback and interactions leave: our own, OpenAI's, those of training libraries, triples
and the mission's events. One function for each, a generator over the store.

Owns field names of the outside world on the way out (chat logs of products are in `shapes_logs`). Holds one row, or
one conversation, at a time. What a shape cannot hold is left out: docs/import-export.md says what. Which rows may leave
is decided by `view`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime

from afterword.records import Feedback, Interaction, Json, Record, Turn, content_hash, not_to_imitate
from afterword.store.attribution import speaker
from afterword.store.codec import calendar_time
from afterword.store.export_filter import View

Shape = Callable[[View], Iterator[Json]]


def own(kind: type[Record]) -> Shape:
    """Our own form: the record with the name of its table, all of them; `import --format afterword` reads
    turns and feedback back."""
    return lambda view: ({"record": kind.TABLE, **row.to_dict()} for row in view.store.rows(kind))


def conversations(view: View) -> Iterator[Json]:
    """One row for each conversation: from every turn that no other one continues, back to its beginning."""
    for turn, messages in threads(view):
        row: Json = {"messages": messages}
        if turn.tools:
            row["tools"] = list(turn.tools)
        yield row


def threads(view: View) -> Iterator[tuple[Turn, list[Json]]]:
    """The last turn of each conversation (or branch of one) with all of its messages, the last answer included."""
    for chain in view.chains():
        turn = view.cleaned(replace(chain[0], messages=tuple(whole(chain))))
        yield turn, [*turn.messages, turn.answer]


def whole(chain: list[Turn]) -> list[Json]:
    """All messages before the last answer of the turns `chain`, newest first: imported turns keep only the last
    messages, the rest is in the turns before."""
    tails: list[list[Json]] = []
    turn = chain[0]
    for before in chain[1:]:
        cut = _position(turn, before.answer)
        if cut is None:
            break
        tails.append([before.answer, *turn.messages[cut + 1 :]])
        turn = before
    return [*turn.messages, *(message for tail in reversed(tails) for message in tail)]


def _position(turn: Turn, answer: Json) -> int | None:
    """Where the answer of the turn before lies in this turn's messages, None when the history was rewritten."""
    last = next((i for i in range(len(turn.messages) - 1, -1, -1) if turn.messages[i].get("role") == "assistant"), None)
    return last if last is not None and turn.messages[last].get("content") == answer.get("content") else None


def turn_completions(view: View) -> Iterator[Json]:
    """TRL's prompt and completion, one row for each turn that may be imitated."""
    return ({"prompt": list(turn.messages), "completion": [turn.answer]} for turn in imitable(view))


def imitable(view: View) -> Iterator[Turn]:
    """The turns without those whose answer a file excluded, for shapes that cannot say so."""
    for turn in view.turns():
        if not_to_imitate(turn.answer):
            view.left["excluded"] += 1
        else:
            yield turn


def unmarked(view: View) -> Iterator[tuple[Turn, list[Json]]]:
    """`threads` up to the first answer that a file excluded, for shapes that cannot say so."""
    seen: set[str] = set()
    for turn, messages in threads(view):
        first = next((i for i, m in enumerate(messages) if m["role"] == "assistant" and not_to_imitate(m)), None)
        if first is None:
            yield turn, messages
            continue
        view.left["excluded"] += 1
        kept = messages[:first]
        while kept and kept[-1]["role"] != "assistant":
            kept.pop()
        name = content_hash(kept)
        if kept and name not in seen:  # branches share their beginning
            seen.add(name)
            yield turn, kept


def final_text(view: View, interaction: Interaction) -> str | None:
    """The answer as the user left it, when there is one."""
    rows = (view.store.find(Feedback, name) for name in interaction.feedback)
    finals = [row for row in rows if row is not None and row.kind == "edited" and row.final_text]
    return view.cleaned(finals[-1]).final_text if finals else None


def triples(view: View) -> Iterator[Json]:
    """(x, y, o): what was asked, what was answered, what the user did next."""
    for interaction, turn in view.pairs():
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


def _wanted(view: View) -> Iterator[tuple[Turn, Json]]:
    """Turns with the answer to imitate: the user's edit of it, or the answer itself where the user was content."""
    for interaction, turn in view.pairs():
        final = final_text(view, interaction)
        if final is not None:
            yield turn, {**turn.answer, "content": final}
        elif interaction.polarity > 0:
            yield turn, turn.answer


def openai(view: View) -> Iterator[Json]:
    """OpenAI's fine-tuning rows: the answer to imitate at the end."""
    for turn, answer in _wanted(view):
        row: Json = {"messages": [*turn.messages, answer]}
        if turn.tools:
            row["tools"] = list(turn.tools)
        yield row


def completions(view: View) -> Iterator[Json]:
    """TRL's prompt and completion with the answer to imitate."""
    return ({"prompt": list(turn.messages), "completion": [answer]} for turn, answer in _wanted(view))


def preferred(view: View) -> Iterator[tuple[Turn, Json]]:
    """Turns with the answer that the user would rather have had: an edit or a demonstration, unlike what was served."""
    for interaction, turn in view.pairs():
        found = (view.store.find(Feedback, name) for name in interaction.feedback)
        rows = [view.cleaned(row) for row in found if row is not None]
        texts = [row.final_text if row.kind == "edited" else row.text for row in rows if row.kind in _SHOWN]
        if texts and texts[-1] and texts[-1] != text(turn.answer):
            yield turn, {"role": "assistant", "content": texts[-1]}


_SHOWN = ("edited", "demonstration")


def preferences(view: View) -> Iterator[Json]:
    """TRL's preferences: the answer as it was served is the rejected one."""
    for turn, chosen in preferred(view):
        yield {"prompt": list(turn.messages), "chosen": [chosen], "rejected": [turn.answer]}


def openai_preferences(view: View) -> Iterator[Json]:
    """OpenAI's preference rows."""
    for turn, chosen in preferred(view):
        given: Json = {"messages": list(turn.messages)}
        if turn.tools:
            given["tools"] = list(turn.tools)
        yield {"input": given, "preferred_output": [chosen], "non_preferred_output": [turn.answer]}


_ACTIONS = (
    "accepted", "edited", "retried", "regenerated", "abandoned", "copied", "saved", "executed", "reverted", "stopped",
)  # fmt: skip


def events(view: View) -> Iterator[Json]:
    """The record of the mission's template, one for each feedback row that it can hold."""
    for row, turn in view.feedback():
        if turn is None or not _holds(row):
            continue
        if not_to_imitate(turn.answer) and row.kind not in {"follow_up", "comment", "edited"}:
            view.left["excluded"] += 1  # the record has no place for the mark, and praises the draft
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
            "created_at": datetime.fromtimestamp(calendar_time(row.created_at), UTC).isoformat(),
            "user": speaker((row,), turn.user),
            "conversation": turn.conversation,
        }


def _holds(row: Feedback) -> bool:
    """The template has no place for ratings, tests and exit codes other than success."""
    return row.kind in {"follow_up", "comment"} or (row.kind in _ACTIONS and not row.exit_code)
