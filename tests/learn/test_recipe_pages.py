"""Every recipe has a page with a command that parses, and a row in the table; every page has its recipe."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from afterword.cli.context import SECTIONS, CommandContext
from afterword.cli.entry import parser
from afterword.config import Config, TrainConfig, resolve
from afterword.learn.recipes import RECIPES
from afterword.learn.recipes.from_config import read_recipe

DOCS = Path(__file__).parents[2] / "docs" / "recipes"
PAGES = sorted(path for path in DOCS.glob("*.md") if path.name != "README.md")


def commands(page: Path) -> list[list[str]]:
    """The `afterword` lines of the page's code blocks, as a shell would split them."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("afterword ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def config_of(command: list[str]) -> Config:
    context = CommandContext.of(parser().parse_args(command))
    return resolve(SECTIONS, flags=context._flags())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_commands_of_a_page_run_its_recipe(page: Path) -> None:
    found = [read_recipe(config_of(command).get(TrainConfig)).name for command in commands(page)]
    assert found
    assert all(name == page.stem or name.startswith(f"{page.stem}-") for name in found)
    text = page.read_text(encoding="utf-8")
    for part in ("Source", "## What it does", "## Differences", "| why |"):
        assert part in text


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_has_a_page_and_a_row(name: str) -> None:
    shown = {config_of(command).get(TrainConfig).recipe for page in PAGES for command in commands(page)}
    assert name in shown
    table = (DOCS / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| \[`{re.escape(name)}`\]\(([\w-]+)\.md\)", table, flags=re.M)
