"""Imports files: reads rows, turns them into records, stores and counts them (`import_file`, `files_of`).

Ids are content hashes or ids of the source, so no record is stored twice. Formats are defined in `formats`.
"""

from __future__ import annotations

import gc
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from afterword.errors import UsageError
from afterword.feedback.importing.branches import ImportNames, Unfolded, remarked, unfolded_tree
from afterword.feedback.importing.files import FileRow, InvalidRow, Source
from afterword.feedback.importing.import_progress import ImportProgress, ImportSummary, state_file
from afterword.feedback.importing.rejects import ROW_KEPT, Rejects, rejects_file
from afterword.feedback.importing.sink import Sink
from afterword.feedback.importing.unfold import Threads, gathered, unfolded
from afterword.formats.naming import Traces
from afterword.formats.parsing import Hashed, Remark, Tree, shown
from afterword.formats.registry import ALIASES, FORMATS, detect_format
from afterword.formats.wildfeedback import UTTERANCES
from afterword.records import Json, Record, Turn
from afterword.store import Store
from afterword.store.codec import encode
from afterword.store.erasure.erasure_search import user_of

__all__ = ["ImportSummary", "files_of", "import_file"]

SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".gz", ".gzip", ".zst", ".zstd")
"""Files that are read when a directory is named; a file that is named itself may be called anything."""
TABLES = (".csv", ".tsv")
"""Files that are often tried and cannot be read."""
DEEPEST = 5000
"""Python's limit of recursion while a file is read: far less than what fits on the stack."""

Known = tuple[Threads, Traces, ImportNames]
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
    encoding: str | None = None,
) -> ImportSummary:
    """Store the turns and the feedback in a file.

    An interrupted import goes on behind its last commit. Importing a file again stores nothing twice.

    Args:
        store: Receives the rows.
        path: The file.
        format: A name of `registry.FORMATS`, an alias, or "auto" to recognise it by its rows.
        rejects: File for invalid rows with place and reason; by default `rejects/NAME.jsonl` beside the database.
        progress: Called after each group with position and size of the file, in bytes.
        encoding: Of the text, where neither a byte order mark nor the bytes show it.

    Returns:
        Counts of rows, records and rejected rows by reason.

    Raises:
        UsageError: The format is unknown, the file cannot be read, or no row is of a known format.
        StoreError: The database cannot be written; what was committed before stays.
    """
    format = ALIASES.get(format, format)
    if format != "auto" and format not in FORMATS:
        raise UsageError(f"the format {format!r} is unknown; use auto or one of {', '.join(FORMATS)}.")
    started = time.monotonic()
    rejects = rejects or rejects_file(store, path, path.name)
    with _undisturbed(), closing(Source(path, encoding, is_row)) as source:
        mark = ImportProgress.of(state_file(store, path), path, f"{format} {encoding or ''}".strip(), store)
        summary = mark.summary or ImportSummary(file=str(path), format=format)
        summary.resumed_at = mark.rows
        traces = Traces(store)
        known = Threads(store), traces, ImportNames(store)
        if mark.rows and summary.format in FORMATS and FORMATS[summary.format].linked:
            known[0].recall(f"import:{summary.format}")
        refuse = Rejects(rejects, summary, mark, store)
        with store.bulk(), refuse, Sink(store, summary, mark, refuse) as sink:
            for item in _items(source, mark):
                summary.rows += 1
                try:
                    records, size = _records(item, summary, known, refuse, named=format != "auto")
                    sink.add(records, item.where, size)
                except UsageError as error:
                    refuse(InvalidRow(error.code or "bad_row", error.message, item.where, *_whole(item)))
                except RecursionError:
                    refuse(
                        InvalidRow("too_deep", "the row is nested too deeply to be stored", item.where, *_whole(item))
                    )
                if sink.flushed and progress is not None:
                    progress(source.position, source.size)
            traces.flush()
        mark.finish()
        refuse.finish()
        summary.encoding = source.encoding
    summary.seconds = time.monotonic() - started
    if not summary.rows:
        raise UsageError(f"{path} is empty. Check that the export has finished.")
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
    unreadable = {reason: n for reason, n in summary.rejected.items() if reason != "unknown_format"}
    if len(unreadable) == len(summary.rejected):
        reasons = ", ".join(f"{n} {reason}" for reason, n in unreadable.items())
        return (
            f"no row of {path} could be read ({reasons}). Each with its reason is in {summary.rejects}; get the file "
            "again, or name its encoding with --encoding."
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
    interpreter go at every row: handing it back and forth with the reader of the file would take a tenth. A chat may
    be nested as deep as it is long.
    """
    usual, interval, depth = gc.get_threshold(), sys.getswitchinterval(), sys.getrecursionlimit()
    gc.set_threshold(10_000, 10, 100_000)
    sys.setswitchinterval(0.1)
    sys.setrecursionlimit(max(depth, DEEPEST))
    try:
        yield
    finally:
        sys.setrecursionlimit(depth)
        gc.set_threshold(*usual)
        sys.setswitchinterval(interval)


def _items(source: Source, mark: ImportProgress) -> Iterator[FileRow | InvalidRow]:
    """What is left of the file. Utterances are counted by conversation, so they are gathered before they are passed."""
    if not mark.gathered:
        items = source.rows(skip=mark.rows)
        first = next(items, None)
        if first is None:
            return iter(())
        items = itertools.chain((first,), items)
        if not (isinstance(first, FileRow) and gathers(first.value)):
            return items
        mark.gathered = True
        return gathered(items)
    return itertools.islice(gathered(source.rows()), mark.rows, None)


def is_row(value: Any) -> bool:
    """Is this a row of a known format, as a list of them holds it?"""
    return gathers(value) or detect_format(_inner(value)) is not None


def _inner(value: Any) -> Any:
    """The row itself, where it stands in an object with its number or its kind (as data set servers give it)."""
    if not isinstance(value, dict):
        return value
    inner = next((value[name] for name in ("row", "data", "json") if isinstance(value.get(name), dict)), None)
    return inner if detect_format(inner) is not None and detect_format(value) is None else value


def gathers(value: Any) -> bool:
    """Is a file that begins with this row read conversation by conversation?"""
    return isinstance(value, dict) and "UtterranceId" in value


def _records(item: FileRow | InvalidRow, summary: ImportSummary, known: Known, refuse: Rejects, named: bool) -> Parsed:
    if isinstance(item, InvalidRow):
        refuse(item)
        return [], 0
    item = replace(item, value=_inner(item.value))
    if summary.format == "auto":
        found = detect_format(item.value)
        if found is None:
            raise UsageError("the row matches no known format", code="unknown_format")
        summary.format = found
    value, mended = _sound(item)
    try:
        records, size = _parsed(value, summary, summary.format, known)
    except UsageError:
        other = detect_format(value)
        if named or other in (None, summary.format):
            raise
        records, size = _parsed(value, summary, other, known)  # files of several formats, put together
    summary.mended += mended
    return records, size


def _sound(item: FileRow) -> tuple[Json, bool]:
    """The object of a row as text that can be stored; True when something in it was replaced."""
    if not isinstance(item.value, dict):
        raise UsageError(f"the row is not an object: {shown(item.value, 80)}", code="no_object")
    value, mended = (item.value, False) if item.sound else _mended(item.value)
    return value, mended or item.mended


def _parsed(value: Json, summary: ImportSummary, format: str, known: Known) -> Parsed:
    threads, traces, names = known
    parsed = FORMATS[format].read(value)
    if isinstance(parsed, Tree):
        return _of_chat(unfolded_tree(parsed, format, names), parsed, summary)
    if isinstance(parsed, Remark):
        return _of_chat(remarked(parsed, format, names), parsed.tree, summary)
    if isinstance(parsed, Hashed):
        parsed = names.records(parsed)
    if isinstance(parsed, list):
        for record in parsed:
            encode(record)
        if FORMATS[format].linked:
            parsed = [r for one in parsed for r in (threads.link(one) if isinstance(one, Turn) else [one])]
            parsed = traces.link(value, parsed)
        return parsed, None
    records, unasked, size = unfolded(parsed, format, names)
    summary.conversations += 1
    summary.messages += len(parsed.messages)
    summary.left_out.update(parsed.left_out)
    summary.without_request += unasked
    return records, size


def _of_chat(found: Unfolded, tree: Tree | None, summary: ImportSummary) -> Parsed:
    size = sum(len(encode(record).values[-1]) for record in found.records)
    if tree is not None:
        summary.conversations += 1
        summary.messages += found.messages
        summary.without_request += found.unasked
        summary.left_out.update({reason: number for reason, number in tree.left_out.items() if number})
    return found.records, size


def _mended(value: Json) -> tuple[Json, bool]:
    """The row with lone surrogates replaced; True when there were any."""
    try:
        orjson.dumps(value)
    except TypeError as error:
        if "ecursion" in str(error):  # nested deeper than it writes: what is stored of it is looked at once more
            return value, False
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


def _whole(item: FileRow | InvalidRow) -> tuple[str, str | None]:
    """A row as it can be mended and imported again, and whom it names as its user."""
    if isinstance(item, InvalidRow):
        return item.text, item.user
    value = item.value
    whole = value[UTTERANCES] if isinstance(value, dict) and UTTERANCES in value else value
    return shown(whole, 2 * ROW_KEPT), user_of(value)
