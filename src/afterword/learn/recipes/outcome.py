"""Composes recipes without a teacher: imitation of served answers, or of successful ones.

The control of every other recipe lives here: the same answers, nothing to read.
"""

from __future__ import annotations

from typing import Any

from afterword.learn.loss.terms import Term
from afterword.learn.parts.advantages import GroupBaseline, PPOClip
from afterword.learn.parts.contexts import CONTEXTS
from afterword.learn.parts.divergences import NegativeLogLikelihood
from afterword.learn.parts.fields import Positive, UnitInterval, method
from afterword.learn.parts.schedules import Switch
from afterword.learn.parts.weights import TOKEN_MEAN, InDistribution, InteractionWeight
from afterword.learn.recipes.recipe import ON_POLICY, Recipe


def sft(**settings: Any) -> Recipe:
    """The control: imitate the served answers, no teacher, no hindsight."""
    term = Term(name="imitation", estimator=NegativeLogLikelihood(), teacher=None, context=CONTEXTS["none"])
    # a student that imitates itself learns nothing, so there are no epochs over fresh answers
    return Recipe(name="sft", terms=(term,), **{"fresh": 0, **settings})


@method
def idft(*, beta: Positive = 1.0, warmup: UnitInterval = 0.2, **settings: Any) -> Recipe:
    """Imitate served answers, least the tokens that the student would not write (arXiv 2602.12222)."""
    term = Term(
        name="imitation", estimator=NegativeLogLikelihood(), teacher=None, context=CONTEXTS["none"],
        reduction=TOKEN_MEAN, weights=(InteractionWeight(), InDistribution(beta)),
        schedules=(("weights.1.mix", Switch(warmup, 0.0, 1.0)),) if warmup else (),
    )  # fmt: skip
    return Recipe(name="idft", terms=(term,), **{"epochs": 3, "fresh": 0, **settings})


def grpo(**settings: Any) -> Recipe:
    """Policy gradient on a verifier's score, against the other answers to the prompt (arXiv 2402.03300)."""
    term = Term(
        name="outcome",
        estimator=NegativeLogLikelihood(),
        teacher=None,
        context=CONTEXTS["none"],
        reduction=TOKEN_MEAN,
        weights=(),
        advantage=GroupBaseline("grpo"),
        policy_clip=PPOClip(low=0.2, high=0.28),
    )
    return Recipe(name="grpo", terms=(term,), **{**ON_POLICY, "num_generations": 8, "batch": 16, **settings})
