"""No process of ours is a fork of one in which a library with threads has run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = sorted(
    path for room in ("src", "benchmarks", "experiments", "tests") for path in (ROOT / room).rglob("*.py")
)
_FORKING = {"os.fork", "os.forkpty", "pty.fork", "pty.spawn"}
_CHOOSING = {"get_context", "set_start_method"}
_DEFAULT = {
    "multiprocessing." + name for name in ("Process", "Pool", "Queue", "Manager", "SimpleQueue", "JoinableQueue")
}
"""Of the platform's start method, which on Linux is fork before Python 3.14."""


def forks(tree: ast.AST) -> Iterator[str]:
    """Calls that fork without executing a new program, or leave the start method to the platform."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        method = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None
        keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
        chosen = name.rpartition(".")[2] in _CHOOSING
        pool = name.rpartition(".")[2] == "ProcessPoolExecutor" and "mp_context" not in keywords
        loader = name.rpartition(".")[2] == "DataLoader" and keywords.get("num_workers", "0") != "0"
        if name in _FORKING | _DEFAULT or (chosen and method != "spawn") or pool or loader or "preexec_fn" in keywords:
            yield f"line {call.lineno}: {ast.unparse(call)}"


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_forks(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "import fork" not in text or path == Path(__file__)
    assert not list(forks(ast.parse(text))), "start a fresh interpreter (afterword.processes), or name spawn"


@pytest.mark.parametrize(
    "code",
    [
        "os.fork()",
        "multiprocessing.get_context()",
        "multiprocessing.get_context('fork' if sys.platform == 'linux' else 'spawn')",
        "mp.set_start_method('fork')",
        "multiprocessing.Process(target=f)",
        "ProcessPoolExecutor(4)",
        "DataLoader(rows, num_workers=2)",
        "subprocess.Popen(line, preexec_fn=f)",
    ],
)
def test_forks_are_seen(code: str) -> None:
    assert list(forks(ast.parse(code)))


@pytest.mark.parametrize("code", ["multiprocessing.get_context('spawn').Process()", "subprocess.Popen(line)"])
def test_fresh_interpreters_are_no_forks(code: str) -> None:
    assert not list(forks(ast.parse(code)))
