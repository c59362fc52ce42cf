"""Draw gap against gain from the points of this folder: `by-family.svg` and `by-context.svg`.

python experiments/forecast/figure.py
"""

from __future__ import annotations

import re
from pathlib import Path

from afterword.forecast.calibration import fit
from afterword.forecast.figures import calibration_page
from afterword.forecast.points import read_points

HERE = Path(__file__).parent
STYLE = (
    "<style>svg{--ink:#1d1c1a;--soft:#6a665f;--line:#e3dfd8;background:#fbfaf8;font:13px sans-serif}"
    "@media(prefers-color-scheme:dark){svg{--ink:#ece9e3;--soft:#a29c92;--line:#35322d;background:#171614}}"
    "text{fill:var(--soft)}.axis{stroke:var(--line)}.zero{stroke:var(--soft);stroke-dasharray:2 2}.band{opacity:.14}"
    "g line{stroke-width:1.2}</style>"
)


def main() -> None:
    """Write both pictures."""
    points = read_points(HERE / "points.jsonl")
    page = calibration_page(points, fit(points, unit="share"))
    for name, drawn in zip(("by-family", "by-context"), re.findall(r"<svg.*?</svg>", page, re.DOTALL), strict=False):
        head, rest = drawn.split(">", 1)
        head = re.sub(r"=([\w-]+)(?=[ >]|$)", r'="\1"', head) + ' xmlns="http://www.w3.org/2000/svg">'
        rest = re.sub(r"=([\w.#-]+)(?=[ />])", r'="\1"', rest)
        (HERE / f"{name}.svg").write_text(f"{head}{STYLE}{rest}\n", "utf-8")


if __name__ == "__main__":
    main()
