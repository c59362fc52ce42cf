"""Which interactions each step sees, how a step is split, and the teacher's hidden states.

The plan is a function of the seed, so a resumed run has nothing to remember. A frozen teacher's hidden states
([tokens, H] in the model's dtype, not logits) are computed once for the whole run when they fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from afterword.learn.loss.token_batch import TokenBatch, layout
from afterword.learn.parts.contexts import Context
from afterword.learn.parts.teachers import LIVE, START, Routed, Teacher, TrustRegion
from afterword.learn.recipes import Recipe
from afterword.model.packing import Ids, ReadBatch, by_budget, packed
from afterword.train.data.encoded import Encoded
from afterword.train.runtime.distributed import ALONE, World
from afterword.train.runtime.teacher_cache import KeptStates
from afterword.train.runtime.teacher_runtime import Side, Teaching

CACHE_BYTES = 1 << 30
"""Most memory for the kept hidden states of all frozen teachers of a run."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step: the pass it belongs to and the indices of its interactions."""

    number: int
    picked: list[int]


def plan(n: int, recipe: Recipe, seed: int, fresh: int | None = None) -> list[Step]:
    """All steps of a run over `n` interactions (`fresh` in the passes over fresh answers): every pass in its own
    random order, in batches that differ in size by at most one."""
    steps: list[Step] = []
    served = n
    for number in range(recipe.passes + recipe.fresh):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        n = served if number < recipe.passes or fresh is None else fresh
        order = torch.randperm(n, generator=generator)
        steps += [Step(number, part.tolist()) for part in torch.tensor_split(order, -(-n // recipe.batch))]
    return steps


def rows_of(rows: Sequence[Encoded], device: torch.device | str = "cpu") -> TokenBatch:
    """The layout of the scored tokens of these interactions."""
    return layout(
        [len(r.completion) for r in rows],
        [r.weight for r in rows],
        [r.privileged for r in rows],
        device,
        answers=[r.answer for r in rows],
        served=[x for r in rows for x in (r.served or (math.nan,) * len(r.completion))],
        private=[r.private for r in rows],
        changed=[r.changed for r in rows],
    )


def student_pairs(rows: Sequence[Encoded]) -> list[tuple[Ids, Ids]]:
    """What the student reads."""
    return [(r.prompt, r.completion) for r in rows]


def by_size(rows: Sequence[Encoded], picked: Sequence[int]) -> list[int]:
    """Longest first, so that the shares of several processes are level."""
    return sorted(picked, key=lambda i: (-_longest(rows[i]), i))


def split(rows: Sequence[Encoded], picked: Sequence[int], budget: int) -> list[list[int]]:
    """A step's interactions in micro-batches of at most `budget` tokens on either side."""
    sizes = [_longest(rows[i]) for i in picked]
    return [[picked[k] for k in group] for group in by_budget(sizes, budget)]


def _longest(row: Encoded) -> int:
    return row.longest_prompt + len(row.completion)


class TeacherStates:
    """What each term compares with. Teachers that stay as they are answer once for all rows, when that fits."""

    def __init__(
        self,
        teaching: Teaching,
        rows: Sequence[Encoded],
        recipe: Recipe,
        kept: KeptStates,
        name: str,
        world: World = ALONE,
    ) -> None:
        """`name` stands for the base and the parent in the cache on disk."""
        self.teaching, self.rows, self.disk, self.name, self.world = teaching, rows, kept, name, world
        self.sides: dict[tuple[str, Context], dict[int, Side]] = {}
        self.needed = _needed(recipe, rows)
        frozen = _frozen(recipe)
        width = teaching.policy.head.weight.shape[1]
        tokens = sum(len(rows[i].completion) for pair in frozen for i in self.needed[pair])
        if tokens * width * 4 <= CACHE_BYTES:
            for teacher, context in frozen:
                self.sides[teacher.key, context] = self._score_all(teacher, context, recipe.micro_tokens)
        kept.trim()

    def get(
        self, teacher: Teacher | None, context: Context, picked: Sequence[int], read: ReadBatch | None = None
    ) -> Side | None:
        """[N, H] for these interactions, without a gradient; None without a teacher. Zeros for interactions of which no
        term keeps a token under this teacher and context. A teacher that is the student itself goes on from what the
        student has `read`."""
        if teacher is None:
            return None
        if teacher == LIVE and read is not None:
            return Side(self.teaching.policy.after(self._pairs(context, picked), read), self.teaching.head(teacher))
        wanted = self.needed[teacher, context]
        asked = [i for i in picked if i in wanted]
        if len(asked) == len(picked):
            return self._asked(teacher, context, asked)
        return self._spread(self._asked(teacher, context, asked) if asked else None, picked, asked)

    def _spread(self, side: Side | None, picked: Sequence[int], asked: Sequence[int]) -> Side:
        """`side`, which is of the rows `asked`, as [N, H] of all rows `picked`; the others are 0."""
        policy = self.teaching.policy
        if side is None:
            head, width, dtype = policy.head, policy.head.weight.shape[1], policy.head.weight.dtype
            return Side(torch.zeros(sum(self._lengths(picked)), width, dtype=dtype, device=policy.device), head)
        pieces = dict(zip(asked, torch.split(side.states, self._lengths(asked)), strict=True))
        width = side.states.shape[1]
        parts = [
            pieces[i] if i in pieces else side.states.new_zeros(n, width)
            for i, n in zip(picked, self._lengths(picked), strict=True)
        ]
        return Side(torch.cat(parts), side.head)

    def _asked(self, teacher: Teacher, context: Context, picked: Sequence[int]) -> Side:
        """What the teacher says of these interactions."""
        if isinstance(teacher, Routed):
            return self._routed(teacher, context, picked)
        known = self.sides.get((teacher.key, context))
        if known is not None:
            return Side(torch.cat([known[i].states for i in picked]), known[picked[0]].head)
        side = self._score(teacher, context, picked)
        if isinstance(teacher, TrustRegion):
            start = self.get(START, context, picked)
            assert start is not None
            ids = torch.tensor([t for i in picked for t in self.rows[i].completion], device=side.states.device)
            self.teaching.measure(teacher, side.states, start.states, ids)
        return side

    def _routed(self, teacher: Routed, context: Context, picked: Sequence[int]) -> Side:
        """Every interaction from the teacher of its task."""
        found: dict[int, Tensor] = {}
        head = self.teaching.policy.head  # not adapted: `Teaching` refuses routes otherwise
        for part in dict.fromkeys(teacher.of(self.rows[i].answer.task) for i in picked):
            mine = [i for i in picked if teacher.of(self.rows[i].answer.task) == part]
            side = self.get(part, context, mine)
            assert side is not None
            found.update(zip(mine, torch.split(side.states, self._lengths(mine)), strict=True))
        return Side(torch.cat([found[i] for i in picked]), head)

    def _score(self, teacher: Teacher, context: Context, picked: Sequence[int]) -> Side:
        return self.teaching.side(teacher, packed(self._pairs(context, picked), self.teaching.policy.device))

    def _pairs(self, context: Context, picked: Sequence[int]) -> list[tuple[Ids, Ids]]:
        return [(self.rows[i].reads(context), self.rows[i].completion) for i in picked]

    def _score_all(self, teacher: Teacher, context: Context, budget: int) -> dict[int, Side]:
        """One side for each row that is needed; several processes take the groups in turn and give each other what they
        found."""
        found: dict[int, Side] = {}
        head = self.teaching.head(teacher)
        for n, group in enumerate(split(self.rows, sorted(self.needed[teacher, context]), budget)):
            source = n % self.world.size
            if source == self.world.rank:
                states = self._kept_or_scored(teacher, context, group)
            else:
                states = self.teaching.empty(teacher, sum(self._lengths(group)))
            self.world.give(states, source)
            pieces = torch.split(states, self._lengths(group))
            found.update((i, Side(piece, head)) for i, piece in zip(group, pieces, strict=True))
        return found

    def _kept_or_scored(self, teacher: Teacher, context: Context, group: Sequence[int]) -> Tensor:
        rows = [self.rows[i] for i in group]
        keys = [self.disk.key(f"{self.name}/{teacher.key}", r.reads(context), r.completion) for r in rows]
        kept = self.disk.get(keys)
        if kept is not None:
            return torch.cat(kept).to(self.teaching.policy.device)
        states = self._score(teacher, context, group).states
        self.disk.put(keys, torch.split(states, self._lengths(group)))
        return states

    def _lengths(self, picked: Sequence[int]) -> list[int]:
        return [len(self.rows[i].completion) for i in picked]


def _needed(recipe: Recipe, rows: Sequence[Encoded]) -> dict[tuple[Teacher, Context], frozenset[int]]:
    """For each teacher, or part of one, and context: the rows of which some term that asks it keeps a token."""
    whole = rows_of(rows)
    found: dict[tuple[Teacher, Context], frozenset[int]] = {}
    for term in recipe.terms:
        kept = frozenset(whole.row[term.keep(whole)].tolist())
        for teacher, context in ((term.teacher, term.context), (term.reference, term.reference_context)):
            parts = (teacher, *teacher.parts) if isinstance(teacher, Routed) else (teacher,) if teacher else ()
            for part in parts:
                found[part, context] = found.get((part, context), frozenset()) | kept
                if isinstance(part, TrustRegion):
                    found[START, context] = found.get((START, context), frozenset()) | kept
    return found


def _frozen(recipe: Recipe) -> list[tuple[Teacher, Context]]:
    """(teacher, context) pairs that never change, with the start for each trust region."""
    pairs: dict[tuple[str, Context], tuple[Teacher, Context]] = {}
    for term in recipe.terms:
        for teacher, context in ((term.teacher, term.context), (term.reference, term.reference_context)):
            for part in teacher.parts if isinstance(teacher, Routed) else (teacher,) if teacher else ():
                part = START if isinstance(part, TrustRegion) else part
                if part.frozen:
                    pairs[part.key, context] = (part, context)
    return list(pairs.values())
