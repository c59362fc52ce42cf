"""Assigns interactions to optimiser steps and splits steps into micro-batches.

The schedule is a function of the seed, so a resumed run stores none of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from afterword.learn.loss.token_batch import TokenBatch, layout
from afterword.learn.parts.anchors import GOLD
from afterword.learn.parts.contexts import Context
from afterword.learn.recipes import Recipe
from afterword.model.packing import Parts, by_budget
from afterword.model.prefix_tree import shared_groups
from afterword.train.data.rows import NONE, Encoded


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One optimiser step: its epoch and the indices of its rows."""

    epoch: int
    picked: list[int]


def plan_steps(rows: Sequence[Encoded], recipe: Recipe, seed: int) -> list[StepBatch]:
    """All optimiser steps of a run: each epoch in its own random order, in batches that differ in size by at most one.

    An epoch over fresh answers has a row for each answer that a generation writes at most, those to one prompt in
    company, and one for each answer of kind "gold".
    """
    gold = sum(row.answer.kind == GOLD for row in rows)
    counts = [recipe.answers_of(generation) for generation in recipe.generations]
    steps: list[StepBatch] = []
    for epoch in range(recipe.epochs + recipe.fresh):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        if epoch < recipe.epochs:
            order = torch.randperm(len(rows), generator=generator)
        else:
            order = _by_prompt(gold, len(rows) - gold, counts, generator)
        steps += [StepBatch(epoch, part.tolist()) for part in torch.tensor_split(order, -(-len(order) // recipe.batch))]
    return steps


def _by_prompt(gold: int, prompts: int, counts: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """A random order of the `gold` rows and of the answers to `prompts`, of which each generation in turn has so many
    to every prompt. Answers to one prompt follow one another, so that a step reads their prompt once."""
    units: list[list[int]] = [[i] for i in range(gold)] + [[] for _ in range(prompts)]
    start = gold
    for count in counts:
        for prompt in range(prompts):
            units[gold + prompt] += range(start + prompt * count, start + (prompt + 1) * count)
        start += prompts * count
    order = torch.randperm(len(units), generator=generator).tolist()
    return torch.tensor([i for k in order for i in units[k]])


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
        breaks=[r.breaks for r in rows],
        credit=[r.credit for r in rows],
    )


def student_parts(rows: Sequence[Encoded], context: Context = NONE) -> list[Parts]:
    """Each row as the student reads it."""
    return [r.parts(context) for r in rows]


def by_size(rows: Sequence[Encoded], picked: Sequence[int]) -> list[int]:
    """Indices sorted longest first, so that the shards of several processes are level."""
    return sorted(picked, key=lambda i: (-_longest(rows[i]), i))


def split(rows: Sequence[Encoded], picked: Sequence[int], budget: int) -> list[list[int]]:
    """A step's interactions in micro-batches of at most `budget` tokens on either side. Those that share a prefix stay
    together, up to `prefix_tree.TOGETHER` times as many tokens: divided, each part would read it again."""
    sizes = [_longest(rows[i]) for i in picked]
    whole = [tuple(i for part in rows[k].parts(NONE) for i in part) for k in picked]
    shared, others = shared_groups(whole, sizes, budget)
    alone = [[others[k] for k in group] for group in by_budget([sizes[k] for k in others], budget)]
    return [[picked[k] for k in group] for group in (*alone, *shared)]


def _longest(row: Encoded) -> int:
    return row.longest_prompt + len(row.completion)
