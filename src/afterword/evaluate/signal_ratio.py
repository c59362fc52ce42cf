"""Measures the ratio of the model's own signal under the user's words to that under other words.

The control of arXiv 2603.12273 (Figure 8) as a measure: mean |log p(y|x,o) - log p(y|x)| over the answer's tokens for
the real follow-up, for follow-ups that other users wrote after other answers of the same slice, and for words that
say nothing. Owns the measuring; who may teach is decided by `feedback.select`. Reads a model, never changes it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from torch import Tensor

from afterword.chat.canonical import text_of
from afterword.chat.render import Tokenizer, check_template, encode_content
from afterword.chat.turn_prompt import turn_prompt
from afterword.errors import ModelError
from afterword.evaluate.comparison.heldout import CONTEXT
from afterword.learn.diagnostics import log_probs, readable_ids, unreadable
from afterword.learn.parts.contexts import turn_hindsight
from afterword.model.head import head_of
from afterword.model.loading import load_model, load_tokenizer, longest_context
from afterword.records import Interaction, SignalRatio, Turn, content_hash
from afterword.store import Store

NEUTRAL = ("Okay.", "I see. Let me think about it for a moment.")
"""Words that could stand after any answer."""
SHUFFLED = 2
"""Other follow-ups that each interaction is compared with."""
LONGEST = 96
"""Tokens of an answer, and of a follow-up, that are scored: what a follow-up is about shows early."""
AT_ONCE = 64
"""Interactions whose scores are committed together."""


Pair = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Item:
    """One interaction with its turn and the follow-ups that it is compared with."""

    interaction: Interaction
    turn: Turn
    others: tuple[str, ...]


def measure_stage(
    store: Store, *, model: str, device: str = "auto", limit: int | None = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> int:  # fmt: skip
    """Write a SignalRatio row for every usable interaction with words that has none yet (the newest `limit`); how many.

    A run that is killed goes on where it was: what is committed is not measured again. ModelError when the model
    cannot be loaded.
    """
    known = {row.interaction for row in store.rows(SignalRatio)}
    rows = [i for split in ("train", "holdout") for i in store.usable(split) if i.hindsight]
    waiting = sorted((i for i in rows if i.id not in known), key=lambda i: i.created_at)[-limit if limit else 0 :]
    if not waiting:
        return 0
    others = _others(rows, waiting)
    base, tokenizer = load_model(model, device=device), load_tokenizer(model)
    for start in range(0, len(waiting), AT_ONCE):
        part = waiting[start : start + AT_ONCE]
        turns = {turn.id: turn for _, turn in store.among(Turn, "id", [i.turn for i in part])}
        items = [Item(i, turns[i.turn], others[i.id]) for i in part if i.turn in turns]
        store.write(*measure(base, tokenizer, items, name=model))
        progress(start + len(part), len(waiting))
    return len(waiting)


def _others(rows: Sequence[Interaction], waiting: Sequence[Interaction]) -> dict[str, tuple[str, ...]]:
    """For each interaction different words from other turns of its task, drawn by its id."""
    by_task: dict[str | None, list[Interaction]] = defaultdict(list)
    for row in rows:
        by_task[row.task].append(row)
    found: dict[str, tuple[str, ...]] = {}
    for row in waiting:
        group, dice = by_task[row.task], Random(row.id)
        drawn = dice.sample(group, min(len(group), 8 * SHUFFLED))
        words = dict.fromkeys(o.hindsight for o in drawn if o.turn != row.turn and o.hindsight != row.hindsight)
        found[row.id] = tuple(list(words)[:SHUFFLED])
    return found


def measure(model: Any, tokenizer: Tokenizer, items: Sequence[Item], *, name: str) -> list[SignalRatio]:
    """One SignalRatio for each item whose answer has tokens and whose conversation the model takes and can read. `name`
    is the model's, for the record. Raises ModelError for a template without a generation header."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    room = longest_context(model)
    check_template(tokenizer)  # one without a header is an error, not so many conversations left out
    known = readable_ids(base)
    plans = [plan for item in items if (plan := _readable(tokenizer, item, room)) is not None]
    plans = [(item, group) for item, group in plans if unreadable(known, _ids(group)) is None]
    pairs = [pair for _, group in plans for pair in group]
    scores = iter(log_probs(model, head_of(base), pairs) if pairs else ())
    rows = [_row(item, [next(scores) for _ in group], name) for item, group in plans]
    return [row for row in rows if math.isfinite(row.real + row.neutral + (row.shuffled or 0.0))]


def _ids(group: Sequence[Pair]) -> set[int]:
    return {i for prompt, answer in group for i in (*prompt, *answer)}


def _readable(tokenizer: Tokenizer, item: Item, room: int) -> tuple[Item, list[Pair]] | None:
    """None too where the model's template refuses the conversation."""
    try:
        return _plan(tokenizer, item, room)
    except ModelError:
        return None


def _plan(tokenizer: Tokenizer, item: Item, room: int) -> tuple[Item, list[Pair]] | None:
    """(prompt, answer) without words, with the real ones, with the neutral and with the other ones."""
    turn = item.turn
    answer = turn.completion_ids or encode_content(tokenizer, text_of(turn.answer.get("content")), "assistant")
    answer = tuple(answer[:LONGEST])
    if not answer:
        return None
    plain = tuple(turn_prompt(tokenizer, turn).ids)
    if len(plain) + len(answer) > room:
        return None
    pairs: list[Pair] = [(plain, answer)]
    for words in (item.interaction.hindsight, *NEUTRAL, *item.others):
        seen = turn_hindsight(tokenizer, CONTEXT, turn, words, room=room - len(answer), longest=LONGEST)
        if seen is None:
            return None
        pairs.append((tuple(seen.prompt.ids), answer))
    return item, pairs


def _row(item: Item, scores: list[Tensor], name: str) -> SignalRatio:
    plain, *others = scores
    sizes = [float((one - plain).abs().mean()) for one in others]
    real, neutral, shuffled = sizes[0], sizes[1 : 1 + len(NEUTRAL)], sizes[1 + len(NEUTRAL) :]
    return SignalRatio(
        id=content_hash("relevance", item.interaction.id),
        interaction=item.interaction.id,
        model=name,
        real=real,
        shuffled=sum(shuffled) / len(shuffled) if shuffled else None,
        neutral=sum(neutral) / len(neutral),
        tokens=len(plain),
    )
