"""The page on import and export: every example on it comes in, under its name and recognised."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from afterword.formats.registry import FORMATS
from afterword.store import Store
from tests.feedback.import_rows import load

PAGE = (Path(__file__).parents[2] / "docs" / "import-export.md").read_text(encoding="utf-8")


def examples() -> list[tuple[str, str]]:
    """(format, row) of every line of the block."""
    block = re.search(r"Examples, one row each.*?```\n(.*?)```", PAGE, re.DOTALL)
    assert block
    found: list[tuple[str, str]] = []
    name = ""
    for line in block[1].splitlines():
        if line.startswith("# "):
            name = line[2:]
        else:
            found.append((name, line))
    return found


def test_every_format_has_an_example_and_a_row_of_the_table() -> None:
    assert {name for name, _ in examples()} == set(FORMATS)
    assert all(f"| `{name}` |" in PAGE for name in FORMATS)


@pytest.mark.parametrize(("name", "row"), examples())
def test_the_examples_of_the_page_come_in(store: Store, tmp_path: Path, name: str, row: str) -> None:
    summary = load(store, tmp_path, row)
    assert not summary.rejected and summary.stored >= 1
    assert summary.format == name.replace("anthropic", "openai")  # one reader for both
    named = load(store, tmp_path, row, name, name="named.jsonl")
    assert not named.rejected and named.turns + named.feedback == summary.turns + summary.feedback
