"""References that are written from the code are those of today's code."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_page_of_the_command_line_is_that_of_its_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    page = runpy.run_path(str(ROOT / "dev" / "cli_page.py"))["page"]()
    assert (ROOT / "docs" / "cli.md").read_text("utf-8") == page, "run: python dev/cli_page.py"
    assert "|  |" not in page, "an argument without a help"
    assert all(f"\n## {name}\n" in page for name in ("serve", "train", "cycle", "forget"))
