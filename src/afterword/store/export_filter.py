"""What of the store may leave: consent, review and the split, for shapes that cannot say any of it themselves.

Owns what is left out of an export, and counts it by reason. Never decides how a row looks, never changes one; what is
private is decided by the function that is passed in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from afterword.records import BESIDE, Feedback, Interaction, Record, Turn
from afterword.store.consent import Withheld
from afterword.store.store import Store

R = TypeVar("R", bound=Record)
SPLITS = ("train", "holdout", "all")


@dataclass
class View:
    """Turns, feedback and interactions that may leave in one export."""

    store: Store
    clean: Callable[[Record], Record] | None = None
    """Takes private data out of a turn or feedback; None: rows leave as they are stored."""
    split: str = "all"
    """One of `SPLITS`: what is held out measures every candidate, and must not be trained on elsewhere either."""
    left: Counter[str] = field(default_factory=Counter)
    """What was left out, by reason."""

    def cleaned(self, record: R) -> R:
        """A record without private data."""
        if self.clean is None:
            return record
        found = self.clean(record)
        assert isinstance(found, type(record))
        return found

    def turns(self) -> Iterator[Turn]:
        """Turns that may be trained on, each as it may leave."""
        for turn in self.store.rows(Turn):
            reason = self._withheld.reason(turn) or _beside(turn)
            if self._passes(reason or self._wrong_split(self._held_out(turn))):
                yield self.cleaned(turn)

    def feedback(self) -> Iterator[tuple[Feedback, Turn | None]]:
        """Feedback that was not taken back, with its turn, if that is known."""
        gone, changed = self.store.retracted(), self.store.superseded()
        for row in self.store.rows(Feedback):
            if row.kind == "retraction":
                continue
            turn = self.store.find(Turn, row.turn)
            withheld = None if turn is None else self._withheld.reason(turn)
            if self._passes("retracted" if row.id in gone else "changed" if row.id in changed else withheld):
                yield row, turn

    def pairs(self) -> Iterator[tuple[Interaction, Turn]]:
        """Usable interactions with their turns, each as it may leave."""
        barred = self.store.barred()
        for row in self.store.rows(Interaction):
            turn = self.store.find(Turn, row.turn)
            reason = barred(row) or ("no_turn" if turn is None else self._withheld.reason(turn))
            if self._passes(reason or self._wrong_split(row.split == "holdout")) and turn is not None:
                yield row, self.cleaned(turn)

    def chains(self) -> Iterator[list[Turn]]:
        """The turns of each conversation, or branch of one, newest first, up to the last before one without consent
        or with the words of such a one in its history."""
        cut: set[str] = set()
        for leaf in self.store.leaves():
            if not self._passes(_beside(leaf)):
                continue
            chain = self._chain(leaf)
            reasons = [self._withheld.reason(turn) for turn in chain]
            first = max((n for n, reason in enumerate(reasons) if reason is not None), default=-1)
            kept = chain[first + 1 :]
            if first >= 0:
                self.left[reasons[first] or ""] += 1
                if not kept or kept[0].id in cut:
                    continue
                cut.add(kept[0].id)
            if self._passes(self._wrong_split(any(self._held_out(turn) for turn in chain))):
                yield kept

    def _chain(self, turn: Turn) -> list[Turn]:
        found, seen = [turn], {turn.id}
        while turn.previous is not None and turn.previous not in seen:
            before = self.store.find(Turn, turn.previous)
            if before is None:
                break
            found.append(before)
            seen.add(before.id)
            turn = before
        return found

    def _passes(self, reason: str | None) -> bool:
        if reason is not None:
            self.left[reason] += 1
        return reason is None

    def _wrong_split(self, held_out: bool) -> str | None:
        name = "holdout" if held_out else "train"
        return None if self.split in ("all", name) else name

    def _held_out(self, turn: Turn) -> bool:
        turns, conversations = self._holdout
        return turn.id in turns or turn.conversation in conversations

    @cached_property
    def _withheld(self) -> Withheld:
        return Withheld(self.store)

    @cached_property
    def _holdout(self) -> tuple[set[str], set[str]]:
        if self.split == "all":
            return set(), set()
        return self.store.held_out()


def _beside(turn: Turn) -> str | None:
    """`automated` for the answer to a program's request beside a conversation: a title, a summary."""
    return "automated" if turn.automated in BESIDE else None
