"""Rows out of files of any size, in constant memory: JSON lists, JSON lines, objects one after the other, Parquet;
plain, gzip or zstd; cut off, with garbage in between, or with broken text.

Owns bytes to JSON values. Never interprets a row, never stores one.
"""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import zstandard

from afterword.errors import UsageError
from afterword.feedback.parquet import Bad, ParquetRows, Row

__all__ = ["Bad", "Row", "Source"]

CHUNK = 1 << 20
"""Characters that are read at a time."""
MAX_ROW = 1 << 26
"""Characters of one row at most; a longer one is rejected."""
_TRIES = 10_000
"""Places at which reading is tried again within one stretch of garbage."""


class _Zstd:
    """Zstandard frames one after the other; unlike the library's reader it notices an archive that ends early."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._begun = False
        self._data = b""

    def read1(self, size: int) -> bytes:
        while not self._data:
            packed = self._file.read(1 << 16)
            if not packed:
                if self._begun:
                    raise EOFError("the last frame is not complete")
                return b""
            self._begun = True
            self._data = self._frame.decompress(packed)
            if self._frame.eof:
                rest = self._frame.unused_data
                self._frame = zstandard.ZstdDecompressor().decompressobj()
                self._begun = False
                self._file.seek(-len(rest), 1)
        data, self._data = self._data[:size], self._data[size:]
        return data


class _Plain(io.RawIOBase):
    """The decompressed bytes; a broken archive ends early and says why in `broken`."""

    def __init__(self, source: io.BufferedReader | _Zstd | gzip.GzipFile) -> None:
        self._source = source
        self.broken: str | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._source.read1(len(buffer))  # never past a fault: what came before it is given out
        except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
            self.broken = str(error)
            return 0
        buffer[: len(data)] = data
        return len(data)


class Source:
    """A file that is being read. `position` and `size` are in bytes of the file as it lies on disk."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}. Give the path of a file.") from error
        self.size = path.stat().st_size
        magic = self._file.read(4)
        self._file.seek(0)
        if magic == b"PK\x03\x04":
            self._file.close()
            raise UsageError(
                f"{path} is a zip file; unpack it, or give JSON, JSON lines or Parquet, also as gzip or zstd."
            )
        try:
            self._table = ParquetRows(path) if magic == b"PAR1" else None
        except UsageError:
            self._file.close()
            raise
        self._plain = _Plain(self._open(magic))
        self._stream = io.BufferedReader(self._plain, CHUNK)

    def _open(self, magic: bytes) -> io.BufferedReader | _Zstd | gzip.GzipFile:
        if magic.startswith(b"\x1f\x8b"):
            return gzip.GzipFile(fileobj=self._file)
        if magic == b"\x28\xb5\x2f\xfd":
            return _Zstd(self._file)
        return self._file

    @property
    def position(self) -> int:
        return self._file.tell() if self._table is None else self._table.position

    def close(self) -> None:
        self._file.close()

    def rows(self, skip: int = 0) -> Iterator[Row | Bad]:
        """Everything in the file, in order: rows, and one `Bad` for each stretch that is none.

        The first `skip` of them are passed over, in JSON lines without parsing them.
        """
        if self._table is not None:
            yield from self._table.rows(skip)
            return
        if _is_lines(self._stream.peek(CHUNK)):
            yield from _lines(self._stream, skip)
        else:
            yield from itertools.islice(_values(self._stream), skip, None)
        if self._plain.broken is not None:
            yield Bad("broken_archive", f"the compressed file ends early: {self._plain.broken}", "the end")


def _is_lines(head: bytes) -> bool:
    if head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
        return False  # a list, even if each of its rows has a line of its own
    lines = head.removeprefix(codecs.BOM_UTF8).split(b"\n")
    return any(isinstance(_parse(_readable(line)), dict) for line in lines[:6] if line.strip().startswith(b"{"))


def _readable(line: bytes) -> bytes:
    """Broken Unicode does not make a line something else than a line."""
    return line if line.isascii() else line.decode("utf-8", "replace").encode()


def _parse(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


# ---- JSON lines


def _lines(stream: BinaryIO, skip: int) -> Iterator[Row | Bad]:
    number = seen = 0
    while line := stream.readline(MAX_ROW):
        number += 1
        where = f"line {number}"
        whole = line.endswith(b"\n")
        if not whole and len(line) == MAX_ROW:
            while rest := stream.readline(MAX_ROW):
                if rest.endswith(b"\n"):
                    break
            seen += 1
            if seen <= skip:
                continue
            yield Bad("too_long", f"a line of more than {MAX_ROW} bytes", where, line[:500].decode(errors="replace"))
        elif line.strip():
            seen += 1
            if seen <= skip:
                continue
            yield _line(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, where, whole)


def _line(line: bytes, where: str, whole: bool) -> Row | Bad:
    try:
        return Row(orjson.loads(line), where, sound=True)
    except orjson.JSONDecodeError:
        text = line.decode("utf-8", errors="replace")
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        reason = "bad_json" if whole else "cut_off"
        return Bad(reason, f"no JSON: {error}", where, text)
    return Row(value, where, mended=b"\xef\xbf\xbd" not in line and "\ufffd" in text)


# ---- a list, or values one after the other

_SKIPPED = re.compile(r"[\s,\[\]\ufeff\0]*")
_START = re.compile(r"\{\s*\"[^\"\\]{1,60}\"\s*:")
_ENDS, _LONG = "the file ends within it", "longer than a row may be"
_DECODER = json.JSONDecoder(strict=False)


class _Buffer:
    """A window of decoded text that slides over the stream."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.text = ""
        self.at = 0
        self.passed = 0
        """Characters before `text`."""
        self.ended = False

    def more(self) -> bool:
        """Read on, at least doubling what is unread; False at the end of the file."""
        if self.ended:
            return False
        data = self._stream.read(max(CHUNK, len(self.text) - self.at))
        self.ended = not data
        self.passed += self.at
        self.text = self.text[self.at :] + self._decoder.decode(data, self.ended)
        self.at = 0
        return True

    @property
    def where(self) -> str:
        return f"character {self.passed + self.at}"

    def skip(self) -> bool:
        """Move to the next character that may begin a value; False at the end."""
        while True:
            found = _SKIPPED.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text):
                return True
            if not self.more():
                return False

    def value(self) -> tuple[Any, str]:
        """The value that begins here, or (None, why there is none)."""
        while True:
            try:
                found, self.at = _DECODER.raw_decode(self.text, self.at)
                return found, ""
            except json.JSONDecodeError as error:
                why = error.msg
                unfinished = error.msg.startswith("Unterminated") or error.pos > len(self.text) - 16
            except (ValueError, RecursionError) as error:
                return None, str(error)
            if len(self.text) - self.at > MAX_ROW:
                return None, _LONG
            if not unfinished:
                return None, why
            if not self.more():
                return None, _ENDS


def _values(stream: BinaryIO) -> Iterator[Row | Bad]:
    buffer = _Buffer(stream)
    while buffer.skip():
        where = buffer.where
        value, why = buffer.value() if buffer.text[buffer.at] == "{" else (None, "no JSON object")
        if not why:
            yield Row(value, where)
            continue
        beginning = buffer.text[buffer.at : buffer.at + 500]
        found = _recover(buffer)
        cut = why == _ENDS and found is None
        yield Bad("cut_off" if cut else "too_long" if why == _LONG else "bad_json", why, where, beginning)
        if found is not None:
            yield found


def _recover(buffer: _Buffer) -> Row | None:
    """The next row after garbage: an object with a list in it (every format's rows have one) or with many keys,
    so that a fragment of a broken row is not taken for a row."""
    for _ in range(_TRIES):
        buffer.at += 1
        found = _START.search(buffer.text, buffer.at)
        if found is None:
            buffer.at = max(buffer.at, len(buffer.text) - 100)
            if not buffer.more():
                break
            buffer.at = max(buffer.at - 1, -1)
            continue
        buffer.at = found.start()
        where = buffer.where
        value, why = buffer.value()
        if not why:
            if isinstance(value, dict) and (len(value) >= 5 or any(isinstance(v, list) for v in value.values())):
                return Row(value, where)
            buffer.at -= 1
    buffer.at = len(buffer.text)
    return None
