"""Supports: bounds, growth, golden numbers, gradients against plain autograd, the exact top-k."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from afterword.learn.loss.tiles import tile_of, top_k
from afterword.learn.parts.divergences import FORWARD_KL, JSD, Estimator, ReverseKL, SkewForwardKL, SkewReverseKL
from afterword.learn.parts.supports import FULL, Support, TopK

KINDS: list[Estimator] = [FORWARD_KL, ReverseKL(), JSD(0.3), SkewForwardKL(0.2), SkewReverseKL(0.2)]


def over(support: Support, estimator: Estimator, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    return support.apply(tile_of(s, t, torch.zeros(len(s), dtype=torch.long)), estimator)


def of(student: list[float], teacher: list[float], estimator: Estimator, **support: Any) -> float:
    s, t = (torch.tensor([p], dtype=torch.float64).log() for p in (student, teacher))
    return over(TopK(**support), estimator, s, t)[0].item()


def test_golden_numbers() -> None:
    s, t = [0.5, 0.3, 0.15, 0.05], [0.45, 0.45, 0.05, 0.05]
    assert of(s, t, ReverseKL(), k=2) == pytest.approx(0.069670, abs=1e-6)
    assert of(s, t, ReverseKL(), k=2, remainder="renormalise") == pytest.approx(0.031584, abs=1e-6)
    s, t = [0.5, 0.3, 0.2], [0.2, 0.6, 0.2]
    for estimator, renormalised, tail in (
        (FORWARD_KL, 0.29078770, 0.23263016),
        (JSD(0.5), 0.07336502, 0.05869201),
        (ReverseKL(), 0.31275151, 0.25020121),
    ):
        assert of(s, t, estimator, k=2, remainder="renormalise") == pytest.approx(renormalised, abs=1e-7)
        assert of(s, t, estimator, k=2) == pytest.approx(tail, abs=1e-7)
    for estimator, tail in ((FORWARD_KL, 0.19274476), (JSD(0.5), 0.05067184), (ReverseKL(), 0.22314355)):
        assert of(s, t, estimator, k=1) == pytest.approx(tail, abs=1e-7)
    s, t = [0.5, 0.3, 0.2], [0.7, 0.2, 0.1]
    assert of(s, t, ReverseKL(), k=2, of="teacher", remainder="renormalise") == pytest.approx(0.059537, abs=1e-6)
    assert of(s, t, ReverseKL(), k=2, of="teacher") == pytest.approx(0.092033, abs=1e-6)


def test_the_teacher_alone_renormalised() -> None:
    """EOPD's forward KL and HDPO's JSD with its exact tail; at agreement their residual is what the papers' is."""
    s, t = [0.5, 0.3, 0.2], [0.7, 0.2, 0.1]
    half: dict[str, Any] = {"k": 2, "of": "teacher", "remainder": "teacher"}
    assert of(s, t, FORWARD_KL, **half) == pytest.approx(0.276958, abs=1e-6)
    assert of(s, t, JSD(0.5), **half) == pytest.approx(0.087439, abs=1e-6)
    same = torch.tensor([t], dtype=torch.float64).log()
    value, gradient, _ = over(TopK(**half), FORWARD_KL, same, same.clone())
    assert value.item() == pytest.approx(-math.log(0.9), abs=1e-6)
    assert gradient[0].tolist() == pytest.approx([-0.077778, -0.022222, 0.1], abs=1e-6)


def written(support: TopK, estimator: Estimator, s: Tensor, t: Tensor) -> Tensor:
    """[n] by plain autograd over small distributions made by hand."""
    log_s, log_t = s.log_softmax(-1), t.log_softmax(-1)
    rows = []
    for a, b in zip(log_s, log_t, strict=True):
        ours, theirs = a.detach().topk(support.k).indices.tolist(), b.topk(support.k).indices.tolist()
        picked = {"student": ours, "teacher": theirs, "both": [i for i in ours if i in theirs]}[support.of]
        rest = [i for i in range(len(a)) if i not in picked]
        p, q = a[picked].exp(), b[picked].exp()
        if support.remainder == "renormalise":
            p, q = p / p.sum(), q / q.sum()
        else:
            p = torch.cat([p, a[rest].exp().sum()[None]])
            tail = b[rest].exp().sum()[None] if support.remainder == "tail" else torch.zeros(1, dtype=q.dtype)
            q = torch.cat([q if support.remainder == "tail" else q / q.sum(), tail])
        rows.append(distance(estimator, p, q))
    return torch.stack(rows)


def distance(estimator: Estimator, p: Tensor, q: Tensor) -> Tensor:
    """p student, q teacher, both probabilities; 0 log 0 is 0."""

    def kl(x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = torch.special.xlogy(x, x).sum() - torch.special.xlogy(x, y).sum()
        return found

    match estimator:
        case JSD(beta=b):
            m = b * q + (1 - b) * p
            return b * kl(q, m) + (1 - b) * kl(p, m)
        case SkewForwardKL(alpha=a):
            return kl(q, a * q + (1 - a) * p)
        case SkewReverseKL(alpha=a):
            return kl(p, (1 - a) * q + a * p)
        case ReverseKL():
            return kl(p, q)
    return kl(q, p)


@pytest.mark.parametrize("estimator", KINDS)
@pytest.mark.parametrize("of", ["student", "teacher", "both"])
@pytest.mark.parametrize("remainder", ["tail", "renormalise", "teacher"])
def test_value_and_gradient_equal_autograd(estimator: Estimator, of: Any, remainder: Any) -> None:
    if remainder == "teacher" and isinstance(estimator, ReverseKL):
        return  # a teacher without mass in the tail is infinitely far in this direction
    generator = torch.Generator().manual_seed(11)
    s = torch.randn(6, 12, generator=generator, dtype=torch.float64).requires_grad_()
    t = s.detach() + torch.randn(6, 12, generator=generator, dtype=torch.float64)
    support = TopK(5, of, remainder)
    want = written(support, estimator, s, t)
    (d_want,) = torch.autograd.grad(want.sum(), s)
    value, gradient, mass = over(support, estimator, s.detach(), t)
    torch.testing.assert_close(value, want.detach(), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(gradient, d_want, atol=1e-9, rtol=1e-9)
    assert mass is not None
    assert ((mass >= 0) & (mass <= 1)).all()


@given(
    seed=st.integers(0, 1000),
    vocabulary=st.integers(1, 60),
    size=st.sampled_from([0.1, 2.0, 30.0]),
    forbidden=st.booleans(),
)
@settings(max_examples=50)
def test_a_tail_bounds_and_grows(seed: int, vocabulary: int, size: float, forbidden: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    s = torch.randn(3, vocabulary, generator=generator, dtype=torch.float64) * size
    t = torch.randn(3, vocabulary, generator=generator, dtype=torch.float64) * size
    if forbidden and vocabulary > 2:
        s[:, 0] = t[:, 0] = -math.inf
    for estimator in KINDS:
        full, d_full, _ = over(FULL, estimator, s, t)
        before = torch.zeros(3, dtype=torch.float64)
        for k in (1, 2, 5, vocabulary):
            value, gradient, _ = over(TopK(k), estimator, s, t)
            assert (value >= before - 1e-9).all()
            assert (value <= full + 1e-9 * full.abs() + 1e-9).all()
            assert torch.isfinite(gradient).all()
            before = value
        torch.testing.assert_close(value, full, atol=1e-9, rtol=1e-7)
        torch.testing.assert_close(gradient, d_full, atol=1e-9, rtol=1e-7)
        for of in ("student", "teacher", "both"):
            for remainder in ("tail", "renormalise"):
                same, d_same, _ = over(TopK(3, of, remainder), estimator, s, s.clone())
                assert (same == 0).all()
                assert (d_same == 0).all()


def test_no_common_token_is_no_loss_when_renormalised_and_all_of_it_with_a_tail() -> None:
    s = torch.tensor([[9.0, 8.0, 0.0, 0.0]])
    t = s.flip(1)
    value, gradient, mass = over(TopK(2, "both", "renormalise"), FORWARD_KL, s, t)
    assert (value.item(), gradient.abs().max().item()) == (0.0, 0.0)
    assert mass is not None
    assert mass.item() == pytest.approx(0.0, abs=1e-6)
    value, gradient, _ = over(TopK(2, "both"), FORWARD_KL, s, t)
    assert value.item() == pytest.approx(0.0, abs=1e-6)  # one bucket on both sides
    assert gradient.abs().max().item() == pytest.approx(0.0, abs=1e-6)


@given(
    rows=st.integers(1, 4),
    vocabulary=st.integers(1, 9000),
    k=st.integers(1, 40),
    seed=st.integers(0, 999),
    ties=st.booleans(),
)
@settings(max_examples=60)
def test_the_fast_top_k_is_the_top_k(rows: int, vocabulary: int, k: int, seed: int, ties: bool) -> None:
    x = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))
    x = (x * 3).round() if ties else x
    got, want = top_k(x, k), x.topk(min(k, vocabulary))
    assert got.shape == want.indices.shape
    torch.testing.assert_close(x.gather(1, got), want.values, atol=0, rtol=0)
    assert all(len(set(row.tolist())) == len(row) for row in got)
