"""Starts child processes of our own and detects those that make no progress.

Owns the stages of a start, the measure of progress, and the dump of all thread stacks. Never forks without executing a
new program: threads of a library (torch's OpenMP pool) do not exist in a forked child, which then waits forever.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

SILENCE = 45.0
"""Seconds without progress after which a stage is given up: with the stacks written and everything ended, whoever waits
knows the cause within a minute."""
STAGE_LINES = 10.0
"""Seconds between two lines about a stage that goes on."""
_CPU, _BYTES = 0.2, 1 << 16
"""Progress is so much CPU time (seconds) or so many bytes read or written. A process that only polls uses 0.01 s in
`SILENCE`; one that gets a hundredth of a core still passes."""
STACKS_FOLLOW = "the stacks of its threads follow:"
"""What a log says before them."""
_STACKS = getattr(signal, "SIGUSR1", None)


def python_command(module: str, *arguments: str) -> list[str]:
    """Returns the command line of `python -m module` in this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def python_environment() -> dict[str, str]:
    """Returns our environment, with this package importable from any working directory."""
    package = str(Path(__file__).parents[1])
    known = filter(None, (package, os.environ.get("PYTHONPATH")))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(known)}


# -- stages -----------------------------------------------------------------------------------------------------------

Listener = Callable[[str, bool], object]
_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Calls a listener for each stage inside the context.

    Args:
        listener: Gets the name of a stage that begins, "" when one ends, and whether this process does the work.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def announce(name: str, ours: bool = False) -> None:
    """Announces a stage to all listeners.

    Args:
        name: Stage that begins; "" ends the current one.
        ours: True when this process does the work.
    """
    for listener in list(_listeners):
        listener(name, ours)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Announces a stage that lasts as long as the context."""
    announce(name, ours=True)
    try:
        yield
    finally:
        announce("", ours=True)


class Stages:
    """Prints stages with their seconds: at their start, at intervals, and at their end; none shorter than a second.

    Args:
        tell: Prints a line.
    """

    def __init__(self, tell: Callable[[str], object]) -> None:
        self._tell = tell
        self.name = ""
        self.seconds: dict[str, float] = {}
        """Stage -> seconds, of those that ended."""
        self._began = self._told = 0.0

    def begin(self, name: str) -> None:
        """Begins a stage and ends the one before.

        Args:
            name: The stage; "" begins none.
        """
        if name == self.name:
            return
        now = time.monotonic()
        if self.name:
            seconds = now - self._began
            self.seconds[self.name] = round(self.seconds.get(self.name, 0.0) + seconds, 2)
            if seconds >= 1.0:
                self._tell(f"{self.name}: {seconds:.1f} s")
        self.name, self._began, self._told = name, now, 0.0

    def tick(self) -> None:
        """Prints a line when the stage has lasted long enough."""
        now = time.monotonic()
        seconds = now - self._began
        if self.name and seconds >= 1.0 and now - self._told >= STAGE_LINES:
            self._tell(f"{self.name} ... {seconds:.0f} s" if self._told else f"{self.name} ...")
            self._told = now


# -- progress ---------------------------------------------------------------------------------------------------------


class Pulse:
    """Measures the progress of a process tree from outside: CPU time, bytes read and written, children that come and
    go.

    Slow work on a loaded machine counts as progress; threads that wait for each other do not.

    Args:
        pid: Root process. For our own, the CPU time of the watching thread is not counted.
        children: Include its child processes.
    """

    def __init__(self, pid: int, *, children: bool = True) -> None:
        self._pid, self._children = pid, children
        self._seen: dict[int, tuple[float, int]] = {}
        self._cpu, self._bytes, self.silent = 0.0, 0, 0.0
        self._last = time.monotonic()
        self._own = time.thread_time()
        self._measure()
        self.beat()

    def beat(self) -> None:
        """Records progress seen by other means, such as output."""
        self._cpu, self._bytes, self.silent = 0.0, 0, 0.0

    def check(self) -> float:
        """Measures once.

        Returns:
            Seconds without progress. An interval counts as two seconds at most: if we were suspended, so were the
                others.
        """
        now = time.monotonic()
        self.silent += min(now - self._last, 2.0)
        self._last = now
        if self._measure() or self._cpu >= _CPU or self._bytes >= _BYTES:
            self.beat()
        return self.silent

    def _measure(self) -> bool:
        """Add what was used since the last look; True when a process came or went."""
        seen = {process.pid: _used(process) for process in tree(self._pid, children=self._children)}
        for pid, (cpu, size) in seen.items():
            before = self._seen.get(pid, (0.0, 0))
            self._cpu += max(0.0, cpu - before[0])
            self._bytes += max(0, size - before[1])
        if self._pid == os.getpid():
            own = time.thread_time()
            self._cpu, self._own = self._cpu - (own - self._own), own
        changed, self._seen = seen.keys() != self._seen.keys(), seen
        return changed


def _used(process: psutil.Process) -> tuple[float, int]:
    try:
        times = process.cpu_times()
        cpu = times.user + times.system
    except psutil.Error:
        return 0.0, 0
    try:
        io = process.io_counters()
        return cpu, io.read_bytes + io.write_bytes + getattr(io, "read_chars", 0) + getattr(io, "write_chars", 0)
    except (psutil.Error, AttributeError, NotImplementedError):  # not on this system, or of another user
        return cpu, 0


def tree(pid: int, *, children: bool = True) -> list[psutil.Process]:
    """Lists a process and its descendants, as far as they exist."""
    try:
        process = psutil.Process(pid)
        return [process, *(process.children(recursive=True) if children else ())]
    except psutil.Error:
        return []


def explain(pid: int, name: str, silent: float) -> str:
    """Describes why a stage is aborted.

    Args:
        pid: Root process.
        name: The stage.
        silent: Seconds without progress.
    """
    stopped = [str(process.pid) for process in tree(pid) if _status(process) == psutil.STATUS_STOPPED]
    cause = "its processes used no CPU time and read nothing, so they wait for each other"
    if stopped:
        cause = (
            f"the process {', '.join(stopped)} is stopped by a signal; `kill -CONT {' '.join(stopped)}` continues it"
        )
    return f"no progress for {silent:.0f} s while {name or 'starting'}: {cause}"


def _status(process: psutil.Process) -> str:
    try:
        return str(process.status())
    except psutil.Error:
        return ""


# -- stacks -----------------------------------------------------------------------------------------------------------


def dump_stacks_when_asked() -> None:
    """Makes this process write all thread stacks to stderr on a crash or on `ask_for_stacks`, even while a thread holds
    the interpreter's lock.
    """
    faulthandler.enable(all_threads=True)
    if _STACKS is not None:
        faulthandler.register(_STACKS, all_threads=True)


def ask_for_stacks(pid: int) -> None:
    """Makes a process and its descendants write their stacks, where `dump_stacks_when_asked` was called."""
    asked = [process.pid for process in tree(pid) if process.pid != os.getpid() and _answers(process.pid)]
    for each in asked:
        with suppress(OSError):
            os.kill(each, _STACKS)  # type: ignore[arg-type]
    if asked:
        time.sleep(1.0)  # until they are written


def _answers(pid: int) -> bool:
    """Whether a process handles the signal, which otherwise ends it; known from /proc only."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    except OSError:
        return False
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), 0)
    return _STACKS is not None and bool(caught >> (_STACKS - 1) & 1)


def kill_tree(pid: int, *, itself: bool = True) -> None:
    """Kills a process and its descendants at once, suspended ones included.

    Args:
        pid: Root process.
        itself: False kills only the descendants.
    """
    for process in tree(pid)[0 if itself else 1 :]:
        with suppress(psutil.Error):
            process.kill()
