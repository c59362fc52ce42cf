"""Lets training and evaluation give way to the requests that a server on the same machine answers.

Owns the signal between the processes (one small file for each engine, with the time and the phase of its latest step),
and the priority and the cores of background work. A crash needs no cleaning up: a time that gets old counts for
nothing, the system releases the lock of a process that ended, and priority and cores end with their process.

Priorities alone do not do it: Linux shares the cores evenly between sessions (`sched_autogroup`) and between
containers, and a nice value or SCHED_IDLE counts only within one of them. So background work itself stops at its next
operation.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import stat
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
log = logging.getLogger("afterword.sharing")

_FRESH = 2.0
"""Seconds that a step may take; an older time belongs to a server that was stopped or killed within a request."""
_SHARE = 0.5
"""Seconds of waiting that each second of background work allows: under requests without a pause it keeps two thirds of
its time."""
_FIRST, _LONGEST = 1.0, 5.0
"""Seconds of waiting that are allowed at the start, and the most that add up."""
_POLL = 0.002
"""Seconds between two looks at the signal."""
_SEARCH = 1.0
"""Seconds between two searches for engines within a piece of work."""
_NICE = 10
"""Nice value of background work: a tenth of a core beside a process of normal priority in the same session. SCHED_IDLE
would stop it beside any busy process, also while it holds the database's lock. The system derives the priority of reads
and writes from it."""
_SIGNAL = struct.Struct("<dB")


class Phase(IntEnum):
    """What an engine does."""

    IDLE = 0
    WRITING = 1
    """Answers; their users read along."""
    READING = 2
    """A prompt is read: somebody waits for a first token."""


def run_dir() -> Path:
    """The folder of the signals: one for each user of the machine, independent of the data directory.

    $AFTERWORD_RUN_DIR names another one, for example a volume that two containers share.
    """
    if named := os.environ.get("AFTERWORD_RUN_DIR"):
        return Path(named)
    shared = Path("/dev/shm")
    return (shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())) / f"afterword-{os.getuid()}"


BACKGROUND_HEADER = {"x-afterword-priority": "background"}
"""Marks requests of training and evaluation to an engine. Other servers ignore it."""
_OURS: set[Path] = set()
"""Signals of this process, whose own work does not wait for them."""


# -- the server's side ------------------------------------------------------------------------------------------------


class ServingSignal:
    """Tells other processes of this machine that an engine runs, and when it computes.

    Without a writable folder it does nothing: they then work as if there were no server.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._path: Path | None = None
        self._file = -1
        self._phase = Phase.IDLE
        folder = folder or run_dir()
        try:
            self._open(folder)
        except OSError as error:
            log.warning("training on this machine cannot see requests: %r is not usable (%s)", str(folder), error)

    def _open(self, folder: Path) -> None:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise PermissionError("it belongs to another user")
        hidden = folder / f".{os.getpid()}-{secrets.token_hex(4)}"
        self._file = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # before anybody sees the file
        os.pwrite(self._file, _SIGNAL.pack(0.0, Phase.IDLE), 0)
        self._path = hidden.rename(folder / f"{hidden.name[1:]}.engine")
        _OURS.add(self._path)

    def working(self, phase: Phase) -> None:
        """Call before each step, and with `Phase.IDLE` when no request is left."""
        if self._file >= 0 and (phase or self._phase):
            self._phase = phase
            with suppress(OSError):  # a full /dev/shm must not end a request
                os.pwrite(self._file, _SIGNAL.pack(time.monotonic() if phase else 0.0, phase), 0)

    def close(self) -> None:
        """Removes the signal."""
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()
            os.close(self._file)
            _OURS.discard(self._path)
            self._path, self._file = None, -1


# -- the side of training and evaluation ------------------------------------------------------------------------------


def engines(folder: Path | None = None) -> list[Path]:
    """Lists the signals of engines that run on this machine; removes those of processes that have ended."""
    found = []
    with suppress(OSError):
        for path in sorted((folder or run_dir()).glob("*.engine")):
            if _alive(path):
                found.append(path)
    return found


def _alive(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return False
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(file)
    with suppress(OSError):
        path.unlink()
    return False


def phase_of(paths: Iterable[Path]) -> Phase:
    """What the busiest of these engines does at this moment."""
    now, found = time.monotonic(), Phase.IDLE
    for path in paths:
        with suppress(OSError, struct.error, ValueError):
            at, phase = _SIGNAL.unpack(path.read_bytes())
            if 0.0 <= now - at <= _FRESH:
                found = max(found, Phase(phase))
    return found


class BackgroundWork:
    """Work that gives way to requests: it stops while a prompt is read, and leaves half of the cores to an engine that
    writes answers. Where the cores cannot be divided it stops for both.

    Args:
        folder: Where engines signal; None is `run_dir`.
        clock: Seconds.
        sleep: Waits so many seconds.
        cores: Divides the cores.
    """

    def __init__(
        self,
        folder: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        cores: HalfOfCores | None = None,
    ) -> None:
        self._folder, self._clock, self._sleep = folder, clock, sleep
        self._cores = cores or HalfOfCores()
        self._engines: list[Path] = []
        self._searched = self._looked = -1e9
        self._since: float | None = None
        self._allowed = _FIRST
        self._pieces = 0
        self._lowered = False
        self.waited = 0.0
        """Seconds waited for requests so far."""
        self.stops = 0
        """Times that it waited."""

    def step_back(self) -> None:
        """Looks for servers on this machine. The first call that finds one lowers the priority of this process for
        good: an unprivileged process cannot raise it again.
        """
        self._search(self._clock())

    def give_way(self) -> float:
        """Waits while a server on this machine reads a prompt. Call it within `piece`, between two parts of the work.

        Returns:
            Seconds waited.
        """
        now = self._clock()
        self._search(now)
        return self._wait(now) if self._engines else self._pass(now)

    def pause_point(self) -> None:
        """The same within a part, cheap enough to call it before any operation that takes a millisecond. Does nothing
        outside of `piece`."""
        if not self._pieces:
            return
        now = self._clock()
        if now - self._searched >= _SEARCH:
            self._search(now)
        if self._engines and now - self._looked >= _POLL:
            self._wait(now)

    @contextmanager
    def piece(self) -> Iterator[None]:
        """A piece of work that gives way; at its end all cores belong to this process again."""
        self._pieces += 1
        try:
            yield
        finally:
            self._pieces -= 1
            if not self._pieces:
                self._cores.release()
                self._since = None

    def between(self, parts: Iterable[T]) -> Iterator[T]:
        """Yields the parts of a piece of work and gives way before and within each."""
        with self.piece():
            for part in parts:
                self.give_way()
                yield part

    def _search(self, now: float) -> None:
        self._searched = now
        self._engines = [path for path in engines(self._folder) if path not in _OURS]
        if self._engines and not self._lowered:
            self._lowered = True
            lower_priority()
        if not self._engines:
            self._cores.release()

    def _pass(self, now: float) -> float:
        if self._since is not None:
            self._allowed = min(_LONGEST, self._allowed + _SHARE * (now - self._since))
        self._since = now
        return 0.0

    def _wait(self, began: float) -> float:
        self._pass(began)
        now, phase = began, phase_of(self._engines)
        divided = self._cores.take() if phase else False
        least = Phase.READING if divided else Phase.WRITING
        self.stops += phase >= least and self._allowed > 0
        while phase >= least and now - began < self._allowed:
            self._sleep(_POLL)
            now, phase = self._clock(), phase_of(self._engines)
        if not phase:
            self._cores.release()
        self._since = self._looked = now
        self._allowed -= now - began
        self.waited += now - began
        return now - began


class HalfOfCores:
    """Confines all threads of this process to half of its cores, for a time.

    A child that is started meanwhile inherits the half, so it is taken only within a piece of work.
    """

    def __init__(self) -> None:
        self._before: dict[int, set[int]] = {}
        self._failed = False

    def take(self) -> bool:
        """Leaves half of the cores to others, whole processor cores where they run two threads each.

        Returns:
            Whether this process is now on half of its cores: False with a single core and where the system does not
            allow it.
        """
        if self._before or self._failed:
            return not self._failed
        try:
            cores = sorted(os.sched_getaffinity(0), key=_core_of)
            half = set(cores[len(cores) // 2 :])
            if len(cores) > 1:
                for thread in _threads():
                    with suppress(ProcessLookupError):
                        self._before[thread] = os.sched_getaffinity(thread)
                        os.sched_setaffinity(thread, self._before[thread] & half or half)
                return True
        except (OSError, AttributeError) as error:  # forbidden in a container; no Linux
            log.warning("background work cannot leave cores to the server and stops during its requests (%s)", error)
            self.release()
        self._failed = True
        return False

    def release(self) -> None:
        """Gives every thread the cores back that it had; a thread that was started meanwhile gets its starter's."""
        if not self._before:
            return
        before, self._before = self._before, {}
        whole = set().union(*before.values())
        for thread in _threads():
            with suppress(OSError):
                os.sched_setaffinity(thread, before.get(thread, whole))


def _core_of(number: int) -> tuple[int, int, int]:
    """Sorts the two threads of one processor core, and the cores of one processor, next to each other."""
    folder = Path(f"/sys/devices/system/cpu/cpu{number}/topology")
    try:
        return int((folder / "physical_package_id").read_text()), int((folder / "core_id").read_text()), number
    except (OSError, ValueError):
        return 0, number, number


def _threads() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/task")]
    except OSError:  # no Linux: the call is for the whole process
        return [0]


def lower_priority() -> None:
    """Gives all threads of this process a nice value of `_NICE` and Linux's batch scheduling; a higher value stays."""
    for thread in _threads():
        with suppress(OSError):  # it has ended, or the system does not allow it
            if os.getpriority(os.PRIO_PROCESS, thread) < _NICE:
                os.setpriority(os.PRIO_PROCESS, thread, _NICE)
            if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(thread) == os.SCHED_OTHER:
                os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))


BACKGROUND = BackgroundWork()
"""This process's."""
