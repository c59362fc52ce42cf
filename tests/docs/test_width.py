"""Documentation keeps to 120 columns, every page is on the index, and the files that pages name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *(ROOT / "docs").rglob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_have_at_most_120_columns(page: Path) -> None:
    """Tables and examples of data (one record a line, in code fences) may be wider."""
    fenced, wide = False, []
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        if len(line) > 120 and not fenced and not line.lstrip().startswith("|"):
            wide.append(number)
    assert not wide, f"wrap lines {wide}"


def test_every_page_is_on_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


def test_the_files_that_answer_a_newcomers_questions_exist() -> None:
    text = (ROOT / "docs" / "extending.md").read_text("utf-8")
    for name in re.findall(r"`((?:learn|evaluate|formats|release)/[\w/]+(?:\.py)?/?)`", text):
        path = name.replace("NAME", "holdout")
        assert (ROOT / "src" / "afterword" / path).exists(), name
    for name in re.findall(r"`((?:tests|docs)/[\w/]+(?:\.\w+)?/?)`", text):
        assert (ROOT / name).exists(), name


EXAMPLES = ("NAME.py", "tone.py", "check.py", "a.py")
"""Files that pages make up."""
SOURCES = [str(path.relative_to(ROOT)) for top in ("src", "tests", "dev", "benchmarks", "experiments")
           for path in (ROOT / top).rglob("*.py")]  # fmt: skip


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name != "CHANGELOG.md"] + [*(ROOT / "experiments").rglob("*.md")],
    ids=lambda page: str(page.relative_to(ROOT)),
)  # fmt: skip
def test_python_files_that_a_page_names_exist(page: Path) -> None:
    for name in re.findall(r"(?<![\w/.-])((?:[\w-]+/)*\w+\.py)\b", page.read_text("utf-8")):
        known = any(f"/{source}".endswith(f"/{name}") for source in SOURCES)
        assert known or Path(name).name in EXAMPLES, name


def test_the_changelog_has_one_line_an_entry() -> None:
    for line in (ROOT / "CHANGELOG.md").read_text("utf-8").splitlines():
        assert not line or line.startswith(("# ", "## ", "### ", "- ")), line
