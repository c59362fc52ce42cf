"""Feedback to interactions and skips: the thin driver around the pure decisions.

Owns paging through what is undecided, the split's root conversation and the writing in groups. Ids are content
hashes, so a second run, or a second collector at the same time, changes nothing. Never updates a row.
"""

from __future__ import annotations

import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from afterword.feedback.collect.decide import without_repetition
from afterword.feedback.collect.funnel import Funnel
from afterword.feedback.collect.left_behind import LeftBehind
from afterword.feedback.collect.peers import accepted_attempt
from afterword.feedback.collect.signals import Case
from afterword.feedback.collect.workers import decided
from afterword.feedback.settings import CollectSettings
from afterword.feedback.text.minhash import Index, is_old, unpacked
from afterword.records import Feedback, Interaction, Record, Skip, Turn
from afterword.store import Outcome, Store

PAGE = 1000
"""Feedback rows that are decided and committed together."""
ROOTS = 50_000
"""Conversations whose root is remembered."""
IN_FLIGHT = 2
"""Pages that may wait for their commit while the next one is read."""


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
    roots = _Roots(store)
    writes: deque[Future[list[Outcome]]] = deque()
    index: Index | None = None
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
    return funnel


def _index(store: Store) -> Index:
    """What earlier collections kept and nobody took back or changed."""
    index, gone = Index(), store.retracted() | store.superseded()
    for made in store.rows(Interaction):
        if made.sketch and not gone.intersection(made.feedback):
            index.add(made.turn, made.user, unpacked(made.sketch), old=is_old(made.sketch))
    return index


def _settle(funnel: Funnel, write: Future[list[Outcome]]) -> None:
    outcomes = write.result()
    stored = outcomes.count("stored")
    funnel.stored += stored
    funnel.known += len(outcomes) - stored


def _pages(store: Store, roots: _Roots, settings: CollectSettings) -> Iterator[list[Case]]:
    last, left = 0, LeftBehind(store)
    while page := store.undecided_after(last, PAGE):
        first, last = page[0][0], page[-1][0]
        yield list(_cases(store, roots, left, settings, first, list(dict.fromkeys(turn for _, turn in page))))


def _cases(
    store: Store, roots: _Roots, left: LeftBehind, settings: CollectSettings, first: int, names: list[str]
) -> Iterator[Case]:
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
        yield Case(
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


class _Roots:
    """Which conversation a turn belongs to: its own name, else that of the nearest turn before it that has one,
    else the id of the first turn. A conversation that is never named stays together."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[str, str] = OrderedDict()

    def of(self, turn: Turn) -> str:
        if turn.conversation is not None:
            return turn.conversation
        root = turn.id if turn.previous is None else self._known.get(turn.previous) or self._walk(turn)
        self._known[turn.id] = root
        if len(self._known) > ROOTS:
            self._known.popitem(last=False)
        return root

    def _walk(self, turn: Turn) -> str:
        root = turn.id
        for name, conversation in self._store.ancestors(turn.id):
            root = name
            if conversation is not None:
                return conversation
        return root
