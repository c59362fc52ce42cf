"""Counts what a store holds before anything is trained: what users said, how much is usable, and why the rest is not.

Only reads. Examples are quoted as collection stored them, without private data.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from afterword.chat.canonical import text_of
from afterword.feedback.select.select import Selection
from afterword.records import Feedback, Interaction, Json, Skip, Turn
from afterword.store import Store

EXAMPLES = 3
"""Examples of each group."""
_LONGEST = 160
"""Characters of an example."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What users said about answers in one way."""

    category: str
    """Category of the detectors, or the kind of feedback."""
    polarity: int
    count: int
    examples: tuple[tuple[str, str], ...]
    """(request, what the user said)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """What is in a store."""

    turns: int
    users: int
    """Named ones."""
    feedback: dict[str, int]
    """Rows by kind."""
    said: tuple[Said, ...]
    """The most frequent first."""
    usable: int
    """Interactions that may be trained."""
    held_out: int
    without_ids: int
    """Of the usable ones, those without served token ids: they are trained off-policy."""
    left: dict[str, int]
    """Interactions that are not selected, by reason."""
    skipped: dict[str, int]
    """Feedback that became no interaction, by reason."""
    private: dict[str, int]
    """Interactions in which private data of a kind was replaced."""

    def to_dict(self) -> Json:
        """JSON-compatible."""
        return asdict(self)


def digest(store: Store, selection: Selection) -> Digest:
    """Count the rows of a store.

    Args:
        store: After a collection.
        selection: What may be trained now.
    """
    rows = list(store.rows(Interaction))
    groups: dict[tuple[str, int], list[Interaction]] = defaultdict(list)
    for row in rows:
        if row.hindsight:
            groups[row.category or row.kind, row.polarity].append(row)
    said = tuple(
        Said(category=category, polarity=polarity, count=len(some), examples=_examples(store, some))
        for (category, polarity), some in sorted(groups.items(), key=lambda one: -len(one[1]))
    )
    users: set[str] = set()
    turns = 0
    for turn in store.rows(Turn):
        turns += 1
        if turn.user:
            users.add(turn.user)
    chosen = [row for row in rows if row.id in selection.weights]
    return Digest(
        turns=turns,
        users=len(users),
        feedback=dict(Counter(row.kind for row in store.rows(Feedback)).most_common()),
        said=said,
        usable=len(chosen),
        held_out=sum(row.split == "holdout" for row in rows),
        without_ids=sum(not row.on_policy for row in chosen),
        left=dict(selection.left.most_common()),
        skipped=dict(Counter(row.reason for row in store.rows(Skip)).most_common()),
        private=dict(Counter(kind for row in rows for kind in row.redacted).most_common()),
    )


def _examples(store: Store, rows: Sequence[Interaction]) -> tuple[tuple[str, str], ...]:
    """The shortest remarks: they say most in a line. Each request once."""
    found: dict[str, str] = {}
    for row in sorted(rows, key=lambda one: (len(one.hindsight), one.id)):
        turn = store.find(Turn, row.turn)
        asked = next((m for m in reversed(turn.messages) if m.get("role") == "user"), None) if turn else None
        found.setdefault(_line(text_of(asked.get("content")) if asked else ""), _line(row.hindsight))
        if len(found) == EXAMPLES:
            break
    return tuple(found.items())


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
