"""Makes examples of the turns of episodes: each with what credit needs, and with the texts that a teacher may read.

Reads the store as it stands: a reward that changed since the last training counts as it is now.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from afterword.chat.canonical import text_of
from afterword.chat.observations import observation_after, state_of
from afterword.records import Episode, Interaction, content_hash
from afterword.store import Store
from afterword.store.episodes import OUTCOME, EpisodeTurn, EpisodeView, episode_views
from afterword.store.skills import SkillBank
from afterword.train.data.credit import Step
from afterword.train.data.examples import Example

LONGEST = 4000
"""Characters of another episode that a teacher reads."""


def episode_examples(store: Store, interactions: Sequence[Interaction]) -> list[Example]:
    """An example for each interaction of an episode, in the same order.

    Args:
        store: The database.
        interactions: Of the kind `outcome`.
    """
    names = list(dict.fromkeys(row.episode_id for row in interactions if row.episode_id))
    rows = [row for _, row in store.among(Episode, "id", names)]
    views = {view.episode.id: view for view in episode_views(store, rows)}
    steps = {step.turn: step for view in views.values() for step in steps_of(view)}
    peers, bank = _peers(views.values()), SkillBank(store)
    found = []
    for row in interactions:
        view = views[row.episode_id or ""]
        turn = next(one.turn for one in view.turns if one.turn.id == row.turn)
        step = steps.get(row.turn)
        found.append(Example(row, turn, step=step, texts=(*_texts(view, peers), *_skills(bank, view, step))))
    return found


def steps_of(view: EpisodeView) -> list[Step]:
    """The turns of an episode's task as credit needs them."""
    turns = {one.turn.id: one for one in view.task_turns}
    return [_step(view, one, turns) for one in view.task_turns]


def _step(view: EpisodeView, one: EpisodeTurn, turns: dict[str, EpisodeTurn]) -> Step:
    parent = turns.get(one.parent or "")
    rubric = {name: value for name, value in (one.rubric or view.episode.rubric).items() if value is not None}
    marked = [row.metadata.get("spans") for row in one.feedback if row.kind == OUTCOME]
    return Step(
        turn=one.turn.id,
        episode=view.episode.id,
        task=view.task_key,
        depth=_depth(one, turns),
        state=state_of(view, one),
        action=content_hash(text_of(one.turn.answer.get("content")), one.turn.answer.get("tool_calls")),
        parent=None if parent is None else parent.turn.id,
        outcome=view.episode.outcome,
        reward=one.reward,
        rubric=tuple(rubric.items()),
        spans=tuple(_spans(marked)),
    )


def _spans(marked: Iterable[object]) -> list[tuple[str, int, int]]:
    """(item, start, end) of valid spans; a client may have sent anything."""
    found = []
    for spans in marked:
        for name, span in spans.items() if isinstance(spans, dict) else ():
            if isinstance(span, list) and len(span) == 2 and all(type(place) is int for place in span):
                found.append((str(name), span[0], span[1]))
    return found


def _depth(one: EpisodeTurn, turns: dict[str, EpisodeTurn]) -> int:
    seen = {one.turn.id}
    while (parent := turns.get(one.parent or "")) is not None and parent.turn.id not in seen:
        seen.add(parent.turn.id)
        one = parent
    return len(seen) - 1


def transcript(view: EpisodeView, turns: int | None = None) -> str:
    """What the agent did and what came back, of the longest branch, a line each; only the first `turns` of them."""
    branch = max(view.branches(), key=len, default=())[:turns]
    lines = []
    for place, one in enumerate(branch):
        calls = [call.get("function") or {} for call in one.turn.answer.get("tool_calls") or ()]
        said = [text_of(one.turn.answer.get("content")), *(f"{c.get('name')}({c.get('arguments')})" for c in calls)]
        lines.append(" ".join(part for part in said if part))
        if place + 1 < len(branch) and (came := observation_after(one.turn, branch[place + 1].turn)):
            lines.append(f"-> {came}")
    return "\n".join(lines)[:LONGEST]


def _peers(views: Iterable[EpisodeView]) -> dict[tuple[str, str | None], list[EpisodeView]]:
    """Successful episodes by task and user, the best first: nobody's words are shown as another's."""
    found: dict[tuple[str, str | None], list[EpisodeView]] = {}
    for view in sorted(views, key=lambda one: (-(one.episode.outcome or 0.0), len(one.task_turns), one.episode.id)):
        if (view.episode.outcome or 0.0) > 0:
            found.setdefault((view.task_key, view.episode.user), []).append(view)
    return found


def _skills(bank: SkillBank, view: EpisodeView, step: Step | None) -> Iterator[tuple[str, str]]:
    """The skills that the bank chooses for the task and for this step; never one that was written of this episode."""
    task = view.episode.task_id or view.task_key
    for kind, state in (("skill", None), ("step_skill", step.state if step is not None else "")):
        chosen = bank.choose(task, view.episode.user, state, without=view.episode.id)
        if chosen is not None:
            yield kind, chosen.text


def _texts(view: EpisodeView, peers: dict[tuple[str, str | None], list[EpisodeView]]) -> tuple[tuple[str, str], ...]:
    """Kind of `contexts.FromEpisode` -> text, for those that are there."""
    others = peers.get((view.task_key, view.episode.user), [])
    peer = next((one for one in others if one.episode.id != view.episode.id), None)
    found = {}
    if peer is not None:
        found["peer"] = transcript(peer)
        found["oracle"] = transcript(peer, max(1, len(peer.task_turns) // 2))
    if isinstance(oracle := view.episode.metadata.get("oracle"), str) and oracle.strip():
        found["oracle"] = oracle[:LONGEST]
    return tuple(found.items())
