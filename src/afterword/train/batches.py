"""Which interactions each step sees, how a step is split, and the teacher's hidden states.

The plan is a function of the seed, so a resumed run has nothing to remember. A frozen teacher's hidden states
([tokens, H] in the model's dtype, not logits) are computed once for the whole run when they fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from afterword.learn.forward import Padded, by_budget, padded
from afterword.learn.recipes import Recipe
from afterword.learn.rows import Rows, layout
from afterword.learn.terms import Term
from afterword.train.examples import Encoded
from afterword.train.policy import Policy

CACHE_BYTES = 1 << 30
"""Most memory for the kept hidden states of all frozen teachers of a run."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step: the pass it belongs to and the indices of its interactions."""

    number: int
    picked: list[int]


def plan(n: int, recipe: Recipe, seed: int) -> list[Step]:
    """All steps of a run over `n` interactions: every pass in its own random order, in batches that differ in
    size by at most one."""
    steps: list[Step] = []
    for number in range(recipe.passes + recipe.fresh):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        order = torch.randperm(n, generator=generator)
        steps += [Step(number, part.tolist()) for part in torch.tensor_split(order, -(-n // recipe.batch))]
    return steps


def rows_of(rows: Sequence[Encoded], device: torch.device | str = "cpu") -> Rows:
    """The layout of the scored tokens of these interactions."""
    return layout([len(r.completion) for r in rows], [r.weight for r in rows], [r.privileged for r in rows], device)


def student_batch(rows: Sequence[Encoded], device: torch.device) -> Padded:
    """What the student reads."""
    return padded([(r.prompt, r.completion) for r in rows], device)


def split(rows: Sequence[Encoded], picked: Sequence[int], budget: int) -> list[list[int]]:
    """A step's interactions in micro-batches of at most `budget` padded tokens on either side."""
    sizes = [_longest(rows[i]) for i in picked]
    return [[picked[k] for k in group] for group in by_budget(sizes, budget)]


def _longest(row: Encoded) -> int:
    prompts = (row.prompt, *row.teacher_prompts.values())
    return max(map(len, prompts)) + len(row.completion)


class TeacherStates:
    """The hidden states that each term compares with."""

    def __init__(self, policy: Policy, rows: Sequence[Encoded], recipe: Recipe, width: int) -> None:
        self.policy, self.rows = policy, rows
        self.kept: dict[tuple[str, str], list[Tensor]] = {}
        frozen = {(t.teacher.key, t.context.name): t for t in recipe.terms if t.teacher and t.teacher.frozen}
        tokens = sum(len(r.completion) for r in rows)
        self.cached = tokens * width * 4 * len(frozen) <= CACHE_BYTES
        if self.cached:
            self.kept = {key: self._score_all(term, recipe.micro_tokens) for key, term in frozen.items()}

    def get(self, term: Term, picked: Sequence[int]) -> Tensor | None:
        """[N, H] for these interactions, without a gradient; None when the term has no teacher."""
        if term.teacher is None:
            return None
        kept = self.kept.get((term.teacher.key, term.context.name))
        if kept is not None:
            return torch.cat([kept[i] for i in picked])
        return self._score(term, picked)

    @torch.no_grad()
    def _score(self, term: Term, picked: Sequence[int]) -> Tensor:
        assert term.teacher is not None
        name = term.context.name
        pairs = [(self.rows[i].teacher_prompts[name], self.rows[i].completion) for i in picked]
        return self.policy.hidden(padded(pairs, self.policy.device), term.teacher.key)

    def _score_all(self, term: Term, budget: int) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        for group in split(self.rows, range(len(self.rows)), budget):
            states = self._score(term, group)
            found.update(zip(group, torch.split(states, [len(self.rows[i].completion) for i in group]), strict=True))
        return [found[i] for i in range(len(self.rows))]
