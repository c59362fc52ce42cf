"""The table of demos on several seeds: what it says about the aims."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent.parent / "experiments" / "demo_seeds.py"
SPEC = importlib.util.spec_from_file_location("demo_seeds", PATH)
assert SPEC is not None and SPEC.loader is not None
demo_seeds = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(demo_seeds)


def row(seed: int, number: int, *, gate: bool, after: float, adapter: str) -> dict[str, Any]:
    share = {"value": after, "low": after - 0.1, "high": after + 0.1, "n": 64}
    return {
        "seed": seed, "run": number, "gate": gate, "before": share | {"value": 0.1}, "after": share, "candidate": share,
        "seconds": 290.0, "cpu_seconds": 500.0, "peak_memory_bytes": 4 << 30, "adapter": adapter,
    }  # fmt: skip


def test_the_table_says_which_aims_are_met() -> None:
    found = [row(0, 0, gate=True, after=0.7, adapter="aa"), row(1, 0, gate=False, after=0.2, adapter="bb")]
    said = demo_seeds.table([*found, row(1, 1, gate=False, after=0.2, adapter="cc"), {"seed": 2, "run": 0, "exit": 1}])
    assert "| 0 | 0 | yes | 0.10 | 0.70 | 0.60 to 0.80 | 290 | 500 | 4.00 | aa |  |" in said
    assert "| 2 | 0 | ended with 1 |" in said
    assert "The gate passed 1 of 2 seeds" in said and "0.70 to 0.70" in said
    assert "Seed 1 again gave another adapter." in said
    assert "gave the same adapter" in demo_seeds.table([*found, row(0, 1, gate=True, after=0.7, adapter="aa")])
