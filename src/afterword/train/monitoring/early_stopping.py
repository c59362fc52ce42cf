"""What stops a run: rules over the metrics of its steps, pure functions of the past.

A stop is an honest end: what was learned is kept as a candidate that says why it stopped, and its state stays so that
the run can go on without the rule. What is not finite is no end but an error (`TrainingDiverged`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from afterword.records import Json
from afterword.train.monitoring.metrics import StepMetrics

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
    self_similarity: float | None = SELF_SIMILARITY
    """Most mean ROUGE-L between fresh answers to different prompts, once training has begun."""
    window: int = 4

    def broken(self, past: Sequence[StepMetrics]) -> str | None:
        """Why the run should stop now, one sentence; None while all is well."""
        return self._entropy(past) or self._drift(past)

    def _entropy(self, past: Sequence[StepMetrics]) -> str | None:
        seen = [m.entropy_student for m in past if m.counted != 0]
        if self.entropy_ratio is None or len(seen) < 2 * self.window:
            return None
        first, last = sum(seen[: self.window]), sum(seen[-self.window :])
        if last >= self.entropy_ratio * first:
            return None
        return (
            f"the student's entropy fell to {last / max(first, 1e-9):.2f} of what it was at the start (the bound is "
            f"{self.entropy_ratio}): it is collapsing; use a smaller lr, fewer passes or an anchor"
        )

    def alike(self, answers: Json | None) -> str | None:
        """Why the run should not go on from a pass over fresh answers with these figures; None while all is well."""
        if self.self_similarity is None or not answers or answers["self_similarity"] <= self.self_similarity:
            return None
        return (
            f"fresh answers to different prompts are nearly the same (ROUGE-L {answers['self_similarity']:.2f}, the "
            f"bound is {self.self_similarity}): the student is collapsing; use a smaller lr, fewer passes or an anchor"
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
OFF = Rules(entropy_ratio=None, drift=None, self_similarity=None)
