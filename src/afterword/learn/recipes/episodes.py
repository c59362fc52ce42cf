"""Methods over the turns of episodes: credit from rewards, dense guidance from what a teacher knows besides.

Each recipe trains the served turns once, as they were sampled (`data` "episodes"); the environment writes new ones.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from afterword.learn.loss.terms import Term
from afterword.learn.parts.advantages import PolicyClip, PPOClip, Scaled, Sum, Truncated
from afterword.learn.parts.contexts import CONTEXTS, OBSERVATION_KINDS, FromEpisode, with_hint
from afterword.learn.parts.credit import (
    Baseline,
    EpisodeCredit,
    Group,
    SampledK3,
    TeacherOverServed,
    TeacherShare,
    Uninformed,
    Value,
)
from afterword.learn.parts.divergences import JSD, NegativeLogLikelihood, ReverseKL
from afterword.learn.parts.fields import Count, NonNegative, Share, TermScale, TermScaleOrZero, UnitInterval, method
from afterword.learn.parts.supports import TopK
from afterword.learn.parts.teachers import LIVE, START
from afterword.learn.parts.weights import TOKEN_MEAN, ByCorrectness, ByKind, GapGate
from afterword.learn.recipes.distil import opd
from afterword.learn.recipes.hindsight import sdpo
from afterword.learn.recipes.recipe import Recipe

TURNS: dict[str, Any] = {"epochs": 1, "fresh": 0, "data": "episodes", "batch": 16}
"""Settings of the recipes whose rows are single turns."""
BRANCHES: dict[str, Any] = {**TURNS, "scored": "episode"}
"""Settings of those that train the turns of a branch in one row."""
_CLIP = PPOClip(low=0.2, high=0.28)
_NONE = CONTEXTS["none"]
_SKILL = with_hint(CONTEXTS["system"], FromEpisode("skill"))
_STEP_SKILL = with_hint(CONTEXTS["system"], FromEpisode("step_skill"))


def _credit_term(name: str = "outcome", **parts: Any) -> Term:
    """The policy gradient of an episode: an advantage for each turn, every token counting the same."""
    fixed: dict[str, Any] = {
        "estimator": NegativeLogLikelihood(),
        "teacher": None,
        "context": _NONE,
        "reduction": TOKEN_MEAN,
        "weights": (),
        "advantage": EpisodeCredit(),
        "policy_clip": _CLIP,
    }
    return Term(name=name, **{**fixed, **parts})


def _anchor(scale: float) -> tuple[Term, ...]:
    near = Term(
        name="anchor_start", estimator=ReverseKL(), teacher=START, context=_NONE, reduction=TOKEN_MEAN, weights=(),
        scale=scale,
    ) if scale else None  # fmt: skip
    return (near,) if near is not None else ()


@method
def episode_grpo(
    *,
    value: Value = "outcome",
    group: Group = "task",
    baseline: Baseline = "grpo",
    discount: UnitInterval = 1.0,
    decisions: bool = False,
    anchor: TermScaleOrZero = 0.0,
    **settings: Any,
) -> Recipe:
    """Policy gradient over the turns of episodes, against other episodes of the task (after arXiv 2402.03300)."""
    rule = EpisodeCredit(of=value, group=group, baseline=baseline, discount=discount, decisions=decisions)
    terms = (_credit_term(advantage=rule), *_anchor(anchor))
    return Recipe(name="episode-grpo", terms=terms, **{**BRANCHES, **settings})


@method
def episode_sdar(
    *, beta: NonNegative = 5.0, scale: TermScale = 0.01, anchor: TermScaleOrZero = 0.01, **settings: Any
) -> Recipe:
    """The same, and a push on tokens that a skill in the prompt likes (arXiv 2605.15155)."""
    gated = Term(
        name="gated", estimator=NegativeLogLikelihood(), teacher=LIVE, context=_SKILL, reduction=TOKEN_MEAN,
        weights=(GapGate(beta),), scale=scale,
    )  # fmt: skip
    return Recipe(name="episode-sdar", terms=(_credit_term(), gated, *_anchor(anchor)), **{**BRANCHES, **settings})


@method
def skill_sd(*, scale: TermScale = 0.001, **settings: Any) -> Recipe:
    """The same, and an importance-weighted k3 to the model that reads a skill (arXiv 2604.10674)."""
    near: PolicyClip = Truncated(cap=math.exp(20))
    skill = Term(
        name="skill", estimator=NegativeLogLikelihood(), teacher=LIVE, context=_SKILL, reduction=TOKEN_MEAN,
        weights=(), advantage=SampledK3(), policy_clip=near, scale=scale,
    )  # fmt: skip
    return Recipe(name="skill-sd", terms=(_credit_term(), skill), **{**BRANCHES, **settings})


@method
def opid(*, scale: TermScale = 0.001, anchor: TermScaleOrZero = 0.01, **settings: Any) -> Recipe:
    """The advantage of the episode plus what a skill for the step thinks of each token (arXiv 2606.26790)."""
    both = Sum((EpisodeCredit(), Scaled(TeacherOverServed(), scale)))
    clip = PPOClip(low=0.2, high=0.2)
    skilled = _credit_term(
        "skilled", teacher=START, context=_STEP_SKILL, advantage=both, policy_clip=clip, pool="tokens"
    )  # fmt: skip
    plain = _credit_term("plain", masks=(Uninformed(_STEP_SKILL),), policy_clip=clip, pool="tokens")
    return Recipe(name="opid", terms=(skilled, plain, *_anchor(anchor)), **{**TURNS, **settings})


@method
def tamtrl(*, anchor: TermScaleOrZero = 0.001, **settings: Any) -> Recipe:
    """The outcome, shared among turns by how likely a teacher that reads the answer finds them (arXiv 2603.21663)."""
    shared = _credit_term(
        "shared", teacher=LIVE, context=with_hint(CONTEXTS["reference"], FromEpisode("oracle")),
        advantage=TeacherShare(),
    )  # fmt: skip
    return Recipe(name="tamtrl", terms=(shared, *_anchor(anchor)), **{**TURNS, **settings})


@method
def episode_sdpo(*, k: Count = 100, rate: Share = 0.05, **settings: Any) -> Recipe:
    """Self-distillation turn by turn, from what the environment said after each action (arXiv 2601.20802)."""
    made = sdpo(k=k, rate=rate, **{**TURNS, **settings})
    terms = tuple(replace(term, route=ByKind(OBSERVATION_KINDS)) for term in made.terms)
    return replace(made, name="episode-sdpo", terms=terms)


@method
def episode_opd(*, teacher: str | None = None, **settings: Any) -> Recipe:
    """On-policy distillation of the turns of episodes from another model."""
    return replace(opd(teacher=teacher, **{**BRANCHES, **settings}), name="episode-opd")


@method
def episode_hindsight(*, scale: TermScale = 0.1, k: Count = 64, **settings: Any) -> Recipe:
    """Reinforcement, and for turns of failed episodes what the environment said after them (ours)."""
    hindsight = Term(
        name="hindsight", estimator=JSD(0.5), teacher=START, context=CONTEXTS["environment"], reduction=TOKEN_MEAN,
        support=TopK(k, of="student", remainder="tail"), route=ByCorrectness(False), scale=scale,
    )  # fmt: skip
    return Recipe(name="episode-hindsight", terms=(_credit_term(), hindsight), **{**TURNS, **settings})
