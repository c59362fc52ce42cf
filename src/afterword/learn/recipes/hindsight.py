"""Self-distillation: the student reads the conversation, the teacher the conversation and something more.

Each recipe is a short function that picks parts; nothing branches on a recipe's name. `follow_ups` is the vetted
setting; the experiments that chose it are `experiments/default_recipe` and `experiments/people`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from afterword.errors import UsageError
from afterword.learn.loss.terms import Term
from afterword.learn.parts.advantages import LogRatio, PPOClip
from afterword.learn.parts.anchors import GOLD, gold_mix, kl_to_base
from afterword.learn.parts.contexts import CONTEXTS, ENVIRONMENT_KINDS, PEER_KINDS, REFERENCE_KINDS, Context, with_text
from afterword.learn.parts.divergences import (
    FORWARD_KL,
    JSD,
    Estimator,
    NegativeLogLikelihood,
    PolicyGradient,
    ReverseKL,
)
from afterword.learn.parts.fields import Count, Positive, Share, SkippedTokens, TermScaleOrZero, method
from afterword.learn.parts.schedules import Cosine, Linear
from afterword.learn.parts.supports import TopK
from afterword.learn.parts.targets import Extrapolation
from afterword.learn.parts.teachers import BASE, EMA, LIVE, START, Copy, Teacher
from afterword.learn.parts.weights import (
    SEQUENCE_MEAN,
    TOKEN_MEAN,
    ByKind,
    Cap,
    ChangedTokens,
    ImportanceRatio,
    InteractionWeight,
    NotKind,
    Reduction,
    Weight,
)
from afterword.learn.recipes.recipe import ON_POLICY, Recipe

Beyond = Annotated[float, Field(ge=0, le=9)]
"""How far a target goes beyond its teacher, away from a reference."""
FALLING = Linear(warmup=1)
"""Ends each round without the noise of its last steps."""
PLAUSIBLE = 0.01
"""Least probability of a token under the teacher at which a contrast may raise it."""
_EDITED: tuple[Weight, ...] = (InteractionWeight(), ChangedTokens())
"""Where the teacher reads what the user wrote instead, the tokens that were edited away say most about it. Without
such a teacher they are what to imitate least."""


@method
def sdpo_interactions(
    *,
    estimator: Estimator = FORWARD_KL,
    where: Context = CONTEXTS["appended"],
    teacher: Teacher = START,
    reduction: Reduction = SEQUENCE_MEAN,
    skip_first: SkippedTokens = 0,
    clip: Positive | None = None,
    anchor: TermScaleOrZero = 0.0,
    contrast: Beyond = 0.0,
    beyond: Beyond = 0.0,
    hold: TermScaleOrZero = 0.0,
    **settings: Any,
) -> Recipe:
    """Hindsight self-distillation from users' next actions (after arXiv 2603.12273).

    The teacher is the same model reading the follow-up; both sides score the served ids. `anchor` is the scale of
    a KL to the base. `contrast` is the share by which the teacher is led away from itself reading a complaint (or
    a praise) of no content: what only this follow-up asks for is learned, and an apology is not. `beyond` is the
    share by which the target goes beyond the teacher, away from the same weights that read no follow-up. `hold` is
    the scale of imitating the answers that users were content with, which then need no words. Differences from the
    paper: `docs/recipes/sdpo-interactions.md`.
    """
    hindsight = Term(
        name="hindsight",
        estimator=estimator,
        teacher=teacher,
        context=where,
        reduction=reduction,
        weights=_EDITED,
        skip_first=skip_first,
        clip=clip,
    )
    if contrast and beyond:
        raise UsageError(
            f"contrast ({contrast}) and beyond ({beyond}) both lead the target away from something, and a term has one "
            "reference: set one of them to 0"
        )
    if contrast or beyond:
        target = Extrapolation(1.0 + (contrast or beyond), plausible=PLAUSIBLE)
        away = CONTEXTS["remark" if contrast else "none"]
        hindsight = replace(hindsight, target=target, reference=teacher, reference_context=away)
    held = (gold_mix(hold),) if hold else ()
    if held:
        hindsight = replace(hindsight, route=NotKind((GOLD,)))
    terms = (hindsight, *((kl_to_base(anchor),) if anchor else ()), *held)
    return Recipe(name="sdpo-interactions", terms=terms, **settings)


@method
def follow_ups(
    *,
    teacher: Teacher = BASE,
    beyond: Beyond = 0.25,
    hold: TermScaleOrZero = 0.3,
    anchor: TermScaleOrZero = 0.0,
    **settings: Any,
) -> Recipe:
    """The default of `afterword train`: `sdpo_interactions` in the form that went best over many rounds.

    The base is the teacher of every round, so that no round learns the faults of the last one; the target goes a
    quarter `beyond` it; answers that users were content with are held; the rate falls. Figures: `docs/results`.
    """
    made = sdpo_interactions(
        teacher=teacher, beyond=beyond, hold=hold, anchor=anchor, **{"schedule": FALLING, **settings}
    )
    return replace(made, name="follow-ups")


def sdpo_interactions_offline(**settings: Any) -> Recipe:
    """The paper's offline form: policy gradient over the served ids, the live model as its own teacher."""
    term = Term(
        name="hindsight",
        estimator=PolicyGradient(),
        teacher=LIVE,
        context=CONTEXTS["block"],
        weights=_EDITED,
        skip_first=2,
    )
    return Recipe(
        name="sdpo-interactions-offline",
        terms=(term,),
        **{"epochs": 2, "fresh": 0, "max_grad_norm": 10.0, **settings},
    )


def sdpo_interactions_online(**settings: Any) -> Recipe:
    """The paper's online form: PPO-clipped policy gradient over fresh answers, centred within each answer."""
    term = Term(
        name="hindsight",
        estimator=NegativeLogLikelihood(),
        teacher=LIVE,
        context=CONTEXTS["block"],
        weights=_EDITED,
        advantage=LogRatio(centre=True),
        policy_clip=PPOClip(low=0.2, high=0.2),
    )
    return Recipe(name="sdpo-interactions-online", terms=(term,), **{**ON_POLICY, **settings})


@method
def sdpo(*, k: Count = 100, rate: Share = 0.05, **settings: Any) -> Recipe:
    """Self-distillation from accepted attempts and from programs' feedback (arXiv 2601.20802)."""
    term = Term(
        name="outcome",
        estimator=JSD(0.5),
        teacher=EMA(rate=rate),
        context=CONTEXTS["by_kind"],
        support=TopK(k, of="student", remainder="tail"),
        reduction=TOKEN_MEAN,
        route=ByKind((*PEER_KINDS, *ENVIRONMENT_KINDS)),
        weights=(InteractionWeight(), ImportanceRatio(cap=2.0)),
    )
    return Recipe(name="sdpo", terms=(term,), **{"epochs": 1, "fresh": 0, **settings})


@method
def sdft(*, rate: Share = 0.01, skip_first: SkippedTokens = 3, **settings: Any) -> Recipe:
    """Self-distillation from demonstrations, over answers that the student writes anew (arXiv 2601.19897)."""
    term = Term(
        name="demonstration",
        estimator=FORWARD_KL,
        teacher=EMA(rate=rate),
        context=CONTEXTS["reference"],
        route=ByKind(REFERENCE_KINDS),
        weights=_EDITED,
        skip_first=skip_first,
    )
    return Recipe(name="sdft", terms=(term,), **{**ON_POLICY, "schedule": Cosine(), **settings})


def opsd(**settings: Any) -> Recipe:
    """Self-distillation from reference solutions, first version: JSD 0.5 (arXiv 2601.18734)."""
    term = Term(
        name="solution",
        estimator=JSD(0.5),
        teacher=START,
        context=CONTEXTS["reference"],
        reduction=TOKEN_MEAN,
        route=ByKind(REFERENCE_KINDS),
        weights=_EDITED,
    )
    return Recipe(name="opsd", terms=(term,), **{**ON_POLICY, **settings})


@method
def opsd_clipped(*, clip: Positive = 0.05, **settings: Any) -> Recipe:
    """Self-distillation from reference solutions, second version: forward KL, at most `clip` nats a token."""
    term = Term(
        name="solution",
        estimator=FORWARD_KL,
        teacher=START,
        context=CONTEXTS["reference"],
        reduction=TOKEN_MEAN,
        route=ByKind(REFERENCE_KINDS),
        weights=(InteractionWeight(), Cap(clip)),
    )
    return Recipe(name="opsd-clipped", terms=(term,), **{**ON_POLICY, **settings})


BRIEF = "Answer as briefly as you can without leaving anything out."


@method
def crisp(*, experience: str = BRIEF, every: Count = 50, **settings: Any) -> Recipe:
    """Shorter answers: distils the effect of the instruction `experience` from a lagged copy (arXiv 2603.05433)."""
    where = with_text(CONTEXTS["appended"], experience)
    term = Term(name="concise", estimator=ReverseKL(), teacher=Copy(every=every), context=where)
    return Recipe(name="crisp", terms=(term,), **{**ON_POLICY, **settings})


@method
def opcd(*, experience: str | None = None, k: Count = 256, **settings: Any) -> Recipe:
    """Context distillation: distils the effect of `experience` in the system message (arXiv 2602.12275)."""
    where = with_text(CONTEXTS["system"], experience or "")
    term = Term(
        name="experience",
        estimator=ReverseKL(),
        teacher=START,
        context=where,
        support=TopK(k, of="student", remainder="tail"),
    )
    return Recipe(name="opcd", terms=(term,), **{**ON_POLICY, **settings})
