"""Rows out of files of any size, in constant memory: JSON lists (also within an object), JSON lines, objects one after
the other, Parquet; plain, gzip, zstd or zip; cut off, with garbage in between, or with broken text.

Owns bytes to JSON values. Never interprets a row, never stores one.
"""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import orjson
import zstandard

from afterword.errors import UsageError

__all__ = ["FileRow", "InvalidRow", "Source"]

BATCH = 256
"""Rows that are decoded at a time."""


@dataclass(frozen=True, slots=True)
class FileRow:
    """One JSON value and where it was found ("line 3", "character 1200")."""

    value: Any
    where: str
    mended: bool = False
    """Its bytes were no valid UTF-8 and were read with replacement characters."""
    sound: bool = False
    """Known to be text that can be written again: nothing in it has to be replaced."""


@dataclass(frozen=True, slots=True)
class InvalidRow:
    """A stretch of the file that is no row: a code, a sentence, and its beginning."""

    reason: str
    detail: str
    where: str
    text: str = ""
    user: str | None = None
    """Whom the row names as its user."""


class ParquetRows:
    """The rows of one file. Fields that are null are left out, as they are in JSON lines of the same schema."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise UsageError(
                f"{path} is a Parquet file, and pyarrow is not installed: pip install 'afterword[parquet]', or give "
                "JSON or JSON lines."
            ) from error
        try:
            self._file = parquet.ParquetFile(path, memory_map=True, pre_buffer=False)
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            raise UsageError(f"{path} is an invalid or truncated Parquet file: {error}") from error
        self._size = path.stat().st_size
        self._done = 0

    @property
    def position(self) -> int:
        """About how many bytes of the file are behind us."""
        return self._size * self._done // max(1, int(self._file.metadata.num_rows))

    def rows(self, skip: int = 0) -> Iterator[FileRow | InvalidRow]:
        """All rows but the first `skip`."""
        groups, passed = self._groups(skip)
        number = passed
        try:
            for batch in self._file.iter_batches(batch_size=BATCH, row_groups=groups):
                for value in batch.to_pylist():
                    number += 1
                    self._done = number
                    if number > skip:
                        yield FileRow(_without_nulls(value), f"row {number}")
        except (OSError, ValueError) as error:
            yield InvalidRow("broken_archive", f"the file breaks off after row {number}: {error}", f"row {number + 1}")

    def _groups(self, skip: int) -> tuple[list[int], int]:
        """The row groups that are not wholly passed over, and how many rows lie before them."""
        passed = 0
        for index in range(self._file.num_row_groups):
            rows = self._file.metadata.row_group(index).num_rows
            if passed + rows > skip:
                return list(range(index, self._file.num_row_groups)), passed
            passed += rows
        return [], passed


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value]
    return value


CHUNK = 1 << 20
"""Characters that are read at a time."""
PIECE = 1 << 16
"""Bytes that are decompressed at a time."""
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


class _Packed(Protocol):
    def read1(self, size: int, /) -> bytes: ...


class _Recoded:
    """Bytes of another encoding as UTF-8; what is no text in it becomes a replacement character."""

    def __init__(self, source: BinaryIO, encoding: str) -> None:
        self._source = source
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")

    def read1(self, size: int) -> bytes:
        while data := self._source.read(max(1, size // 4)):  # one character takes up to four bytes
            if words := self._decoder.decode(data):
                return words.encode("utf-8", "replace")
        return self._decoder.decode(b"", True).encode("utf-8", "replace")


class _Plain(io.RawIOBase):
    """The decompressed bytes; a broken archive ends early and says why in `broken`."""

    def __init__(self, source: _Packed) -> None:
        self._source = source
        self.broken: str | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            # Never past a fault: what came before it is given out, of an archive with a wrong checksum all but a piece.
            data = self._source.read1(min(len(buffer), PIECE))
        except (EOFError, OSError, zlib.error, zstandard.ZstdError, zipfile.BadZipFile) as error:
            self.broken = str(error)
            return 0
        buffer[: len(data)] = data
        return len(data)


class _Again:
    """A stream of which what was read so far can be read again, until it is forgotten."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._kept: list[bytes] | None = []
        self._ahead = io.BytesIO()

    def read(self, size: int) -> bytes:
        data = self._ahead.read(size) or self._stream.read(size)
        if self._kept is not None:
            self._kept.append(data)
        return data

    def readline(self, limit: int) -> bytes:
        line = self._ahead.readline(limit)
        if line.endswith(b"\n") or len(line) == limit:
            return line
        return line + self._stream.readline(limit - len(line))

    def rewind(self) -> None:
        """From the beginning again, for the last time."""
        self._ahead = io.BytesIO(b"".join(self._kept or ()))
        self._kept = None

    def forget(self) -> None:
        self._kept = None


# ---- encodings


def _codec(name: str | None) -> str | None:
    """Python's name of an encoding; UsageError for an unknown one."""
    if name is None:
        return None
    try:
        found = codecs.lookup(name).name
        "".encode(found)
    except (LookupError, ValueError) as error:
        raise UsageError(
            f"the encoding {name!r:.60} is unknown. Use for example utf-8, utf-16, cp1252, gb18030 or shift-jis."
        ) from error
    return found


_MARKS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
"""Byte order marks; of two that begin alike the longer one comes first."""
_UNMARKED = (
    (re.compile(rb"[\[{\s\"]\0\0\0"), "utf-32-le"), (re.compile(rb"\0\0\0[\[{\s\"]"), "utf-32-be"),
    (re.compile(rb"[\[{\s\"]\0[^\0]"), "utf-16-le"), (re.compile(rb"\0[\[{\s\"]\0[^\0]"), "utf-16-be"),
)  # fmt: skip
_UTF8 = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_WESTERN = re.compile(
    rb"[\x80\x82\x84\x85\x8a-\x8c\x8e\x91-\x97\x99-\x9c\x9e-\xa3\xa7\xa9-\xab\xae\xb0-\xb7\xb9-\xcf\xd1-\xd6\xd8-\xdd"
    rb"\xdf-\xef\xf1-\xf6\xf8-\xfd]+"
)
"""Letters and marks of cp1252 as they occur in western texts."""
_HIGH = re.compile(rb"[\x80-\xff]+")


def encoding_of(head: bytes) -> str:
    """The encoding of a text that begins so: what its byte order mark says, UTF-16 and UTF-32 by their zeros, cp1252
    when the bytes are no UTF-8 but western letters, each between others of ASCII; else UTF-8."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    for pattern, name in _UNMARKED:
        if pattern.match(head):
            return name
    return "cp1252" if _is_cp1252(head) else "utf-8"


def _is_cp1252(data: bytes) -> bool:
    if data.isascii() or _UTF8.search(data):
        return False
    high = _HIGH.findall(data)
    return all(len(run) <= 3 and _WESTERN.fullmatch(run) for run in high)


class Source:
    """A file that is being read. `position` and `size` are in bytes of the file as it lies on disk.

    Args:
        path: The file.
        encoding: Of its text, as Python names it; None: a byte order mark or the bytes themselves say it.
        is_row: Tells a row of a known format; a list of such rows within one object is read row by row.
    """

    def __init__(self, path: Path, encoding: str | None = None, is_row: IsRow | None = None) -> None:
        self._known, self._is_row = _codec(encoding), is_row or _perhaps
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}. Give the path of a file.") from error
        self.size = path.stat().st_size
        self.encoding = "utf-8"
        """Of the text that was read last."""
        magic = self._file.read(4)
        self._file.seek(0)
        self._table: ParquetRows | None = None
        self._members: list[str] = []
        try:
            if magic == b"PK\x03\x04":
                self._members = self._of_zip(path)
            elif magic == b"PAR1":
                self._table = ParquetRows(path)
        except UsageError:
            self._file.close()
            raise
        self._magic = magic

    def _of_zip(self, path: Path) -> list[str]:
        """The files within an archive that hold chats: what other products put beside them (settings, accounts) are
        none."""
        try:
            self._zip = zipfile.ZipFile(self._file)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise UsageError(
                f"{path} is an invalid or truncated zip file: {error}. Download it again or unpack it."
            ) from error
        names = [name for name in self._zip.namelist() if name.lower().endswith((".json", ".jsonl", ".ndjson"))]
        chats = [name for name in names if _EXPORTED.fullmatch(name.rpartition("/")[2].lower())]
        if not names:
            raise UsageError(f"the zip file {path} holds no file named *.json, *.jsonl or *.ndjson. Unpack it first.")
        return sorted(chats or names, key=names.index)

    def _open(self, magic: bytes) -> _Packed:
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

    def rows(self, skip: int = 0) -> Iterator[FileRow | InvalidRow]:
        """Rows of the file in order, with one `InvalidRow` for each invalid stretch.

        The first `skip` of them are passed over, in JSON lines without parsing them.
        """
        if self._table is not None:
            yield from self._table.rows(skip)
        elif self._members:
            yield from itertools.islice(self._of_members(), skip, None)
        else:
            yield from self._of_stream(self._open(self._magic), skip)

    def _of_members(self) -> Iterator[FileRow | InvalidRow]:
        for name in self._members:
            try:
                member = self._zip.open(name)
            except (
                zipfile.BadZipFile,
                OSError,
                ValueError,
                RuntimeError,
                EOFError,
            ) as error:  # damaged, with a password
                yield InvalidRow("broken_archive", f"{name} cannot be unpacked: {error}", name)
                continue
            with member:
                assert isinstance(member, zipfile.ZipExtFile)
                for item in self._of_stream(member, 0):
                    yield replace(item, where=f"{name}, {item.where}")

    def _of_stream(self, packed: _Packed, skip: int) -> Iterator[FileRow | InvalidRow]:
        plain = _Plain(packed)
        stream = io.BufferedReader(plain, CHUNK)
        self.encoding = self._known or encoding_of(stream.peek(CHUNK))
        if self.encoding != "utf-8":
            stream = io.BufferedReader(_Plain(_Recoded(stream, self.encoding)), CHUNK)
        head, again = stream.peek(CHUNK), _Again(stream)
        buffer = _Buffer(again)
        if buffer.skip() and buffer.enter(self._is_row):
            again.forget()
            yield from itertools.islice(_values(buffer, self._is_row, lists=True), skip, None)
        else:
            again.rewind()
            if _is_lines(head):
                yield from _lines(again, skip)
            else:
                yield from itertools.islice(_values(_Buffer(again), self._is_row), skip, None)
        if plain.broken is not None:
            yield InvalidRow("broken_archive", f"the compressed file ends early: {plain.broken}", "the end")


IsRow = Callable[[Any], bool]


def _perhaps(value: Any) -> bool:
    """Could this be a row? An object with a list in it (every format's rows have one) or with many keys."""
    return isinstance(value, dict) and (len(value) >= 5 or any(isinstance(v, list) for v in value.values()))


_EXPORTED = re.compile(r"(conversations|message_feedback)([-_]?\d+)?\.json")
"""Files of the archives of ChatGPT and Claude."""


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

_AROUND = b" \t\r\n\v\f\0\x1e"
"""What may stand around a line: white space, padding, the separator of JSON text sequences."""
_FOREIGN = "\ufffd" * 4
"""So many characters in a row that are none of UTF-8 are another encoding, not damage."""
_NAME_IT = "the text is neither UTF-8 nor UTF-16 nor cp1252; name its encoding, e.g. --encoding gb18030"


def _lines(stream: _Again, skip: int) -> Iterator[FileRow | InvalidRow]:
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
            yield InvalidRow(
                "too_long", f"a line of more than {MAX_ROW} bytes", where, line[:500].decode(errors="replace")
            )
        elif content := line.strip(_AROUND).removeprefix(codecs.BOM_UTF8):
            seen += 1
            if seen <= skip:
                continue
            yield _line(content, where, whole)


def _line(line: bytes, where: str, whole: bool) -> FileRow | InvalidRow:
    try:
        return FileRow(orjson.loads(line), where, sound=True)
    except orjson.JSONDecodeError:
        text = line.decode("cp1252" if _is_cp1252(line) else "utf-8", errors="replace")
    if _FOREIGN in text and _FOREIGN.encode() not in line:
        return InvalidRow("encoding", _NAME_IT, where, text)
    try:
        value = _lenient(text)
    except (ValueError, RecursionError) as error:
        reason = "bad_json" if whole else "cut_off"
        return InvalidRow(reason, f"no JSON: {error}", where, text)
    return FileRow(value, where, mended=b"\xef\xbf\xbd" not in line and "\ufffd" in text)


_COMMAS = re.compile(r'("(?:[^"\\]++|\\.)*+(?:"|\\?\Z))|,(?=\s*+(?:[}\]]|\Z))', re.DOTALL)
"""A text in quotes, also one that is cut off (else each quote within it would be tried as a beginning), or a comma
behind which nothing follows in its list, its object or its line."""


def _lenient(text: str) -> Any:
    """JSON with NaN, control characters in texts, and commas behind the last item."""
    try:
        return json.loads(text, strict=False)
    except ValueError:
        mended = _COMMAS.sub(lambda found: found[1] or "", text)
        if mended == text:
            raise
    return json.loads(mended, strict=False)


# ---- a list, or values one after the other

_SKIPPED = re.compile(r"[\s,\[\]\ufeff\0\x1e]*")
_BETWEEN = re.compile(r"[\s,\ufeff\0\x1e]*")
_START = re.compile(r"\{\s*\"[^\"\\]{1,60}\"\s*:")
_ENDS, _LONG = "the file ends within it", "longer than a row may be"
_DECODER = json.JSONDecoder(strict=False)
_COMMAS_MENDED = 1000
"""Commas behind the last item that are passed over in one value."""
_LISTS = frozenset(
    ("data", "rows", "conversations", "items", "chats", "records", "results", "examples", "samples", "documents",
     "feedbacks", "feedback", "train", "test", "traces", "dialogs", "threads", "sessions")
)  # fmt: skip
"""Members of an object that may list rows."""


class _Buffer:
    """A window of decoded text that slides over the stream."""

    def __init__(self, stream: _Again) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.text = ""
        self.at = 0
        self.passed = 0
        """Characters before `text`."""
        self.ended = False
        self.inside = False
        """In a list that is a member of an object: its end is none of the file."""
        self.broken = False
        """Bytes that are no UTF-8 were read."""

    def more(self) -> bool:
        """Read on, at least doubling what is unread; False at the end of the file."""
        if self.ended:
            return False
        data = self._stream.read(max(CHUNK, len(self.text) - self.at))
        self.ended = not data
        self.passed += self.at
        words = self._decoder.decode(data, self.ended)
        self.broken = self.broken or ("\ufffd" in words and b"\xef\xbf\xbd" not in data)
        self.text = self.text[self.at :] + words
        self.at = 0
        return True

    @property
    def where(self) -> str:
        return f"character {self.passed + self.at}"

    def skip(self) -> bool:
        """Move to the next character that may begin a value; False at the end."""
        pattern = _BETWEEN if self.inside else _SKIPPED
        while True:
            found = pattern.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text):
                return True
            if not self.more():
                return False

    def value(self) -> tuple[Any, str]:
        """The value that begins here, or (None, why there is none)."""
        value, why, end = self._decoded(self.at)
        self.at = self.at if why else end
        return value, why

    def _decoded(self, look: int) -> tuple[Any, str, int]:
        """(the value at `look`, "" or why there is none, where it ends); what lies behind `at` stays in the window."""
        commas = 0
        while True:
            try:
                found, end = _DECODER.raw_decode(self.text, look)
                return found, "", end
            except json.JSONDecodeError as error:
                why, place = error.msg, error.pos
            except (ValueError, RecursionError) as error:
                return None, str(error), look
            if commas < _COMMAS_MENDED and self._mend_comma(look, place):
                commas += 1
                continue
            if len(self.text) - look > MAX_ROW:
                return None, _LONG, look
            if not (why.startswith("Unterminated") or place > len(self.text) - 16):
                return None, why, look
            look -= self.at
            if not self.more():
                return None, _ENDS, look + self.at

    def _mend_comma(self, start: int, place: int) -> bool:
        """Blank out a comma behind the last item of a list or an object, if that is the fault at `place`."""
        while place < len(self.text) and (self.text[place].isspace() or self.text[place] == ","):
            place += 1
        if place >= len(self.text) or self.text[place] not in "]}":
            return False
        before = place - 1
        while before > start and self.text[before].isspace():
            before -= 1
        if self.text[before] != ",":
            return False
        self.text = f"{self.text[:before]} {self.text[before + 1 :]}"
        return True

    def enter(self, is_row: IsRow) -> bool:
        """Step into the first member of the object here that lists rows; without one the place stays as it is."""
        return self.text[self.at] == "{" and self._member(self.at + 1, is_row) is None

    def leave(self, is_row: IsRow) -> None:
        """Behind a list that was entered: into the next one of the object, or behind the object."""
        self.inside = False
        end = self._member(self.at + 1, is_row)
        self.at = self.at if end is None else end

    def _member(self, look: int, is_row: IsRow) -> int | None:
        """None when one of the members from `look` on was entered, else where looking ended."""
        while True:
            look = self._next(look)
            if look >= len(self.text) or self.text[look] != '"':
                return look + 1 if self.text[look : look + 1] == "}" else look
            key, why, look = self._decoded(look)
            look = self._next(look) if not why else look
            if why or self.text[look : look + 1] != ":":
                return look
            look = self._next(look + 1)
            if key in _LISTS and self.text[look : look + 1] == "[":
                first = self._next(look + 1)
                if self.text[first : first + 1] == "{":
                    passed = self.passed
                    value, why, _ = self._decoded(first)
                    moved = self.passed - passed  # the window slid on
                    first, look = first - moved, look - moved
                    if not why and is_row(value):
                        self.at, self.inside = first, True
                        return None
            value, why, look = self._decoded(look)
            if why:
                return look

    def _next(self, look: int) -> int:
        """The next place that is neither white space nor a comma, reading on as far as needed."""
        while True:
            found = _BETWEEN.match(self.text, look)
            look = found.end() if found else look
            if look < len(self.text):
                return look
            look -= self.at
            if not self.more():
                return look + self.at


def _values(buffer: _Buffer, is_row: IsRow, lists: bool = False) -> Iterator[FileRow | InvalidRow]:
    """The values of a stream. With `lists`, objects that list rows are entered."""
    while buffer.skip():
        here = buffer.text[buffer.at]
        if lists and ((buffer.inside and here == "]") or (not buffer.inside and buffer.enter(is_row))):
            if here == "]":
                buffer.leave(is_row)
            continue
        where, start = buffer.where, buffer.passed + buffer.at
        value, why = buffer.value() if here == "{" else (None, "no JSON object")
        if not why:
            said = buffer.text[start - buffer.passed : buffer.at] if buffer.broken else ""
            if _FOREIGN in said:
                yield InvalidRow("encoding", _NAME_IT, where, said[:500])
            else:
                yield FileRow(value, where, mended="\ufffd" in said)
            continue
        beginning = buffer.text[buffer.at : buffer.at + 500]
        found = _recover(buffer, is_row)
        cut = why == _ENDS and found is None
        yield InvalidRow("cut_off" if cut else "too_long" if why == _LONG else "bad_json", why, where, beginning)
        if found is not None:
            yield found


def _recover(buffer: _Buffer, is_row: IsRow) -> FileRow | None:
    """The next row after garbage: an object that is one, and no member of another, so that a fragment of a broken row
    is not taken for a row."""
    for _ in range(_TRIES):
        buffer.at += 1
        found = _START.search(buffer.text, buffer.at)
        if found is None:
            buffer.at = max(buffer.at, len(buffer.text) - 100)
            if not buffer.more():
                break
            buffer.at = max(buffer.at - 1, -1)
            continue
        before = buffer.text[buffer.at - 1 : found.start()].rstrip()
        buffer.at = found.start()
        if before.endswith(":"):
            continue
        where = buffer.where
        value, why = buffer.value()
        if not why:
            if is_row(value):
                return FileRow(value, where)
            buffer.at -= 1
    buffer.at = len(buffer.text)
    return None
