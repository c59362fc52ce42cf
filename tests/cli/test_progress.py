"""What a log sees of long work."""

from __future__ import annotations

import io
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from afterword.cli import progress
from afterword.cli.context import CommandContext


def log(quiet: bool = False) -> tuple[CommandContext, list[str]]:
    lines: list[str] = []
    err = SimpleNamespace(is_terminal=False, file=io.StringIO())
    return cast(CommandContext, SimpleNamespace(quiet=quiet, err=err, say=lines.append)), lines


def test_work_that_does_not_advance_is_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.02)
    context, lines = log()
    with progress.step_bar(context, "training") as advance:
        deadline = time.monotonic() + 5
        while not lines and time.monotonic() < deadline:
            time.sleep(0.01)
        first: Any = lines[0]
        advance(3, 16, "holdout: answers")
        while lines[-1] == first and time.monotonic() < deadline:
            time.sleep(0.01)
    assert first.startswith("training: 0 steps, ") and any(
        x.startswith("training holdout: answers: 3 of 16 steps, ") for x in lines
    )
    told = len(lines)
    time.sleep(0.1)
    assert len(lines) == told, "nothing is written after the end"


def test_quiet_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.01)
    context, lines = log(quiet=True)
    with progress.step_bar(context, "training") as advance:
        advance(1, 2)
        time.sleep(0.05)
    assert not lines
