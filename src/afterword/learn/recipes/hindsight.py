"""Self-distillation: the student reads the conversation, the teacher the conversation and something more.

Each recipe is a short function that picks parts; nothing branches on a recipe's name. The defaults of `Recipe` and
of `sdpo_interactions` are the vetted setting; the experiment that chose them is `experiments/default_recipe`.
"""

from __future__ import annotations

from typing import Any

from afterword.learn.anchors import kl_to_base
from afterword.learn.contexts import CONTEXTS, Context
from afterword.learn.divergences import FORWARD_KL, Estimator
from afterword.learn.recipes.recipe import Recipe
from afterword.learn.teachers import START, Teacher
from afterword.learn.terms import Term
from afterword.learn.weights import PER_SEQUENCE, Average


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
