"""The score: what it prefers, and that it cannot be had cheaply."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.learn.hindsight_score import CLIP, FLOOR, LOOP, LOOPED, MISSING, ROOM, looped, score

LOGP = st.floats(-30, 0)


def test_by_hand() -> None:
    ids = range(FLOOR)
    assert score([-1.0] * FLOOR, [-0.5] * FLOOR, ids) == pytest.approx(0.5)
    assert score([-9.0] * FLOOR, [-1.0] * FLOOR, ids) == pytest.approx(min(CLIP, ROOM - 1.0))
    assert score([-9.0] * FLOOR, [-8.0] * FLOOR, ids) == pytest.approx(ROOM - 8.0)
    assert score([-0.1] * FLOOR, [-9.0] * FLOOR, ids) == pytest.approx(ROOM - 9.0)
    assert score([-1.0], [-0.1], [5]) == pytest.approx((0.9 + MISSING * (FLOOR - 1)) / FLOOR)
    assert score([], [], []) == MISSING


def test_looped_tokens() -> None:
    assert looped(range(40)) == [False] * 40
    assert looped([1, 2] * LOOP) == [False] * (LOOP + 1) + [True] * (LOOP - 1)
    assert looped([7] * (LOOP - 1)) == [False] * (LOOP - 1)
    zeros = [-0.001] * 40
    assert score(zeros, zeros, [1, 2] * 20) == pytest.approx(LOOPED * (40 - LOOP - 1) / 40)


@given(st.lists(st.tuples(LOGP, LOGP, st.integers(0, 50)), max_size=40))
def test_bounds_and_no_reward_for_what_is_implausible(tokens: list[tuple[float, float, int]]) -> None:
    plain, hinted = ([token[k] for token in tokens] for k in range(2))
    ids = [token[2] for token in tokens]
    value = score(plain, hinted, ids)
    assert value <= CLIP
    mean = sum(hinted) / len(tokens) if tokens else 0.0
    assert value <= ROOM + mean * len(tokens) / max(len(tokens), FLOOR) + 1e-9


@given(st.lists(st.tuples(LOGP, LOGP), min_size=1, max_size=40), st.data())
def test_a_token_that_the_hindsight_likes_better_never_lowers_the_score(
    tokens: list[tuple[float, float]], data: st.DataObject
) -> None:
    plain, hinted = ([token[k] for token in tokens] for k in range(2))
    place = data.draw(st.integers(0, len(tokens) - 1))
    better = list(hinted)
    better[place] = data.draw(st.floats(hinted[place], 0))
    ids = range(len(tokens))
    assert score(plain, better, ids) >= score(plain, hinted, ids) - 1e-9
