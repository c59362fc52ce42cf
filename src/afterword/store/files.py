"""Files beside the database, whole or not at all, and what to do when the system does not let us write.

Owns write-then-rename, and the sentence for an error of the operating system.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from afterword.errors import AfterwordError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM)
_LEAST = 1 << 20
"""Bytes below which a file system counts as full."""


class SystemRefused(AfterwordError):
    """The operating system does not let a file be written or read."""

    kind = "system_error"


def write_whole(path: Path, data: str | bytes, *, private: bool = False) -> None:
    """Replace `path` by `data`, durably; on any error the old file stays and nothing half lies beside it.

    With `private` only the user of this process may read it. Raises OSError that names `path`.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o666)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data.encode("utf-8") if isinstance(data, str) else data)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def _sync_folder(folder: Path) -> None:
    """The new name on disk too: without it a power loss brings the old file back."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems do not sync folders
            os.fsync(handle)
    finally:
        os.close(handle)


def refused(error: BaseException, places: Iterable[Path] = ()) -> SystemRefused | None:
    """The sentence for an error of the operating system, with its remedy; None when it is none.

    `places` are folders that the command writes to: the full one among them is named when the error names no file.
    Libraries that write through native code raise errors of their own; they are known by what they say.
    """
    number, name, why = _read(error)
    if number is None:
        if isinstance(error, sqlite3.Error):
            return SystemRefused(
                f"the database refused this command: {error}. What was whole before is whole still; make the data "
                "directory writable for this user or free some space, and run the same command again.",
                code="database",
            )
        return None
    what = f"{str(name)!r}: {why}" if name else why
    if number in _FULL:
        full = ", ".join(repr(str(place)) for place in _full(places)) if not name else ""
        where = f" ({full} has no space left)" if full else ""
        begun = f"cannot write {what}" if name else f"cannot write: {why}"
        return SystemRefused(
            f"{begun}{where}. What was whole before is whole still; free some space (or raise the quota or limit) and "
            "run the same command again.",
            code="disk_full",
        )
    if number in _DENIED:
        return SystemRefused(
            f"no permission for {what} (this process runs as user {os.geteuid()}). Run the command as the owner of "
            "the data directory, change the owner of the file, or name another place with --dir.",
            code="no_permission",
        )
    if number == errno.EROFS:
        return SystemRefused(
            f"cannot write {what}. Mount it writable, or name another place with --dir; AFTERWORD_CACHE names one for "
            "the cache.",
            code="read_only",
        )
    return SystemRefused(f"the operating system refused {what}.", code="system")


def _read(error: BaseException) -> tuple[int | None, str | None, str]:
    """Number, file and reason of an error, looked for in its causes too."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            name = os.fsdecode(seen.filename) if isinstance(seen.filename, str | bytes | os.PathLike) else None
            return seen.errno, name, seen.strerror or str(seen)
        text = str(seen)
        for number in (*_FULL, *_DENIED, errno.EROFS):
            if f"(os error {number})" in text or os.strerror(number) in text:
                return number, None, os.strerror(number)
        seen = seen.__cause__ or seen.__context__
    return None, None, ""


def _full(places: Iterable[Path]) -> list[Path]:
    found = []
    for place in (*places, Path(tempfile.gettempdir())):
        with suppress(OSError):
            there = next(folder for folder in (place, *place.absolute().parents) if folder.is_dir())
            if shutil.disk_usage(there).free < _LEAST and place not in found:
                found.append(place)
    return found
