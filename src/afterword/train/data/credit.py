"""Evaluates `EpisodeCredit` over all episodes of a run: the advantage of each turn against its group.

Pure; reads no tokens. The tokens of a rubric item are found by `branches`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from afterword.learn.loss.token_batch import AnswerInfo, Member, group_of
from afterword.learn.parts.advantages import GroupBaseline
from afterword.learn.parts.credit import EpisodeCredit


@dataclass(frozen=True, slots=True)
class Step:
    """A turn of an episode as credit needs it."""

    turn: str
    episode: str
    task: str
    """Names the group: the task with its seed."""
    depth: int
    """Turns before it in its branch."""
    state: str
    """Hash of what the environment said last: equal in two turns that stand at the same place."""
    action: str
    """Hash of the answer."""
    parent: str | None = None
    outcome: float | None = None
    """Reward of the episode; None when it cannot be scored."""
    reward: float | None = None
    """Reward of the turn."""
    rubric: tuple[tuple[str, float], ...] = ()
    """Rubric item -> reward, of the turn or else of the episode."""
    spans: tuple[tuple[str, int, int], ...] = field(default=())
    """Rubric item, and the characters [start, end) of the answer that it is about."""

    @property
    def scored(self) -> float | None:
        """The reward by which answers are told apart: the episode's, or else the turn's."""
        return self.reward if self.outcome is None else self.outcome


def returns(steps: Sequence[Step], discount: float) -> dict[str, float]:
    """Discounted rewards of each turn and those after it; the outcome counts at the end of every branch.

    Args:
        steps: Turns of any episodes.
        discount: Factor a turn, 0 .. 1.

    Returns:
        By turn; the mean over branches where a turn has several. Turns of episodes without any reward are missing.
    """
    after: dict[str, list[Step]] = defaultdict(list)
    scored: set[str] = set()
    for step in steps:
        if step.parent is not None:
            after[step.parent].append(step)
        if step.outcome is not None or step.reward is not None:
            scored.add(step.episode)
    found: dict[str, float] = {}
    for step in sorted(steps, key=lambda one: -one.depth):
        following = [found[one.turn] for one in after[step.turn] if one.turn in found]
        rest = sum(following) / len(following) * discount if following else step.outcome or 0.0
        found[step.turn] = (step.reward or 0.0) + rest
    episodes = {step.turn: step.episode for step in steps}
    return {turn: value for turn, value in found.items() if episodes[turn] in scored}


def credit_of(steps: Sequence[Step], rule: EpisodeCredit) -> dict[str, float]:
    """The advantage of each turn by "outcome" or "return".

    Args:
        steps: All turns of the run.
        rule: How they are compared.

    Returns:
        By turn; 0 where there is nothing to compare with, and where the rule leaves a turn out.
    """
    if rule.of == "return":
        values: dict[str, float] = returns(steps, rule.discount)
        return _advantages(steps, rule, values, lambda step: step.turn)
    values = {step.turn: step.outcome for step in steps if step.outcome is not None}
    return _advantages(steps, rule, values, lambda step: step.episode)


def rubric_credit(steps: Sequence[Step], rule: EpisodeCredit) -> dict[str, dict[str, float]]:
    """The weighted advantage of each rubric item: turn -> item -> value."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for item, weight in rule.rubric:
        values = {step.turn: dict(step.rubric)[item] for step in steps if item in dict(step.rubric)}
        for turn, value in _advantages(steps, rule, values, lambda step: step.turn).items():
            found[turn][item] = weight * value
    return found


def _advantages(
    steps: Sequence[Step], rule: EpisodeCredit, values: dict[str, float], unit: Callable[[Step], Hashable]
) -> dict[str, float]:
    """`values` against those of the same group; several turns of one `unit` count once in it."""
    groups: dict[Hashable, dict[Hashable, float]] = defaultdict(dict)
    actions: dict[Hashable, set[str]] = defaultdict(set)
    for step in steps:
        actions[step.task, step.state].add(step.action)
        if step.turn in values:
            groups[_group(step, rule)][unit(step)] = values[step.turn]
    found = {}
    for step in steps:
        left_out = step.turn not in values or (rule.decisions and len(actions[step.task, step.state]) < 2)
        found[step.turn] = 0.0 if left_out else _against(values[step.turn], groups[_group(step, rule)], rule)
    return found


def _group(step: Step, rule: EpisodeCredit) -> Hashable:
    return {"task": (step.task,), "position": (step.task, step.depth), "state": (step.task, step.state)}[rule.group]


def _against(value: float, group: dict[Hashable, float], rule: EpisodeCredit) -> float:
    if rule.baseline == "none":
        return value
    members = [Member(reward=one) for one in group.values()]
    return GroupBaseline(rule.baseline).of(AnswerInfo(reward=value, group=group_of(members, members)))
