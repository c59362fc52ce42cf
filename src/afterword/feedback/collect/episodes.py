"""Collects ended episodes: an interaction for each turn that is part of the task.

What the environment said after an action is the hindsight of that turn. Rewards are not copied: credit is assigned when
training begins, by the rewards that stand then. Never updates a row.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Literal, Protocol

from afterword.chat.observations import observation_after
from afterword.chat.redact import redact
from afterword.feedback.collect.decide import split_of
from afterword.feedback.settings import CollectSettings
from afterword.records import EpisodeEnd, Interaction, Record, Turn, content_hash, new_id
from afterword.store import Store
from afterword.store.episodes import OUTCOME, EpisodeTurn, EpisodeView, episode_views

UNFINISHED = ("aborted", "error")
"""Answers that broke off: their tokens are not what the model wanted to say."""


class EpisodeCounts(Protocol):
    """The counts of a collection that episodes add to."""

    episodes: Counter[str]
    episode_turns: Counter[str]


def collect_episodes(store: Store, settings: CollectSettings, counts: EpisodeCounts) -> None:
    """Write the interactions of every ended episode without any; end those that are idle.

    Args:
        store: The database.
        settings: Weight and template of the kind `outcome`, held-out share, redaction, `episode_idle`.
        counts: Receives what became of episodes and turns.

    Raises:
        StoreError: If the database cannot be read or written.
    """
    now = time.time()
    for view in episode_views(store, store.uncollected_episodes()):
        records: list[Record] = []
        if view.episode.status == "running":
            last = max(one.turn.created_at for one in view.turns)
            if now - last < settings.episode_idle:
                counts.episodes["running"] += 1
                continue
            records.append(
                EpisodeEnd(id=new_id("end"), episode=view.episode.id, status="truncated", reason="idle", ended_at=last)
            )
        made = list(_interactions(view, settings, counts))
        counts.episodes["collected" if made else "no_turns"] += 1
        if records or made:
            store.write(*records, *made)


def _interactions(view: EpisodeView, settings: CollectSettings, counts: EpisodeCounts) -> Iterator[Interaction]:
    following = {one.parent: one.turn for one in reversed(view.task_turns) if one.parent is not None}
    for one in view.turns:
        weight = settings.weight(OUTCOME, one.turn.task)
        reason = _excluded(one, weight)
        counts.episode_turns[reason or "kept"] += 1
        if reason is None:
            yield _interaction(view, one, following.get(one.turn.id), weight, settings)


def _excluded(one: EpisodeTurn, weight: float) -> str | None:
    if one.outside is not None:
        return one.outside
    if not weight:
        return "off"
    if one.turn.finish_reason in UNFINISHED:
        return "unfinished"
    answer = one.turn.answer
    return None if one.turn.completion_ids or answer.get("content") or answer.get("tool_calls") else "empty"


def _split(view: EpisodeView, settings: CollectSettings) -> Literal["train", "holdout"]:
    """The split of the task in its environment's panel, where the harness said it; else a hash of task and seed."""
    said = view.episode.metadata.get("split")
    if said in ("train", "heldout"):
        return "train" if said == "train" else "holdout"
    return split_of(view.task_key, settings.holdout)


def _interaction(
    view: EpisodeView, one: EpisodeTurn, following: Turn | None, weight: float, settings: CollectSettings
) -> Interaction:
    episode, turn = view.episode, one.turn
    observed = "" if following is None else observation_after(turn, following)
    most = settings.max_hindsight_chars // 2
    shown = settings.words(OUTCOME, turn.task).format(output=observed[-most:]) if observed.strip() else ""
    said = redact(shown, settings.redact)
    reward = episode.outcome if one.reward is None else one.reward
    return Interaction(
        id=content_hash("episode", episode.id, turn.id),
        turn=turn.id,
        feedback=(),
        kind=OUTCOME,
        hindsight=said.text,
        polarity=0 if not reward else 1 if reward > 0 else -1,
        weight=weight,
        split=_split(view, settings),
        on_policy=turn.on_policy,
        user=turn.user or episode.user,
        task=turn.task,
        team=turn.team,
        category=OUTCOME,
        redacted=said.kinds,
        episode_id=episode.id,
    )
