"""Made-up points of a calibration with a known line."""

from __future__ import annotations

from typing import Any

import numpy as np

from afterword.forecast.points import CalibrationPoint


def point(**changes: Any) -> CalibrationPoint:
    """One point with plain values, `changes` on top."""
    values: dict[str, Any] = {
        "task": "gym:chain_sum", "context": "reference", "student": "a", "family": "a", "base_hash": "h-a", "seed": 0,
        "unit": "share", "gap": 0.2, "gap_se": 0.02, "gain": 0.1, "gain_se": 0.02, "prompts": 64, "heldout": 64,
        "steps": 16, "train_tokens": 100_000, "gap_tokens": 9_000, "context_tokens": 20.0,
    }  # fmt: skip
    return CalibrationPoint(**{**values, **changes})


def made(
    family: str = "a", *, slope: float = 0.8, number: int = 12, seeds: int = 3, scatter: float = 0.02, seed: int = 0
) -> list[CalibrationPoint]:
    """`number` configurations of a family along gain = 0.01 + slope * gap, each with `seeds` measurements."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(number):
        gap = float(rng.uniform(-0.05, 0.4))
        gain = 0.01 + slope * gap + scatter * float(rng.standard_normal())
        rows += [
            point(
                task=f"task-{i % 4}", context=f"context-{i}", student=family, family=family, base_hash=f"h-{family}",
                seed=s, gap=gap + 0.02 * float(rng.standard_normal()), gain=gain + 0.02 * float(rng.standard_normal()),
                context_tokens=float(10 + 7 * i), observables={"overlap": float(rng.uniform(0.5, 0.9))},
            )
            for s in range(seeds)
        ]  # fmt: skip
    return rows
