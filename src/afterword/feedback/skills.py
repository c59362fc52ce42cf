"""Writes skills: what worked in finished episodes, by an analyser. `store.skills` chooses among them.

An analyser is any function from an episode to texts; the built-in one quotes what the agent did. Never changes a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from afterword.chat.canonical import text_of
from afterword.chat.observations import observation_after, state_of
from afterword.chat.redact import redact
from afterword.records import TaskSkill, content_hash
from afterword.store import Store
from afterword.store.episodes import EpisodeTurn, EpisodeView, episode_views

LONGEST = 1200
"""Characters of a skill."""


@dataclass(frozen=True, slots=True)
class SkillText:
    """What an analyser writes of an episode."""

    text: str
    state: str | None = None
    """State (`chat.observations.state_of`) that a step skill is for; None: the whole task."""


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
            new.append(TaskSkill(id=f"sk-{name[:16]}", task=episode.task_id or view.task_key, episode=episode.id,
                             text=text, state=one.state, user=episode.user))  # fmt: skip
    if new:
        store.write(*new)
    return len(new)
