"""Logs from elsewhere become turns and follow-ups: `import_file`, and `files_of` for directories.

Owns the driver: stream, parse, hand over to the store, count. Ids are content hashes, so nothing is ever stored
twice; an interrupted import goes on where its last commit was. Never learns anything, never guesses consent away.
"""

from __future__ import annotations

import gc
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import orjson

from afterword.errors import UsageError
from afterword.feedback.files import Bad, Row, Source
from afterword.feedback.formats import FORMATS, UTTERANCES, Parser, detect_format
from afterword.feedback.mark import ImportSummary, Mark, state_file
from afterword.feedback.names import Names
from afterword.feedback.rejects import ROW_KEPT, Rejects, rejects_file
from afterword.feedback.sink import Sink
from afterword.feedback.traces import Traces
from afterword.feedback.unfold import Threads, gathered, unfolded
from afterword.formats.parsing import Hashed, shown
from afterword.records import Json, Record, Turn
from afterword.store import Store
from afterword.store.codec import encode
from afterword.store.words import user_of

__all__ = ["ImportSummary", "files_of", "import_file"]

SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".gz", ".gzip", ".zst", ".zstd")
"""Files that are read when a directory is named; a file that is named itself may be called anything."""
TABLES = (".csv", ".tsv")
"""Files that are often tried and cannot be read."""
LINKED = ("tensorzero", "langfuse")
"""Formats in which each row is one request that carries its history."""

Known = tuple[Threads, Traces, Names]
"""What the rows of a file are linked by."""
Progress = Callable[[int, int], None]
Parsed = tuple[list[Record], int | None]
"""The records of a row, and its bytes when other rows may be stored between it and its neighbours (see `Sink`)."""


def files_of(path: Path) -> list[tuple[Path, str]]:
    """(file, name of its rejects): the path itself, or all files below a directory that look like data, sorted.

    Raises UsageError for a directory without any.
    """
    if not path.is_dir():
        return [(path, path.name)]
    below = sorted(f for f in path.rglob("*") if f.is_file() and f.suffix.lower() in SUFFIXES)
    found = [f for f in below if not any(part.startswith(".") for part in f.relative_to(path).parts)]
    if not found:
        raise UsageError(f"the directory {path} holds no file named {', '.join(f'*{s}' for s in SUFFIXES)}.")
    return [(f, f"{path.name}/{f.relative_to(path).as_posix()}") for f in found]


def import_file(
    store: Store,
    path: Path,
    format: str = "auto",
    *,
    rejects: Path | None = None,
    progress: Progress | None = None,
) -> ImportSummary:
    """Store the turns and follow-ups of a file in any of `formats.FORMATS`, or find out which one it is.

    Bad rows are counted and written to `rejects` (by default `rejects/NAME.jsonl` beside the database) with their
    place and reason. `progress(position, size)` is called after each group, in bytes of the file. An import that
    was interrupted goes on behind its last commit; one that is run again after its end stores nothing twice.

    Raises UsageError for an unknown format, a file that cannot be read or holds no row of a known format, and
    StoreError when the database cannot be written; what was committed before stays.
    """
    if format != "auto" and format not in FORMATS:
        raise UsageError(f"the format {format!r} is not known; choose from auto, {', '.join(FORMATS)}.")
    started = time.monotonic()
    rejects = rejects or rejects_file(store, path, path.name)
    with _undisturbed(), closing(Source(path)) as source:
        mark = Mark.of(state_file(store, path), path, format, store)
        summary = mark.summary or ImportSummary(file=str(path), format=format)
        summary.resumed_at = mark.rows
        traces = Traces(store)
        known = Threads(store), traces, Names(store)
        refuse = Rejects(rejects, summary, mark, store)
        with store.bulk(), refuse, Sink(store, summary, mark, refuse) as sink:
            for item in _items(source, mark):
                summary.rows += 1
                try:
                    records, size = _records(item, summary, known, refuse)
                    sink.add(records, item.where, size)
                except UsageError as error:
                    refuse(Bad(error.code or "bad_row", error.message, item.where, *_whole(item)))
                if sink.flushed and progress is not None:
                    progress(source.position, source.size)
            traces.flush()
        mark.finish()
        refuse.finish()
    summary.seconds = time.monotonic() - started
    if not summary.rows:
        raise UsageError(f"{path} is empty: there is no row in it. Check that the export that wrote it has ended.")
    if summary.format == "auto":
        raise UsageError(_unknown(path, summary))
    return summary


def _unknown(path: Path, summary: ImportSummary) -> str:
    """Why no row of a file was like any known format."""
    if path.suffix.lower() in TABLES:
        return (
            f"{path} is a table of text ({path.suffix}), which says nothing of conversations. Known: JSON, JSON lines "
            f"and Parquet in the formats {', '.join(FORMATS)}; write one JSON object a line, e.g. "
            '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}.'
        )
    return (
        f"{path} holds no row of a known format ({summary.rows} rows seen). Known: {', '.join(FORMATS)}; "
        "name one with --format to see why its rows are rejected."
    )


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Python's settings for a long import, put back at its end.

    Tens of thousands of records wait in memory for their turn: walking them all again and again, in search of circles
    that there are not, would take a fifth of the time; young objects are looked at as ever. And the writer lets the
    interpreter go at every row: handing it back and forth with the reader of the file would take a tenth.
    """
    usual, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(10_000, 10, 100_000)
    sys.setswitchinterval(0.1)
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        sys.setswitchinterval(interval)


def _items(source: Source, mark: Mark) -> Iterator[Row | Bad]:
    """What is left of the file. Utterances are counted by conversation, so they are gathered before they are passed."""
    if not mark.gathered:
        items = source.rows(skip=mark.rows)
        first = next(items, None)
        if first is None:
            return iter(())
        items = itertools.chain((first,), items)
        if not (isinstance(first, Row) and gathers(first.value)):
            return items
        mark.gathered = True
        return gathered(items)
    return itertools.islice(gathered(source.rows()), mark.rows, None)


def gathers(value: Any) -> bool:
    """Is a file that begins with this row read conversation by conversation?"""
    return isinstance(value, dict) and "UtterranceId" in value


def _records(item: Row | Bad, summary: ImportSummary, known: Known, refuse: Rejects) -> Parsed:
    if isinstance(item, Bad):
        refuse(item)
        return [], 0
    if summary.format == "auto":
        found = detect_format(item.value)
        if found is None:
            raise UsageError("the row is like none of the known formats", code="unknown_format")
        summary.format = found
    threads, traces, names = known
    records, size = _parsed(item, summary, FORMATS[summary.format], names)
    if summary.format in LINKED:
        records = [r for record in records for r in (threads.link(record) if isinstance(record, Turn) else [record])]
        records = traces.link(item.value, records)
    return records, size


def _parsed(item: Row, summary: ImportSummary, parse: Parser, names: Names) -> Parsed:
    if not isinstance(item.value, dict):
        raise UsageError(f"the row is no object: {shown(item.value, 80)}", code="no_object")
    value, mended = (item.value, False) if item.sound else _mended(item.value)
    summary.mended += mended or item.mended
    parsed = parse(value)
    if isinstance(parsed, Hashed):
        parsed = parsed.records("imp-" + names.of(parsed.digest, parsed.user))
    if isinstance(parsed, list):
        for record in parsed:
            encode(record)
        return parsed, None
    summary.conversations += 1
    summary.messages += len(parsed.messages)
    records, unasked, size = unfolded(parsed, summary.format, names)
    summary.without_request += unasked
    return records, size


def _mended(value: Json) -> tuple[Json, bool]:
    """The row with lone surrogates replaced; True when there were any."""
    try:
        orjson.dumps(value)
    except TypeError as error:
        mended = replace_surrogates(value)
        try:
            orjson.dumps(mended)
        except TypeError:
            raise UsageError(f"the row cannot be written as JSON: {error}", code="bad_value") from error
        return mended, True
    return value, False


def replace_surrogates(value: Any) -> Any:
    """The value with lone surrogates in its texts replaced."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [replace_surrogates(v) for v in value]
    if isinstance(value, dict):
        return {replace_surrogates(k): replace_surrogates(v) for k, v in value.items()}
    return value


def _whole(item: Row | Bad) -> tuple[str, str | None]:
    """A row as it can be mended and imported again, and whom it names as its user."""
    if isinstance(item, Bad):
        return item.text, item.user
    value = item.value
    whole = value[UTTERANCES] if isinstance(value, dict) and UTTERANCES in value else value
    return shown(whole, 2 * ROW_KEPT), user_of(value)
