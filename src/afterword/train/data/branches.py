"""Rows of episodes: the turns of a branch as one row of several scored spans, with the credit of each token.

A turn goes on in the row of the turn before it when its served prompt begins with all that the row holds, under every
context that a teacher reads; otherwise a new row begins. Observations stand between the spans and are never scored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from afterword.chat.canonical import text_of
from afterword.chat.render import Tokenizer
from afterword.learn.loss.token_batch import AnswerInfo
from afterword.learn.parts.advantages import advantage_parts
from afterword.learn.parts.contexts import Context
from afterword.learn.parts.credit import EpisodeCredit
from afterword.learn.recipes import Recipe
from afterword.records import Turn
from afterword.train.data.credit import Step, credit_of, rubric_credit
from afterword.train.data.rows import NONE, Between, Encoded
from afterword.train.data.token_spans import changed_positions

Pair = tuple[Step, Turn, Encoded]


def rules_of(recipe: Recipe) -> tuple[EpisodeCredit, ...]:
    """Every rule of credit that the recipe's terms read."""
    parts = (part for term in recipe.terms for part in advantage_parts(term.advantage))
    return tuple(dict.fromkeys(part for part in parts if isinstance(part, EpisodeCredit)))


def with_credit(pairs: Sequence[Pair], every: Sequence[Step], recipe: Recipe, tokenizer: Tokenizer) -> list[Pair]:
    """Rows with the advantage of each of their tokens under every rule of the recipe.

    Args:
        pairs: Rows of one turn each.
        every: All turns of the run, also those that cannot be trained: they belong to the groups.
        recipe: Its rules.
        tokenizer: Finds the tokens of a rubric item.
    """
    found: dict[str, list[tuple[EpisodeCredit, tuple[float, ...]]]] = {step.turn: [] for step, _, _ in pairs}
    for rule in rules_of(recipe):
        if rule.of == "rubric":
            by_item = rubric_credit(every, rule)
            for step, turn, row in pairs:
                found[step.turn].append((rule, _by_span(step, turn, row, by_item.get(step.turn, {}), tokenizer)))
        else:
            values = credit_of(every, rule)
            for step, _, row in pairs:
                found[step.turn].append((rule, (values[step.turn],) * len(row.completion)))
    return [(step, turn, replace(row, credit=tuple(found[step.turn]))) for step, turn, row in pairs]


def _by_span(step: Step, turn: Turn, row: Encoded, items: dict[str, float], tokenizer: Tokenizer) -> tuple[float, ...]:
    """Each item on the tokens that it is about, on the whole turn without any."""
    credit = [0.0] * len(row.completion)
    text = text_of(turn.answer.get("content"))
    for item, value in items.items():
        spans = [(start, end) for name, start, end in step.spans if name == item]
        where = changed_positions(tokenizer, row.completion, text, spans) if spans else range(len(credit))
        for place in where:
            credit[place] += value
    return tuple(credit)


def in_branches(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """The turns that one row can hold, in order; every turn is in exactly one group.

    Args:
        pairs: Turns of any episodes with their rows.
    """
    by_turn = {step.turn: (step, turn, row) for step, turn, row in pairs}
    groups: list[list[Pair]] = []
    ends: dict[str, list[Pair]] = {}
    for pair in sorted(by_turn.values(), key=lambda one: (one[0].episode, one[0].depth, one[0].turn)):
        before = ends.pop(pair[0].parent, None) if pair[0].parent is not None else None
        if before is None or not _goes_on(before[-1][2], pair[2], [one[2] for one in before]):
            before = []  # a second branch, an edited history, or ids that were written anew
            groups.append(before)
        before.append(pair)
        ends[pair[0].turn] = before
    return groups


def _goes_on(last: Encoded, row: Encoded, held: Sequence[Encoded]) -> bool:
    same = (row.privileged, row.weight, row.on_policy) == (last.privileged, last.weight, last.on_policy)
    contexts = (NONE, *row.teacher_prompts)
    return same and all(_ids(last, where) == row.reads(where)[: len(_ids(last, where))] for where in contexts)


def _ids(row: Encoded, where: Context) -> tuple[int, ...]:
    return (*row.reads(where), *row.completion)


def merged(rows: Sequence[Encoded]) -> Encoded:
    """Rows of one turn each as one row with a scored span for each turn.

    Args:
        rows: In order; the prompt of each begins with the prompt and completion of the one before.
    """
    first, last = rows[0], rows[-1]
    if len(rows) == 1:
        return first
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + len(row.completion))
    served = tuple(x for row in rows for x in row.served or (math.nan,) * len(row.completion))
    rules = [rule for rule, _ in first.credit]
    return replace(
        first,
        interaction=last.interaction,
        also=tuple(row.interaction for row in rows[:-1]),
        completion=tuple(i for row in rows for i in row.completion),
        between=_between(rows, starts, NONE),
        teacher_between={where: _between(rows, starts, where) for where in first.teacher_prompts},
        served=served,
        private=tuple(start + place for start, row in zip(starts, rows, strict=False) for place in row.private),
        changed=tuple(start + place for start, row in zip(starts, rows, strict=False) for place in row.changed),
        cut=sum(row.cut for row in rows),
        credit=tuple((rule, tuple(x for row in rows for x in dict(row.credit)[rule])) for rule in rules),
        answer=_common(rows),
    )


def _between(rows: Sequence[Encoded], starts: Sequence[int], where: Context) -> Between:
    return tuple(
        (start, row.reads(where)[len(_ids(before, where)) :])
        for before, row, start in zip(rows, rows[1:], starts[1:], strict=False)
    )


def _common(rows: Sequence[Encoded]) -> AnswerInfo:
    """The facts of the last turn; plain only where all turns are."""
    return replace(rows[-1].answer, plain=all(row.answer.plain for row in rows))


def branch_rows(pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Encoded]]:
    """Each group of turns as one row, with its last turn."""
    for group in in_branches(pairs):
        yield group[-1], merged([row for _, _, row in group])
