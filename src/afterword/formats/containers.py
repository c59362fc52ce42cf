"""Writes rows to files: JSON lines, one JSON list, or Parquet; gzip or zstd by the name.

A file appears under its name when it is whole; a killed export leaves only a `.part` file.
"""

from __future__ import annotations

import contextlib
import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import orjson
import zstandard

from afterword.errors import UsageError

_BATCH = 2000
"""Rows that are turned into columns at a time."""


class Out(Protocol):
    """Where rows go: each call is one row as JSON with a newline at its end."""

    def write(self, line: bytes, /) -> object:
        """Take one row."""


class _List:
    """Lines as one JSON list."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._first = True

    def write(self, line: bytes) -> None:
        self._out.write(b"[\n" if self._first else b",\n")
        self._out.write(line.rstrip(b"\n"))
        self._first = False

    def end(self) -> None:
        self._out.write(b"[]\n" if self._first else b"\n]\n")


_PACKED = ([".gz"], [".gzip"], [".zst"], [".zstd"])


@contextmanager
def container(path: Path) -> Iterator[Out]:
    """Where the rows of an export to `path` are written; its suffixes say how.

    `.jsonl`, `.json` (a list), `.parquet`, and `.gz` or `.zst` after the first two; anything else is JSON lines.
    Raises UsageError when the file cannot be written, or the rows make no table.
    """
    part = path.with_name(path.name + ".part")
    names = [s.lower() for s in path.suffixes]
    try:
        with part.open("wb") as raw:
            if names[-1:] == [".parquet"]:
                with _parquet(raw, path) as spool:
                    yield spool
            else:
                with _packed(raw, names[-1:]) as packed:
                    form = names[-2:-1] if names[-1:] in _PACKED else names[-1:]
                    if form == [".json"]:  # `chats.json.jsonl` is JSON lines
                        rows = _List(packed)
                        yield rows
                        rows.end()
                    else:
                        yield packed
            raw.flush()
            os.fsync(raw.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):  # half a file is of no use, and its space may be what is missing
            part.unlink(missing_ok=True)
        raise UsageError(
            f"cannot write {path}: {error.strerror or error}. Free some space or name another file, and run it again; "
            "nothing half was left."
        ) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def _packed(raw: BinaryIO, suffix: list[str]) -> Iterator[BinaryIO]:
    if suffix in ([".gz"], [".gzip"]):
        with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6, mtime=0) as packed:
            yield cast(BinaryIO, packed)
    elif suffix in ([".zst"], [".zstd"]):
        with zstandard.ZstdCompressor().stream_writer(raw, closefd=False) as packed:
            yield cast(BinaryIO, packed)
    else:
        yield raw


class _Spool:
    """Rows on their way to Parquet: kept as lines until the columns of all of them are known."""

    def __init__(self, lines: BinaryIO, arrow: Any, path: Path) -> None:
        self._lines, self._arrow, self._path = lines, arrow, path
        self._batch: list[Any] = []
        self.schema: Any = None

    def write(self, line: bytes) -> None:
        self._lines.write(line)
        self._batch.append(_fit(orjson.loads(line)))
        if len(self._batch) >= _BATCH:
            self.look()

    def look(self) -> None:
        """Widen the schema by the rows since the last look."""
        if self._batch:
            with self._refusing():
                found = self._arrow.Table.from_pylist(self._batch).schema
                schemas = [found] if self.schema is None else [self.schema, found]
                self.schema = self._arrow.unify_schemas(schemas, promote_options="permissive")
            self._batch = []

    def tables(self) -> Iterator[Any]:
        """The rows as tables of one schema."""
        self._lines.seek(0)
        rows: list[Any] = []
        for line in self._lines:
            rows.append(_fit(orjson.loads(line)))
            if len(rows) >= _BATCH:
                yield self._table(rows)
                rows = []
        if rows:
            yield self._table(rows)

    def _table(self, rows: list[Any]) -> Any:
        with self._refusing():
            return self._arrow.Table.from_pylist(rows, schema=self.schema)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, TypeError) as error:  # pyarrow's errors are of these two
            raise UsageError(
                f"{self._path}: the rows make no table, because a field has values of different types ({error}). "
                "Write JSON lines, e.g. to a name that ends in .jsonl.zst."
            ) from error


@contextmanager
def _parquet(raw: BinaryIO, path: Path) -> Iterator[_Spool]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UsageError(
            f"{path} asks for Parquet, and pyarrow is not installed: pip install 'afterword[parquet]', or write JSON "
            "lines."
        ) from error
    lines = path.with_name(path.name + ".rows.part")
    with contextlib.ExitStack() as stack:
        stack.callback(lines.unlink, missing_ok=True)
        spool = _Spool(stack.enter_context(lines.open("w+b")), pyarrow, path)
        yield spool
        spool.look()
        schema = spool.schema if spool.schema is not None else pyarrow.schema([])
        with parquet.ParquetWriter(raw, schema, compression="zstd") as writer:
            for table in spool.tables():
                writer.write_table(table)


def _fit(value: Any) -> Any:
    """The value without objects that have no field: Parquet has no column for them."""
    if isinstance(value, dict):
        return {k: _fit(v) for k, v in value.items()} or None
    return [_fit(v) for v in value] if isinstance(value, list) else value
