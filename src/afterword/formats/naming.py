"""Gives rows their ids, the same from a file and over HTTP: content hashes, and the answers that scores are about.

Reads the store, to know rows again that an older version stored under other ids. Never writes records.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from afterword.formats.langfuse import trace_of
from afterword.formats.parsing import Hashed
from afterword.records import Feedback, Json, Record, Turn, content_hash
from afterword.store import Store
from afterword.store.attribution import any_old_names, any_turns_from_http, has_old_name

REMEMBERED = 200_000
"""Rows that are remembered while a file is read: more than wait for their commit at any time."""
WAITING = 1000
"""Generations whose traces are noted together. A mark lies three groups of the sink behind what was read, and so many
give fewer records than that: no kill passes a trace over."""


class RowNames:
    """Ids of rows that have none: hashes of what a row says and of whose it is. Two users with the same chat are two
    ids; without a user, and for what was imported before the user was a part of it, the hash of the words alone."""

    def __init__(self, store: Store, *, fresh: bool = False) -> None:
        self._store = store
        self._fresh = fresh
        """The store held nothing when this began, so no row need be looked up in it."""
        self._feedback: OrderedDict[str, Feedback] = OrderedDict()

    def of(self, digest: str, user: str | None) -> str:
        """The digest behind `imp-`, which depends on the user."""
        if user is None or (self._old and has_old_name(self._store, f"imp-{digest}", user)):
            return digest
        return "u" + content_hash(digest, user)

    def records(self, row: Hashed) -> list[Record]:
        """The records of a row under their ids."""
        if row.former is not None and self._from_http:
            turn, stored = row.former()
            if self._store.find(Turn, turn) is not None:
                return stored
        records = row.records("imp-" + self.of(row.digest, row.user))
        return [self._apart(one) if isinstance(one, Feedback) else one for one in records]

    def _apart(self, row: Feedback) -> Feedback:
        """Feedback on an answer that the same user reacted to before in another way has an id of its own."""
        known = self._feedback.get(row.id) or (None if self._fresh else self._store.find(Feedback, row.id))
        if known is not None and not _same(known, row) and not _same(known, self._store.as_stored(row)):
            row = replace(row, id=f"{row.id}-{content_hash(row.kind, row.text, row.final_text)[:8]}")
        self._feedback[row.id] = row
        if len(self._feedback) > REMEMBERED:
            self._feedback.popitem(last=False)
        return row

    @cached_property
    def _old(self) -> bool:
        return any_old_names(self._store)

    @cached_property
    def _from_http(self) -> bool:
        return any_turns_from_http(self._store)


def _same(known: Feedback, row: Feedback) -> bool:
    return (known.kind, known.text, known.final_text) == (row.kind, row.text, row.final_text)


class Traces:
    """Finds the answer that a score on a whole trace is about: the last generation of the trace.

    Langfuse gives generations and scores as rows of their own. A generation keeps its id as the id of its turn; a score
    often names only the trace. Kept in the store, for the scores may come later, or over HTTP.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._last: dict[str, tuple[str, float]] = {}
        self._read = 0

    def link(self, row: Json, records: Sequence[Record]) -> list[Record]:
        """The records of a row, scores on a trace as feedback on its last generation."""
        trace = trace_of(row)
        if trace is None:
            return list(records)
        return [self._linked(trace, record) for record in records]

    def _linked(self, trace: str, record: Record) -> Record:
        if isinstance(record, Feedback) and record.turn == trace:
            return replace(record, turn=self._turn(trace, record.id))
        if isinstance(record, Turn) and record.id != trace:
            known = self._last.get(trace)
            if known is None or record.created_at >= known[1]:
                self._last[trace] = (record.id, record.created_at)
            self._read += 1
            if self._read >= WAITING:  # not so many traces: one of them may have many generations
                self.flush()
        return record

    def _turn(self, trace: str, name: str) -> str:
        """What a score was first taken to be about it stays about: imported again it is the same row."""
        stored = self._store.find(Feedback, name)
        if stored is not None:
            return stored.turn
        if self._store.find(Turn, trace) is not None:
            return trace
        self.flush()
        return self._store.turn_of_trace(trace) or trace

    def flush(self) -> None:
        """Write the traces found."""
        if self._last:
            self._store.note_traces(self._last)
            self._last, self._read = {}, 0
