"""The always-valid interval: its sums against plain formulas, and what its promise costs by simulation."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.release.always_valid import SPREAD, ArmSums, around, compare, standard_error

Event = tuple[int, float]


def arm_of(events: list[Event]) -> ArmSums:
    arm = ArmSums()
    for unit, value in events:
        arm.turn(f"u{unit}")
        if value:
            arm.count(f"u{unit}", "y", value)
    return arm


events = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([-1.0, 0.0, 1.0, 0.5])), max_size=40)


@given(events)
def test_the_sums_are_those_of_a_second_pass(made: list[Event]) -> None:
    arm = arm_of(made)
    units = sorted({u for u, _ in made})
    n = {u: sum(1 for x, _ in made if x == u) for u in units}
    y = {u: sum(v for x, v in made if x == u) for u in units}
    ratio = sum(y.values()) / sum(n.values()) if made else 0.0
    assert arm.ratio("y") == pytest.approx(ratio) and arm.turns == len(made)
    for around_ in (ratio, 0.3):
        expected = sum((y[u] - around_ * n[u]) ** 2 for u in units) / max(1, len(units))
        assert arm.scatter("y", around_) == pytest.approx(expected, abs=1e-9)


@given(events)
def test_what_is_taken_back_was_never_there(made: list[Event]) -> None:
    arm, plain = arm_of(made), arm_of([(u, 0.0) for u, _ in made])
    for unit, value in made:
        arm.count(f"u{unit}", "y", -value)
    assert arm.ratio("y") == pytest.approx(0.0, abs=1e-12)
    assert arm.scatter("y", 0.2) == pytest.approx(plain.scatter("y", 0.2), abs=1e-9)


def test_the_radius_is_where_the_mixture_ratio_reaches_one_over_alpha() -> None:
    for error in (0.01, 0.1, 1.0):
        interval = around(0.0, error, 0.05)
        s, t, d = error**2, SPREAD**2, interval.high
        ratio = math.sqrt(s / (s + t)) * math.exp(d * d * t / (2 * s * (s + t)))
        assert ratio == pytest.approx(1 / 0.05, rel=1e-6)
        assert interval.low == -interval.high and d > 1.96 * error, "it must be wider than an interval for one look"


def test_nothing_is_certain_before_anything_was_counted() -> None:
    empty = arm_of([(u, 0.0) for u in range(100)])
    assert math.isinf(compare(empty, empty, "y", 0.05).high)
    assert math.isinf(compare(arm_of([(0, 1.0)]), empty, "y", 0.05).low), "one unit has no spread"


def test_an_arm_without_events_is_not_taken_for_constant() -> None:
    none, some = arm_of([(u, 0.0) for u in range(30)]), arm_of([(u, float(u % 10 == 0)) for u in range(1000)])
    alone = math.sqrt(some.scatter("y", 0.1) / 999)
    assert standard_error(none, some, "y") > 3 * alone


def test_turns_of_one_user_are_not_independent() -> None:
    many = arm_of([(u, float(u % 2)) for u in range(20) for _ in range(10)])
    each = arm_of([(u, float(u % 2)) for u in range(200)])
    other = arm_of([(u, float(u % 2)) for u in range(2000)])
    assert standard_error(many, other, "y") > 2.5 * standard_error(each, other, "y")


def peeks(seed: int, share: float, rate: float, moody: float, turns: int, alpha: float) -> bool:
    """Equal arms, looked at after every turn: is a difference ever claimed?"""
    dice = random.Random(seed)
    new, old = ArmSums(), ArmSums()
    users = 400
    arms = [new if dice.random() < share else old for _ in range(users)]
    moods = [dice.uniform(-moody, moody) for _ in range(users)]
    for _ in range(turns):
        user = dice.randrange(users)
        arm = arms[user]
        arm.turn(f"u{user}")
        if dice.random() < rate + moods[user]:
            arm.count(f"u{user}", "y", 1.0)
        if min(len(new.units), len(old.units)) >= 20:
            interval = compare(new, old, "y", alpha)
            if interval.low > 0 or interval.high < 0:
                return True
    return False


def test_equal_arms_are_rarely_told_apart() -> None:
    claimed = sum(peeks(seed, 0.5, 0.3, 0.2, 600, 0.05) for seed in range(60))
    assert claimed <= 8, "5 % of 60 is 3; 9 or more come by chance once in 200 times"


@pytest.mark.slow
@pytest.mark.parametrize(("share", "rate", "moody"), [(0.1, 0.3, 0.2), (0.5, 0.3, 0.0), (0.1, 0.02, 0.0)])
def test_false_claims_stay_below_alpha_in_2000_simulated_pairs(share: float, rate: float, moody: float) -> None:
    """The figures of docs/release.md; `benchmarks/canary.py --validate` prints them for more settings."""
    claimed = sum(peeks(seed, share, rate, moody, 1500, 0.05) for seed in range(2000))
    assert claimed / 2000 <= 0.05
