"""Whose weights score the served ids. A teacher is data; the holder of the model switches adapters by it.

A teacher of self-distillation is never a second model in memory: it is the same base with its adapter off
(`base`), with the adapter that the run started from (`start`), or with the one in training (`live`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Weights = Literal["live", "base", "start"]


@dataclass(frozen=True, slots=True)
class Teacher:
    """Its scores never carry a gradient."""

    weights: Weights

    @property
    def frozen(self) -> bool:
        """True when its scores do not change during the run, so that they are computed once."""
        return self.weights != "live"


LIVE = Teacher("live")
"""The student itself, detached (arXiv 2603.12273). Unstable over long runs: watch drift and entropy."""
BASE = Teacher("base")
"""The base model, adapter off (CLaaS)."""
START = Teacher("start")
"""The adapter that the run continues from, the base model for a fresh one: it keeps what was learned before."""
