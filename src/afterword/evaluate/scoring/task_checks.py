"""Runs the programs that accept or reject an answer, named in the configuration by task (`[evaluate.checks]`)."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess

import orjson

from afterword.errors import UsageError
from afterword.evaluate.comparison.comparison import Check
from afterword.evaluate.comparison.heldout import HeldOut

SECONDS = 20.0
"""A program that takes longer has not accepted the answer."""
_FENCE = re.compile(r"```[\w+-]*\n(.*?)(?:```|\Z)", re.DOTALL)


def check_of(spec: str) -> Check:
    """ "json" (parses), "python" (compiles), "regex:PATTERN" (is found), or "command:PROGRAM ARGS": it gets
    {"prompt", "answer", "task"} as JSON on its input and accepts with exit code 0. UsageError for anything else."""
    kind, _, rest = spec.partition(":")
    if spec == "json":
        return lambda item, answer: float(_parses(answer))
    if spec == "python":
        return lambda item, answer: float(_compiles(answer))
    if kind == "regex" and rest:
        return _regex(rest)
    if kind == "command" and rest:
        return _command(shlex.split(rest))
    raise UsageError(
        f"evaluate.checks has {spec!r}: a check is json, python, regex:PATTERN or command:PROGRAM ARGS",
        param="evaluate.checks",
    )


def _bare(answer: str) -> str:
    """The first fenced block, or the whole answer."""
    found = _FENCE.search(answer)
    return (found.group(1) if found else answer).strip()


def _parses(answer: str) -> bool:
    try:
        orjson.loads(_bare(answer))
    except orjson.JSONDecodeError:
        return False
    return True


def _compiles(answer: str) -> bool:
    try:
        ast.parse(_bare(answer))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return bool(_bare(answer))


def _regex(pattern: str) -> Check:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"evaluate.checks: {pattern!r} is an invalid regular expression ({error})", param="evaluate.checks"
        ) from error
    return lambda item, answer: float(bool(compiled.search(answer)))


def _command(command: list[str]) -> Check:
    def run(item: HeldOut, answer: str) -> float:
        given = orjson.dumps({"prompt": item.question, "answer": answer, "task": item.task})
        try:
            done = subprocess.run(command, input=given, capture_output=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return 0.0
        except OSError as error:
            raise UsageError(
                f"evaluate.checks: {command[0]!r} cannot be started: {error.strerror}", param="evaluate.checks"
            ) from error
        return float(done.returncode == 0)

    return run
