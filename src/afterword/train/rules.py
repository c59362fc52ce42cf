"""What stops a run: rules over the metrics of its steps, pure functions of the past.

A stop is an honest end: what was learned is kept as a candidate that says why it stopped, and its state stays so that
the run can go on without the rule. What is not finite is no end but an error (`TrainingDiverged`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from afterword.train.metrics import StepMetrics

ENTROPY_RATIO = 0.6
DRIFT = 2.0
SELF_SIMILARITY = 0.85
ZLIB_RATIO = 10.0


@dataclass(frozen=True, slots=True)
class Rules:
    """Bounds; None switches a rule off."""

    entropy_ratio: float | None = ENTROPY_RATIO
    """Least mean entropy of the student over `window` steps, as a share of that over the first `window`."""
    drift: float | None = DRIFT
    """Most nats per token that the student may be away from the base, mean over the last two measurements."""
    window: int = 4

    def broken(self, past: Sequence[StepMetrics]) -> str | None:
        """Why the run should stop now, one sentence; None while all is well."""
        return self._entropy(past) or self._drift(past)

    def _entropy(self, past: Sequence[StepMetrics]) -> str | None:
        if self.entropy_ratio is None or len(past) < 2 * self.window:
            return None
        first = sum(m.entropy_student for m in past[: self.window])
        last = sum(m.entropy_student for m in past[-self.window :])
        if last >= self.entropy_ratio * first:
            return None
        return (
            f"the student's entropy fell to {last / max(first, 1e-9):.2f} of what it was at the start (the bound is "
            f"{self.entropy_ratio}): it is collapsing; use a smaller lr, fewer passes or an anchor"
        )

    def _drift(self, past: Sequence[StepMetrics]) -> str | None:
        measured = [m.drift for m in past if m.drift is not None][-2:]
        if self.drift is None or len(measured) < 2 or sum(measured) <= self.drift * len(measured):
            return None
        return (
            f"the student is {sum(measured) / len(measured):.2f} nats per token away from the base (the bound is "
            f"{self.drift}): use a smaller lr, fewer passes or an anchor"
        )


STRICT = Rules()
OFF = Rules(entropy_ratio=None, drift=None)
