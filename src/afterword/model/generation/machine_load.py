"""How many cores other processes leave to this one. Owns the readings of /proc and the decision; starts no thread.

A step on several threads is as slow as the thread that waits longest for a core: with one core taken, two threads took
12 times as long as on a quiet machine where one takes 2 to 3 times as long. So a step in which threads waited
halves the number at once, and it rises again when the cores have been free for a moment.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_WINDOW = 0.25
"""Seconds between two looks at what other processes use; /proc counts hundredths of a second."""
_WAITED, _LEAST = 0.2, 0.002
"""Threads are too many when one of them waited for a core for such a share of a step, and so many seconds."""
_HOLD, _LONGEST_HOLD = 0.5, 4.0
"""Seconds until more threads are tried again after a step that waited; doubled each time that was too early."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Counters at a moment, in seconds since the start of the machine or of this process."""

    at: float
    """Monotonic clock."""
    normal: float
    """CPU time of all processes at normal or high priority on our cores, and of other virtual machines."""
    niced: float
    """CPU time of all processes at a nice value over 0."""
    own: float
    """CPU time of this process."""
    own_niced: bool = False
    """Whether `own` is a part of `niced`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Most threads of a step."""

    reading: int
    """Of prompts: arithmetic, short, and what a user waits for."""
    writing: int
    """Of answers: bound by memory, long."""


def limits(cores: int, normal: float, niced: float) -> Limits:
    """Decides from the CPU use of other processes.

    Args:
        cores: Cores that this process may use.
        normal: Cores that other processes at normal priority use (0.5 is half of one).
        niced: Cores that other processes at a nice value over 0 use.

    Returns:
        Reading takes the cores of niced processes, for it is short and they give way. Writing leaves them half of the
        machine: their cores give it little, and a training run beside would stand still.
    """
    reading = max(1, min(cores, int(cores - normal + 0.5)))
    left = int(cores - normal - niced + 0.5)
    return Limits(reading, max(1, min(reading, max(left, cores // 2))))


class LoadFollower:
    """Keeps the limits up to date: call `look` before a step and `record` after it.

    Args:
        cores: Cores that this process may use.
        usage: Reads the counters; gives None where the system has none.
        clock: Seconds.
    """

    def __init__(
        self, cores: int, usage: Callable[[], Usage | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cores, self._usage, self._clock = cores, usage, clock
        self._before = usage()
        self._free = Limits(cores, cores)
        self._held = cores
        self._until, self._hold = 0.0, _HOLD

    def look(self) -> Limits:
        """The limits of the next step."""
        now = self._clock()
        if self._before is not None and now - self._before.at >= _WINDOW:
            after = self._usage()
            if after is not None:
                self._free, self._before = limits(self._cores, *used_by_others(self._before, after)), after
        if self._held < self._cores and now >= self._until:
            self._held = self._cores
        return Limits(min(self._free.reading, self._held), min(self._free.writing, self._held))

    def record(self, threads: int, seconds: float, waited: float) -> None:
        """Notes a step.

        Args:
            threads: Its threads.
            seconds: Its length.
            waited: Longest time that one of the threads waited for a core.
        """
        if threads == 1 or waited < _LEAST or waited < _WAITED * seconds:
            return
        now = self._clock()
        early = now - self._until < 2 * self._hold
        self._hold = min(2 * self._hold, _LONGEST_HOLD) if early and self._until else _HOLD
        self._until, self._held = now + self._hold, max(1, threads // 2)


def used_by_others(before: Usage, after: Usage) -> tuple[float, float]:
    """Cores that other processes used between two readings, at normal priority and at a nice value over 0."""
    seconds = max(after.at - before.at, 1e-9)
    own = after.own - before.own
    normal, niced = after.normal - before.normal, after.niced - before.niced
    if after.own_niced:
        niced -= own
    else:
        normal -= own
    return max(0.0, normal / seconds), max(0.0, niced / seconds)


# -- /proc ------------------------------------------------------------------------------------------------------------


def parse_stat(text: str, cores: Sequence[int]) -> tuple[float, float]:
    """CPU time of these cores in /proc/stat, in ticks: at normal priority (with interrupts and time stolen by other
    virtual machines), and niced."""
    wanted, normal, niced = {f"cpu{core}" for core in cores}, 0.0, 0.0
    for line in text.splitlines():
        name, *rest = line.split(" ")
        if name in wanted:
            user, nice, system, _, _, irq, softirq, steal = map(int, (rest + ["0"] * 8)[:8])
            normal += user + system + irq + softirq + steal
            niced += nice
    return normal, niced


def usable_cores() -> int:
    """Number of cores that the calling thread may use now."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _cores_at_start() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def read_usage() -> Usage | None:
    """The counters now; None on a system without /proc/stat."""
    try:
        text = Path("/proc/stat").read_text("ascii")
        cores = _cores_at_start()
        tick = 1.0 / os.sysconf("SC_CLK_TCK")
        own_niced = os.getpriority(os.PRIO_PROCESS, 0) > 0
    except (OSError, AttributeError, ValueError):
        return None
    normal, niced = parse_stat(text, cores)
    return Usage(time.monotonic(), normal * tick, niced * tick, time.process_time(), own_niced)


class RunQueue:
    """How long threads of this process wait for a core (`schedstat`), at a microsecond a reading."""

    def __init__(self) -> None:
        self._files: dict[int, int] = {}
        weakref.finalize(self, _close, self._files)

    def read(self) -> dict[int, int]:
        """Nanoseconds waited by thread, since it began; empty where the system does not count."""
        found: dict[int, int] = {}
        for thread, file in list(self._files.items()):
            try:
                found[thread] = int(os.pread(file, 64, 0).split()[1])
            except (OSError, IndexError, ValueError):  # it has ended
                os.close(self._files.pop(thread))
        return found

    def find_threads(self) -> None:
        """Look for new threads; call it after the number of threads has changed."""
        with suppress(OSError):
            for name in os.listdir("/proc/self/task"):
                if int(name) not in self._files:
                    with suppress(OSError):
                        self._files[int(name)] = os.open(f"/proc/self/task/{name}/schedstat", os.O_RDONLY)


def _close(files: dict[int, int]) -> None:
    for file in files.values():
        os.close(file)
    files.clear()


def longest_wait(before: dict[int, int], after: dict[int, int]) -> float:
    """Seconds that the thread with the longest wait waited between two readings of `RunQueue`."""
    return max((after[thread] - was for thread, was in before.items() if thread in after), default=0) / 1e9
