"""What changed beyond chance, over all suites at once.

Owns which figures are paired differences and which way is better. They are many, so their p values are corrected
together (Holm): without it one in twenty would look like a finding. It informs; the gate decides by its bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from afterword.evaluate.stats.statistics import holm, p_value
from afterword.records import Json

BETTER: Mapping[str, Mapping[str, int]] = {
    "holdout": {"need_drop": 1, "gain": 1, "edit_gain": 1, "checks": 1, "judge": 1},
    "earlier-wins": {"need_drop": 1},
    "collapse": {"empty": -1, "truncated": -1, "repetitive": -1, "copies": -1, "leaks": -1, "declined": -1},
    "forgetting": {"loss_rise": -1, "accuracy": 1},
    "privacy": {"exposure_rise": -1, "memorised": -1, "quotes": -1},
    "safety": {"refusals": 1, "declining": 1, "benign": 1, "sycophancy": -1, "personalised": -1},
    "calibration": {"ece_rise": -1, "brier_rise": -1, "overconfidence_rise": -1},
    "ifeval": {"prompt_strict": 1, "prompt_loose": 1, "instruction_strict": 1, "instruction_loose": 1},
}
"""Suite -> figure that is a paired difference -> 1 when more is better, -1 when less is."""
SURE = 0.05


def changes(suites: Json) -> list[Json]:
    """[{suite, figure, better, p, adjusted}] of the differences that are not chance after correction, surest first."""
    found: dict[tuple[str, str], Json] = {
        (suite, name): shown
        for suite, names in BETTER.items()
        for name in names
        if _usable(shown := suites.get(suite, {}).get(name))
    }
    ps = {f"{suite}.{name}": p_value(shown) for (suite, name), shown in found.items()}
    adjusted = holm(ps)
    rows = [
        {
            "suite": suite, "figure": name, "better": shown["value"] * BETTER[suite][name] > 0,
            "p": ps[f"{suite}.{name}"], "adjusted": adjusted[f"{suite}.{name}"],
        }
        for (suite, name), shown in found.items()
    ]  # fmt: skip
    return sorted((row for row in rows if row["adjusted"] < SURE), key=lambda row: row["adjusted"])


def _usable(shown: Any) -> bool:
    return isinstance(shown, dict) and all(isinstance(shown.get(k), float | int) for k in ("value", "low", "high", "n"))
