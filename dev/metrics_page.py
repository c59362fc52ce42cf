"""Write the table of metrics (`afterword.metrics.SUITES`) into docs/gate.md and its `[gate]` keys into the settings.

python dev/metrics_page.py
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path

from afterword.metrics import SUITES, UNITS, Margin, MetricSpec, margins
from afterword.release.gate import REQUIRED

DOCS = Path(__file__).parents[1] / "docs"
BEGIN = "<!-- Written by dev/metrics_page.py from afterword/metrics.py: change the table there. -->\n"
END = "<!-- end of the table -->\n"
HEAD = "| metric | name in a report | unit | better | margin | why |\n|---|---|---|---|---|---|\n"
BETTER = {1: "higher", -1: "lower", 0: ""}
ENDS = {"value": "value", "low": "lower end", "high": "upper end"}


def metrics_table() -> str:
    """Every metric, suite by suite, as Markdown."""
    parts = []
    for suite in SUITES.values():
        head = f"**{suite.name}**{' (required)' if suite.required else ''}: {suite.about}"
        parts.append(f"{textwrap.fill(head, 118, break_on_hyphens=False)}\n\n{HEAD}")
        for spec in suite.metrics:
            lines = [f"`{one.setting}`: {ENDS[one.end]} {one.side} {one.limit:g}" for one in spec.margins]
            why = "; ".join(one.why for one in spec.margins)
            kind = " (difference)" if spec.difference else ""
            unit = f"{UNITS[spec.unit].name or spec.unit}{kind}"
            cells = (spec.label, f"`{spec.name}`", unit, BETTER[spec.direction], "; ".join(lines), why)
            parts.append(f"| {' | '.join(cells)} |\n")
        parts.append("\n")
    return "".join(parts).rstrip("\n") + "\n"


def settings_table() -> str:
    """Every key of `[gate]` with its default, as Markdown."""
    rows = [("required", json.dumps(list(REQUIRED)), "Required suites: a candidate without one of them is rejected.")]
    rows += [(margin.setting, json.dumps(margin.limit), _meaning(spec, margin)) for _, spec, margin in margins()]
    body = "".join(f"| `{key}` | `{default}` | {text} |\n" for key, default, text in rows)
    return f"| key | default | |\n|---|---|---|\n{body}"


def _meaning(spec: MetricSpec, margin: Margin) -> str:
    unit = UNITS[spec.unit]
    scale = " as a share, 0 to 1" if unit.factor == 100 else f" in {unit.name}" if unit.name else ""
    change = "change against the reference" if spec.difference else "value"
    where = "" if margin.end == "value" else f", {ENDS[margin.end]} of its interval"
    return f"{spec.label}: {change}{scale}{where}, {margin.side} this."


PAGES: dict[str, Callable[[], str]] = {"gate.md": metrics_table, "configuration.md": settings_table}


def written(page: str, table: str) -> str:
    """The page with today's table between the two markers."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    for name, table in PAGES.items():
        path = DOCS / name
        path.write_text(written(path.read_text("utf-8"), table()), "utf-8")
