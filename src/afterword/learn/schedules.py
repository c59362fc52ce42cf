"""What changes over a run: factors of the learning rate as pure functions of the step, so nothing to save."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """A factor for the learning rate."""

    def __call__(self, step: int, steps: int) -> float:
        """Factor at `step` (0 .. steps-1) of `steps`."""


@dataclass(frozen=True, slots=True)
class Constant:
    """The same at every step, after `warmup` steps of a linear rise."""

    warmup: int = 0

    def __call__(self, step: int, steps: int) -> float:
        return min(1.0, (step + 1) / (self.warmup + 1))


CONSTANT = Constant()


@dataclass(frozen=True, slots=True)
class Linear:
    """Falls linearly to `floor` at the last step, after `warmup` steps of a linear rise."""

    warmup: int = 0
    floor: float = 0.0

    def __call__(self, step: int, steps: int) -> float:
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        progress = (step - self.warmup) / max(1, steps - 1 - self.warmup)
        return 1.0 - (1.0 - self.floor) * min(1.0, progress)
