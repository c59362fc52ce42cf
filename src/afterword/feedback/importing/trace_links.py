"""Scores on a whole trace find the answer that they are about.

Langfuse exports generations and scores as rows of files of their own. A generation keeps its own id as the id of its
turn; a score often names nothing but the trace. Owns which turn that is: the last generation of the trace. Kept in the
store, for the scores may come with another import. Never decides what a score says.
"""

from __future__ import annotations

from dataclasses import replace

from afterword.feedback.langfuse import trace_of
from afterword.records import Feedback, Json, Record, Turn
from afterword.store import Store

WAITING = 1000
"""Generations whose traces are noted together. A mark lies three groups of the sink behind what was read, and so many
give fewer records than that: no kill passes a trace over."""


class Traces:
    """The last generation of each trace, for one import."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._last: dict[str, tuple[str, float]] = {}
        self._read = 0

    def link(self, row: Json, records: list[Record]) -> list[Record]:
        """The records of a row, scores on a trace as feedback on its last generation."""
        trace = trace_of(row)
        if trace is None:
            return records
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
        """Note what was found."""
        if self._last:
            self._store.note_traces(self._last)
            self._last, self._read = {}, 0
