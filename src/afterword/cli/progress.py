"""Progress on stderr: bars only on a terminal, otherwise a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from afterword.cli.context import Context

LINE_EVERY = 15.0
"""Seconds between lines when stderr is no terminal."""


@contextmanager
def step_bar(context: Context, title: str, unit: str = "steps") -> Iterator[Callable[[int, int | None], None]]:
    """For work of known length; call the yielded function with (done, total)."""
    if context.quiet or not context.err.is_terminal:
        yield _lines(context, title, unit)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=context.err, transient=True) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _lines(context: Context, title: str, unit: str) -> Callable[[int, int | None], None]:
    last = [time.monotonic()]

    def advance(done: int, total: int | None) -> None:
        if time.monotonic() - last[0] >= LINE_EVERY:
            last[0] = time.monotonic()
            context.say(f"{title}: {done}{f' of {total}' if total else ''} {unit}")

    return advance
