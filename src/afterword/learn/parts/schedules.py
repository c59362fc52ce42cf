"""Computes factors that change over a run, as pure functions of the step and of past metrics.

Past metrics come from the run's metrics file, which a resumed run reads back, so schedules have no state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from afterword.learn.parts.fields import Count, CountOrZero, Finite, NonNegative, UnitInterval


@runtime_checkable
class Schedule(Protocol):
    """A factor, for the learning rate or the scale of a term."""

    def __call__(self, step: int, steps: int, past: Sequence[Any] = ()) -> float:
        """Compute the factor.

        Args:
            step: 0 .. steps - 1.
            steps: Steps of the run.
            past: Metrics of the steps before.
        """


@dataclass(frozen=True, slots=True)
class Constant:
    """The same at every step, after `warmup` steps of a linear rise."""

    warmup: CountOrZero = 0

    def __call__(self, step: int, steps: int, past: Sequence[Any] = ()) -> float:
        return min(1.0, (step + 1) / (self.warmup + 1))


CONSTANT = Constant()


@dataclass(frozen=True, slots=True)
class Linear:
    """Falls linearly to `floor`, after `warmup` steps of a linear rise.

    `floor` is the factor of the step after the last one, so that no step of a short run is spent at a rate of 0. With
    `reach` the last step has it already, for a factor that must end exactly there.
    """

    warmup: CountOrZero = 0
    floor: UnitInterval = 0.0
    reach: bool = False

    def __call__(self, step: int, steps: int, past: Sequence[Any] = ()) -> float:
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        return 1.0 - (1.0 - self.floor) * _progress(step, steps, self.warmup, self.reach)


@dataclass(frozen=True, slots=True)
class Cosine:
    """Falls as half a cosine to `floor`, after `warmup` steps of a linear rise; where it ends is as for `Linear`."""

    warmup: CountOrZero = 0
    floor: UnitInterval = 0.0
    reach: bool = False

    def __call__(self, step: int, steps: int, past: Sequence[Any] = ()) -> float:
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        half = 0.5 * (1.0 + math.cos(math.pi * _progress(step, steps, self.warmup, self.reach)))
        return self.floor + (1.0 - self.floor) * half


@dataclass(frozen=True, slots=True)
class Anneal:
    """From 1 to `end` linearly over the first `steps` steps, however long the run is."""

    steps: Count
    end: NonNegative = 0.0

    def __call__(self, step: int, steps: int, past: Sequence[Any] = ()) -> float:
        return 1.0 + (self.end - 1.0) * min(1.0, step / self.steps)


@dataclass(frozen=True, slots=True)
class Switch:
    """`before` until the share `at` of the run (0 .. 1) is over, then `after`."""

    at: UnitInterval
    before: NonNegative = 1.0
    after: NonNegative = 0.0

    def __call__(self, step: int, steps: int, past: Sequence[Any] = ()) -> float:
        return self.before if step < self.at * steps else self.after


Metric = Literal[
    "loss", "grad_norm", "divergence", "entropy_student", "entropy_teacher", "entropy_gap", "overlap", "signal",
    "overlap_advantage", "top_mass", "effective", "end_signal", "known", "serve_gap", "ratio", "ratio_effective",
    "length", "drift",
]  # fmt: skip
"""A metric of a step that a schedule may follow."""


@dataclass(frozen=True, slots=True)
class OnMetric:
    """`before` until the mean of a metric over the last `window` steps that measured it has once been below (or, with
    `above`, above) `threshold`, then `after` for good. Metrics are those of `metrics.jsonl` (`entropy_student` ...)."""

    metric: Metric
    threshold: Finite
    above: bool = False
    before: NonNegative = 1.0
    after: NonNegative = 0.0
    window: Count = 4

    def __call__(self, step: int, steps: int, past: Sequence[Any] = ()) -> float:
        values = [float(value) for one in past if (value := getattr(one, self.metric)) is not None]
        for end in range(self.window, len(values) + 1):
            mean = sum(values[end - self.window : end]) / self.window
            if mean > self.threshold if self.above else mean < self.threshold:
                return self.after
        return self.before


def _progress(step: int, steps: int, warmup: int, reach: bool) -> float:
    """0 at the end of the warm-up, 1 behind the last step, or at it (`reach`)."""
    return min(1.0, (step - warmup) / max(1, steps - reach - warmup))
