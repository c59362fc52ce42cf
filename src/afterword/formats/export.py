"""Writes rows of the store to files and streams: one of `registry.EXPORTS`, or everything held about one user.

Streams one row at a time and never changes one. Notes each export to a file in the store, so that erasing a user finds
the file again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from afterword.errors import NotFoundError, UsageError
from afterword.formats.containers import Out
from afterword.formats.export_filter import ExportFilter
from afterword.formats.registry import EXPORTS
from afterword.records import Candidate, Json, Record, Release
from afterword.store import Store
from afterword.store.codec import BY_TABLE
from afterword.store.erasure.erase import Eraser
from afterword.store.erasure.erasure_search import rejects_of


@dataclass(frozen=True, slots=True)
class Exported:
    """Counts of an export."""

    rows: int
    """Rows written."""
    left_out: dict[str, int]
    """Number of excluded turns, conversations, feedback or interactions, by reason."""


def export(
    store: Store,
    what: str,
    format: str,
    out: Out,
    *,
    to: Path | None = None,
    clean: Callable[[Record], Record] | None = None,
    split: str = "train",
) -> Exported:
    """Write rows in a format.

    The native format is complete and keeps consent and source in each row. Every other format leaves out rows that may
    not be trained on.

    Args:
        store: Read, and told of the file.
        what: `turns`, `feedback` or `interactions`.
        format: A name that `registry.EXPORTS` has for `what`.
        out: Receives one line of JSON per row.
        to: The file behind `out`, if it is one.
        clean: Removes private data; used for training data only.
        split: One of `export_filter.SPLITS`; used for training data only.

    Returns:
        Rows written, and rows left out by reason.

    Raises:
        UsageError: `what` cannot be written as `format`.
    """
    found = EXPORTS.get((what, format))
    if found is None:
        pairs = ", ".join(f"{w} as {f}" for w, f in EXPORTS)
        raise UsageError(f"{what!r} cannot be exported as {format!r}. Possible: {pairs}.")
    if to is not None:  # noted before the first row is written: a kill in between must not hide the file
        store.note_export(to, what, format, None)
    rows = ExportFilter(store, clean, split) if found.training else ExportFilter(store)
    return Exported(_written(found.write(rows), out), dict(rows.left_out.most_common()))


def export_user(store: Store, user: str, out: Out, *, to: Path | None = None) -> int:
    """Write everything held about a user in the native format: their rows, rows derived from them, adapters trained on
    them, and rows of theirs that an import rejected.

    Returns:
        Rows written.

    Raises:
        NotFoundError: Nothing is held about the user.
    """
    with Eraser(store.path) as eraser:
        held = eraser.find(user)
        refused = [{"record": "rejects", **line} for line in rejects_of(store.path.parent, user)]
        if not held and not refused:
            raise NotFoundError(f"no data is stored of the user {user!r}. User names are matched exactly.")
        if to is not None:
            store.note_export(to, "user", "afterword", user)
        rows = eraser.bodies(held)
        written = _written(({"record": table, **row} for table, row in _decoded(store, rows) if table in BY_TABLE), out)
    learned = [c for c in store.rows(Candidate) if set(c.interactions) & set(held.rows["interactions"])]
    more: list[Json] = refused + [{"record": c.TABLE, **c.to_dict()} for c in learned]
    for candidate in learned:
        more += [{"record": r.TABLE, **r.to_dict()} for r in store.rows(Release, candidate=candidate.id)]
    return written + _written(iter(more), out)


def _decoded(store: Store, rows: Iterator[tuple[str, Json]]) -> Iterator[tuple[str, Json]]:
    for table, row in rows:
        record = store.find(BY_TABLE[table], row["id"]) if table in BY_TABLE else None
        yield table, row if record is None else record.to_dict()


def _written(rows: Iterator[Json], out: Out) -> int:
    number = 0
    for row in rows:
        out.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        number += 1
    return number
