"""Prints the objective of a recipe as a formula with its slots.

x is the prompt, y the served answer, c the privileged text, S the student, T the teacher, Q the target that is made of
T, R the reference, A the advantage, r = S(y) now / S(y) at sampling.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from afterword.learn.loss.terms import Term
from afterword.learn.parts.advantages import NO_CLIP
from afterword.learn.parts.anchors import NegativeEntropy
from afterword.learn.parts.contexts import Context
from afterword.learn.parts.divergences import (
    JSD,
    K1,
    K2,
    K3,
    ForwardKL,
    NegativeLogLikelihood,
    PolicyGradient,
    ReverseKL,
    SkewForwardKL,
    SkewReverseKL,
)
from afterword.learn.parts.generation import STUDENT
from afterword.learn.parts.schedules import CONSTANT
from afterword.learn.parts.supports import FULL
from afterword.learn.parts.targets import IDENTITY, Extrapolation, GeometricBridge, Temperature
from afterword.learn.parts.teachers import LIVE, Teacher
from afterword.learn.parts.weights import EVERYTHING
from afterword.learn.recipes.recipe import Recipe

_VALUES = {
    ForwardKL: "KL({T} || S)",
    ReverseKL: "KL(S || {T})",
    JSD: "JSD_{beta:g}({T}, S)",
    SkewForwardKL: "KL({T} || {alpha:g} {T} + (1 - {alpha:g}) S)",
    SkewReverseKL: "KL(S || (1 - {alpha:g}) {T} + {alpha:g} S)",
    PolicyGradient: "-(log {T}(y) - log S(y)) log S(y)",
    K1: "(log S(y) - log {T}(y))",
    K2: "(log S(y) - log {T}(y))^2 / 2",
    K3: "({T}(y)/S(y) - 1 - log {T}(y)/S(y))",
    NegativeLogLikelihood: "-log S(y)",
    NegativeEntropy: "sum S log S",
}
"""The value of each estimator at a token."""


def formula(recipe: Recipe) -> list[str]:
    """Lines of the objective: the sum of the terms, then each term with the distributions that it names.

    Args:
        recipe: Any recipe, also one that cannot be trained.
    """
    lines = ["L = " + " + ".join(f"{_scale(term)}{term.name}" for term in recipe.terms)]
    lines += _answers(recipe)
    for term in recipe.terms:
        lines += ["", *_lines(term)]
    return lines


def _answers(recipe: Recipe) -> Iterator[str]:
    """How answers are written, where that is not by the student alone from its whole distribution."""
    if not recipe.fresh or recipe.generations == (STUDENT,):
        return
    for one in recipe.generations:
        n = recipe.answers_of(one)
        how = [f"{name}={getattr(one, name):g}" for name in ("temperature", "top_p", "top_k", "prefix")
               if getattr(one, name) != getattr(STUDENT, name)]  # fmt: skip
        if one.when != "always":
            how.append(f"where {one.when.replace('_', ' is ')}" if one.when == "none_right" else "where some are right")
        how += [f"kept: {part_text(part)}" for part in one.keep]
        who = "student" if one.weights == LIVE else one.weights.weights
        read = _conditions(one.context)
        then = "" if one.finish is None else f", finished by {one.finish.weights}"
        yield f"  {n} y ~ {who}(. | {read}){then} [{one.origin}]" + "".join(f", {word}" for word in how)


def _conditions(context: Context) -> str:
    """What is read, in the letters of the formula."""
    if not context.privileged:
        return "x"
    shown = "c" if context.hint is None else part_text(context.hint)
    return f"{context.name}(x, {'text' if context.text is not None else shown})"


def _scale(term: Term) -> str:
    schedule = "" if term.schedule == CONSTANT else f"{part_text(term.schedule)} * "
    return schedule + ("" if term.scale == 1 else f"{term.scale:g} * ")


def _lines(term: Term) -> Iterator[str]:
    yield f"{term.name} = {type(term.reduction).__name__}[ {' * '.join(_factors(term))} ]"
    if term.route != EVERYTHING:
        yield f"  answers: {part_text(term.route)}"
    tokens = [*map(part_text, term.masks), *([f"all but the first {term.skip_first}"] if term.skip_first else [])]
    if tokens:
        yield f"  tokens: {', '.join(tokens)}"
    yield f"  S = student(. | {_conditions(term.student_context)}, y<t)"
    if term.teacher is not None:
        yield f"  T = {_side(term.teacher, term.context)}"
    if term.reference is not None:
        yield f"  R = {_side(term.reference, term.reference_context)}"
    if term.target != IDENTITY:
        yield f"  Q = {_target(term)}"
    if term.support != FULL:
        yield f"  over {part_text(term.support)}"
    if term.advantage is not None:
        yield f"  A = {part_text(term.advantage)}"
    for path, schedule in term.schedules:
        if path != "target.beta":
            yield f"  {path} * {part_text(schedule)}"
    if term.pool:
        yield f"  divided together with all terms of {term.pool!r}"


def _factors(term: Term) -> Iterator[str]:
    yield from map(part_text, term.weights)
    if term.policy_clip != NO_CLIP:
        yield f"{part_text(term.policy_clip)}(r)"
    value = _VALUES.get(type(term.estimator), part_text(term.estimator))
    named = {f.name: getattr(term.estimator, f.name) for f in dataclasses.fields(term.estimator)}  # type: ignore[arg-type]
    value = value.format(T="T" if term.target == IDENTITY else "Q", **named)
    if getattr(term.estimator, "floor", None) is not None:
        value = value.replace("(log", f"max({named['floor']:.3g}, log", 1)
    if term.advantage is not None:
        value = f"A * ({value})"
    yield value if term.clip is None else f"min({term.clip:g}, {value})"


def _side(teacher: Teacher, context: Context) -> str:
    weights = teacher.weights if type(teacher) is Teacher else part_text(teacher)
    return f"{weights}(. | {_conditions(context)}, y<t)"


def _target(term: Term) -> str:
    target = term.target
    if isinstance(target, Extrapolation):
        return f"T^{target.scale:g} R^{1 - target.scale:g} / Z" + (
            f", raised only where T >= {target.plausible:g}" if target.plausible else ""
        )
    if isinstance(target, GeometricBridge):
        schedule = "".join(f" {part_text(one)}" for path, one in term.schedules if path == "target.beta")
        return f"T S^({target.beta:g}{schedule}) / Z"
    if isinstance(target, Temperature):
        return f"T^(1/{target.temperature:g}) / Z, S likewise"
    return part_text(target)


def part_text(part: Any) -> str:
    """A part by its class name with the fields that differ from their defaults."""
    shown = [
        f"{field.name}={getattr(part, field.name)!r}"
        for field in dataclasses.fields(part)
        if field.name != "weights" and getattr(part, field.name) != field.default
    ]
    return f"{type(part).__name__}({', '.join(shown)})" if shown else type(part).__name__
