"""Finds significant changes over all suites at once.

The metrics that `afterword.metrics` marks as tested are many, so their p values are corrected together (Holm): without
it one in twenty would look like a finding. It informs; the gate decides by its margins.
"""

from __future__ import annotations

from typing import Any

from afterword.evaluate.stats.statistics import holm, p_value
from afterword.metrics import SUITES, MetricSpec, current
from afterword.records import Json

SURE = 0.05
TESTED: dict[tuple[str, str], MetricSpec] = {
    (suite.name, spec.name): spec for suite in SUITES.values() for spec in suite.metrics if spec.tested
}
"""(suite, metric) -> its specification, of the paired differences that are tested."""


def changes(suites: Json) -> list[Json]:
    """The differences that are not chance after correction.

    Args:
        suites: Suite -> metric -> {value, low, high, n}, as in a report.

    Returns:
        [{suite, metric, better, p, adjusted}], surest first.
    """
    values: dict[tuple[str, str], Json] = {}
    for suite, name in TESTED:
        shown: Any = current(suites.get(suite, {})).get(name)
        if _usable(shown):
            values[suite, name] = shown
    ps = {f"{suite}.{name}": p_value(shown) for (suite, name), shown in values.items()}
    adjusted = holm(ps)
    rows = [
        {
            "suite": suite, "metric": name, "better": shown["value"] * TESTED[suite, name].direction > 0,
            "p": ps[f"{suite}.{name}"], "adjusted": adjusted[f"{suite}.{name}"],
        }
        for (suite, name), shown in values.items()
    ]  # fmt: skip
    return sorted((row for row in rows if row["adjusted"] < SURE), key=lambda row: row["adjusted"])


def _usable(shown: Any) -> bool:
    return isinstance(shown, dict) and all(isinstance(shown.get(k), float | int) for k in ("value", "low", "high", "n"))
