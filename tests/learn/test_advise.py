"""Advice follows from what is there: the first recipe reads the most, and what is missing is named with its remedy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from afterword.learn.recipes import RECIPES, recipe
from afterword.learn.recipes.advise import FEW, RULES, EpisodeFacts, Facts, advise

WORDS, EDITS, TESTS = ({kind: FEW} for kind in ("follow_up", "edited", "tests"))


@pytest.mark.parametrize(
    ("facts", "first", "fitting"),
    [
        ({"kinds": WORDS}, "follow-ups", {"essd"}),
        ({"kinds": EDITS}, "follow-ups", {"sdft"}),
        ({"kinds": TESTS}, "sdpo", {"essd"}),
        ({"kinds": EDITS, "verifier": True}, "follow-ups", {"sdft", "rlsd", "pope", "grpo"}),
        ({"kinds": {"accepted": 40}, "praised": 40}, "sft", {"essd"}),
        ({"kinds": {"accepted": 1}, "teacher": True, "tasks": ("a", "b")}, "opd", {"mopd"}),
        ({"imported": 30}, "idft", {"essd"}),
    ],
)
def test_the_best_recipe_comes_first(facts: dict[str, Any], first: str, fitting: set[str]) -> None:
    found = advise(Facts(**facts))
    fits = [one.recipe for one in found if one.fits]
    assert fits[0] == first and fitting <= set(fits)
    assert [one.fits for one in found] == sorted((one.fits for one in found), reverse=True)


AGENTS = EpisodeFacts(turns=40, observed=30, scored=16, compared=16)


@pytest.mark.parametrize(("episodes", "first", "fitting", "unfit"), [
    (AGENTS, "episode-hindsight", {"episode-grpo", "episode-sdpo"}, {"episode-sdar", "tamtrl", "essd", "idft"}),
    (replace(AGENTS, skills=3, solved=2), "episode-hindsight", {"episode-sdar", "tamtrl"}, {"episode-opd"}),
    (replace(AGENTS, observed=0), "episode-grpo", set(), {"episode-hindsight", "episode-sdpo"}),
    (replace(AGENTS, compared=0), "episode-sdpo", set(), {"episode-grpo", "episode-hindsight"}),
    (EpisodeFacts(imported=30, observed=20), "episode-sdpo", set(), {"episode-grpo", "idft"}),
])  # fmt: skip
def test_episodes_have_rules_of_their_own(
    episodes: EpisodeFacts, first: str, fitting: set[str], unfit: set[str]
) -> None:
    found = {one.recipe: one for one in advise(Facts(episodes=episodes))}
    fits = [name for name, one in found.items() if one.fits]
    assert fits[0] == first and fitting <= set(fits) and unfit.isdisjoint(fits)
    assert "--group 8" in found["episode-grpo"].reason or found["episode-grpo"].fits
    assert next(one.recipe for one in advise(Facts(kinds=WORDS, episodes=episodes))) == "follow-ups"


def test_what_is_missing_is_named_with_the_remedy() -> None:
    missing = {one.recipe: one.reason for one in advise(Facts(kinds={"follow_up": FEW - 1}))}
    assert missing["follow-ups"] == "11 interactions with words, at least 12 are worth a round"
    assert "train.verifier" in missing["kdrl"] and "train.teacher" in missing["kdrl"]
    assert "train.experience" in missing["opcd"] and "metadata.task" in missing["mopd"]
    assert not any(one.fits for one in advise(Facts()))


def test_every_rule_names_a_recipe() -> None:
    assert all(recipe(rule.recipe) for rule in RULES) and {rule.recipe for rule in RULES} <= set(RECIPES)
