"""Recipes without a teacher: what was served is imitated, or what turned out well is.

The control of every other recipe lives here: the same answers, nothing to read.
"""

from __future__ import annotations

from typing import Any

from afterword.learn.contexts import CONTEXTS
from afterword.learn.divergences import NegativeLogLikelihood
from afterword.learn.recipes.recipe import Recipe
from afterword.learn.terms import Term


def sft(**settings: Any) -> Recipe:
    """The control: imitate the served answers, no teacher, no hindsight."""
    term = Term(name="imitation", estimator=NegativeLogLikelihood(), teacher=None, context=CONTEXTS["none"])
    # a student that imitates itself learns nothing, so there are no passes over fresh answers
    return Recipe(name="sft", terms=(term,), **{"fresh": 0, **settings})
