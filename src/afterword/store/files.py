"""Files beside the database: write-then-rename, the hash of an adapter folder, errors of the operating system.

Every file that must never be half written is written here.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from afterword.errors import AdapterError, AfterwordError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM)
_LEAST = 1 << 20
"""Bytes below which a file system counts as full."""


class FileSystemError(AfterwordError):
    """The operating system or SQLite rejected a read or a write."""

    kind = "system_error"


@contextmanager
def replacing(path: Path, *, private: bool = False, durable: bool = True) -> Iterator[BinaryIO]:
    """A stream whose content replaces `path` at the end, whole; after any error the old file stays and nothing is left.

    Args:
        path: The file.
        private: Only the user of this process may read it.
        durable: Sync the file and its name to disk. Without it a power loss may lose the new content.

    Raises:
        OSError: That names `path`.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o666)
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        fresh.replace(path)
        if durable:
            _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_whole(path: Path, data: str | bytes, *, private: bool = False, durable: bool = True) -> None:
    """Replace `path` by `data`; see `replacing`."""
    with replacing(path, private=private, durable=durable) as stream:
        stream.write(data.encode("utf-8") if isinstance(data, str) else data)


def _sync_folder(folder: Path) -> None:
    """The new name on disk too: without it a power loss brings the old file back."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems do not sync folders
            os.fsync(handle)
    finally:
        os.close(handle)


def file_system_error(error: BaseException, places: Iterable[Path] = ()) -> FileSystemError | None:
    """Convert an error of the operating system or of SQLite to one with a remedy.

    Args:
        error: Any error. Libraries with native code raise errors of their own, recognised by their messages.
        places: Folders that the command writes to. The full one is named where the error names no file.

    Returns:
        None for an error of any other kind.
    """
    number, name, why = _read(error)
    if number is None:
        if isinstance(error, sqlite3.Error):
            return FileSystemError(
                f"the database rejected a read or write: {error}. Stored rows are intact. Make the data directory "
                "writable for this user or free some space, and run the same command again.",
                code="database",
            )
        return None
    what = f"{str(name)!r}: {why}" if name else why
    if number in _FULL:
        full = ", ".join(repr(str(place)) for place in _full(places)) if not name else ""
        where = f" ({full} has no space left)" if full else ""
        begun = f"cannot write {what}" if name else f"cannot write: {why}"
        return FileSystemError(
            f"{begun}{where}. Files written before are intact. Free some space (or raise the quota or limit) and "
            "run the same command again.",
            code="disk_full",
        )
    if number in _DENIED:
        return FileSystemError(
            f"no permission for {what} (this process runs as user {os.geteuid()}). Run the command as the owner of "
            "the data directory, change the owner of the file, or name another place with --dir.",
            code="no_permission",
        )
    if number == errno.EROFS:
        return FileSystemError(
            f"cannot write {what}. Mount it writable, or name another place with --dir; AFTERWORD_CACHE names one for "
            "the cache.",
            code="read_only",
        )
    return FileSystemError(f"the operating system rejected an access: {what}.", code="system")


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


MANIFEST = "afterword.json"
"""Left out of the hash: it may carry the hash itself, and later a report and a verdict."""


def folder_hash(folder: Path) -> str:
    """Content hash of an adapter folder, by which reports, caches and releases name its very bytes.

    Returns:
        32 hex digits over the names and bytes of all files below `folder` but its manifest.

    Raises:
        AdapterError: There is no such folder, or it holds no file.
    """
    if not folder.is_dir():
        raise AdapterError(f"there is no adapter folder {str(folder)!r}: it was moved or deleted")
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f != folder / MANIFEST)
    if not files:
        raise AdapterError(f"the adapter folder {str(folder)!r} is empty")
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        with file.open("rb") as stream:
            inner = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + inner.digest())
    return digest.hexdigest()
