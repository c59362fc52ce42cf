"""Recipes: short functions that compose parts into a method. Nothing branches on a recipe's name.

The class defaults of `Recipe` and of `sdpo_interactions` are the vetted setting; the experiment that chose them
is `experiments/default_recipe`. To add a method, write a function here and name it in RECIPES.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from afterword.errors import ConfigError
from afterword.learn.anchors import kl_to_base
from afterword.learn.contexts import CONTEXTS, Context, context
from afterword.learn.divergences import FORWARD_KL, Estimator, NegativeLogLikelihood
from afterword.learn.schedules import CONSTANT, Schedule
from afterword.learn.teachers import START, Teacher
from afterword.learn.terms import Term
from afterword.learn.weights import PER_SEQUENCE, Average
from afterword.records import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """The adapter that is trained. No dropout: with it a teacher could never agree with its student exactly."""

    rank: int = 16
    alpha: float = 32.0
    targets: str | tuple[str, ...] = "all-linear"
    """PEFT's target modules; "all-linear" is every linear layer but the output head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides a training run but its data, model and seed."""

    name: str
    terms: tuple[Term, ...]
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    passes: int = 1
    """Times that every served answer is seen."""
    fresh: int = 1
    """Passes after those, over answers that the student writes anew to the same prompts."""
    batch: int = 4
    """Interactions per optimiser step."""
    schedule: Schedule = CONSTANT
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    lora: Lora = Lora()
    dtype: str = "bfloat16"
    """Of the base model ("bfloat16", "float32", "auto"); the adapter is always float32."""
    micro_tokens: int = 512
    """Most padded tokens in one forward pass; it changes speed and memory, not the result."""
    max_tokens: int = 2048
    """Most tokens of a prompt and its answer; a longer interaction is left out and counted, never cut."""
    max_hindsight: int = 512
    """Most tokens of hindsight that the teacher reads; what is cut is counted."""
    max_fresh: int = 256
    """Most tokens of an answer that the student writes anew."""
    include_off_policy: bool = False
    """Also train answers whose served ids are unknown (imported logs), tokenised by us."""


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


def sft(**settings: Any) -> Recipe:
    """The control: imitate the served answers, no teacher, no hindsight."""
    term = Term(name="imitation", estimator=NegativeLogLikelihood(), teacher=None, context=CONTEXTS["none"])
    # a student that imitates itself learns nothing, so there are no passes over fresh answers
    return Recipe(name="sft", terms=(term,), **{"fresh": 0, **settings})


RECIPES: dict[str, Callable[..., Recipe]] = {"sdpo-interactions": sdpo_interactions, "sft": sft}

_SETTINGS = {"lr", "passes", "fresh", "batch", "include_off_policy", "max_tokens", "max_hindsight", "max_fresh",
             "micro_tokens", "dtype", "max_grad_norm"}  # fmt: skip


def recipe(name: str, **overrides: Any) -> Recipe:
    """The recipe of that name with plain settings from a configuration (lr, passes, batch, context, rank ...).

    Raises ConfigError for an unknown name or key.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}: use one of {', '.join(sorted(RECIPES))}", param="recipe")
    options = dict(overrides)
    if "rank" in options:
        rank = options.pop("rank")
        options["lora"] = Lora(rank=rank, alpha=2.0 * rank)
    if "context" in options:
        options["where"] = context(options.pop("context"))
    try:
        return RECIPES[name](**options)
    except TypeError as error:
        known = ", ".join(sorted({*_SETTINGS, "rank", "context", "anchor", "clip", "skip_first"}))
        raise ConfigError(f"recipe {name!r} does not take {sorted(overrides)}: {error}; known: {known}") from error


def describe(part: Any) -> Any:
    """A recipe or any of its parts as plain JSON, for manifests and fingerprints."""
    if isinstance(part, Context):
        return {"part": "Context", "name": part.name, "version": part.version}
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        named: Json = {"part": type(part).__name__}
        return named | {f.name: describe(getattr(part, f.name)) for f in dataclasses.fields(part)}
    if isinstance(part, (tuple, list)):
        return [describe(p) for p in part]
    return part
