"""Combinations that cannot work are refused before a model is loaded, each with its reason and remedy."""

from __future__ import annotations

import math
from collections.abc import Callable

from afterword.errors import ConfigError
from afterword.learn.distances import Distance
from afterword.learn.recipes import Recipe
from afterword.learn.terms import Term


def validate(recipe: Recipe) -> None:
    """Raise ConfigError with every fault of `recipe`, one sentence each."""
    faults = [fault for check in _RECIPE_CHECKS if (fault := check(recipe))]
    for term in recipe.terms:
        faults += [f"term {term.name!r}: {fault}" for check in _TERM_CHECKS if (fault := check(recipe, term))]
    if faults:
        raise ConfigError(f"recipe {recipe.name!r} cannot be trained: " + "; ".join(faults))


def _numbers(recipe: Recipe) -> str | None:
    positive = {
        "passes": recipe.passes,
        "batch": recipe.batch,
        "max_grad_norm": recipe.max_grad_norm,
        "micro_tokens": recipe.micro_tokens,
        "max_tokens": recipe.max_tokens,
        "max_hindsight": recipe.max_hindsight,
        "max_fresh": recipe.max_fresh,
        "rank": recipe.lora.rank,
    }
    bad = [f"{name}={value}" for name, value in positive.items() if not value > 0]
    if recipe.fresh < 0:
        bad.append(f"fresh={recipe.fresh}")
    if not (math.isfinite(recipe.lr) and recipe.lr >= 0):
        bad.append(f"lr={recipe.lr}")
    return f"{', '.join(bad)} must be positive" if bad else None


def _dtype(recipe: Recipe) -> str | None:
    known = ("bfloat16", "float32", "auto")
    return None if recipe.dtype in known else f"dtype {recipe.dtype!r} is unknown: use one of {', '.join(known)}"


def _has_terms(recipe: Recipe) -> str | None:
    if not recipe.terms:
        return "it has no terms: give at least one"
    if recipe.fresh and all(t.teacher is None for t in recipe.terms):
        return "without a teacher the student would imitate its own fresh answers: set fresh to 0"
    if all(not t.context.privileged and t.teacher is not None for t in recipe.terms):
        return (
            "no term shows the teacher anything that the student does not read, so there is nothing to learn: "
            "use a context with hindsight"
        )
    return None


def _teacher(recipe: Recipe, term: Term) -> str | None:
    if term.estimator.needs_teacher and term.teacher is None:
        return "its estimator compares with a teacher: name one (START, BASE or LIVE)"
    if not term.estimator.needs_teacher and (term.teacher is not None or term.context.privileged):
        return "its estimator reads only the served ids: leave out the teacher and use the context 'none'"
    if term.teacher is not None and not term.teacher.frozen and not term.context.privileged:
        return "a live teacher without hindsight equals its student, the loss is 0: freeze it or give a context"
    return None


def _parts(recipe: Recipe, term: Term) -> str | None:
    return "; ".join(Distance(term.estimator, term.target, term.support).faults()) or None


def _off_policy(recipe: Recipe, term: Term) -> str | None:
    if term.estimator.sampled and recipe.include_off_policy:
        return (
            "a sampled-token estimator is right only on tokens that the model sampled itself: use a "
            "full-vocabulary divergence, or set include_off_policy to false"
        )
    return None


def _sampled_clip(recipe: Recipe, term: Term) -> str | None:
    if term.estimator.sampled and term.clip is not None:
        return "the value of a sampled-token loss is no distance, so it cannot be clipped: leave out clip"
    if term.clip is not None and not term.clip > 0:
        return f"clip must be positive, got {term.clip}"
    return None


def _amounts(recipe: Recipe, term: Term) -> str | None:
    if term.skip_first < 0 or not term.scale > 0:
        return f"skip_first={term.skip_first} and scale={term.scale} must be at least 0 and more than 0"
    return None


_RECIPE_CHECKS: tuple[Callable[[Recipe], str | None], ...] = (_numbers, _dtype, _has_terms)
_TERM_CHECKS: tuple[Callable[[Recipe, Term], str | None], ...] = (
    _teacher,
    _parts,
    _off_policy,
    _sampled_clip,
    _amounts,
)
