"""Lets training and evaluation give way to the requests that a server on the same machine answers.

Owns the signal between the processes (one small file for each engine, with the time of its latest step) and the
priority of background work. A crash needs no cleaning up: a time that gets old counts for nothing, and the system
releases the lock of a process that ended.
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
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
log = logging.getLogger("afterword.sharing")

_FRESH = 2.0
"""Seconds that a step may take; an older time belongs to a server that was stopped or killed within a request."""
_SHARE = 0.5
"""Longest wait of background work, as a share of the time that it has just worked: under requests without a pause it
keeps two thirds of its time."""
_LONGEST = 5.0
"""Longest wait in seconds; the time between two calls may have been spent on something else than computing."""
_POLL = 0.005
_NICE = 10
"""Nice value of background work: a tenth of a core beside a process of normal priority. SCHED_IDLE would stop it beside
any busy process, also while it holds the database's lock. The system derives the priority of reads and writes from
it."""
_TIME = struct.Struct("<d")


def run_dir() -> Path:
    """The folder of the signals: one for each user of the machine, independent of the data directory.

    $AFTERWORD_RUN_DIR names another one, for example a volume that two containers share.
    """
    if named := os.environ.get("AFTERWORD_RUN_DIR"):
        return Path(named)
    shared = Path("/dev/shm")
    return (shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())) / f"afterword-{os.getuid()}"


# -- the server's side ------------------------------------------------------------------------------------------------


class ServingSignal:
    """Tells other processes of this machine that an engine runs, and when it computes.

    Without a writable folder it does nothing: they then work as if there were no server.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._path: Path | None = None
        self._file = -1
        self._busy = False
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
        os.pwrite(self._file, _TIME.pack(0.0), 0)
        self._path = hidden.rename(folder / f"{hidden.name[1:]}.engine")

    def working(self, busy: bool) -> None:
        """Call with True before each step, with False when no request is left."""
        if self._file >= 0 and (busy or self._busy):
            self._busy = busy
            with suppress(OSError):  # a full /dev/shm must not end a request
                os.pwrite(self._file, _TIME.pack(time.monotonic() if busy else 0.0), 0)

    def close(self) -> None:
        """Removes the signal."""
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()
            os.close(self._file)
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


def computing(paths: Iterable[Path]) -> bool:
    """Whether one of these engines answers a request at this moment."""
    now = time.monotonic()
    for path in paths:
        with suppress(OSError, struct.error):
            if 0.0 <= now - _TIME.unpack(path.read_bytes())[0] <= _FRESH:
                return True
    return False


class BackgroundWork:
    """Work that gives way to requests.

    Args:
        folder: Where engines signal; None is `run_dir`.
        clock: Seconds.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        folder: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._folder, self._clock, self._sleep = folder, clock, sleep
        self._since: float | None = None
        self._lowered = False
        self.waited = 0.0
        """Seconds waited for requests so far."""

    def give_way(self) -> float:
        """Waits while a server on this machine answers a request, at most `_SHARE` of the time since the last call.

        Call it between two micro-batches. The first call that finds a server lowers the priority of this process for
        good: an unprivileged process cannot raise it again.

        Returns:
            Seconds waited.
        """
        began = self._clock()
        servers = engines(self._folder)
        if servers and not self._lowered:
            self._lowered = True
            lower_priority()
        limit = 0.0 if self._since is None else min(_LONGEST, _SHARE * (began - self._since))
        now = began
        while servers and now - began < limit and computing(servers):
            self._sleep(_POLL)
            now = self._clock()
        self._since = now
        self.waited += now - began
        return now - began

    def between(self, parts: Iterable[T]) -> Iterator[T]:
        """Yields the parts of a piece of work and gives way before each."""
        for part in parts:
            self.give_way()
            yield part


BACKGROUND = BackgroundWork()
"""This process's."""


def lower_priority() -> None:
    """Gives all threads of this process a nice value of `_NICE` and Linux's batch scheduling; a higher value stays."""
    try:
        threads = [int(name) for name in os.listdir("/proc/self/task")]
    except OSError:  # no Linux: the call is for the whole process
        threads = [0]
    for thread in threads:
        with suppress(OSError):  # it has ended, or the system does not allow it
            if os.getpriority(os.PRIO_PROCESS, thread) < _NICE:
                os.setpriority(os.PRIO_PROCESS, thread, _NICE)
            if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(thread) == os.SCHED_OTHER:
                os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
