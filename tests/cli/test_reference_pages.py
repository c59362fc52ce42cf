"""The reference pages name everything that there is: every setting with its default, every route, kind and metric."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import textwrap
from pathlib import Path

import pytest

from afterword.cli.context import SECTIONS
from afterword.gateway.metrics import Metrics
from afterword.gateway.routes import ROUTES
from afterword.records import FEEDBACK_KINDS, SOURCES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_stands_on_the_page(section: str) -> None:
    page = (DOCS / "configuration.md").read_text("utf-8")
    _, _, rest = page.partition(f"## `[{section}]`")
    table = rest.partition("\n## ")[0]
    for field in dataclasses.fields(SECTIONS[section]):
        default = field.default_factory() if callable(field.default_factory) else field.default
        shown = "none" if default is None else f"`{json.dumps(default)}`"
        line = f"| `{field.name}` | {shown} |"
        assert line in table, f"docs/configuration.md lacks in [{section}]: {line} and what it means"


def _docstrings(section: type) -> dict[str, str]:
    """Field -> the docstring below it."""
    (made,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(made, ast.ClassDef)
    return {
        ast.unparse(field.target): " ".join(str(ast.literal_eval(text.value)).split())
        for field, text in itertools.pairwise(made.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


@pytest.mark.parametrize("section", [name for name in SECTIONS if name != "gate"])
def test_the_page_says_of_a_setting_what_its_docstring_says(section: str) -> None:
    page = (DOCS / "configuration.md").read_text("utf-8")
    table = page.partition(f"## `[{section}]`")[2].partition("\n## ")[0]
    said = {row.split(" | ")[0].strip("| `"): row.split(" | ", 2)[2].strip(" |") for row in table.splitlines()
            if row.startswith("| `")}  # fmt: skip
    assert said == _docstrings(SECTIONS[section])


def test_the_http_page_names_routes_kinds_and_metrics() -> None:
    page = (DOCS / "http-api.md").read_text("utf-8")
    kinds = [kind for kind in FEEDBACK_KINDS if kind != "retraction"]
    routes = ["/episodes/ID/v1", *(route.path.removeprefix("/episodes/{episode}") for route in ROUTES)]
    metrics = [family.name.removeprefix("afterword_") for family in Metrics().registry.collect()]
    for name in (*kinds, *SOURCES, *routes, *[name.removeprefix("turns") for name in metrics]):
        assert name in page, f"docs/http-api.md does not name {name}"
