"""Self-distillation: the student reads the conversation, the teacher the conversation and something more.

Each recipe is a short function that picks parts; nothing branches on a recipe's name. The defaults of `Recipe` and
of `sdpo_interactions` are the vetted setting; the experiment that chose them is `experiments/default_recipe`.
"""

from __future__ import annotations

from typing import Any

from afterword.learn.anchors import kl_to_base
from afterword.learn.contexts import CONTEXTS, Context, with_text
from afterword.learn.divergences import FORWARD_KL, JSD, Estimator, PolicyGradient, ReverseKL
from afterword.learn.recipes.recipe import ON_POLICY, Recipe
from afterword.learn.supports import TopK
from afterword.learn.teachers import LIVE, START, Teacher
from afterword.learn.terms import Term
from afterword.learn.weights import PER_SEQUENCE, PER_TOKEN, Average, Cap, InteractionWeight


def sdpo_interactions(
    *,
    estimator: Estimator = FORWARD_KL,
    where: Context = CONTEXTS["appended"],
    teacher: Teacher = START,
    average: Average = PER_SEQUENCE,
    skip_first: int = 0,
    clip: float | None = None,
    anchor: float = 0.0,
    **settings: Any,
) -> Recipe:
    """Hindsight self-distillation from what users do next (after arXiv 2603.12273).

    The teacher is the same model reading the follow-up; both sides score the served ids. `anchor` is the scale
    of a KL to the base. Differences from the paper: `docs/recipes/sdpo-interactions.md`.
    """
    hindsight = Term(
        name="hindsight",
        estimator=estimator,
        teacher=teacher,
        context=where,
        average=average,
        skip_first=skip_first,
        clip=clip,
    )
    terms = (hindsight, kl_to_base(anchor)) if anchor else (hindsight,)
    return Recipe(name="sdpo-interactions", terms=terms, **settings)


def sdpo_interactions_offline(**settings: Any) -> Recipe:
    """The paper's offline form: policy gradient over the served ids, the live model as its own teacher."""
    term = Term(name="hindsight", estimator=PolicyGradient(), teacher=LIVE, context=CONTEXTS["block"], skip_first=2)
    return Recipe(
        name="sdpo-interactions-offline",
        terms=(term,),
        **{"passes": 2, "fresh": 0, "max_grad_norm": 10.0, **settings},
    )


def opsd(**settings: Any) -> Recipe:
    """Self-distillation from reference solutions, first version: JSD 0.5 (arXiv 2601.18734)."""
    term = Term(name="solution", estimator=JSD(0.5), teacher=START, context=CONTEXTS["reference"], average=PER_TOKEN)
    return Recipe(name="opsd", terms=(term,), **{**ON_POLICY, **settings})


def opsd_clipped(*, clip: float = 0.05, **settings: Any) -> Recipe:
    """Self-distillation from reference solutions, second version: forward KL, at most `clip` nats a token."""
    term = Term(
        name="solution",
        estimator=FORWARD_KL,
        teacher=START,
        context=CONTEXTS["reference"],
        average=PER_TOKEN,
        weights=(InteractionWeight(), Cap(clip)),
    )
    return Recipe(name="opsd-clipped", terms=(term,), **{**ON_POLICY, **settings})


def opcd(*, experience: str = "", **settings: Any) -> Recipe:
    """Context distillation: what `experience` in the system message does, without it (arXiv 2602.12275)."""
    where = with_text(CONTEXTS["system"], experience)
    term = Term(
        name="experience",
        estimator=ReverseKL(),
        teacher=START,
        context=where,
        support=TopK(256, of="student", remainder="tail"),
    )
    return Recipe(name="opcd", terms=(term,), **{**ON_POLICY, **settings})
