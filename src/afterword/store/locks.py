"""Locks a data directory for one worker per kind of work, with its holder and stage.

Owns `DIR/locks/NAME.lock`. The lock is the system's (`flock`), which takes it back however its holder ends, so a
killed run leaves none and a live run is never taken for a killed one, also from another container or, where the file
system passes locks on (NFS does), another machine. The file's content is only for the message.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from afterword.errors import ConflictError, StoreError
from afterword.records import content_hash

TRAIN, EVALUATE, RELEASE, ERASE = "train", "evaluate", "release", "erase"
WATCH = "watch"
"""Held by `cycle --watch`, which waits most of the time; it keeps no other work out."""
_WORK = {TRAIN: "a training run", EVALUATE: "an evaluation", RELEASE: "a release", ERASE: "an erasure"}
_PATIENCE = 0.5
"""Seconds: somebody who only looks holds a lock for a moment."""

_mine: dict[Path, int] = {}
"""Locks that this process holds -> the thread that took them, so that work within work goes on."""


def cycle_lock(channel: str) -> str:
    """Name of the lock of a cycle on `channel`, as a hash: the name of a channel may name a user."""
    return f"cycle-{content_hash(channel)[:12]}"


@contextmanager
def alone(directory: Path, name: str, doing: str, patience: float = _PATIENCE) -> Iterator[Callable[[str], None]]:
    """Hold the lock `name` of `directory` while this is open; wait up to `patience` seconds for its holder.

    Args:
        directory: Data directory.
        name: Name of the lock.
        doing: The work, named for others ("a training run").
        patience: Seconds.

    Yields:
        A function that notes the stage of the work, which `running_work` shows.

    Raises:
        ConflictError: Another process or thread holds the lock.
        StoreError: The file system has no locks.
    """
    path = (directory / "locks" / f"{name}.lock").absolute()
    if _mine.get(path) == threading.get_ident():
        yield lambda stage: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        end = time.monotonic() + patience
        while not try_lock(file):
            if time.monotonic() > end:
                raise ConflictError(_held(directory, name, file), code="locked")
            time.sleep(0.05)
        note = {"doing": doing, "pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        _write(file, note)
        _mine[path] = threading.get_ident()
        try:
            yield lambda stage: _write(file, note | {"stage": stage, "stage_since": time.time()})
        finally:
            del _mine[path]
            with suppress(OSError):
                file.truncate(0)


def try_lock(file: IO[Any], *, shared: bool = False) -> bool:
    """Lock an open file until it is closed, without waiting.

    Returns:
        False when another process holds the lock.

    Raises:
        StoreError: The file system has no locks.
    """
    try:
        fcntl.flock(file.fileno(), (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        raise StoreError(
            f"{file.name} cannot be locked ({error.strerror}): two runs at once would spoil each other. Put the "
            "directory (--dir, AFTERWORD_CACHE) on a file system with locks."
        ) from error
    return True


def _write(file: IO[str], note: dict[str, Any]) -> None:
    """Not the command line: it may name a user who is being erased. On a full disk the lock holds all the same."""
    with suppress(OSError):
        file.truncate(0)
        json.dump(note, file)
        file.flush()


def running_work(directory: Path) -> list[dict[str, Any]]:
    """List the work that goes on in `directory` now, longest-running first.

    Returns:
        One {"work", "doing", "pid", "host", "since"} for each lock that is held; "stage" and "stage_since" where the
        work notes its stages. Times are Unix seconds.
    """
    found = []
    for path in (directory / "locks").glob("*.lock"):
        with suppress(OSError, StoreError), path.open("r", encoding="utf-8") as file:
            if not try_lock(file, shared=True) and (note := _read(file)):
                found.append({"work": path.stem, **note})
    return sorted(found, key=lambda note: float(note.get("since", 0.0)))


def _held(directory: Path, name: str, file: IO[str]) -> str:
    found = _read(file)
    what = found.get("doing") or _WORK.get(name, f"{name!r}")
    who = ""
    if "pid" in found:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(found.get("since", 0.0))))
        who = f" (process {found['pid']} on {found.get('host')}, since {since})"
    return (
        f"{what} works on {str(directory)!r}{who}. Nothing was changed: wait until it ends, or end it, and run this "
        "command again."
    )


def _read(file: IO[str]) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        file.seek(0)
        found = json.loads(file.read())
        if isinstance(found, dict):
            return found
    return {}
