"""Selects the interactions of a round and their weights: scopes, user caps, contradictions, staleness, slices.

Owns the choice between collection and training. Reads the store, never writes; every exclusion has a counted reason.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from afterword.config import Count, PositiveShare, check_section
from afterword.feedback.select.review_queue import ReviewSettings, blocked
from afterword.kinds import spoken
from afterword.records import Feedback, Interaction, Release, SignalRatio, Turn
from afterword.store import Store
from afterword.store.channels import covers
from afterword.store.consent import ConsentFilter


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectSettings:
    """`[select]`: selection of training interactions."""

    min_users: Count = 2
    """Distinct users required in a slice of a shared adapter. Does not apply to a store with a single user."""
    max_user_share: PositiveShare = 0.25
    """Largest share of one user in the weight of a slice; with few users 1.5 times the equal share."""
    majority: float = 3.0
    """Ratio of users required to follow one side of a contradiction; below it neither side is used."""
    staleness: PositiveShare = 0.5
    """Weight factor per release since the turn was answered."""
    max_releases: int = 4
    """Turns more releases old than this are excluded."""
    min_effective: float = 16.0
    """Effective number of interactions, (sum w)^2 / sum w^2, of a slice that is ready for `cycle --watch`."""
    min_relevance: float = 0.5
    """Mean relevance times confidence of a slice that is ready for `cycle --watch`."""
    min_signal: float = 0.0
    """Minimum signal ratio of an interaction: the model's signal under the user's words to that under other words
    (`afterword measure`); 0 sets none."""

    def __post_init__(self) -> None:
        check_section("select", self)


@dataclass(frozen=True, slots=True)
class Slice:
    """One task's part of a round."""

    task: str | None
    interactions: int
    users: int
    effective: float
    """(sum w)^2 / sum w^2 over the interactions with words: praise alone teaches a teacher nothing."""
    relevance: float
    """Mean relevance times confidence of the same."""
    influence: dict[str, float]
    """User -> share of the slice's weight, after the caps; the ten largest."""

    def ready(self, settings: SelectSettings) -> bool:
        """Is there enough interpretable signal?"""
        return self.effective >= settings.min_effective and self.relevance >= settings.min_relevance


@dataclass(slots=True)
class Selection:
    """Trainable interactions: `weights` maps an interaction to the factor on its own weight."""

    weights: dict[str, float] = field(default_factory=dict)
    rows: list[Interaction] = field(default_factory=list, repr=False)
    """The interactions of `weights`, oldest first."""
    worded: set[str] = field(default_factory=set)
    """Those of them with words for a teacher: what a round begins for."""
    left: Counter[str] = field(default_factory=Counter)
    slices: list[Slice] = field(default_factory=list)
    contradictions: list[dict[str, Any]] = field(default_factory=list)
    """Axes on which users of a slice want opposite things: {task, axis, less, more, followed}, numbers of users."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible, without the weights."""
        slices = [{name: getattr(one, name) for name in Slice.__slots__} for one in self.slices]
        return {
            "interactions": len(self.weights),
            "left": dict(self.left.most_common()),
            "slices": slices,
            "contradictions": self.contradictions,
        }


def select(
    store: Store,
    settings: SelectSettings | None = None,
    review: ReviewSettings | None = None,
    *,
    channel: str = "default",
    tasks: Iterable[str | None] | None = None,
    now: float | None = None,
    episodes: bool = False,
) -> Selection:
    """Choose among the training interactions that no released adapter has learned; only those of `tasks`, if given.

    A channel of a user, team or task learns from what they said and about nothing else; a user's own wishes are for
    that user's channel. With `episodes` it chooses among the turns of episodes instead.

    Raises StoreError when the store cannot be read.
    """
    settings, review = settings or SelectSettings(), review or ReviewSettings()
    spent = store.spent(channel)
    rows = [row for row in store.usable("train", episodes=episodes) if row.id not in spent]
    chosen = Selection()
    held = blocked(auditable(store), store.reviews(), review, time.time() if now is None else now)
    fresh = _fresh(store, rows, settings, channel)
    weak = _weak(store, settings)
    alone = channel.startswith("user:") or len(_users(store, rows)) <= 1
    carrying = ConsentFilter(store).among([row.turn for row in rows])
    by_task: dict[str | None, list[Interaction]] = defaultdict(list)
    wanted = None if tasks is None else set(tasks)
    for row in rows:
        reason = carrying.get(row.turn) or held.get(row.id)
        reason = reason or ("expired" if row.id not in fresh else weak.get(row.id))
        if reason is None and not covers(channel, user=row.user, team=row.team, task=row.task):
            reason = "other_channel"
        if reason is None and wanted is not None and row.task not in wanted:
            reason = "other_slice"
        if reason is not None:
            chosen.left[reason] += 1
        else:
            by_task[row.task].append(row)
    wishes = {} if alone else _wishes(store, [row for group in by_task.values() for row in group])
    for task, group in by_task.items():
        _slice(chosen, task, group, fresh, settings, None if alone else wishes)
    chosen.rows = [row for row in rows if row.id in chosen.weights]
    return chosen


def auditable(store: Store) -> list[Interaction]:
    """Interactions that the review queue draws from: all without retracted feedback."""
    gone = store.retracted()
    return [row for row in store.rows(Interaction) if not gone.intersection(row.feedback)]


def _wishes(store: Store, rows: list[Interaction]) -> dict[str, dict[str, int]]:
    """Interaction -> `directions` of what the user said to the assistant: edits and outputs are no wishes."""
    from afterword.feedback.text.guards import directions  # loads tables, which settings alone do not need

    several = {name: row.id for row in rows if len(row.feedback) > 1 for name in row.feedback}
    said: dict[str, list[str]] = defaultdict(list)
    for _, feedback in store.among(Feedback, "id", list(several)) if several else ():
        said[several[feedback.id]].append(spoken(feedback.kind, feedback.text))
    return {
        row.id: directions("\n".join(said[row.id]) if row.id in said else spoken(row.kind, row.hindsight))
        for row in rows
    }


def _users(store: Store, rows: list[Interaction]) -> set[str | None]:
    """Everybody that the store knows: who asked, and who reacted where the turn names nobody."""
    asked: set[str | None] = {user for user in store.tally(Turn, "user") if user != str(None)}
    silent = [name for row in rows if row.user is None for name in row.feedback]
    said = {feedback.user for _, feedback in store.among(Feedback, "id", silent)} if silent else set()
    return asked | said | {row.user for row in rows if row.user is not None}


def _fresh(store: Store, rows: list[Interaction], settings: SelectSettings, channel: str) -> dict[str, float]:
    """Interaction -> staleness factor; what is too old is missing."""
    served: list[str | None] = [None]
    served += [release.adapter for release in store.rows(Release, channel=channel)]
    last = {adapter: place for place, adapter in enumerate(served)}
    adapters = {turn.id: turn.adapter for _, turn in store.among(Turn, "id", list({row.turn for row in rows}))}
    found: dict[str, float] = {}
    for row in rows:
        age = len(served) - 1 - last.get(adapters.get(row.turn), 0)
        if age <= settings.max_releases:
            found[row.id] = settings.staleness**age
    return found


def _weak(store: Store, settings: SelectSettings) -> dict[str, str]:
    """Interactions whose words say no more about the answer than any words would, as the model itself measures."""
    if settings.min_signal <= 0:
        return {}
    rows = {row.interaction: row for row in store.rows(SignalRatio)}
    return {name: "weak_signal" for name, row in rows.items() if row.ratio < settings.min_signal}


def _slice(
    chosen: Selection,
    task: str | None,
    group: list[Interaction],
    fresh: dict[str, float],
    settings: SelectSettings,
    wishes: dict[str, dict[str, int]] | None,
) -> None:
    """`wishes` is None where there is only one user."""
    if wishes is not None:
        users = {row.user for row in group}
        if len(users) < settings.min_users:
            chosen.left["too_few_users"] += len(group)
            return
        group = _without_own_wishes(chosen, group, settings, wishes)
        group = _without_contradictions(chosen, task, group, settings, wishes)
    if not group:
        return
    weights = _capped({row.id: row.weight * fresh[row.id] for row in group}, group, settings)
    chosen.weights |= {row.id: weights[row.id] / row.weight if row.weight else 0.0 for row in group}
    chosen.worded |= {row.id for row in group if row.hindsight.strip()}
    chosen.slices.append(_described(task, group, weights))


def _without_own_wishes(
    chosen: Selection, group: list[Interaction], settings: SelectSettings, wishes: dict[str, dict[str, int]]
) -> list[Interaction]:
    """A standing wish of one user is shared only when enough others of the slice want the same."""
    wanting: dict[tuple[str, int], set[str | None]] = defaultdict(set)
    for row in group:
        for wish in wishes[row.id].items():
            wanting[wish].add(row.user)
    kept: list[Interaction] = []
    for row in group:
        mine = wishes[row.id].items()
        backed = bool(mine) and all(len(wanting[wish]) >= max(settings.min_users, 2) for wish in mine)
        if row.scope == "user" and not backed:
            chosen.left["own_wish"] += 1
        else:
            kept.append(row)
    return kept


def _without_contradictions(
    chosen: Selection,
    task: str | None,
    group: list[Interaction],
    settings: SelectSettings,
    wishes: dict[str, dict[str, int]],
) -> list[Interaction]:
    """Where users want opposite things, the side of a clear majority of users is followed, else neither."""
    sides: dict[str, dict[int, set[str | None]]] = defaultdict(lambda: {-1: set(), 1: set()})
    for row in group:
        for axis, sign in wishes[row.id].items():
            sides[axis][sign].add(row.user)
    refused: set[tuple[str, int]] = set()
    for axis, users in sides.items():
        less, more = len(users[-1] - users[1]), len(users[1] - users[-1])
        if not less or not more:
            continue
        followed = -1 if less >= settings.majority * more else 1 if more >= settings.majority * less else 0
        refused |= {(axis, sign) for sign in (-1, 1) if sign != followed}
        row_ = {"task": task, "axis": axis, "less": less, "more": more, "followed": followed}
        chosen.contradictions.append(row_)
    kept = [row for row in group if not refused.intersection(wishes[row.id].items())]
    if len(kept) < len(group):
        chosen.left["users_disagree"] += len(group) - len(kept)
    return kept


def _capped(weights: dict[str, float], group: list[Interaction], settings: SelectSettings) -> dict[str, float]:
    """Scale down who has more than the largest allowed share, until nobody has."""
    mine: dict[str | None, list[str]] = defaultdict(list)
    for row in group:
        mine[row.user].append(row.id)
    share = max(settings.max_user_share, 1.5 / len(mine)) if len(mine) > 1 else 1.0
    if share >= 1.0:
        return weights
    sums = {user: sum(weights[name] for name in names) for user, names in mine.items()}
    cap = _cap(sorted(sums.values(), reverse=True), share)
    factor = {user: min(1.0, cap / total) if total else 1.0 for user, total in sums.items()}
    return {name: weights[name] * factor[user] for user, names in mine.items() for name in names}


def _cap(sums: list[float], share: float) -> float:
    """The largest sum c such that, with every larger one lowered to c, none is above `share` of the total: the first
    k of the descending `sums` are lowered, c = share * (k * c + rest)."""
    rest = sum(sums)
    for k, largest in enumerate(sums):
        cap = share * rest / (1 - share * k) if share * k < 1 else 0.0
        if largest <= cap:
            return cap
        rest -= largest
    return sums[-1]


def _described(task: str | None, group: list[Interaction], weights: dict[str, float]) -> Slice:
    total = sum(weights.values())
    influence: dict[str, float] = defaultdict(float)
    for row in group:
        influence[row.user or ""] += weights[row.id] / total if total else 0.0
    largest = sorted(influence.items(), key=lambda item: (-item[1], item[0]))[:10]
    worded = [row for row in group if row.hindsight.strip()]
    signal = sum(weights[row.id] for row in worded)
    squares = sum(weights[row.id] ** 2 for row in worded)
    from afterword.feedback.text.followup_classifier import RELEVANCE  # loads tables

    known: dict[str, float] = {str(name): value for name, value in RELEVANCE.items()}
    relevance = [known.get(row.category, 1.0) * row.confidence for row in worded]
    return Slice(
        task=task,
        interactions=len(group),
        users=len({row.user for row in group}),
        effective=signal * signal / squares if squares else 0.0,
        relevance=sum(relevance) / len(relevance) if relevance else 0.0,
        influence={user: round(part, 4) for user, part in largest},
    )
