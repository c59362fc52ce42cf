"""The habits that a machine can hold us to: sizes, names, torch in its rooms, errors at the boundary."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src" / "afterword").rglob("*.py"))
WRITTEN = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))]
LONGEST_FILE, LONGEST_FUNCTION = 1000, 100
LOOP, LONGEST_LOOP = "train/loop.py", 150
"""The training loop is one function, read from top to bottom."""


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT)).removeprefix("src/afterword/")


@pytest.mark.parametrize("path", WRITTEN, ids=_name)
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE, f"a file has at most {LONGEST_FILE} lines (most have 200 to 800)"
    most = LONGEST_LOOP if _name(path) == LOOP else LONGEST_FUNCTION
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            assert size <= most, f"{node.name} has {size} lines, at most {most}"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_every_module_says_what_it_owns_and_public_functions_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "a module begins with a docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} is public and has no docstring"


def test_no_two_public_classes_share_a_name() -> None:
    places = defaultdict(list)
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(_name(path))
    shared = {name: where for name, where in places.items() if len(where) > 1}
    assert not shared, f"rename one of each: {shared}"


def test_the_command_line_starts_without_torch() -> None:
    code = (
        "import sys; from afterword.cli.entry import parser; parser();"
        "bad = {'torch', 'transformers', 'peft'} & set(sys.modules); assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
