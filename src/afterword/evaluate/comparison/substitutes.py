"""Finds further interactions on which adapters that resemble the candidate are honest witnesses.

A substitute has not seen the conversations that it is measured on. Which ones it is measured on depends on time and on
the hash of the conversation alone, as the held-out split does, and never on what selection chose to train: else their
mean would not be that of the held-out ones (`stats.control_variate`). Never trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from afterword.evaluate.comparison.answers import Arm
from afterword.evaluate.comparison.heldout import Fits, HeldOut, completed
from afterword.records import Candidate, Interaction, Turn, content_hash
from afterword.store import Store
from afterword.store.attribution import ConversationRoots
from afterword.store.channels import covers
from afterword.store.files import folder_hash


@dataclass(frozen=True, slots=True)
class Substitute:
    """An adapter that stands in for the candidate on conversations that it has not seen."""

    arm: Arm
    items: Sequence[HeldOut]
    since: float
    """All of `items` are from after this time, and so are the held-out interactions that they are compared with."""


def from_folds(
    store: Store, candidate: Candidate, folds: Mapping[Path, Sequence[str]], limit: int, channel: str, fits: Fits
) -> list[Substitute]:
    """Cross-fitting: each training conversation since the parent, by an adapter that was trained without it.

    Args:
        store: Where the rows are.
        candidate: The candidate that the folds belong to.
        folds: Adapter folder -> ids of the interactions that it was trained on.
        limit: Interactions at most, the newest ones.
        channel: Whose requests the candidate is for.
        fits: Whether the base can read an item.
    """
    return _found(store, candidate, folds, _last_learned(store, candidate.parent), limit, channel, fits)


def from_earlier_round(store: Store, candidate: Candidate, limit: int, channel: str, fits: Fits) -> list[Substitute]:
    """The newest earlier candidate of the same parent, on training conversations that began after all it learned."""
    gone = store.tainted()
    for row in store.rows(Candidate, newest=True):
        same_start = row.parent == candidate.parent and row.base == candidate.base
        if row.id != candidate.id and same_start and row.created_at < candidate.created_at and row.id not in gone:
            folder = store.artifacts.folder(row.path)
            if not folder.is_dir():
                continue
            since = _last_learned(store, row.id)
            return _found(store, candidate, {folder: row.interactions}, since, limit, channel, fits)
    return []


def _last_learned(store: Store, candidate: str | None) -> float:
    """Time of the newest turn that a candidate or its ancestors were trained on."""
    names: list[str] = []
    while candidate is not None and (row := store.find(Candidate, candidate)) is not None:
        names += row.interactions
        candidate = row.parent
    turns = [row.turn for _, row in store.among(Interaction, "id", names)] if names else []
    return max((turn.created_at for _, turn in store.among(Turn, "id", turns)), default=float("-inf"))


def _found(
    store: Store,
    candidate: Candidate,
    trained: Mapping[Path, Sequence[str]],
    since: float,
    limit: int,
    channel: str,
    fits: Fits,
) -> list[Substitute]:
    """Each training conversation since then, by an adapter without it; where several are without, by its hash."""
    if not trained:
        return []
    roots = ConversationRoots(store)
    seen = {path: _conversations(store, roots, names) for path, names in trained.items()}
    before = _conversations(store, roots, _learned_before(store, candidate))
    picked: dict[Path, list[HeldOut]] = {path: [] for path in trained}
    newest = _newest_since(store, since, limit, channel, fits)
    if len(newest) == limit:
        since = newest[-1].turn.created_at
    for item in newest:
        if item.conversation in before:
            continue
        able = sorted(path for path, names in seen.items() if item.conversation not in names)
        if able:
            picked[able[int(content_hash(item.conversation)[:8], 16) % len(able)]].append(item)
    return [
        Substitute(Arm(f"substitute-{number}", path, folder_hash(path)), items, since)
        for number, (path, items) in enumerate(picked.items(), 1) if items
    ]  # fmt: skip


def _learned_before(store: Store, candidate: Candidate) -> list[str]:
    """What the ancestors of the candidate were trained on."""
    names: list[str] = []
    parent = candidate.parent
    while parent is not None and (row := store.find(Candidate, parent)) is not None:
        names += row.interactions
        parent = row.parent
    return names


def _conversations(store: Store, roots: ConversationRoots, names: Iterable[str]) -> set[str]:
    turns = [row.turn for _, row in store.among(Interaction, "id", list(names))]
    return {roots.of(turn) for _, turn in store.among(Turn, "id", turns)}


def _newest_since(store: Store, since: float, limit: int, channel: str, fits: Fits) -> list[HeldOut]:
    """Training interactions with words that the channel is about, from the newest back."""
    found: list[HeldOut] = []
    for row in reversed(store.usable("train")):
        if len(found) == limit:
            break
        if row.hindsight.strip() and covers(channel, user=row.user, team=row.team, task=row.task):
            item = completed(store, row)
            if item.turn.created_at > since and fits(item):
                found.append(item)
    return found
