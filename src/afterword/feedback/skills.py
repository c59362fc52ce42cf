"""Skills: what worked in finished episodes, written by an analyser, kept in a bank, chosen by UCB.

An analyser is any function from an episode to texts; the built-in one quotes what the agent did. Uses and their success
are read from episodes whose `metadata.skill` names a skill. Writes rows of `skills`; never changes one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from afterword.chat.canonical import text_of
from afterword.chat.observations import observation_after
from afterword.chat.redact import redact
from afterword.feedback.collect.episodes import state_of, task_key
from afterword.records import TaskSkill, content_hash
from afterword.store import Store
from afterword.store.episodes import EpisodeTurn, EpisodeView, episode_views

LONGEST = 1200
"""Characters of a skill."""
EXPLORE = 1.0
"""Weight of the confidence bonus of UCB1."""


@dataclass(frozen=True, slots=True)
class SkillText:
    """What an analyser writes of an episode."""

    text: str
    state: str | None = None
    """State (`collect.episodes.state_of`) that a step skill is for; None: the whole task."""


Analyser = Callable[[EpisodeView], Iterable[SkillText]]


def quoting(view: EpisodeView) -> Iterable[SkillText]:
    """The built-in analyser: of a successful episode what the agent did, and for each state what it did there."""
    if (view.episode.outcome or 0.0) <= 0:
        return
    branch = max(view.branches(), key=len, default=())
    did = [_action(one) for one in branch]
    yield SkillText("What worked in this task, step by step: " + " | ".join(did))
    for place, one in enumerate(branch[1:], 1):
        seen = observation_after(branch[place - 1].turn, one.turn)
        yield SkillText(f"When you read {seen!r}, this worked: {did[place]}", state_of(view, one))


def _action(one: EpisodeTurn) -> str:
    calls = [call.get("function") or {} for call in one.turn.answer.get("tool_calls") or ()]
    said = [text_of(one.turn.answer.get("content")), *(f"{c.get('name')}({c.get('arguments')})" for c in calls)]
    return " ".join(part for part in said if part)


def write_skills(store: Store, analyser: Analyser = quoting, *, redaction: str = "rules") -> int:
    """Analyse every ended episode of the training split that has no skill yet.

    Args:
        store: The database.
        analyser: Writes texts of an episode.
        redaction: How private data is taken out, as in `chat.redact`.

    Returns:
        Number of new skills.
    """
    known = {row.episode for row in store.rows(TaskSkill)}
    trained = {row.episode_id for row in store.usable("train", episodes=True)}
    new: list[TaskSkill] = []
    for view in episode_views(store):
        episode = view.episode
        if episode.id in known or episode.id not in trained or episode.status == "running":
            continue
        for one in analyser(view):
            text = redact(one.text[:LONGEST], redaction).text
            name = content_hash("skill", episode.id, one.state, text)
            new.append(TaskSkill(id=f"sk-{name[:16]}", task=episode.task_id or task_key(view), episode=episode.id,
                             text=text, state=one.state, user=episode.user))  # fmt: skip
    if new:
        store.write(*new)
    return len(new)


@dataclass(frozen=True, slots=True)
class Use:
    """How a skill fared."""

    tries: int = 0
    """Scored episodes that had it in their prompt."""
    mean: float = 0.0
    """Their mean outcome."""


class SkillBank:
    """The skills of a store with their uses.

    Args:
        store: The database; read once.
        explore: Weight of the confidence bonus.
    """

    def __init__(self, store: Store, explore: float = EXPLORE) -> None:
        self._explore = explore
        self._skills: dict[tuple[str, str | None], list[TaskSkill]] = defaultdict(list)
        for row in store.rows(TaskSkill):
            self._skills[row.task, row.user].append(row)
        outcomes: dict[str, list[float]] = defaultdict(list)
        for view in episode_views(store) if self._skills else ():
            named = view.episode.metadata.get("skill")
            if isinstance(named, str) and view.episode.outcome is not None:
                outcomes[named].append(view.episode.outcome)
        self.uses = {name: Use(len(some), sum(some) / len(some)) for name, some in outcomes.items()}

    def score(self, skill: TaskSkill, tries: int) -> float:
        """UCB1, mean + explore sqrt(2 ln tries / own tries) (Auer et al. 2002); infinite for one never tried.

        Args:
            skill: A skill.
            tries: Uses of all skills of the task.
        """
        use = self.uses.get(skill.id, Use())
        if not use.tries:
            return math.inf
        return use.mean + self._explore * math.sqrt(2 * math.log(max(1, tries)) / use.tries)

    def choose(
        self, task: str, user: str | None = None, state: str | None = None, *, without: str | None = None
    ) -> TaskSkill | None:
        """The skill with the highest score, the oldest of equals; None without any.

        Args:
            task: `task_id`.
            user: User of the episode; skills of other users' episodes are never shown.
            state: State for a step skill; None chooses among the skills of the whole task.
            without: An episode whose own skills are left out.
        """
        rows = [row for row in self._skills.get((task, user), ()) if row.state == state and row.episode != without]
        tries = sum(self.uses.get(row.id, Use()).tries for row in rows)
        return max(rows, key=lambda row: self.score(row, tries), default=None)
