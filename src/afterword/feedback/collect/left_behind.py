"""Follow-ups that the conversation did not go on from, which is how a program's request beside it looks afterwards.

A front end's request for a title never stands in a later history: the user's next message continues the answer before
it. Owns that sign, which needs no words and no language. Reads the store, never writes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from afterword.records import Feedback, Skip, Turn, content_hash
from afterword.store import Store

REASON = "left_behind"
TIMES = 2
"""Conversations that must have left the same text behind before it is taken for a template everywhere."""
SHORTEST = 40
"""Characters of a text that may be a template; a shorter one is said by many people."""


class LeftBehind:
    """What conversations left behind, as far as it was seen."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._turns: dict[str, set[str]] | None = None
        """Turns on which a text was left behind, by the hash of the text."""

    def among(self, rows: Mapping[str, Sequence[Feedback]], turns: Mapping[str, Turn]) -> frozenset[str]:
        """Ids of follow-ups that were left behind, of the feedback on some turns.

        Only for what the gateway saw: in a file that holds several branches a person wrote each of them.
        """
        follow_ups = {
            turn: [f for f in group if f.kind == "follow_up" and f.source == "detector" and f.next_turn]
            for turn, group in rows.items()
            if turn in turns and turns[turn].source == "gateway"
        }
        named = [f.next_turn for group in follow_ups.values() for f in group if f.next_turn]
        if not named:
            return frozenset()
        went_on = self._store.continued(named)
        found = set()
        for group in follow_ups.values():
            for at, row in enumerate(group):
                if row.next_turn in went_on:
                    continue
                if any(later.next_turn in went_on and later.text != row.text for later in group[at + 1 :]):
                    self._add([row])
                    found.add(row.id)
                elif self._is_template(row):
                    found.add(row.id)
        return frozenset(found)

    def _is_template(self, row: Feedback) -> bool:
        text = row.text or ""
        return len(text) >= SHORTEST and len(self._known().get(content_hash(text), set()) - {row.turn}) >= TIMES

    def _add(self, rows: Iterable[Feedback]) -> None:
        known = self._known()
        for row in rows:
            if row.text and len(row.text) >= SHORTEST:
                known[content_hash(row.text)].add(row.turn)

    def _known(self) -> dict[str, set[str]]:
        """By text, from what earlier collections skipped; read when it is first needed."""
        if self._turns is None:
            self._turns = defaultdict(set)
            ids = [skip.feedback for skip in self._store.rows(Skip, reason=REASON)]
            self._add([row for _, row in self._store.among(Feedback, "id", ids)])
        return self._turns
