"""Composes distillation from another model, which reads the same context, over newly generated answers.

Every recipe wants the teacher's folder (`train.teacher`); without it the validator says so before anything is
loaded. They differ in the distance, its tokens, and the regularisation of the student.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field

from afterword.errors import ConfigError
from afterword.learn.loss.terms import Term
from afterword.learn.parts.advantages import (
    Advantage,
    GroupBaseline,
    LogRatio,
    Masked,
    PPOClip,
    ReturnToGo,
    Scaled,
    Sum,
    Truncated,
)
from afterword.learn.parts.anchors import GOLD, gold_mix
from afterword.learn.parts.contexts import CONTEXTS
from afterword.learn.parts.divergences import (
    FORWARD_KL,
    JSD,
    Estimator,
    NegativeLogLikelihood,
    PolicyGradient,
    ReverseKL,
)
from afterword.learn.parts.fields import (
    Entropy,
    OpenShare,
    Positive,
    Share,
    TermScale,
    TermScaleOrZero,
    UnitInterval,
    method,
)
from afterword.learn.parts.schedules import Linear, Switch
from afterword.learn.parts.supports import TopK
from afterword.learn.parts.targets import Extrapolated, Extrapolation, GeometricBridge
from afterword.learn.parts.teachers import START, External
from afterword.learn.parts.weights import (
    EVERYTHING,
    TOKEN_MEAN,
    WEIGHT_MEAN,
    ByTask,
    EntropyGate,
    InteractionWeight,
    LeastRatio,
    NotKind,
    Prefix,
    TopEntropy,
)
from afterword.learn.recipes.recipe import ON_POLICY, Recipe

_CLIP = PPOClip(low=0.2, high=0.2)
Horizon = Annotated[int, Field(ge=1, le=1_000_000)]
"""Tokens of an answer."""


def _term(teacher: str | None, name: str, estimator: Estimator, **parts: Any) -> Term:
    """A term that compares with the external teacher, every token counting the same."""
    fixed: dict[str, Any] = {"context": CONTEXTS["none"], "reduction": TOKEN_MEAN}
    return Term(name=name, estimator=estimator, teacher=External(model=teacher or ""), **{**fixed, **parts})


@method
def gkd(*, teacher: str | None = None, beta: UnitInterval = 0.5, **settings: Any) -> Recipe:
    """Generalised distillation: JSD to another model, half logged and half fresh answers (arXiv 2306.13649).

    `beta` 0 is the forward KL and 1 the reverse, as in the paper and TRL: the formula itself vanishes there.
    """
    ends: dict[float, Estimator] = {0.0: FORWARD_KL, 1.0: ReverseKL()}
    terms = (_term(teacher, "distance", ends.get(beta, JSD(beta))),)
    return Recipe(name="gkd", terms=terms, **{"epochs": 1, "fresh": 1, **settings})


@method
def minillm(*, teacher: str | None = None, **settings: Any) -> Recipe:
    """Reverse KL of whole answers: exact at each token, policy gradient for what follows (arXiv 2306.08543)."""
    terms = (
        _term(teacher, "future", NegativeLogLikelihood(), advantage=ReturnToGo(), policy_clip=_CLIP),
        _term(teacher, "single_step", ReverseKL()),
    )
    return Recipe(name="minillm", terms=terms, **{**ON_POLICY, **settings})


@method
def opd(*, teacher: str | None = None, **settings: Any) -> Recipe:
    """On-policy distillation by policy gradient: one number a token from another model."""
    return Recipe(name="opd", terms=(_term(teacher, "sampled", PolicyGradient()),), **{**ON_POLICY, **settings})


@method
def fast_opd(*, teacher: str | None = None, horizon: Horizon = 100, **settings: Any) -> Recipe:
    """Reverse KL over the first tokens of answers that are drawn no further (arXiv 2602.15260)."""
    term = _term(teacher, "opening", ReverseKL(), masks=(Prefix(horizon),))
    return Recipe(name="fast-opd", terms=(term,), **{**ON_POLICY, "max_fresh": horizon, **settings})


@method
def lightning_opd(*, teacher: str | None = None, cap: Positive = 2.0, **settings: Any) -> Recipe:
    """Distillation over answers as they were served, which the teacher scores once for all (arXiv 2604.13010)."""
    term = _term(teacher, "sampled", PolicyGradient(), policy_clip=Truncated(cap=cap))
    return Recipe(name="lightning-opd", terms=(term,), **{"epochs": 2, "fresh": 0, **settings})


@method
def mopd(*, teacher: str | None = None, outcome: TermScaleOrZero = 0.0, **settings: Any) -> Recipe:
    """One student learns from an expert for each task, `teacher` "task=folder,task=folder" (arXiv 2601.02780).

    `outcome` is the share of a verifier's score, against the other answers to the prompt, in the advantage.
    """
    advantage: Advantage = LogRatio()
    if outcome:
        advantage = Sum((advantage, Scaled(GroupBaseline("grpo"), outcome)))
    terms = tuple(
        _term(
            folder, f"expert_{task}" if task else "expert", NegativeLogLikelihood(), advantage=advantage,
            policy_clip=Masked(low=0.5, high=2.0), route=ByTask((task,)) if task else EVERYTHING, weights=(),
            pool="tokens",
        )
        for task, folder in _experts(teacher)
    )  # fmt: skip
    drawn = {"num_generations": 8, "batch": 16} if outcome else {}
    return Recipe(name="mopd", terms=terms, **{**ON_POLICY, **drawn, **settings})


def _experts(text: str | None) -> list[tuple[str, str]]:
    """Task and folder of each expert; one folder alone is the expert of every task.

    Raises:
        ConfigError: A task is named twice, or only some have a name.
    """
    pairs = [piece.strip().partition("=") for piece in (text or "").split(",")]
    experts = [(task.strip(), folder.strip()) if equals else ("", task.strip()) for task, equals, folder in pairs]
    names = [task for task, _ in experts]
    if len(experts) > 1 and (not all(names) or len(set(names)) < len(names)):
        raise ConfigError(
            f"recipe 'mopd': teacher={text!r} must name a task once before each folder: write task=folder,task=folder",
            param="teacher",
        )
    return experts


@method
def eopd(*, teacher: str | None = None, threshold: Entropy = 0.8, **settings: Any) -> Recipe:
    """Policy gradient, and forward KL where the teacher is uncertain (arXiv 2603.07079)."""
    uncertain = _term(
        teacher,
        "uncertain",
        FORWARD_KL,
        support=TopK(16, of="teacher", remainder="teacher"),
        weights=(InteractionWeight(), EntropyGate(threshold)),
    )
    terms = (_term(teacher, "sampled", PolicyGradient(), policy_clip=_CLIP), uncertain)
    return Recipe(name="eopd", terms=terms, **{**ON_POLICY, **settings})


@method
def veto(*, teacher: str | None = None, beta: UnitInterval = 0.8, **settings: Any) -> Recipe:
    """Forward KL to a bridge between student and teacher that ends at the teacher (arXiv 2601.07155)."""
    falls = (("target.beta", Linear(reach=True)),)
    term = _term(teacher, "bridge", FORWARD_KL, target=GeometricBridge(beta), schedules=falls)
    return Recipe(name="veto", terms=(term,), **{**ON_POLICY, **settings})


@method
def stable_opd(
    *, teacher: str | None = None, gold: TermScale = 0.1, anchor: TermScale = 0.1, **settings: Any
) -> Recipe:
    """Policy gradient held by good answers and by the start, against ever longer ones (arXiv 2604.08527)."""
    start = Term(
        name="anchor_start",
        estimator=ReverseKL(),
        teacher=START,
        context=CONTEXTS["none"],
        reduction=TOKEN_MEAN,
        route=NotKind((GOLD,)),
        scale=anchor,
    )
    own = _term(teacher, "sampled", PolicyGradient(), policy_clip=_CLIP, route=NotKind((GOLD,)))
    terms = (own, gold_mix(gold), start)
    return Recipe(name="stable-opd", terms=terms, **{**ON_POLICY, **settings})


@method
def revisit_opd(*, teacher: str | None = None, k: Annotated[int, Field(ge=2)] = 32, **settings: Any) -> Recipe:
    """Reverse KL on the teacher's likeliest tokens, both sides renormalised there (arXiv 2603.25562)."""
    term = _term(teacher, "local", ReverseKL(), support=TopK(k, of="teacher", remainder="renormalise"))
    return Recipe(name="revisit-opd", terms=(term,), **{**ON_POLICY, **settings})


@method
def exopd(*, teacher: str | None = None, scale: Extrapolated = 1.25, **settings: Any) -> Recipe:
    """Policy gradient towards a point beyond the teacher, away from the start (arXiv 2602.12125)."""
    term = _term(
        teacher,
        "beyond",
        PolicyGradient(),
        target=Extrapolation(scale),
        reference=START,
        policy_clip=Truncated(cap=5.0),
    )
    return Recipe(name="exopd", terms=(term,), **{**ON_POLICY, **settings})


@method
def reopold(
    *,
    teacher: str | None = None,
    blame: OpenShare = 0.3,
    share: Share = 0.2,
    switch: OpenShare = 1 / 3,
    **settings: Any,
) -> Recipe:
    """Policy gradient with bounded blame, later only where the student is uncertain (arXiv 2603.11137)."""
    floor = math.log(blame) / (1 - blame)
    parts: dict[str, Any] = {"policy_clip": Truncated(cap=2.0), "reduction": WEIGHT_MEAN}
    terms = (
        _term(
            teacher, "plausible", PolicyGradient(floor=floor),
            weights=(InteractionWeight(), LeastRatio(floor)), schedule=Switch(switch, 1.0, 0.0), **parts,
        ),
        _term(
            teacher, "uncertain", PolicyGradient(floor=floor),
            weights=(InteractionWeight(), TopEntropy(share)), schedule=Switch(switch, 0.0, 1.0), **parts,
        ),
    )  # fmt: skip
    return Recipe(name="reopold", terms=terms, **{**ON_POLICY, **settings})
