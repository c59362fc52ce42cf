"""Write the table of feedback kinds (`afterword.kinds.KINDS`) into docs/feedback.md, between its two markers.

python dev/kinds_page.py
"""

from __future__ import annotations

from pathlib import Path

from afterword.kinds import KINDS

PAGE = Path(__file__).parents[1] / "docs" / "feedback.md"
BEGIN = "<!-- Written by dev/kinds_page.py from afterword/kinds.py: change the table there. -->\n"
END = "<!-- end of the table -->\n"
HEAD = ("kind", "meaning", "carries", "polarity", "weight", "hindsight", "counts as", "`user_action`")
CARRIES = {"": "", "exit_code": "`exit_code`, `output`"}
COUNTED = {
    "by_value": "its sign",
    "by_exit_code": "exit code",
    "by_words": "its words",
    "by_edit": "edited, if changed",
}
POLARITY = {1: "+1", -1: "-1", 0: "by content"}


def table() -> str:
    """The table as Markdown."""
    lines = [HEAD, ("---",) * len(HEAD)]
    for name, kind in KINDS.items():
        template = kind.template.replace("\n", " ⏎ ")
        lines.append((
            f"`{name}`", kind.meaning, CARRIES.get(kind.carries, f"`{kind.carries}`"), POLARITY[kind.polarity],
            f"{kind.weight:g}" if kind.weight else "0 (off)", f"`{template}`" if template else "none",
            COUNTED.get(kind.counted, kind.counted), ", ".join(f"`{action}`" for action in kind.actions),
        ))  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def written(page: str) -> str:
    """The page with today's table in it."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
