"""The printed objective names every slot that differs from doing nothing."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from tests.learn.recipe_inputs import INPUTS

from afterword.learn.parts.anchors import entropy_bonus
from afterword.learn.recipes import RECIPES, Recipe, recipe
from afterword.learn.recipes.formula import formula, part_text


def test_the_default_recipe_reads_as_its_page_says() -> None:
    assert formula(recipe("follow-ups")) == [
        "L = hindsight + 0.3 * anchor_gold",
        "",
        "hindsight = SequenceMean[ InteractionWeight * ChangedTokens * KL(Q || S) ]",
        "  answers: NotKind(kinds=('gold',))",
        "  S = student(. | x, y<t)",
        "  T = base(. | appended(x, c), y<t)",
        "  R = base(. | x, y<t)",
        "  Q = T^1.25 R^-0.25 / Z, raised only where T >= 0.01",
        "",
        "anchor_gold = SequenceMean[ InteractionWeight * -log S(y) ]",
        "  answers: ByKind(kinds=('gold',))",
        "  S = student(. | x, y<t)",
    ]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("gkd", "distance = TokenMean[ InteractionWeight * JSD_0.5(T, S) ]"),
        ("grpo", "outcome = TokenMean[ PPOClip(high=0.28)(r) * A * (-log S(y)) ]"),
        ("grpo", "  A = GroupBaseline"),
        ("veto", "  Q = T S^(0.8 Linear(reach=True)) / Z"),
        ("sdpo", "  T = EMA(. | by_kind(x, c), y<t)"),
        ("sdft", "  T = EMA(rate=0.01)(. | reference(x, c), y<t)"),
        ("opcd", "  T = start(. | system(x, text), y<t)"),
        ("opcd", "  over TopK(k=256)"),
        ("sdft", "  tokens: all but the first 3"),
    ],
)
def test_slots_of_other_recipes(name: str, line: str) -> None:
    assert line in formula(recipe(name, **INPUTS.get(name, {})))


def test_a_floor_bounds_the_advantage_and_a_clip_the_loss() -> None:
    text = "\n".join(formula(recipe("reopold", teacher="x")))
    assert "-max(-1.72, log T(y) - log S(y)) log S(y)" in text and "Switch(at=" in text
    assert "min(0.5, KL(T || S))" in "\n".join(formula(recipe("sdpo-interactions", clip=0.5)))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_part_that_a_recipe_chose_is_in_its_formula(name: str) -> None:
    made = recipe(name, **INPUTS.get(name, {}))
    text = "\n".join(formula(made))
    for term in made.terms:
        chosen: list[Any] = [*term.weights, *term.masks, term.advantage, term.reduction]
        assert all(part_text(part) in text for part in chosen if part is not None)
        for slot in ("support", "route", "policy_clip", "schedule"):
            usual = {field.name: field.default for field in fields(term)}[slot]
            assert getattr(term, slot) == usual or part_text(getattr(term, slot)) in text


def test_the_entropy_bonus() -> None:
    assert formula(Recipe(name="x", terms=(entropy_bonus(0.01),)))[2] == "entropy_bonus = TokenMean[ sum S log S ]"
