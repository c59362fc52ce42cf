"""The live view of `cycle --watch`: what waits, what runs with its pace, how the last round ended; lines in a file."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import cast

from rich.console import Console

from afterword.cli.context import CommandContext
from afterword.cli.watch_view import WatchView
from afterword.cycle import Failed, Progress, WatchStatus
from afterword.errors import ModelError
from afterword.records import RoundAttempt

FAILED = Failed(ModelError("no template"), RoundAttempt(id="a", settings="s", interactions=()))


def view(terminal: bool) -> tuple[WatchView, Console, list[str]]:
    said: list[str] = []
    err = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)
    return WatchView(cast(CommandContext, SimpleNamespace(err=err, quiet=False, say=said.append)), 30.0), err, said


def screen(shown: WatchView, err: Console) -> str:
    with err.capture() as captured:
        err.print(shown.block())
    return captured.get()


def test_a_terminal_shows_one_block() -> None:
    shown, err, said = view(True)
    shown.show(WatchStatus(8, 32, 2, None))
    text = screen(shown, err)
    assert "8 new interactions wait, 32 start a round; 2 more are of tasks" in text and "looks again in 30 s" in text
    assert text.count("━") == 24 and not said
    with shown.progress(Progress()).bar("training", "steps") as advance:
        advance(3, 10)
        assert "training" in screen(shown, err) and "3 of 10 steps" in screen(shown, err)
        assert "looks again" not in screen(shown, err)
    shown.show(FAILED)
    assert "failed: no template" in screen(shown, err) and "training" not in screen(shown, err)


def test_a_file_gets_a_line_for_each_change() -> None:
    shown, _, said = view(False)
    lines = Progress()
    assert shown.progress(lines) is lines
    with shown:
        for new in (1, 1, 2):
            shown.show(WatchStatus(new, 32, 0, "a@v000002"))
    assert [line.split("]")[1].split(" ")[0] for line in said] == ["1", "2"]
    assert "none begins before the canary of a@v000002 is decided" in said[0]
