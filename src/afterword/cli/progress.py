"""Shows progress on stderr: bars on a terminal, else a line now and then; stages also in DIR/logs/stages.log.

`following` watches the stages of this process and ends it when one makes no progress. `sampling.launch` watches the
start of an engine.
"""

from __future__ import annotations

import faulthandler
import io
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from afterword.cli.context import CommandContext
from afterword.cycle import Advance
from afterword.errors import UpstreamError, error_response
from afterword.processes import (
    SILENCE,
    STACKS_FOLLOW,
    Pulse,
    Stages,
    ask_for_stacks,
    dump_stacks_when_asked,
    explain,
    kill_tree,
    listening,
)

LINE_EVERY = 15.0
"""Seconds between lines when stderr is no terminal."""


@contextmanager
def step_bar(context: CommandContext, title: str, unit: str = "steps") -> Iterator[Advance]:
    """For work of known length; call the yielded function with (done, total) and the part that runs."""
    if context.quiet:
        yield lambda done, total, step="": None
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
        yield lambda done, total, step="": bars.update(
            task, description=_titled(title, step), completed=done, total=total
        )


def _titled(title: str, step: str) -> str:
    return f"{title} {step}".rstrip()


@contextmanager
def _lines(context: CommandContext, title: str, unit: str) -> Iterator[Advance]:
    """A line every `LINE_EVERY` seconds, also while nothing is done: work that is long must not look dead in a log."""
    started, ended = time.monotonic(), threading.Event()
    known: list[Any] = [0, None, ""]

    def beat() -> None:
        while not ended.wait(LINE_EVERY):
            done, total, step = known
            of = f" of {total}" if total else ""
            context.say(f"{_titled(title, step)}: {done}{of} {unit}, {time.monotonic() - started:.0f} s")

    def advance(done: int, total: int | None, step: str = "") -> None:
        known[:] = done, total, step

    thread = threading.Thread(target=beat, name="progress", daemon=True)
    thread.start()
    try:
        yield advance
    finally:
        ended.set()
        thread.join()


@contextmanager
def following(context: CommandContext) -> Iterator[None]:
    """Inside, stages that begin in this process are told; nothing is started before the first."""
    if not faulthandler.is_enabled():
        with suppress(io.UnsupportedOperation, AttributeError, ValueError):  # no stderr that is a file
            dump_stacks_when_asked()
    follower = _Follower(context)
    try:
        with listening(follower.hear):
            yield
    finally:
        follower.close()


class _Follower:
    def __init__(self, context: CommandContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._stages = Stages(self._tell)
        self._pulse: Pulse | None = None
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def log(self) -> Path:
        """The file."""
        return self._context.dir / "logs" / "stages.log"

    def hear(self, name: str, ours: bool) -> None:
        """A stage begins, or ends ("")."""
        with self._lock:
            self._stages.begin(name)
            self._pulse = None
            if name and ours:
                self._pulse = Pulse(os.getpid())
            if name and self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="stages", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(1.0):
            with self._lock:
                self._stages.tick()
                pulse, name = self._pulse, self._stages.name
                silent = pulse.check() if pulse is not None else 0.0
            if silent >= SILENCE:
                self._give_up(name, silent)

    def _give_up(self, name: str, silent: float) -> None:
        """The thread that waits for ever cannot be told; so the process ends, children first, with the cause."""
        why = explain(os.getpid(), name, silent)
        self._write(f"{why}; {STACKS_FOLLOW}")
        with suppress(OSError), self.log.open("ab") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        ask_for_stacks(os.getpid())
        message = f"{why}. The stacks of its threads are in {self.log}. Try again; if it happens again, report them."
        if self._context.json:
            self._context.emit(error_response(UpstreamError(message, code="stuck"))[1])
        self._context.err.quiet = False
        self._context.err.print(f"[red]afterword:[/] {escape(message)}")
        kill_tree(os.getpid(), itself=False)
        os._exit(1)

    def _tell(self, text: str) -> None:
        self._context.say(f"[dim]{escape(text)}[/]")
        self._write(text)

    def _write(self, text: str) -> None:
        if not self._context.dir.is_dir():  # nothing is created by looking
            return
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        command = getattr(self._context.args, "command", "afterword")
        with suppress(OSError):
            self.log.parent.mkdir(exist_ok=True)
            with self.log.open("a", encoding="utf-8") as file:
                file.write(f"{stamp} {command}[{os.getpid()}] {text}\n")
