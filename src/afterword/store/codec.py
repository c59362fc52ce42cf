"""Records to rows and back.

Each table has a few columns that are searched, token arrays as blobs, and the whole rest of the record as JSON in
`body`. The digest covers everything but `created_at` and the order of keys, so the same event sent twice is known as
a duplicate.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from array import array
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, NamedTuple

import orjson

from afterword.errors import UsageError
from afterword.records import NOTES, RECORDS, Feedback, Interaction, Record, Turn

BY_TABLE: dict[str, type[Record]] = {kind.TABLE: kind for kind in (*RECORDS, *NOTES)}

SEARCHED: dict[str, tuple[str, ...]] = {
    "turns": (
        "user", "conversation", "previous", "task", "adapter", "thread", "source", "finish_reason", "unit", "canary",
        "seconds", "unlinked", "automated", "episode_id",
    ),
    "episodes": ("task_id", "harness", "parent_id", "user", "status"),
    "episode_ends": ("episode", "status"),
    "skills": ("task", "episode", "user"),
    "feedback": ("turn", "kind", "user", "retracts"),
    "interactions": ("turn", "kind", "split", "user", "task"),
    "skips": ("feedback", "turn", "reason"),
    "candidates": ("parent",),
    "reports": ("candidate",),
    "verdicts": ("candidate", "report", "passed"),
    "releases": ("channel", "adapter", "candidate", "verdict"),
    "reviews": ("interaction", "decision"),
    "relevances": ("interaction",),
    "revisions": ("interaction",),
    "advantages": ("interaction",),
    "requests": ("interaction", "kind"),
    "alarms": ("channel", "release", "adapter"),
    "attempts": ("settings",),
    "predictions": ("base_hash",),
    "prediction_outcomes": ("prediction", "candidate"),
}  # fmt: skip
ARRAYS = ("prompt_ids", "completion_ids", "logprobs")


class EncodedRow(NamedTuple):
    """One insert: its statement, its values and the data that distinguish a duplicate from a conflict."""

    table: str
    id: str
    digest: bytes
    values: tuple[Any, ...]
    kind: str = ""
    """Of feedback."""
    live: bool = False
    """It happens now: an undated vote that is equal to an earlier one is a change back, not a row sent again."""


def _columns(table: str) -> tuple[str, ...]:
    extra = ARRAYS if table == "turns" else ("feedback",) if table == "interactions" else ()
    return ("id", "created_at", "digest", *SEARCHED[table], *extra, "body")


def _insert(table: str) -> str:
    # Only a known id is passed over: OR IGNORE would also swallow a missing value.
    columns = _columns(table)
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))}) "
        "ON CONFLICT(id) DO NOTHING"
    )


FIELDS = {table: tuple(f.name for f in dataclasses.fields(kind)) for table, kind in BY_TABLE.items()}
"""Names per table. Values go to JSON as they are: walking every token id first would cost more than the rest."""

_VALUES = {table: attrgetter(*names) for table, names in FIELDS.items()}

INSERT = {table: _insert(table) for table in SEARCHED}

OPTIONAL = frozenset(
    ("user", "conversation", "previous", "task", "adapter", "thread", "source", "finish_reason", "retracts", "parent",
     "candidate", "verdict", "unit", "canary", "seconds", "unlinked", "automated", "episode_id", "task_id", "harness",
     "parent_id")
)  # fmt: skip
"""Searched columns that may be empty (in one table at least); the schema refuses the others."""


def encode(record: Record, *, live: bool = False) -> EncodedRow:
    """The row of a record. UsageError when a value cannot be stored (a lone surrogate, a number as an id)."""
    table = record.TABLE
    data = dict(zip(FIELDS[table], _VALUES[table](record), strict=True))
    created = data.pop("created_at")
    identifier = data.pop("id")
    searched = [data[name] for name in SEARCHED[table]]
    for name in YOUNGER.get(table, ()):
        if data[name] is None:
            del data[name]
    try:
        _check(identifier, created, zip(SEARCHED[table], searched, strict=True))
        arrays = [_pack(name, data.pop(name)) for name in ARRAYS] if isinstance(record, Turn) else []
        sorted_body = body = orjson.dumps(data, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
        if isinstance(record, Turn):  # templates write tools and arguments in the client's order of keys
            body = orjson.dumps(data, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"the {table} row {identifier!r:.80} cannot be stored: {error}") from error
    extra: list[Any] = [orjson.dumps(list(record.feedback)).decode()] if isinstance(record, Interaction) else arrays
    hashed = hashlib.blake2b(sorted_body, digest_size=16)
    for blob in arrays:
        hashed.update(b"\0" if blob is None else blob)
    digest = hashed.digest()
    values = (identifier, created, digest, *searched, *extra, body)
    return EncodedRow(table, identifier, digest, values, record.kind if isinstance(record, Feedback) else "", live)


YOUNGER = {"turns": ("unlinked", "automated", "sampled_logprobs", "episode_id", "episode_index"),
           "interactions": ("episode_id",)}  # fmt: skip
"""Fields that are left out of the body while they are empty: a row that an older version wrote is still a duplicate
of the same row now."""
NUMBERS = frozenset(("seconds",))
"""Searched columns that hold a number."""


TIMES = (-62_135_596_800.0, 253_402_300_799.0)
"""Unix seconds of the years 1 to 9999, which a calendar knows. The doors refuse others; a clock of ours that jumped
there is stored, and shown as the nearest of these."""


def calendar_time(seconds: float) -> float:
    """The nearest time of the calendar."""
    return min(max(seconds, TIMES[0]), TIMES[1])


def _check(identifier: Any, created: Any, searched: Iterable[tuple[str, Any]]) -> None:
    """TypeError or ValueError for what SQLite would refuse: one bad row must not fail its group."""
    if not isinstance(identifier, str) or not identifier:
        raise TypeError(f"its id must be a text, not {identifier!r:.80}")
    identifier.encode("utf-8")
    if not isinstance(created, int | float) or not math.isfinite(created):
        raise ValueError(f"`created_at` must be a number of seconds, not {created!r:.80}")
    for name, value in searched:
        if type(value) is str or (value is None and name in OPTIONAL):
            continue
        if name in NUMBERS:
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise TypeError(f"`{name}` must be a number, not {value!r:.80}")
        elif not isinstance(value, bool):
            raise TypeError(f"`{name}` must be a text, not {value!r:.80}")


def _pack(name: str, values: list[Any] | None) -> bytes | None:
    if values is None:
        return None
    if name == "logprobs":
        return array("d", [math.nan if v is None else v for v in values]).tobytes()
    return array("i", values).tobytes()


def _unpack(name: str, blob: bytes | None) -> tuple[Any, ...] | None:
    if blob is None:
        return None
    if name == "logprobs":
        values = tuple(array("d", blob))
        # Nothing is missing from most: a sum that is a number proves it in a fifth of the time.
        return tuple(None if math.isnan(v) else v for v in values) if math.isnan(sum(values)) else values
    return tuple(array("i", blob))


def select(table: str) -> str:
    """The head of every SELECT that `decoder(table)` understands, with `t` as the table's name."""
    arrays = "".join(f", t.{name}" for name in ARRAYS) if table == "turns" else ""
    return f"SELECT t.id, t.created_at, t.body{arrays} FROM {table} t"


def decoder(table: str) -> Callable[[tuple[Any, ...]], Any]:
    """A function from a row of `select(table)` to its record."""
    kind = BY_TABLE[table]

    def decode(row: tuple[Any, ...]) -> Record:
        data = orjson.loads(row[2])
        data["id"], data["created_at"] = row[0], row[1]
        for name, blob in zip(ARRAYS, row[3:], strict=False):
            data[name] = _unpack(name, blob)
        return kind.from_dict(data)

    return decode
