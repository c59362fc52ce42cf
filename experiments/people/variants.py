"""The recipes that experiments compare: the default `follow-ups`, one factor at a time around `sdpo-interactions`, and
the paper's two own forms."""

from __future__ import annotations

import dataclasses
from typing import Any

from afterword.learn.parts.contexts import CONTEXTS
from afterword.learn.parts.divergences import JSD, PolicyGradient, ReverseKL
from afterword.learn.parts.generation import Ended, Generation
from afterword.learn.parts.schedules import Linear
from afterword.learn.parts.supports import TopK
from afterword.learn.parts.teachers import BASE, EMA, LIVE, START
from afterword.learn.parts.weights import TOKEN_MEAN
from afterword.learn.recipes import recipe, sdpo_interactions
from afterword.learn.recipes.recipe import Lora, Recipe

VARIANTS: dict[str, dict[str, Any]] = {
    "follow-ups": {},
    "sdpo-interactions": {},
    "served only twice": {"epochs": 2, "fresh": 0},
    "fresh 2": {"epochs": 0, "fresh": 2},
    "teacher start": {"teacher": START},
    "teacher base": {"teacher": BASE},
    "teacher live": {"teacher": LIVE},
    "teacher average": {"teacher": EMA(rate=0.05)},
    "reverse KL": {"estimator": ReverseKL()},
    "JSD 0.5": {"estimator": JSD(0.5)},
    "policy gradient": {"estimator": PolicyGradient()},
    "support top 100": {},
    "context block": {"where": CONTEXTS["block"]},
    "context next turn": {"where": CONTEXTS["next_turn"]},
    "context shuffled (control)": {"where": CONTEXTS["shuffled"]},
    "anchor 0.1": {"anchor": 0.1},
    "contrast 0.5": {"contrast": 0.5},
    "contrast 1": {"contrast": 1.0},
    "hold 0.3": {"hold": 0.3, "teacher": BASE},
    "hold 0.5 together": {
        "hold": 0.5,
        "teacher": BASE,
        "schedule": Linear(warmup=1),
        "where": CONTEXTS["together"],
    },
    "beyond 0.5": {"beyond": 0.5, "hold": 0.3, "teacher": BASE, "schedule": Linear(warmup=1)},
    "last round teaches": {"beyond": 0.25, "hold": 0.3, "schedule": Linear(warmup=1)},
    "context together": {"where": CONTEXTS["together"]},
    "lr 3e-4": {"lr": 3e-4},
    "lr 2e-3": {"lr": 2e-3},
    "lr falls": {"schedule": Linear(warmup=1)},
    "token mean": {"reduction": TOKEN_MEAN},
    "batch 8": {"batch": 8},
    "paper offline": {},
    "paper online": {},
    "all again": {},
}
"""Arguments of `sdpo_interactions`, one factor at a time; those named below are recipes of their own."""
LOOPS: dict[str, dict[str, Any]] = {
    "default: fresh at 0.7": {"generation": Generation(temperature=0.7)},
    "default: fresh at 0.3": {"generation": Generation(temperature=0.3)},
    "default: fresh greedily": {"generation": Generation(temperature=0.0)},
    "default: fresh that end": {"generation": Generation(keep=(Ended(),))},
    "default: no fresh": {"fresh": 0},
    "default: lr 5e-4": {"lr": 5e-4},
    "default: rank 4": {"lora": Lora(rank=4, alpha=8.0)},
}
"""Changes of the default that may keep an answer from saying the same again; only for experiments that name them."""
AGAIN = "all again"
"""`follow-ups`, but each round starts from the base and learns everything that was said so far."""


def made(variant: str) -> Recipe:
    """The recipe of a variant."""
    if variant in ("follow-ups", AGAIN):
        return recipe("follow-ups")
    if variant == "paper offline":
        return recipe("sdpo-interactions-offline")
    if variant == "paper online":
        return recipe("sdpo-interactions-online", fresh=2)
    if variant == "support top 100":
        return _supported(sdpo_interactions())
    if variant in LOOPS:
        return recipe("follow-ups", **LOOPS[variant])
    return sdpo_interactions(**VARIANTS[variant])


def holds(made: Recipe) -> bool:
    """Does it train on answers that the user only accepted?"""
    return any(term.name == "anchor_gold" for term in made.terms)


def _supported(whole: Recipe) -> Recipe:
    term = dataclasses.replace(whole.terms[0], support=TopK(100, of="student", remainder="tail"))
    return dataclasses.replace(whole, terms=(term, *whole.terms[1:]))
