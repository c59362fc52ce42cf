"""What users made of the turns of two arms, figure by figure, kept up to date event by event.

Owns which feedback counts as what, and which denominator each figure has. Never decides, never writes. Words (a
follow-up, a comment, an edit) are read by a function that the caller brings, because reading them is the work of
another room.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import orjson

from afterword.records import Feedback, Json, Turn
from afterword.release.always_valid import Arm, Interval
from afterword.store import Store
from afterword.store.polling import LiveFeedback, LiveTurn
from afterword.store.votes import VOTE, Vote, superseded, voter_of

Reader = Callable[[Turn, Feedback], int]
"""Does the user say yes (+1), no (-1) or neither (0)? For `edited`: -1 when anything changed."""
Basis = Literal["judged", "turns", "timed"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a comparison."""

    name: str
    basis: Basis
    """Of which turns: those that a user reacted to, all, or those with a time."""
    better: Literal["higher", "lower"]
    limit: str
    """The term that says how much worse is too much; approval decides and has none."""
    says: str


FIGURES = (
    Figure("approval", "judged", "higher", "", "approval (1 content, -1 corrected) a judged turn"),
    Figure("acceptance", "turns", "higher", "max_rise", "turns that were accepted"),
    Figure("edits", "turns", "lower", "max_rise", "turns that were edited"),
    Figure("retries", "turns", "lower", "max_rise", "turns that were asked again"),
    Figure("complaints", "turns", "lower", "max_rise", "turns that were complained about"),
    Figure("abandonment", "turns", "lower", "max_rise", "turns that were left or stopped"),
    Figure("errors", "turns", "lower", "max_errors", "turns that failed"),
    Figure("latency", "timed", "lower", "max_slower", "seconds a token (logarithm)"),
)

PLAIN: dict[str, str] = {
    "accepted": "acceptance", "copied": "acceptance", "saved": "acceptance", "tool_approved": "acceptance",
    "retried": "retries", "regenerated": "retries", "abandoned": "abandonment", "stopped": "abandonment",
    "demonstration": "complaints", "reverted": "complaints", "tool_rejected": "complaints",
}  # fmt: skip
"""Kinds that say it by themselves."""
WORDS = ("follow_up", "comment", "edited")
EARLY = 10_000
"""Turns whose feedback waits for them at most."""
CORRECTED = frozenset(("edits", "retries", "complaints", "errors"))
"""Any of these, and the user did not get what they wanted. Leaving is too weak a sign for that."""


@dataclass(slots=True)
class Seen:
    """A turn in one of the arms, with what was made of it."""

    side: Side
    unit: str
    user: str | None = None
    """Who asked."""
    flags: Counter[str] | None = None
    """None while nobody reacted: most turns of a busy server stay so."""
    approval: int | None = None
    """-1, 0 or 1; None while nobody judged."""


@dataclass(slots=True)
class Side:
    """One arm; each figure is counted on its own kind of turns."""

    turns: Arm = field(default_factory=Arm)
    judged: Arm = field(default_factory=Arm)
    timed: Arm = field(default_factory=Arm)

    def arm(self, figure: Figure) -> Arm:
        """The sums that hold a figure."""
        return self.turns if figure.basis == "turns" else self.judged if figure.basis == "judged" else self.timed

    def to_dict(self) -> Json:
        """Counts and figures for a person."""
        shown: Json = {"users": len(self.turns.units), "turns": self.turns.turns, "judged": self.judged.turns}
        for figure in FIGURES:
            arm = self.arm(figure)
            value = arm.ratio(figure.name) if arm.turns else None
            if figure.name == "latency":
                shown["seconds_per_token"] = None if value is None else math.exp(value)
            else:
                shown[figure.name] = value
        return shown


class Ledger:
    """The sides of a comparison, by what `side_of` says of each turn (None: it takes no part)."""

    def __init__(self, store: Store, side_of: Callable[[LiveTurn], Side | None], reader: Reader) -> None:
        self._store = store
        self._side_of = side_of
        self._reader = reader
        self._seen: dict[str, Seen] = {}
        self._given: dict[str, tuple[str, str]] = {}
        """Feedback -> its turn and flag, for what is taken back later."""
        self._early: dict[str, list[LiveFeedback]] = {}
        """Feedback on turns that are not known: they take no part, or their row comes later."""
        self._votes: dict[str, list[tuple[Vote, str | None]]] = {}
        """Turn -> its votes that were not taken back, with their flags."""
        self._left: dict[str, list[str]] = {}
        """Turn -> its `abandoned` feedback, as long as nobody came back."""

    def turns(self, rows: Iterable[LiveTurn]) -> None:
        """Take in turns; one that was taken in already changes nothing."""
        for row in rows:
            side = self._side_of(row)
            if side is None or row.id in self._seen:
                continue
            seen = self._seen[row.id] = Seen(side, row.unit, row.user)
            side.turns.turn(row.unit)
            if row.finish_reason == "error":
                self._flag(seen, "errors")
            elif row.finish_reason == "aborted":
                self._flag(seen, "abandonment")
            elif row.seconds and row.tokens:
                side.timed.turn(row.unit)
                side.timed.count(row.unit, "latency", math.log(row.seconds / row.tokens))
            if row.id in self._early:
                self.feedback(self._early.pop(row.id))

    def feedback(self, rows: Sequence[LiveFeedback]) -> None:
        """Take in feedback; what is about turns that take no part changes nothing."""
        mine = []
        for row in rows:
            if row.turn in self._seen:
                mine.append(row)
            else:
                self._early.setdefault(row.turn, []).append(row)
        while len(self._early) > EARLY:
            del self._early[next(iter(self._early))]
        said = self._read_words([row for row in mine if row.kind in WORDS])
        for row in mine:
            if row.kind == "retraction":
                self._take_back(row.retracts)
                self._count_votes(row.turn, without=row.retracts)
                continue
            if row.kind == VOTE:
                self._comes_or_goes(row)
                self._count_votes(row.turn, row)
                continue
            flag = said.get(row.id) if row.kind in WORDS else flag_of(row.kind, row.body)
            self._comes_or_goes(row)
            if flag is not None and row.id not in self._given:
                self._given[row.id] = (row.turn, flag)
                self._flag(self._seen[row.turn], flag)

    def _count_votes(self, turn: str, row: LiveFeedback | None = None, without: str | None = None) -> None:
        """The newest vote of each user counts; one that replaces another takes it back."""
        votes = [pair for pair in self._votes.get(turn, ()) if pair[0].id != without]
        if row is not None and all(vote.id != row.id for vote, _ in votes):
            said = orjson.loads(row.body)
            vote = Vote(row.seq, row.id, turn, voter_of(said, self._seen[turn].user), said.get("occurred_at"))
            votes.append((vote, flag_of(row.kind, row.body)))
        if not votes and turn not in self._votes:
            return
        self._votes[turn] = votes
        lost = superseded(vote for vote, _ in votes)
        for vote, flag in votes:
            if vote.id in lost:
                self._take_back(vote.id)
            elif flag is not None and vote.id not in self._given:
                self._given[vote.id] = (turn, flag)
                self._flag(self._seen[turn], flag)

    def _comes_or_goes(self, row: LiveFeedback) -> None:
        """Who reacts after the application thought that they had left had not."""
        if row.kind == "abandoned":
            self._left.setdefault(row.turn, []).append(row.id)
        elif row.kind != "stopped":
            for name in self._left.pop(row.turn, ()):
                self._take_back(name)

    def _read_words(self, rows: list[LiveFeedback]) -> dict[str, str]:
        """Feedback -> flag, for what is said in words; the turns are fetched for it."""
        if not rows:
            return {}
        turns = {t.id: t for _, t in self._store.among(Turn, "id", list({row.turn for row in rows}))}
        found: dict[str, str] = {}
        for row in rows:
            if row.turn not in turns:
                continue  # its user was forgotten meanwhile
            data = orjson.loads(row.body)
            sign = self._reader(turns[row.turn], Feedback.from_dict({"id": row.id, "created_at": 0.0, **data}))
            if sign:
                found[row.id] = "acceptance" if sign > 0 else "edits" if row.kind == "edited" else "complaints"
        return found

    def _take_back(self, feedback: str | None) -> None:
        given = self._given.pop(feedback or "", None)
        if given is not None:
            self._flag(self._seen[given[0]], given[1], -1)

    def _flag(self, seen: Seen, flag: str, by: int = 1) -> None:
        """A turn counts once for each figure, however often it was said."""
        if seen.flags is None:
            seen.flags = Counter()
        before = seen.flags[flag] > 0
        seen.flags[flag] += by
        after = seen.flags[flag] > 0
        if before != after:
            seen.side.turns.count(seen.unit, flag, 1 if after else -1)
        if flag == "abandonment":
            return
        if seen.approval is None:
            seen.side.judged.turn(seen.unit)
        value = approval_of(seen.flags)
        if value != (seen.approval or 0):
            seen.side.judged.count(seen.unit, "approval", value - (seen.approval or 0))
        seen.approval = value


def approval_of(flags: Counter[str]) -> int:
    """-1 when anything had to be corrected, 1 when it was only accepted, 0 when everything was taken back."""
    if any(flags[flag] > 0 for flag in CORRECTED):
        return -1
    return 1 if flags["acceptance"] > 0 else 0


def flag_of(kind: str, body: bytes) -> str | None:
    """The figure that a feedback without words counts for, None for neither yes nor no."""
    plain = PLAIN.get(kind)
    if plain is not None or kind not in ("rating", "executed", "tests"):
        return plain
    data = orjson.loads(body)
    if kind == "rating":
        value = data.get("value") or 0.0
        return "acceptance" if value > 0 else "complaints" if value < 0 else None
    code = data.get("exit_code")
    return None if code is None else "acceptance" if code == 0 else "complaints"


def shown(interval: Interval) -> Json:
    """An interval as JSON: an end that is not known is null."""
    ends = {"difference": interval.value, "low": interval.low, "high": interval.high}
    return {name: value if math.isfinite(value) else None for name, value in ends.items()}
