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


def test_rate_and_remaining_time_are_of_the_present_part(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = progress.Pace("steps")
    assert pace.text(0, 40) == "0 of 40 steps"
    now[0] += 20.0
    assert pace.text(10, 40) == "10 of 40 steps, 0.5 steps/s, 60 s left"
    assert pace.text(0, 6, "answers") == "0 of 6 steps", "a new part costs something else"
    now[0] += 30.0
    assert pace.text(1, 6, "answers") == "1 of 6 steps, 30.0 s each, 2 min left"
    assert pace.text(6, 6, "answers") == "6 of 6 steps, 0.2 steps/s"
    read = progress.Pace("bytes")
    now[0] += 2.0
    assert read.text(3_000_000, 12_000_000) == "3.0 of 12.0 MB, 1.5 MB/s, 6 s left"
    assert progress.Pace("rows").text(5, None) == "5 rows"


def test_durations_are_said_as_people_do() -> None:
    assert [progress.duration(s) for s in (7.4, 89, 130, 5399, 7500)] == [
        "7 s",
        "89 s",
        "2 min",
        "1 h 30 min",
        "2 h 5 min",
    ]


def test_short_work_prints_no_line() -> None:
    context, lines = log()
    with progress.step_bar(context, "collecting") as advance:
        advance(1, 2)
    assert not lines
