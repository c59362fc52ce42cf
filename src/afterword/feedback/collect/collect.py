"""Collects: pages through undecided feedback, lets `decide` decide it, writes the interactions and skips, counts them.

Ids are content hashes, so a second run, or a second collector at the same time, changes nothing. Never updates a row.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from afterword.feedback.collect.decide import CaseDecision, without_repetition
from afterword.feedback.collect.episodes import collect_episodes
from afterword.feedback.collect.neighbours import LeftBehind, accepted_attempt
from afterword.feedback.collect.signals import FeedbackCase
from afterword.feedback.collect.workers import decided
from afterword.feedback.settings import CollectSettings
from afterword.feedback.text.minhash import DuplicateIndex, is_old, unpacked
from afterword.records import Feedback, Interaction, Record, Skip, Turn
from afterword.store import Outcome, Store
from afterword.store.attribution import ConversationRoots

PAGE = 1000
"""Feedback rows that are decided and committed together."""
IN_FLIGHT = 2
"""Pages that may wait for their commit while the next one is read."""


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
    episodes: Counter[str] = field(default_factory=Counter)
    """Episodes by what became of them: `collected`, `running` or `no_turns`."""
    episode_turns: Counter[str] = field(default_factory=Counter)
    """Their turns: `kept`, or why not."""

    def add(self, decision: CaseDecision) -> None:
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
        for name in ("skipped", "waiting", "episodes", "episode_turns"):
            plain[name] = _sorted(plain[name])
        plain["kinds"] = {kind: _sorted(self.kinds[kind]) for kind in sorted(self.kinds)}
        return plain


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def collect(
    store: Store, settings: CollectSettings | None = None, *, progress: Callable[[int], None] | None = None,
    processes: int = 1,
) -> Funnel:  # fmt: skip
    """Decide all undecided feedback on known turns and write the interactions and skips.

    With more than one of `processes`, all but the first 2,000 rows are decided by that many child processes.
    `progress` is called after each page with the number of feedback rows so far. Raises StoreError when the
    database cannot be read or written; what was committed before stays, and the next run goes on from there.
    """
    settings = settings or CollectSettings()
    funnel = Funnel(captured=store.count(Turn), held=store.held())
    roots = ConversationRoots(store)
    writes: deque[Future[list[Outcome]]] = deque()
    index: DuplicateIndex | None = None
    for decisions in decided(_pages(store, roots, settings), settings, processes):
        if index is None:  # only when there is something to decide
            index = _index(store)
        records: list[Record] = []
        for decision in decisions:
            without_repetition(decision, index, settings)
            funnel.add(decision)
            records += [skip for _, skip in decision.skips]
            if decision.interaction is not None:
                records.append(decision.interaction)
        writes.append(store.submit(records))
        while len(writes) > IN_FLIGHT:
            _settle(funnel, writes.popleft())
        if progress is not None:
            progress(funnel.feedback)
    while writes:
        _settle(funnel, writes.popleft())
    collect_episodes(store, settings, funnel)
    return funnel


def _index(store: Store) -> DuplicateIndex:
    """What earlier collections kept and nobody took back or changed."""
    index, gone = DuplicateIndex(), store.retracted() | store.superseded()
    for made in store.rows(Interaction):
        if made.sketch and not gone.intersection(made.feedback):
            index.add(made.turn, made.user, unpacked(made.sketch), old=is_old(made.sketch))
    return index


def _settle(funnel: Funnel, write: Future[list[Outcome]]) -> None:
    outcomes = write.result()
    stored = outcomes.count("stored")
    funnel.stored += stored
    funnel.known += len(outcomes) - stored


def _pages(store: Store, roots: ConversationRoots, settings: CollectSettings) -> Iterator[list[FeedbackCase]]:
    last, left = 0, LeftBehind(store)
    while page := store.undecided_after(last, PAGE):
        first, last = page[0][0], page[-1][0]
        yield list(_cases(store, roots, left, settings, first, list(dict.fromkeys(turn for _, turn in page))))


def _cases(
    store: Store, roots: ConversationRoots, left: LeftBehind, settings: CollectSettings, first: int, names: list[str]
) -> Iterator[FeedbackCase]:
    """The cases of a page. A turn whose oldest undecided row lies before the page had its turn on that page."""
    turns = {turn.id: turn for _, turn in store.among(Turn, "id", names)}
    rows: dict[str, list[tuple[int, Feedback]]] = defaultdict(list)
    for seq, row in store.among(Feedback, "turn", names):
        rows[row.turn].append((seq, row))
    earlier: dict[str, list[Interaction]] = defaultdict(list)
    for _, interaction in store.among(Interaction, "turn", names):
        earlier[interaction.turn].append(interaction)
    decided = {skip.feedback for _, skip in store.among(Skip, "turn", names)}
    decided.update(f for made in earlier.values() for i in made for f in i.feedback)
    every = [f.id for group in rows.values() for _, f in group]
    retracted = frozenset(f.retracts for _, f in store.among(Feedback, "retracts", every) if f.retracts)
    changed = store.superseded(names)
    out = retracted | changed
    behind = left.among({n: [f for _, f in group if f.id not in out] for n, group in rows.items()}, turns)
    now = time.time()
    for name in names:
        open_rows = [(s, f) for s, f in rows[name] if f.id not in decided and f.kind != "retraction"]
        if not open_rows or open_rows[0][0] < first:
            continue
        turn, feedback = turns[name], tuple(f for _, f in open_rows)
        retry = tuple(f for f in feedback if f.kind in {"retried", "regenerated"} and f.id not in retracted)
        yield FeedbackCase(
            turn=turn,
            feedback=feedback,
            retracted=retracted,
            changed=frozenset(changed),
            left_behind=behind.intersection(f.id for f in feedback),
            earlier=tuple(i for i in earlier[name] if not out.intersection(i.feedback)),
            conversation=roots.of(turn),
            peer=accepted_attempt(store, turn, retry, settings) if retry else None,
            now=now,
        )
