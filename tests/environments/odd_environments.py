"""Python functions as environments, for `python:tests.environments.odd_environments:NAME`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator
from typing import Any


def echo(task: dict[str, Any], seed: int) -> Generator[str, str, float]:
    """Say it three times."""
    for left in (3, 2, 1):
        said = yield f"Say {task['number']}, {left} times more."
        if said.strip() != str(task["number"]):
            return 0.0
    return 1.0


def hangs(task: dict[str, Any], seed: int) -> Generator[str, str, float]:
    """Never answers an action."""
    yield "Go."
    time.sleep(60)
    return 1.0


def floods(task: dict[str, Any], seed: int) -> Generator[str, str, float]:
    """Prints 10 MB and observes 10 MB."""
    yield "Go."
    sys.stdout.write("x" * 10_000_000)
    sys.stdout.flush()
    yield "y" * 10_000_000
    return 1.0


def dies(task: dict[str, Any], seed: int) -> Generator[str, str, float]:
    """Ends its process."""
    yield "Go."
    os._exit(7)


def raises(task: dict[str, Any], seed: int) -> Generator[str, str, float]:
    """Has a fault."""
    yield "Go."
    raise KeyError("lost")


def score(task: dict[str, Any], answer: str) -> float:
    """One answer, marked."""
    return float(answer.strip() == task["wanted"])


def _panel(split: str) -> list[dict[str, Any]]:
    return [{"id": f"{split}/a", "prompt": "Say a.", "wanted": "a"}]


score.panel = _panel  # type: ignore[attr-defined]
