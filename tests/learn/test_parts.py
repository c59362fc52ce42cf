"""Routes, weights, masks, advantages, policy clips, schedules and anchors, each against what its source says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from afterword.learn.loss.loss_stage import COLUMNS, Scores, token_losses
from afterword.learn.loss.terms import Term
from afterword.learn.loss.tiles import tile_of
from afterword.learn.loss.token_batch import AnswerInfo, Group, TokenBatch, layout
from afterword.learn.parts.advantages import (
    Advantage,
    FeedbackPolarity,
    GroupBaseline,
    LogRatio,
    PolicyClip,
    PPOClip,
    Truncated,
)
from afterword.learn.parts.anchors import GOLD, NegativeEntropy, entropy_bonus, gold_mix
from afterword.learn.parts.contexts import CONTEXTS
from afterword.learn.parts.divergences import NegativeLogLikelihood, PolicyGradient
from afterword.learn.parts.schedules import Constant, Cosine, Linear, OnMetric, Schedule, Switch
from afterword.learn.parts.teachers import BASE, EMA, START, Copy, Routed
from afterword.learn.parts.weights import (
    ByCorrectness,
    ByKind,
    ByTask,
    EntropyGate,
    ImportanceRatio,
    Position,
    Prefix,
    Sampled,
    Staleness,
    Weight,
)
from afterword.model.head import Head
from afterword.train.data.examples import with_groups
from afterword.train.data.rows import Encoded

NAN = float("nan")


def rows(
    lengths: Sequence[int], answers: Sequence[AnswerInfo] | None = None, served: Sequence[float] | None = None
) -> TokenBatch:
    return layout(lengths, [1.0] * len(lengths), [True] * len(lengths), answers=answers, served=served)


def scored(n: int, **columns: Sequence[float] | Tensor) -> Scores:
    given: dict[str, Tensor] = {name: torch.as_tensor(values) for name, values in columns.items()}
    return Scores(**{name: given.get(name, torch.ones(n)) for name in COLUMNS})


def imitation(**changes: object) -> Term:
    settings = {"name": "t", "estimator": NegativeLogLikelihood(), "teacher": None, "context": CONTEXTS["none"]}
    return Term(**{"weights": (), **settings, **changes})  # type: ignore[arg-type]


ANSWERS = (
    AnswerInfo(kind="tests", task="code", reward=1.0),
    AnswerInfo(kind="tests", task="code", reward=-1.0),
    AnswerInfo(kind="follow_up", task=None),
    AnswerInfo(kind="rating", task="support", reward=0.0),
)


@pytest.mark.parametrize(
    ("route", "passed"),
    [
        (ByKind(("tests", "rating")), [0, 1, 3]),
        (ByCorrectness(True), [0]),
        (ByCorrectness(False), [1, 3]),  # 0 is what a verifier says of a wrong answer
        (ByTask(("code",)), [0, 1]),
        (ByTask((None, "support")), [2, 3]),
    ],
)
def test_a_route_counts_neither_above_nor_below(route: Any, passed: list[int]) -> None:
    term, some = imitation(route=route), rows([1, 1, 1, 1], ANSWERS)
    assert [i for i, a in enumerate(ANSWERS) if route(a)] == passed
    assert term.count(some) == len(passed)
    losses = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    want = sum(losses[i].item() for i in passed) / len(passed)
    assert term.value(scored(4, loss=losses), some, term.count(some)).item() == pytest.approx(want)


def everything(n: int) -> Tensor:
    """[n] every token counts."""
    return torch.ones(n, dtype=torch.bool)


def test_group_baselines() -> None:
    rewards = (1.0, 0.0, 0.0, 0.0)
    asked = [Encoded("i", (1,), (2,), {}, True, 1.0, True, 0, AnswerInfo(reward=r)) for r in rewards]
    alone = replace(asked[0], prompt=(7,))
    answers = [row.answer for row in with_groups([*asked, alone])]
    assert answers[0].group == Group(size=4, mean=0.25, deviation=0.5)  # of the sample, methods_menu C 17
    assert answers[4].group == Group(size=1, mean=1.0)
    some = rows([1] * 5, answers)
    nothing = scored(5)
    got = {
        kind: GroupBaseline(kind)(nothing, some, everything(5)).tolist()
        for kind in ("grpo", "dr_grpo", "leave_one_out")
    }
    assert got["grpo"] == pytest.approx([1.5, -0.5, -0.5, -0.5, 0.0], abs=1e-3)
    assert got["dr_grpo"] == pytest.approx([0.75, -0.25, -0.25, -0.25, 0.0])
    assert got["leave_one_out"] == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3, 0.0])


def test_polarity_leaves_out_what_nobody_judged() -> None:
    term, some = imitation(advantage=FeedbackPolarity()), rows([1, 1, 1, 1], ANSWERS)
    assert term.count(some) == 3
    losses = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    assert term.value(scored(4, loss=losses), some, 3.0).item() == pytest.approx((1 - 10) / 3)


def test_the_log_ratio_as_advantage_is_the_policy_gradient() -> None:
    torch.manual_seed(0)
    logits, teacher, ids = torch.randn(6, 9), torch.randn(6, 9), torch.randint(0, 9, (6,))
    tile, some = tile_of(logits, teacher, ids), rows([2, 4])
    at = ids[:, None]
    scores = scored(6, logp_student=tile.s.gather(1, at)[:, 0], logp_teacher=tile.t.gather(1, at)[:, 0])
    value, gradient = NegativeLogLikelihood()(tile)
    advantage = LogRatio()(scores, some, everything(6))
    want_value, want_gradient = PolicyGradient()(tile)
    torch.testing.assert_close(value * advantage, want_value)
    torch.testing.assert_close(gradient * advantage[:, None], want_gradient)
    centred = LogRatio(centre=True)(scores, some, everything(6))
    assert centred[:2].sum().item() == pytest.approx(0, abs=1e-6) and centred[2:].sum().item() == pytest.approx(
        0, abs=1e-6
    )
    assert (advantage - centred)[2:].std().item() == pytest.approx(0, abs=1e-6)
    bounded = LogRatio(low=-0.1, high=0.2)(scores, some, everything(6))
    assert bounded.min() >= -0.1 and bounded.max() <= 0.2


@pytest.mark.parametrize(
    "policy_clip",
    [PPOClip(), PPOClip(0.2, 0.28), PPOClip(dual=3.0), Truncated(2.0)],
)
@pytest.mark.parametrize("advantage", [1.5, -0.5])
def test_updates_have_the_gradient_of_their_surrogate(policy_clip: PolicyClip, advantage: float) -> None:
    """d surrogate / d log S by autograd, over ratios on both sides of every corner."""
    ratio = torch.tensor([0.1, 0.79, 0.81, 1.0, 1.19, 1.21, 1.27, 1.29, 2.5, 3.5], dtype=torch.float64)
    s = ratio.log().requires_grad_()
    r, a = s.exp(), torch.full_like(ratio, advantage)
    if isinstance(policy_clip, PPOClip):
        surrogate = torch.minimum(r * a, r.clamp(1 - policy_clip.low, 1 + policy_clip.high) * a)
        if policy_clip.dual is not None and advantage < 0:
            surrogate = torch.maximum(surrogate, policy_clip.dual * a)
    else:
        surrogate = r.detach().clamp(max=2.0) * a * s
    (want,) = torch.autograd.grad(surrogate.sum(), s)
    torch.testing.assert_close(a * policy_clip(a, ratio, scored(len(ratio))), want)


def test_clip_golden_values() -> None:
    """methods_menu C 12 and algorithm_peers 5.3."""
    assert Truncated(2.0)(torch.ones(2), torch.tensor([4.0, 1.5])).tolist() == [2.0, 1.5]
    some = rows([2], served=[math.log(0.05), math.log(0.4)])
    scores = scored(
        2, logp_student=torch.log(torch.tensor([0.2, 0.4])), logp_teacher=torch.log(torch.tensor([0.5, 0.5]))
    )
    sampled = -(scores.logp_teacher - scores.logp_student) * scores.logp_student
    assert (
        sampled * ImportanceRatio(2.0)(scores, some, torch.ones(2, dtype=torch.bool))
    ).mean().item() == pytest.approx(1.57694523)


def test_missing_log_probabilities_are_masked_never_filled() -> None:
    some = rows([2, 1], served=[NAN, -1.0, NAN])
    scores = scored(3, loss=torch.tensor([7.0, 2.0, NAN]), logp_student=[-1.0, -1.0, -1.0])
    for term in (
        imitation(weights=(ImportanceRatio(),)),
        imitation(advantage=LogRatio(), policy_clip=PPOClip()),
        imitation(masks=(Sampled(),)),
    ):
        assert term.keep(some).tolist() == [False, True, False]
        assert term.count(some) == 1
        assert math.isfinite(term.value(scores, some, 1.0).item())
    assert imitation(weights=(ImportanceRatio(),)).value(scores, some, 1.0).item() == pytest.approx(2.0)
    lonely = rows([2], served=[NAN, NAN])
    term = imitation(weights=(ImportanceRatio(),))
    assert term.value(scored(2), lonely, term.count(lonely)).item() == 0.0


@pytest.mark.parametrize(
    ("weight", "want"),
    [
        (EntropyGate(0.8), [0.0, 1.0, 1.0]),
        (EntropyGate(0.8, side="student", above=False), [1.0, 1.0, 0.0]),
        (Position(half_life=1.0), [1.0, 0.5, 1.0]),
        (Staleness(half_life=10.0), [1.0, 1.0, 0.25]),
    ],
)
def test_weights(weight: Weight, want: list[float]) -> None:
    some = rows([2, 1], [AnswerInfo(), AnswerInfo(age=20.0)])
    scores = scored(3, entropy_teacher=[0.7, 0.9, 1.5], entropy_student=[0.1, 0.8, 2.0])
    assert weight(scores, some, torch.ones(3, dtype=torch.bool)).tolist() == pytest.approx(want)
    assert imitation(weights=(weight,)).count(some) == 2  # a weight of 0 still counts below


def test_a_prefix_counts_neither_above_nor_below() -> None:
    assert imitation(masks=(Prefix(1),)).keep(rows([2, 1])).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        (Constant(warmup=1), [0.5, 1.0, 1.0, 1.0, 1.0]),
        (Linear(reach=True), [1.0, 0.75, 0.5, 0.25, 0.0]),
        (Linear(warmup=1, floor=0.1, reach=True), [0.5, 1.0, 0.7, 0.4, 0.1]),
        (Linear(warmup=1, floor=0.2), [0.5, 1.0, 0.8, 0.6, 0.4]),
        (Cosine(reach=True), [1.0, 0.5 + math.sqrt(0.5) / 2, 0.5, 0.5 - math.sqrt(0.5) / 2, 0.0]),
        (Cosine(warmup=2, floor=0.2, reach=True), [1 / 3, 2 / 3, 1.0, 0.6, 0.2]),
        (Cosine(warmup=3), [0.25, 0.5, 0.75, 1.0, 0.5]),
        (Switch(at=0.4, before=2.0, after=0.5), [2.0, 2.0, 0.5, 0.5, 0.5]),
    ],
)
def test_schedules(schedule: Schedule, want: list[float]) -> None:
    assert [schedule(step, 5) for step in range(5)] == pytest.approx(want)


@given(st.lists(st.floats(0, 2), max_size=20), st.integers(1, 4))
def test_a_metric_switches_once_and_for_good(values: list[float], window: int) -> None:
    schedule = OnMetric("entropy_student", 1.0, window=window)
    past = [SimpleNamespace(entropy_student=v) for v in values]
    factors = [schedule(n, 99, past[:n]) for n in range(len(past) + 1)]
    assert factors == sorted(factors, reverse=True)
    low = [sum(values[i : i + window]) / window < 1.0 for i in range(len(values) - window + 1)]
    assert (factors[-1] == 0.0) == any(low)


def test_the_entropy_bonus_has_the_gradient_of_the_entropy() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    value, gradient = NegativeEntropy()(tile_of(logits.detach(), None, torch.tensor([0, 1, 2])))
    want = (logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(value, want.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(want.sum(), logits)[0])
    assert entropy_bonus(0.1).scale == 0.1


def test_the_entropy_bonus_goes_through_the_loss_stage() -> None:
    hidden, head = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), Head(torch.randn(9, 4).double())
    term, some = entropy_bonus(0.5), rows([2, 3])
    scores = token_losses(hidden, None, head, torch.arange(5), term.estimator)
    term.value(scores, some, term.count(some)).backward()  # type: ignore[no-untyped-call]
    logits = (again := hidden.detach().clone().requires_grad_()) @ head.weight.T
    (0.5 * (logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(hidden.grad, again.grad)


def test_only_gold_is_imitated_by_the_gold_mix() -> None:
    some = rows([2, 3], [AnswerInfo(kind=GOLD), AnswerInfo(kind="follow_up")])
    assert gold_mix(0.5).keep(some).tolist() == [True, True, False, False, False]


def test_which_teachers_are_frozen_and_which_move() -> None:
    code = Routed(routes=(("code", BASE), ("math", EMA())))
    assert [t.frozen for t in (BASE, START, EMA(), code, Routed(routes=(("code", BASE),)))] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert [t.moving for t in (BASE, EMA(), Copy(), code)] == [False, True, True, False]
    assert (code.of("code"), code.of("math"), code.of(None)) == (BASE, EMA(), START)
    assert len({BASE, code, EMA(), EMA(rate=0.1)}) == 4


def test_advantages_say_what_they_need() -> None:
    parts: list[Advantage] = [FeedbackPolarity(), GroupBaseline(), LogRatio()]
    assert [(p.needs_teacher, p.needs_reward) for p in parts] == [(False, True), (False, True), (True, False)]
