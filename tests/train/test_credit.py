"""Credit of turns by hand: two episodes of a task, one that succeeds (1) and one that does not (0)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from afterword.learn.parts.credit import EpisodeCredit
from afterword.train.data.credit import Step, credit_of, returns, rubric_credit

GRPO = 0.5 / (0.5**0.5 + 1e-4)
"""(1 - 0.5) / (sample deviation of 1 and 0 + 1e-4)."""


def step(turn: str, depth: int, state: str, action: str, **more: Any) -> Step:
    episode = turn[0]
    values: dict[str, Any] = {"outcome": 1.0 if episode == "a" else 0.0, **more}
    return Step(turn=turn, episode=episode, task="t", depth=depth, state=state, action=action, **values)


STEPS = (
    step("a1", 0, "start", "left", reward=0.2, rubric=(("style", 1.0), ("facts", 0.5))),
    step("a2", 1, "hall", "on", parent="a1"),
    step("b1", 0, "start", "right", rubric=(("style", 0.0),)),
    step("b2", 1, "yard", "on", parent="b1"),
)


@pytest.mark.parametrize(
    ("rule", "want"),
    [
        (EpisodeCredit(), (GRPO, GRPO, -GRPO, -GRPO)),
        (EpisodeCredit(baseline="dr_grpo"), (0.5, 0.5, -0.5, -0.5)),
        (EpisodeCredit(baseline="leave_one_out"), (1.0, 1.0, -1.0, -1.0)),
        (EpisodeCredit(baseline="none"), (1.0, 1.0, 0.0, 0.0)),
        (EpisodeCredit(baseline="dr_grpo", group="state"), (0.5, 0.0, -0.5, 0.0)),
        (EpisodeCredit(baseline="dr_grpo", decisions=True), (0.5, 0.0, -0.5, 0.0)),
        # returns at a discount of a half: a1 0.2 + 0.5 x 1, a2 1, b1 and b2 0
        (EpisodeCredit(of="return", discount=0.5, baseline="none"), (0.7, 1.0, 0.0, 0.0)),
        (EpisodeCredit(of="return", discount=0.5, baseline="dr_grpo"), (0.275, 0.575, -0.425, -0.425)),
        (EpisodeCredit(of="return", discount=0.5, baseline="dr_grpo", group="position"), (0.35, 0.5, -0.35, -0.5)),
        (EpisodeCredit(of="return", discount=0.5, baseline="leave_one_out", group="position"), (0.7, 1.0, -0.7, -1.0)),
        (EpisodeCredit(of="return", discount=0.0, baseline="none"), (0.2, 1.0, 0.0, 0.0)),
    ],
)  # fmt: skip
def test_each_rule(rule: EpisodeCredit, want: tuple[float, ...]) -> None:
    found = credit_of(STEPS, rule)
    assert [found[one.turn] for one in STEPS] == pytest.approx(want, abs=1e-9)


def test_the_same_action_in_the_same_state_is_no_decision() -> None:
    alike = [dataclasses.replace(one, action="left") for one in STEPS]
    assert set(credit_of(alike, EpisodeCredit(decisions=True)).values()) == {0.0}


def test_a_long_episode_counts_once_in_its_group() -> None:
    """Three turns of a success and one of a failure: the mean of the group is a half, not three quarters."""
    steps = [*STEPS[:2], step("a3", 2, "roof", "on", parent="a2"), STEPS[2]]
    assert credit_of(steps, EpisodeCredit(baseline="dr_grpo"))["a3"] == 0.5


def test_rubric_items_are_weighed_and_compared_each_for_itself() -> None:
    rule = EpisodeCredit(of="rubric", baseline="dr_grpo", rubric=(("style", 2.0), ("facts", 1.0)))
    found = rubric_credit(STEPS, rule)
    assert found["a1"] == {"style": 1.0, "facts": 0.0} and found["b1"]["style"] == -1.0


def test_a_turn_with_two_branches_has_the_mean_of_their_returns() -> None:
    steps = [
        step("a1", 0, "s", "x"), step("a2", 1, "s", "y", parent="a1", reward=1.0),
        step("a3", 1, "s", "z", parent="a1", reward=0.0, outcome=0.0),
    ]  # fmt: skip
    found = returns(steps, 0.5)
    assert found == pytest.approx({"a2": 2.0, "a3": 0.0, "a1": 0.5})


def test_an_episode_without_any_reward_has_no_credit_and_moves_no_group() -> None:
    unscored = step("c1", 0, "start", "back", outcome=None)
    for rule in (EpisodeCredit(baseline="dr_grpo"), EpisodeCredit(of="return", baseline="dr_grpo")):
        found, before = credit_of([*STEPS, unscored], rule), credit_of(STEPS, rule)
        assert found.pop("c1") == 0.0 and found == before
