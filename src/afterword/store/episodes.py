"""Reads episodes with all that was stored about them later: their end, rewards, and turns as a tree.

The newest end, reward and rubric item count; earlier ones stay in the store. Never writes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from afterword.records import BESIDE, Episode, EpisodeEnd, Feedback, Json, Turn
from afterword.store.store import Store

OUTCOME = "outcome"
"""Kind of the feedback that carries rewards."""
PAGE = 200
"""Episodes that are read together."""
AFTER_END = "after_end"
"""Why a turn is no part of its task: its episode had ended."""


@dataclass(frozen=True, slots=True)
class EpisodeTurn:
    """A turn within its episode."""

    turn: Turn
    index: int
    """Position among the requests of the episode."""
    parent: str | None
    """The turn before it in the same episode; None for the first of a branch, or where the history was edited."""
    outside: str | None
    """Why it is no part of the task (a title, a summary, a request after the end); None: it is."""
    reward: float | None
    """Newest reward of the turn (kind `outcome` or `rating`)."""
    rubric: Json
    """Rubric item -> newest reward of the turn."""
    feedback: tuple[Feedback, ...]
    """All feedback on it that was not taken back, oldest first."""


@dataclass(frozen=True, slots=True)
class EpisodeView:
    """An episode as it stands now."""

    episode: Episode
    """With its newest end, outcome, rubric and metrics."""
    turns: tuple[EpisodeTurn, ...]
    """In order of arrival."""
    rewards: tuple[Feedback, ...]
    """Every reward of the episode, oldest first."""

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions that answered, "base" for the base model, in order of their first turn."""
        return tuple(dict.fromkeys(one.turn.adapter or "base" for one in self.turns))

    @property
    def task_key(self) -> str:
        """What is held out together, and compared: the task with its seed; an episode of no task stands alone."""
        episode = self.episode
        if episode.task_id is None:
            return f"episode {episode.id}"
        return f"task {episode.task_id}" if episode.seed is None else f"task {episode.task_id} seed {episode.seed}"

    @property
    def task_turns(self) -> tuple[EpisodeTurn, ...]:
        """Turns that are part of the task."""
        return tuple(one for one in self.turns if one.outside is None)

    def branches(self) -> list[tuple[EpisodeTurn, ...]]:
        """Every path from a first turn to a last one, in order of the last turns."""
        by_id = {one.turn.id: one for one in self.task_turns}
        parents = {one.parent for one in self.task_turns}
        found = []
        for one in self.task_turns:
            if one.turn.id in parents:
                continue
            path = [one]
            while (parent := by_id.get(path[-1].parent or "")) is not None and parent not in path:
                path.append(parent)
            found.append(tuple(reversed(path)))
        return found

    def to_dict(self) -> Json:
        """Returns the episode with a line for each turn, without the words of the turns."""
        turns = [
            {
                "id": one.turn.id, "index": one.index, "parent": one.parent, "outside": one.outside,
                "reward": one.reward, "rubric": one.rubric, "adapter": one.turn.adapter,
                "finish_reason": one.turn.finish_reason, "created_at": one.turn.created_at,
                "completion_tokens": completion_tokens(one.turn),
            }
            for one in self.turns
        ]  # fmt: skip
        return {**self.episode.to_dict(), "versions": list(self.versions), "turns": turns}


def completion_tokens(turn: Turn) -> int:
    """Tokens of the answer, as its ids or its usage say; 0 when neither does."""
    if turn.completion_ids is not None:
        return len(turn.completion_ids)
    number = turn.usage.get("completion_tokens")
    return number if isinstance(number, int) else 0


def episode_view(store: Store, identifier: str) -> EpisodeView:
    """One episode.

    Args:
        store: The database.
        identifier: Its id or a unique beginning of it.

    Raises:
        NotFoundError: If there is none.
    """
    return next(_views(store, [store.get(Episode, identifier)]))


def episode_views(store: Store, episodes: Iterable[Episode] | None = None) -> Iterator[EpisodeView]:
    """Episodes with their turns.

    Args:
        store: The database.
        episodes: Their rows; default: all, oldest first.
    """
    page: list[Episode] = []
    for row in store.rows(Episode) if episodes is None else episodes:
        page.append(row)
        if len(page) == PAGE:
            yield from _views(store, page)
            page = []
    yield from _views(store, page)


def current(store: Store, episodes: Sequence[Episode]) -> list[Episode]:
    """Episodes with their newest end and rewards, without reading their turns."""
    names = [row.id for row in episodes]
    ends, rewards = _ends(store, names), _feedback(store, names)
    return [_current(row, ends.get(row.id, []), rewards.get(row.id, [])) for row in episodes]


def statuses(store: Store) -> dict[str, int]:
    """Episodes by their present status, most frequent first."""
    counted: Counter[str] = Counter()
    page: list[Episode] = []
    for row in store.rows(Episode):
        page.append(row)
        if len(page) == PAGE:
            counted.update(one.status for one in current(store, page))
            page = []
    counted.update(one.status for one in current(store, page))
    return dict(counted.most_common())


def _views(store: Store, episodes: Sequence[Episode]) -> Iterator[EpisodeView]:
    names = [row.id for row in episodes]
    turns: dict[str, list[Turn]] = defaultdict(list)
    for _, turn in store.among(Turn, "episode_id", names):
        turns[turn.episode_id or ""].append(turn)
    said = _feedback(store, [*names, *(turn.id for group in turns.values() for turn in group)])
    ends = _ends(store, names)
    for row in episodes:
        rewards = said.get(row.id, [])
        now = _current(row, ends.get(row.id, []), rewards)
        if not row.started_at and turns[row.id]:  # a trace that does not say when it began
            first = min(turns[row.id], key=lambda turn: turn.created_at)
            now = dataclasses.replace(now, started_at=first.created_at - (first.seconds or 0.0))
        ended_at = ends[row.id][-1].ended_at if row.id in ends else row.ended_at
        yield EpisodeView(now, tuple(_in_order(turns[row.id], said, ended_at)), tuple(rewards))


def _ends(store: Store, episodes: Sequence[str]) -> dict[str, list[EpisodeEnd]]:
    found: dict[str, list[EpisodeEnd]] = defaultdict(list)
    for _, row in sorted(store.among(EpisodeEnd, "episode", episodes), key=lambda pair: pair[0]):
        found[row.episode].append(row)
    return found


def _feedback(store: Store, targets: Sequence[str]) -> dict[str, list[Feedback]]:
    """Feedback by target, oldest first, without what was taken back."""
    rows = sorted(store.among(Feedback, "turn", targets), key=lambda pair: pair[0])
    gone = {row.retracts for _, row in rows if row.retracts}
    found: dict[str, list[Feedback]] = defaultdict(list)
    for _, row in rows:
        if row.id not in gone and row.kind != "retraction":
            found[row.turn].append(row)
    return found


def _current(row: Episode, ends: Sequence[EpisodeEnd], rewards: Sequence[Feedback]) -> Episode:
    value, rubric, metrics, scored = row.outcome, dict(row.rubric), dict(row.metrics), None
    for end in ends:
        metrics |= end.metrics
    for reward in rewards:
        if reward.kind == OUTCOME:
            if "value" not in reward.metadata.get("unset", ()):
                value, scored = reward.value, reward
            rubric |= reward.metadata.get("rubric") or {}
            metrics |= reward.metadata.get("metrics") or {}
    changed = dataclasses.replace(row, outcome=value, rubric=rubric, metrics=metrics)
    if ends:
        end = ends[-1]
        return dataclasses.replace(changed, status=end.status, ended_at=end.ended_at, reason=end.reason)
    if scored is not None and row.status == "running":  # a harness that can only send a reward
        return dataclasses.replace(changed, status="finished", ended_at=scored.created_at)
    return changed


def _in_order(turns: Sequence[Turn], said: dict[str, list[Feedback]], ended_at: float | None) -> Iterator[EpisodeTurn]:
    late = len(turns)
    ordered = sorted(
        turns, key=lambda turn: (late if turn.episode_index is None else turn.episode_index, turn.created_at, turn.id)
    )
    ids = {turn.id for turn in turns}
    for place, turn in enumerate(ordered):
        feedback = said.get(turn.id, [])
        reward, rubric = _reward(feedback)
        yield EpisodeTurn(
            turn=turn,
            index=place if turn.episode_index is None else turn.episode_index,
            parent=turn.previous if turn.previous in ids else None,
            outside=_outside(turn, ended_at),
            reward=reward,
            rubric=rubric,
            feedback=tuple(feedback),
        )


def _outside(turn: Turn, ended_at: float | None) -> str | None:
    if turn.automated in BESIDE:
        return turn.automated
    started = turn.created_at - (turn.seconds or 0.0)
    return AFTER_END if ended_at is not None and started > ended_at else None


def _reward(feedback: Sequence[Feedback]) -> tuple[float | None, Json]:
    value: float | None = None
    rubric: Json = {}
    for row in feedback:
        if row.kind in (OUTCOME, "rating"):
            value = row.value
            rubric |= row.metadata.get("rubric") or {}
    return value, rubric
