"""What can be set about collection; the defaults are the vetted setting. Never decides anything itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from afterword.errors import ConfigError
from afterword.feedback.kinds import KINDS


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectSettings:
    """How feedback becomes interactions."""

    holdout: float = 0.25
    """Share of conversations whose interactions are held out; fixed by a hash of the conversation."""
    weights: dict[str, float] = field(default_factory=dict)
    """Kind -> weight, in place of the table's. 0 switches the kind off."""
    task_weights: dict[str, dict[str, float]] = field(default_factory=dict)
    """Task -> kind -> weight, in place of `weights` for turns of that task."""
    wait_seconds: float = 3600.0
    """How long a retried turn waits for a later accepted attempt before it is skipped."""
    max_hindsight_chars: int = 8000
    """Longer words of a user are skipped as `too_long`; output of programs is cut to half of this."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.holdout <= 1.0:
            raise ConfigError(f"`holdout` is {self.holdout}; it is a share of conversations, between 0 and 1.")
        for where, table in (
            ("weights", self.weights),
            *((f"task_weights.{t}", w) for t, w in self.task_weights.items()),
        ):
            for kind, weight in table.items():
                if kind not in KINDS:
                    raise ConfigError(f"`{where}` names the kind {kind!r}; kinds are {', '.join(KINDS)}.")
                if not math.isfinite(weight) or weight < 0:
                    raise ConfigError(f"`{where}.{kind}` is {weight}; a weight is 0 (off) or positive.")

    def weight(self, kind: str, task: str | None) -> float:
        """Weight of a kind for turns of a task."""
        for table in (self.task_weights.get(task or "", {}), self.weights):
            if kind in table:
                return table[kind]
        return KINDS[kind].weight
