"""Progress on stderr: bars only on a terminal, otherwise a line now and then."""

from __future__ import annotations

import threading
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
    if context.quiet:
        yield lambda done, total: None
        return
    if not context.err.is_terminal:
        with _lines(context, title, unit) as advance:
            yield advance
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


@contextmanager
def _lines(context: Context, title: str, unit: str) -> Iterator[Callable[[int, int | None], None]]:
    """A line every `LINE_EVERY` seconds, also while nothing is done: work that is long must not look dead in a log."""
    started, ended = time.monotonic(), threading.Event()
    known: list[int | None] = [0, None]

    def beat() -> None:
        while not ended.wait(LINE_EVERY):
            done, total = known
            of = f" of {total}" if total else ""
            context.say(f"{title}: {done}{of} {unit}, {time.monotonic() - started:.0f} s")

    def advance(done: int, total: int | None) -> None:
        known[:] = done, total

    thread = threading.Thread(target=beat, name="progress", daemon=True)
    thread.start()
    try:
        yield advance
    finally:
        ended.set()
        thread.join()
