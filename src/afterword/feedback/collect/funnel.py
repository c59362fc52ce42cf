"""The yield funnel of one collection: how many rows came in, what became of each, and why. Only counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from afterword.feedback.collect.decide import Decision


@dataclass(slots=True)
class Funnel:
    """Counts of one run. `feedback` = `kept` + all of `skipped` + all of `waiting`;
    `interactions` = `train` + `holdout`."""

    captured: int = 0
    """Turns in the store."""
    held: int = 0
    """Feedback in the store whose turn has not arrived."""
    paired: int = 0
    """Turns with feedback that was looked at in this run."""
    feedback: int = 0
    """Feedback rows that were looked at."""
    kept: int = 0
    """Rows that became part of an interaction."""
    interactions: int = 0
    train: int = 0
    holdout: int = 0
    off_policy: int = 0
    """Interactions whose turn has no served token ids."""
    without_hindsight: int = 0
    """Interactions that only say yes: there is no privileged text to distil from."""
    redacted: int = 0
    """Interactions whose words held private data, which was taken out."""
    own_wishes: int = 0
    """Interactions of scope `user`: standing wishes of one person."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Rows by reason."""
    waiting: Counter[str] = field(default_factory=Counter)
    """Rows left for a later run, by reason."""
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    """Kind -> what became of its rows: `kept`, `waiting` or a reason."""
    stored: int = 0
    """Rows that this run wrote."""
    known: int = 0
    """Rows that another collector had written first."""

    def add(self, decision: Decision) -> None:
        """Count one decision."""
        self.paired += 1
        for row in decision.kept:
            self._count(row.kind, "kept")
        for row, skip in decision.skips:
            self._count(row.kind, skip.reason)
            self.skipped[skip.reason] += 1
        for row, reason in decision.waiting:
            self._count(row.kind, "waiting")
            self.waiting[reason] += 1
        self.kept += len(decision.kept)
        made = decision.interaction
        if made is not None:
            self.interactions += 1
            self.train += made.split == "train"
            self.holdout += made.split == "holdout"
            self.off_policy += not made.on_policy
            self.without_hindsight += not made.hindsight
            self.redacted += bool(made.redacted)
            self.own_wishes += made.scope == "user"

    def _count(self, kind: str, outcome: str) -> None:
        self.feedback += 1
        self.kinds.setdefault(kind, Counter())[outcome] += 1

    def to_dict(self) -> dict[str, Any]:
        """All counts as JSON; tables sorted by count, then name."""
        plain: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        for name in ("skipped", "waiting"):
            plain[name] = _sorted(plain[name])
        plain["kinds"] = {kind: _sorted(self.kinds[kind]) for kind in sorted(self.kinds)}
        return plain


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
