"""Golden numbers, gradients by autograd and by enumeration, degenerate rows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from afterword.learn.divergences import (
    FORWARD_KL,
    JSD,
    Estimator,
    NegativeLogLikelihood,
    PolicyGradient,
    ReverseKL,
)
from afterword.learn.tiles import tile_of

S = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64)
T = torch.tensor([[0.2, 0.6, 0.1, 0.1]], dtype=torch.float64)
DISTANCES: list[Estimator] = [FORWARD_KL, ReverseKL(), JSD(0.1), JSD(0.5), JSD(0.9)]


def expected(estimator: Estimator, s: Tensor, t: Tensor) -> Tensor:
    """The distance as it is written in the papers, from logits [n, V]."""
    log_s, log_t = s.log_softmax(-1), t.log_softmax(-1)
    if isinstance(estimator, JSD):
        b = estimator.beta
        m = (b * log_t.exp() + (1 - b) * log_s.exp()).log()
        return (b * log_t.exp() * (log_t - m) + (1 - b) * log_s.exp() * (log_s - m)).sum(-1)
    if isinstance(estimator, ReverseKL):
        return (log_s.exp() * (log_s - log_t)).sum(-1)
    return (log_t.exp() * (log_t - log_s)).sum(-1)


@pytest.mark.parametrize(
    ("estimator", "value", "gradient"),
    [
        (FORWARD_KL, 0.261398, [0.3, -0.3, 0.05, -0.05]),
        (ReverseKL(), 0.276364, [0.319964, -0.290853, 0.019365, -0.048476]),
        (JSD(0.5), 0.065456, [0.073226, -0.070386, 0.008891, -0.011731]),
        (JSD(0.1), 0.023443, None),
        (JSD(0.9), 0.024478, None),
    ],
)
def test_golden_numbers(estimator: Estimator, value: float, gradient: list[float] | None) -> None:
    loss, d_logits = estimator(tile_of(S.log(), T.log(), torch.tensor([0])))
    assert loss.item() == pytest.approx(value, abs=1e-6)
    if gradient is not None:
        assert d_logits[0].tolist() == pytest.approx(gradient, abs=1e-6)


@pytest.mark.parametrize("estimator", DISTANCES)
def test_value_and_gradient_equal_autograd(estimator: Estimator) -> None:
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(7, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(7, 11, generator=generator, dtype=torch.float64)
    want = expected(estimator, student, teacher)
    (d_want,) = torch.autograd.grad(want.sum(), student)
    loss, d_logits = estimator(tile_of(student.detach(), teacher, torch.zeros(7, dtype=torch.long)))
    torch.testing.assert_close(loss, want.detach(), atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(d_logits, d_want, atol=1e-12, rtol=1e-10)


def test_policy_gradient_is_reverse_kl_in_expectation() -> None:
    generator = torch.Generator().manual_seed(5)
    student = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    teacher = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    every = torch.arange(6)
    tile = tile_of(student.expand(6, -1), teacher.expand(6, -1), every)
    _, per_token = PolicyGradient()(tile)
    mean = (student.softmax(-1)[0][:, None] * per_token).sum(0)
    _, exact = ReverseKL()(tile_of(student, teacher, every[:1]))
    torch.testing.assert_close(mean, exact[0], atol=1e-12, rtol=1e-10)


def test_policy_gradient_and_likelihood_equal_autograd() -> None:
    student = torch.randn(5, 9, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 9, dtype=torch.float64)
    ids = torch.tensor([0, 8, 3, 3, 1])
    picked = student.log_softmax(-1).gather(1, ids[:, None])[:, 0]
    advantage = (teacher.log_softmax(-1).gather(1, ids[:, None])[:, 0] - picked).detach()
    for estimator, want in ((PolicyGradient(), -advantage * picked), (NegativeLogLikelihood(), -picked)):
        (d_want,) = torch.autograd.grad(want.sum(), student, retain_graph=True)
        loss, d_logits = estimator(tile_of(student.detach(), teacher, ids))
        torch.testing.assert_close(loss, want.detach())
        torch.testing.assert_close(d_logits, d_want)


@given(
    rows=st.integers(1, 5),
    vocabulary=st.integers(2, 40),
    seed=st.integers(0, 1000),
    size=st.sampled_from([0.01, 1.0, 30.0]),
    forbidden=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_distances_are_distances(rows: int, vocabulary: int, seed: int, size: float, forbidden: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, vocabulary, generator=generator) * size
    teacher = torch.randn(rows, vocabulary, generator=generator) * size
    if forbidden:  # a padded vocabulary: both sides say -inf
        student[:, 0] = teacher[:, 0] = -math.inf
    ids = torch.full((rows,), vocabulary - 1)
    for estimator in DISTANCES:
        loss, d_logits = estimator(tile_of(student, teacher, ids))
        assert torch.isfinite(loss).all()
        assert torch.isfinite(d_logits).all()
        assert (loss > -1e-5 * max(1.0, size)).all()
        torch.testing.assert_close(d_logits.sum(-1), torch.zeros(rows), atol=1e-4 * max(1.0, size), rtol=0)
        same, d_same = estimator(tile_of(student, student.clone(), ids))
        assert (same == 0).all()
        assert (d_same == 0).all()


def test_a_token_that_only_the_student_forbids_costs_much_but_finite() -> None:
    student = torch.tensor([[0.0, 0.0, -math.inf]])
    loss, d_logits = FORWARD_KL(tile_of(student, torch.zeros(1, 3), torch.tensor([0])))
    assert 1000 < loss.item() < math.inf
    assert torch.isfinite(d_logits).all()
