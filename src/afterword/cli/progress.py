"""Shows progress on stderr: bars on a terminal, else sparse lines, both with rate and remaining time.

Stages also go to DIR/logs/stages.log. `following` watches the stages of this process and ends it when one makes no
progress. `sampling.launch` watches the start of an engine.
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
from typing import TYPE_CHECKING, Any

from rich.markup import escape

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

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from afterword.cli.context import CommandContext
    from afterword.cycle import Advance

FIRST_LINE, LINE_EVERY = 2.0, 15.0
"""Seconds until the first line when stderr is no terminal, and between two lines. Shorter work prints none."""
TRUSTED = 1.0
"""Seconds of work after which its rate is shown."""


class Pace:
    """Rate and remaining time of work that advances. A new part starts again: its steps cost something else."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._step, self._from, self._began = "", 0, time.monotonic()

    def note(self, done: int, step: str = "") -> None:
        """Note what is done; a part begins where it is first named."""
        if step != self._step or done < self._from:
            self._step, self._from, self._began = step, done, time.monotonic()

    def text(self, done: int, total: int | None, step: str = "") -> str:
        """Format what is done, such as "12 of 40 steps, 0.5 steps/s, 56 s left".

        Args:
            done: Finished units.
            total: All units; None where their number is unknown.
            step: Part of the work.
        """
        self.note(done, step)
        of = f" of {self._amount(total)}" if total else ""
        text = f"{self._amount(done)}{of} {self._unit if self._unit != 'bytes' else 'MB'}"
        seconds, fresh = time.monotonic() - self._began, done - self._from
        if seconds < TRUSTED or fresh <= 0:
            return text
        text += f", {self._rate(fresh / seconds)}"
        return f"{text}, {duration((total - done) * seconds / fresh)} left" if total and total > done else text

    def _amount(self, number: int) -> str:
        return f"{number / 1e6:.1f}" if self._unit == "bytes" else str(number)

    def _rate(self, rate: float) -> str:
        if self._unit == "bytes":
            return f"{rate / 1e6:.1f} MB/s"
        return f"{rate:.3g} {self._unit}/s" if rate >= 0.1 else f"{1 / rate:.1f} s each"


def duration(seconds: float) -> str:
    """Format seconds as people say them: "45 s", "3 min", "2 h 5 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


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
    with bars_on(context.err) as bars, task_bar(bars, title, unit) as advance:
        yield advance


def bars_on(console: Console, *, live: bool = True) -> Progress:
    """Bars with rate and remaining time; the caller shows them where `live` is False."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[pace]}"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True, auto_refresh=live)


@contextmanager
def task_bar(bars: Progress, title: str, unit: str) -> Iterator[Advance]:
    """One bar, which disappears at the end of its work."""
    pace, task = Pace(unit), bars.add_task(title, total=None, pace="")

    def advance(done: int, total: int | None, step: str = "") -> None:
        text = pace.text(done, total, step)
        bars.update(task, description=_titled(title, step), completed=done, total=total, pace=text)

    try:
        yield advance
    finally:
        bars.remove_task(task)


def _titled(title: str, step: str) -> str:
    return f"{title} {step}".rstrip()


@contextmanager
def _lines(context: CommandContext, title: str, unit: str) -> Iterator[Advance]:
    """A line now and then, also while nothing is done: work that is long must not look dead in a log."""
    started, ended, pace = time.monotonic(), threading.Event(), Pace(unit)
    known: list[Any] = [0, None, ""]

    def beat() -> None:
        pause = min(FIRST_LINE, LINE_EVERY)
        while not ended.wait(pause):
            done, total, step = known
            text = f"{_titled(title, step)}: {pace.text(done, total, step)}, {duration(time.monotonic() - started)}"
            context.say(escape(text))
            pause = LINE_EVERY

    def advance(done: int, total: int | None, step: str = "") -> None:
        known[:] = done, total, step
        pace.note(done, step)

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
