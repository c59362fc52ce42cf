"""Targets: golden numbers, what cancels, gradients against plain autograd, what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from afterword.learn.loss.loss_stage import Distance
from afterword.learn.loss.tiles import tile_of
from afterword.learn.parts.divergences import (
    FORWARD_KL,
    JSD,
    K1,
    Estimator,
    NegativeLogLikelihood,
    PolicyGradient,
    ReverseKL,
    SkewForwardKL,
)
from afterword.learn.parts.fields import faults
from afterword.learn.parts.supports import TopK
from afterword.learn.parts.targets import IDENTITY, Extrapolation, GeometricBridge, Target, Temperature, targeted

S = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
T = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
R = torch.tensor([[0.4, 0.4, 0.2]], dtype=torch.float64).log()
HERE = torch.tensor([0])


def loss(distance: Distance, s: Tensor, t: Tensor, r: Tensor | None = None) -> tuple[Tensor, Tensor]:
    value, gradient, _ = distance(tile_of(s, t, HERE.expand(len(s))), s, t, r)
    return value, gradient


def test_bridge_golden_numbers_and_fixed_point() -> None:
    tile = targeted(tile_of(S, T, HERE), GeometricBridge(0.5), None)
    assert tile.T[0].tolist() == pytest.approx([0.762390, 0.168727, 0.068883], abs=1e-6)
    q = S
    for _ in range(60):
        q = targeted(tile_of(q, T, HERE), GeometricBridge(0.5), None).t
    assert q.exp()[0].tolist() == pytest.approx([0.907407, 0.074074, 0.018519], abs=1e-6)


def test_bridge_sampled_advantage_is_that_of_the_paper() -> None:
    tile = targeted(tile_of(S, T, HERE), GeometricBridge(0.25), None)
    value, _ = PolicyGradient()(tile)
    advantage = math.log(0.7) - 0.75 * math.log(0.5)
    assert value.item() == pytest.approx(-advantage * math.log(0.5))


def test_extrapolation_golden_numbers() -> None:
    every = torch.arange(3)
    tile = targeted(tile_of(S.expand(3, -1), T.expand(3, -1), every), Extrapolation(1.25), R.expand(3, -1))
    assert tile.T[0].tolist() == pytest.approx([0.761421, 0.159052, 0.079526], abs=1e-6)
    assert (tile.t_y - tile.s_y).tolist() == pytest.approx([0.476376, -0.578752, -0.866434], abs=1e-6)
    plain = targeted(tile_of(S.expand(3, -1), T.expand(3, -1), every), Extrapolation(1.0), R.expand(3, -1))
    assert (plain.t_y - plain.s_y).tolist() == pytest.approx([0.336472, -0.405465, -0.693147], abs=1e-6)


@given(seed=st.integers(0, 500), size=st.sampled_from([0.1, 3.0, 40.0]))
@settings(max_examples=30)
def test_the_neutral_settings_are_the_teacher_itself(seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    s, t, r = (torch.randn(4, 9, generator=generator, dtype=torch.float64) * size for _ in range(3))
    for estimator in (FORWARD_KL, ReverseKL(), JSD(0.3)):
        want = loss(Distance(estimator), s, t)
        for target, reference in (
            (Temperature(1.0), None),
            (GeometricBridge(0.0), None),
            (Extrapolation(1.0), r),
        ):
            got = loss(Distance(estimator, target), s, t, reference)
            torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("estimator", [FORWARD_KL, ReverseKL(), JSD(0.4), SkewForwardKL(0.2)])
@pytest.mark.parametrize("target", [Temperature(1.7), GeometricBridge(0.6), Extrapolation(1.3), Extrapolation(0.0)])
def test_gradients_equal_autograd_with_the_target_held_constant(estimator: Estimator, target: Target) -> None:
    generator = torch.Generator().manual_seed(8)
    s, t, r = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(3))
    s.requires_grad_()
    heat = target.temperature
    log_s, log_t, log_r = ((x / heat).log_softmax(-1) for x in (s, t, r))
    q = target.scores(log_s.detach(), log_t, log_r).log_softmax(-1)
    m = None
    if isinstance(estimator, JSD):
        m = (estimator.beta * q.exp() + (1 - estimator.beta) * log_s.exp()).log()
        want = estimator.beta * (q.exp() * (q - m)).sum(-1) + (1 - estimator.beta) * (log_s.exp() * (log_s - m)).sum(-1)
    elif isinstance(estimator, SkewForwardKL):
        m = (estimator.alpha * q.exp() + (1 - estimator.alpha) * log_s.exp()).log()
        want = (q.exp() * (q - m)).sum(-1)
    elif isinstance(estimator, ReverseKL):
        want = (log_s.exp() * (log_s - q)).sum(-1)
    else:
        want = (q.exp() * (q - log_s)).sum(-1)
    (d_want,) = torch.autograd.grad(want.sum(), s)
    value, gradient = loss(Distance(estimator, target), s.detach(), t, r)
    torch.testing.assert_close(value, want.detach())
    torch.testing.assert_close(gradient, d_want)


def test_the_bridge_is_nothing_where_the_sides_agree_and_extrapolation_where_all_three_do() -> None:
    for target in (GeometricBridge(0.0), Temperature(2.0), Extrapolation(1.4)):
        value, gradient = loss(Distance(FORWARD_KL, target), S, S.clone(), S.clone())
        assert value.abs().max() < 1e-12
        assert gradient.abs().max() < 1e-12


def test_what_the_teacher_hardly_says_is_never_raised() -> None:
    t, r = torch.tensor([[0.9, 0.095, 0.005]]).log(), torch.tensor([[0.5, 0.4999, 0.0001]]).log()
    free, held = (targeted(tile_of(t, t, HERE), Extrapolation(2.0, plausible=p), r) for p in (0.0, 0.01))
    raised = torch.tensor([0.9**2 / 0.5, 0.095**2 / 0.4999, 0.005**2 / 0.0001])
    torch.testing.assert_close(free.T[0], raised / raised.sum())
    kept = torch.tensor([0.9**2 / 0.5, 0.095**2 / 0.4999, 0.005])
    torch.testing.assert_close(held.T[0], kept / kept.sum())
    low = targeted(tile_of(t, t, HERE), Extrapolation(2.0, plausible=0.1), r)
    assert low.T[0, 1] == pytest.approx(float(held.T[0, 1]), rel=1e-5), "lowering is allowed to every token"


def test_a_token_that_the_reference_forbids_is_no_target() -> None:
    s = torch.zeros(1, 3)
    t = torch.tensor([[0.0, 0.0, -30.0]])
    r = torch.tensor([[0.0, 0.0, -math.inf]])
    tile = targeted(tile_of(s, t, HERE), Extrapolation(1.5), r)
    assert tile.T[0, 2] < 1e-8


@pytest.mark.parametrize(
    ("distance", "says"),
    [
        (Distance(K1()), "zero in expectation"),
        (Distance(PolicyGradient("k3")), "use k1 as the reward"),
        (Distance(JSD(1.0)), "use ForwardKL or ReverseKL there"),
        (Distance(SkewForwardKL(0.0)), "use ForwardKL or ReverseKL there"),
        (Distance(NegativeLogLikelihood(), GeometricBridge(0.5)), "no target to change"),
        (Distance(FORWARD_KL, Temperature(0.0)), "temperature=0.0 must be a number above 0"),
        (Distance(FORWARD_KL, GeometricBridge(1.5)), "beta=1.5 must be a number from 0 to 1"),
        (Distance(FORWARD_KL, Extrapolation(math.nan)), "scale=nan must be a number above 0 and at most 10"),
        (
            Distance(FORWARD_KL, Extrapolation(2.0, plausible=1.0)),
            "plausible=1.0 must be a number of at least 0 and below 1",
        ),
        (Distance(FORWARD_KL, support=TopK(0)), "k=0 must be a whole number of at least 1"),
        (Distance(PolicyGradient(), support=TopK(8)), "reads only the served token"),
    ],
)
def test_parts_that_do_not_go_together_say_why(distance: Distance, says: str) -> None:
    (fault,) = (*(fault.message for fault in faults(distance)), *distance.faults())
    assert says in fault


def test_parts_that_go_together_have_no_fault() -> None:
    for target in (IDENTITY, Temperature(1.1), GeometricBridge(1.0), Extrapolation()):
        assert Distance(FORWARD_KL, target, TopK(16)).faults() == []
        assert Distance(PolicyGradient(floor=-1.72), target).faults() == []
