"""Selects the rows that may leave the store: consent, reviews, retractions, split and exclusion marks.

Owns the reasons for leaving rows out of an export, and their counts. All writers of `formats` read the store through
it. Never decides the shape of a row; the caller passes the function that removes private data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

from afterword.records import BESIDE, Feedback, Interaction, Json, Record, Turn, content_hash, not_to_imitate
from afterword.store.consent import ConsentFilter
from afterword.store.store import Store

R = TypeVar("R", bound=Record)
SPLITS = ("train", "holdout", "all")


@dataclass
class ExportFilter:
    """Turns, feedback and interactions that may leave in one export."""

    store: Store
    clean: Callable[[Record], Record] | None = None
    """Takes private data out of a turn or feedback; None: rows leave as they are stored."""
    split: str = "all"
    """One of `SPLITS`: what is held out measures every candidate, and must not be trained on elsewhere either."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Number of excluded rows by reason."""

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
                self.left_out[reasons[first] or ""] += 1
                if not kept or kept[0].id in cut:
                    continue
                cut.add(kept[0].id)
            if self._passes(self._wrong_split(any(self._held_out(turn) for turn in chain))):
                yield kept

    def threads(self) -> Iterator[tuple[Turn, list[Json]]]:
        """The last turn of each conversation (or branch of one) with all of its messages, the last answer included."""
        for chain in self.chains():
            turn = self.cleaned(replace(chain[0], messages=tuple(_all_messages(chain))))
            yield turn, [*turn.messages, turn.answer]

    def imitable(self) -> Iterator[Turn]:
        """`turns` without answers that a file excluded, for formats that cannot mark them."""
        for turn in self.turns():
            if not_to_imitate(turn.answer):
                self.left_out["excluded"] += 1
            else:
                yield turn

    def imitable_threads(self) -> Iterator[tuple[Turn, list[Json]]]:
        """`threads` up to the first answer that a file excluded, for formats that cannot mark it."""
        seen: set[str] = set()
        for turn, messages in self.threads():
            first = next((i for i, m in enumerate(messages) if m["role"] == "assistant" and not_to_imitate(m)), None)
            if first is None:
                yield turn, messages
                continue
            self.left_out["excluded"] += 1
            kept = messages[:first]
            while kept and kept[-1]["role"] != "assistant":
                kept.pop()
            name = content_hash(kept)
            if kept and name not in seen:  # branches share their beginning
                seen.add(name)
                yield turn, kept

    def wanted(self) -> Iterator[tuple[Turn, Json]]:
        """Turns with the answer to imitate: the user's edit, or the answer itself where the user was content."""
        for interaction, turn in self.pairs():
            rows = (self.store.find(Feedback, name) for name in interaction.feedback)
            edits = [row for row in rows if row is not None and row.kind == "edited" and row.final_text]
            if edits:
                yield turn, {**turn.answer, "content": self.cleaned(edits[-1]).final_text}
            elif interaction.polarity > 0:
                yield turn, turn.answer

    def preferred(self) -> Iterator[tuple[Turn, Json]]:
        """Turns with the answer that the user preferred: an edit or a demonstration that differs from the answer."""
        for interaction, turn in self.pairs():
            found = (self.store.find(Feedback, name) for name in interaction.feedback)
            rows = [self.cleaned(row) for row in found if row is not None]
            shown = [row for row in rows if row.kind in ("edited", "demonstration")]
            texts = [row.final_text if row.kind == "edited" else row.text for row in shown]
            if texts and texts[-1] and texts[-1] != plain_text(turn.answer):
                yield turn, {"role": "assistant", "content": texts[-1]}

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
            self.left_out[reason] += 1
        return reason is None

    def _wrong_split(self, held_out: bool) -> str | None:
        name = "holdout" if held_out else "train"
        return None if self.split in ("all", name) else name

    def _held_out(self, turn: Turn) -> bool:
        turns, conversations = self._holdout
        return turn.id in turns or turn.conversation in conversations

    @cached_property
    def _withheld(self) -> ConsentFilter:
        return ConsentFilter(self.store)

    @cached_property
    def _holdout(self) -> tuple[set[str], set[str]]:
        if self.split == "all":
            return set(), set()
        return self.store.held_out()


def _beside(turn: Turn) -> str | None:
    """`automated` for the answer to a program's request beside a conversation: a title, a summary."""
    return "automated" if turn.automated in BESIDE else None


def plain_text(message: Json) -> str:
    """The text of a message; parts without text count as empty."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _all_messages(chain: list[Turn]) -> list[Json]:
    """All messages before the last answer of the turns `chain`, newest first: imported turns keep only the last
    messages, the rest is in the turns before."""
    tails: list[list[Json]] = []
    turn = chain[0]
    for before in chain[1:]:
        cut = _position(turn, before.answer)
        if cut is None:
            break
        tails.append([before.answer, *turn.messages[cut + 1 :]])
        turn = before
    return [*turn.messages, *(message for tail in reversed(tails) for message in tail)]


def _position(turn: Turn, answer: Json) -> int | None:
    """Where the answer of the turn before lies in this turn's messages, None when the history was rewritten."""
    last = next((i for i in range(len(turn.messages) - 1, -1, -1) if turn.messages[i].get("role") == "assistant"), None)
    return last if last is not None and turn.messages[last].get("content") == answer.get("content") else None
