"""Provides teachers' hidden states to the loss; caches those of frozen teachers in memory and on disk.

Files are named by the hash of (weights, prompt ids, completion ids). Unreadable files are recomputed, the least
recently used are deleted first. The contents derive from user data: erasing a user empties the cache.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from afterword.learn.parts.contexts import Context
from afterword.learn.parts.teachers import LIVE, START, Routed, Teacher, TrustRegion
from afterword.learn.recipes import Recipe
from afterword.model.packing import Parts, ReadBatch, packed
from afterword.records import content_hash
from afterword.sharing import BACKGROUND
from afterword.train.data.batches import rows_of, split
from afterword.train.data.rows import Encoded
from afterword.train.runtime.distributed import SINGLE, Distributed
from afterword.train.runtime.teacher_runtime import TeacherOutput, TeacherRuntime
from afterword.train.runtime.token_budget import token_budget

MOST_BYTES = 1 << 30
CACHE_BYTES = 1 << 30
"""Most memory for the kept hidden states of all frozen teachers of a run."""


class TeacherCache:
    """Hidden states [n, H] of frozen teachers on disk, by content; `folder` None disables it."""

    folder: Path | None

    def __init__(self, folder: Path | None, most: int = MOST_BYTES) -> None:
        self.folder, self.most = folder, most
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError:  # a cache that cannot be kept costs time, never the run
                self.folder = None

    @staticmethod
    def key(weights: str, *parts: Sequence[int]) -> str:
        """32 hex digits over `weights` (base, update and dtype that score) and the parts of a row: prompt and
        completion ids for one answer."""
        return content_hash(weights, *map(list, parts))

    def get(self, keys: Sequence[str]) -> list[Tensor] | None:
        """The states of all `keys`, or None when one is missing.

        Rows packed together are computed together, so a run gives the same bits whether it reads or computes.
        """
        if self.folder is None:
            return None
        files = [self.folder / f"{key}.safetensors" for key in keys]
        if not all(file.is_file() for file in files):
            return None
        try:
            found = [load_file(file)["states"] for file in files]
        except (SafetensorError, OSError, KeyError):
            return None
        for file in files:
            os.utime(file)
        return found

    def put(self, keys: Sequence[str], states: Sequence[Tensor]) -> None:
        """Store `states` under `keys`. An error disables the cache: it costs time, never the run."""
        if self.folder is None:
            return
        for key, one in zip(keys, states, strict=True):
            fresh = self.folder / f".{key}.{os.getpid()}"
            try:
                save_file({"states": one.cpu().contiguous()}, fresh)
                fresh.replace(self.folder / f"{key}.safetensors")
            except (SafetensorError, OSError):  # a full disk, say: the run goes on without its cache
                with suppress(OSError):
                    fresh.unlink(missing_ok=True)
                self.folder = None
                return

    def trim(self) -> None:
        """Delete the least recently used files beyond `most` bytes."""
        if self.folder is None:
            return
        files = sorted(self.folder.glob("*.safetensors"), key=lambda f: f.stat().st_mtime, reverse=True)
        total = 0
        for file in files:
            total += file.stat().st_size
            if total > self.most:
                file.unlink(missing_ok=True)


class TeacherStates:
    """Hidden states of every teacher and reference for an epoch's rows.

    Frozen teachers score all rows once, when their states fit in `CACHE_BYTES`.
    """

    def __init__(
        self,
        teachers: TeacherRuntime,
        rows: Sequence[Encoded],
        recipe: Recipe,
        cache: TeacherCache,
        name: str,
        workers: Distributed = SINGLE,
    ) -> None:
        """`name` identifies base and parent in the cache on disk."""
        self.teachers, self.rows, self.disk, self.name, self.workers = teachers, rows, cache, name, workers
        self.sides: dict[tuple[str, Context], dict[int, TeacherOutput]] = {}
        self.needed = _needed(recipe, rows)
        frozen = _frozen(recipe)
        width = teachers.policy.head.weight.shape[1]
        tokens = sum(len(rows[i].completion) for pair in frozen for i in self.needed[pair])
        if tokens * width * 4 <= CACHE_BYTES:
            budget = token_budget(recipe, teachers.policy)
            for teacher, context in frozen:
                self.sides[teacher.key, context] = self._score_all(teacher, context, budget)
        cache.trim()

    def get(
        self, teacher: Teacher | None, context: Context, picked: Sequence[int], read: ReadBatch | None = None
    ) -> TeacherOutput | None:
        """Hidden states [N, H] of the rows `picked`, without a gradient; None without a teacher.

        Rows of which no term keeps a token under this teacher and context are 0. A live teacher resumes from the
        student's states `read`.
        """
        if teacher is None:
            return None
        if teacher == LIVE and read is not None:
            return TeacherOutput(
                self.teachers.policy.after(self._pairs(context, picked), read), self.teachers.head(teacher)
            )
        wanted = self.needed[teacher, context]
        asked = [i for i in picked if i in wanted]
        if len(asked) == len(picked):
            return self._asked(teacher, context, asked)
        return self._spread(self._asked(teacher, context, asked) if asked else None, picked, asked)

    def _spread(self, side: TeacherOutput | None, picked: Sequence[int], asked: Sequence[int]) -> TeacherOutput:
        """`side`, which is of the rows `asked`, as [N, H] of all rows `picked`; the others are 0."""
        policy = self.teachers.policy
        if side is None:
            head, width, dtype = policy.head, policy.head.weight.shape[1], policy.head.weight.dtype
            return TeacherOutput(
                torch.zeros(sum(self._lengths(picked)), width, dtype=dtype, device=policy.device), head
            )
        pieces = dict(zip(asked, torch.split(side.states, self._lengths(asked)), strict=True))
        width = side.states.shape[1]
        parts = [
            pieces[i] if i in pieces else side.states.new_zeros(n, width)
            for i, n in zip(picked, self._lengths(picked), strict=True)
        ]
        return TeacherOutput(torch.cat(parts), side.head)

    def _asked(self, teacher: Teacher, context: Context, picked: Sequence[int]) -> TeacherOutput:
        """What the teacher says of these interactions."""
        if isinstance(teacher, Routed):
            return self._routed(teacher, context, picked)
        known = self.sides.get((teacher.key, context))
        if known is not None:
            return TeacherOutput(torch.cat([known[i].states for i in picked]), known[picked[0]].head)
        side = self._score(teacher, context, picked)
        if isinstance(teacher, TrustRegion):
            start = self.get(START, context, picked)
            assert start is not None
            ids = torch.tensor([t for i in picked for t in self.rows[i].completion], device=side.states.device)
            self.teachers.measure(teacher, side.states, start.states, ids)
        return side

    def _routed(self, teacher: Routed, context: Context, picked: Sequence[int]) -> TeacherOutput:
        """Every interaction from the teacher of its task."""
        found: dict[int, Tensor] = {}
        head = self.teachers.policy.head  # not adapted: `TeacherRuntime` refuses routes otherwise
        for part in dict.fromkeys(teacher.of(self.rows[i].answer.task) for i in picked):
            mine = [i for i in picked if teacher.of(self.rows[i].answer.task) == part]
            side = self.get(part, context, mine)
            assert side is not None
            found.update(zip(mine, torch.split(side.states, self._lengths(mine)), strict=True))
        return TeacherOutput(torch.cat([found[i] for i in picked]), head)

    def _score(self, teacher: Teacher, context: Context, picked: Sequence[int]) -> TeacherOutput:
        return self.teachers.side(
            teacher, packed(self._pairs(context, picked), self.teachers.policy.device, share=True)
        )

    def _pairs(self, context: Context, picked: Sequence[int]) -> list[Parts]:
        return [self.rows[i].parts(context) for i in picked]

    def _score_all(self, teacher: Teacher, context: Context, budget: int) -> dict[int, TeacherOutput]:
        """One side for each row that is needed; several processes take the groups in turn and give each other what they
        found."""
        found: dict[int, TeacherOutput] = {}
        head = self.teachers.head(teacher)
        groups = split(self.rows, sorted(self.needed[teacher, context]), budget)
        for n, group in enumerate(BACKGROUND.between(groups)):
            source = n % self.workers.size
            if source == self.workers.rank:
                states = self._kept_or_scored(teacher, context, group)
            else:
                states = self.teachers.empty(teacher, sum(self._lengths(group)))
            self.workers.broadcast(states, source)
            pieces = torch.split(states, self._lengths(group))
            found.update((i, TeacherOutput(piece, head)) for i, piece in zip(group, pieces, strict=True))
        return found

    def _kept_or_scored(self, teacher: Teacher, context: Context, group: Sequence[int]) -> Tensor:
        rows = [self.rows[i] for i in group]
        keys = [self.disk.key(f"{self.name}/{teacher.key}", *r.parts(context)) for r in rows]
        kept = self.disk.get(keys)
        if kept is not None:
            return torch.cat(kept).to(self.teachers.policy.device)
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
        # A scale of 0 stays 0: schedules are factors on it.
        kept = frozenset(whole.row[term.loosest.keep(whole)].tolist()) if term.scale else frozenset()
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
