"""Chooses among the skills of a store by UCB.

Uses and their success are read from episodes whose `metadata.skill` names the skill that stood in their prompt. Never
writes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from afterword.records import TaskSkill
from afterword.store.episodes import episode_views
from afterword.store.store import Store

EXPLORE = 1.0
"""Weight of the confidence bonus of UCB1."""


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
