"""The tiled loss stage equals the computation that stores all logits, in value and in gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from afterword.learn.divergences import (
    FORWARD_KL,
    JSD,
    Estimator,
    Follows,
    NegativeLogLikelihood,
    PolicyGradient,
    ReverseKL,
)
from afterword.learn.head import Head
from afterword.learn.loss_stage import token_losses
from afterword.learn.tiles import Tile, tile_of

ESTIMATORS: list[Estimator] = [FORWARD_KL, ReverseKL(), JSD(0.5), PolicyGradient(), NegativeLogLikelihood()]


def case(n: int, hidden: int, vocabulary: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocabulary, hidden, generator=generator, dtype=dtype) / hidden**0.5
    student = torch.randn(n, hidden, generator=generator, dtype=dtype, requires_grad=True)
    teacher = torch.randn(n, hidden, generator=generator, dtype=dtype)
    return student, teacher, weight, torch.randint(vocabulary, (n,), generator=generator)


def materialised(student: Tensor, teacher: Tensor, head: Head, ids: Tensor, estimator: Estimator) -> Tensor:
    """[n] losses by plain autograd over stored logits."""

    def logits(h: Tensor) -> Tensor:
        out = h @ head.weight.T + (0 if head.bias is None else head.bias)
        out = out * head.scale
        return out if head.cap is None else head.cap * torch.tanh(out / head.cap)

    s, t = logits(student).log_softmax(-1), logits(teacher).log_softmax(-1)
    at = ids[:, None]
    if isinstance(estimator, NegativeLogLikelihood):
        return -s.gather(1, at)[:, 0]
    if isinstance(estimator, PolicyGradient):
        picked = s.gather(1, at)[:, 0]
        return -(t.gather(1, at)[:, 0] - picked).detach() * picked
    if isinstance(estimator, JSD):
        m = (estimator.beta * t.exp() + (1 - estimator.beta) * s.exp()).log()
        return estimator.beta * (t.exp() * (t - m)).sum(-1) + (1 - estimator.beta) * (s.exp() * (s - m)).sum(-1)
    return (s.exp() * (s - t)).sum(-1) if isinstance(estimator, ReverseKL) else (t.exp() * (t - s)).sum(-1)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("scale", "cap", "bias"), [(1.0, None, False), (0.7, 4.0, True)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_equals_the_materialised_computation(
    estimator: Estimator, scale: float, cap: float | None, bias: bool, dtype: torch.dtype, close: float
) -> None:
    student, teacher, weight, ids = case(300, 24, 501, dtype, seed=1)
    head = Head(weight, torch.linspace(-1, 1, 501, dtype=dtype) if bias else None, scale, cap)
    factors = torch.linspace(0, 1, 300, dtype=dtype)
    want = materialised(student, teacher, head, ids, estimator)
    (d_want,) = torch.autograd.grad((want * factors).sum(), student)
    got = token_losses(student, teacher, head, ids, estimator, tile=128)
    (d_got,) = torch.autograd.grad((got.loss * factors).sum(), student)
    torch.testing.assert_close(got.loss.detach(), want.detach(), atol=close, rtol=close)
    torch.testing.assert_close(d_got, d_want, atol=close, rtol=close * 10)


def test_monitors_come_from_the_same_pass() -> None:
    student, teacher, weight, ids = case(40, 16, 200, torch.float64, seed=2)
    scores = token_losses(student, teacher, Head(weight), ids, FORWARD_KL, tile=16)
    s, t = (student @ weight.T).log_softmax(-1).detach(), (teacher @ weight.T).log_softmax(-1)
    torch.testing.assert_close(scores.logp_student, s.gather(1, ids[:, None])[:, 0])
    torch.testing.assert_close(scores.logp_teacher, t.gather(1, ids[:, None])[:, 0])
    torch.testing.assert_close(scores.entropy_student, -(s.exp() * s).sum(-1))
    torch.testing.assert_close(scores.entropy_teacher, -(t.exp() * t).sum(-1))
    shared = [
        len(set(a.topk(16).indices.tolist()) & set(b.topk(16).indices.tolist())) / 16 for a, b in zip(s, t, strict=True)
    ]
    assert scores.overlap.tolist() == pytest.approx(shared)
    assert not scores.entropy_student.requires_grad
    assert scores.loss.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("estimator", [FORWARD_KL, ReverseKL(), JSD(0.3), PolicyGradient()])
def test_equal_sides_give_exactly_nothing(estimator: Estimator, dtype: torch.dtype) -> None:
    student, _, weight, ids = case(70, 16, 99, torch.float32, seed=4)
    hidden = student.detach().to(dtype).requires_grad_()
    scores = token_losses(hidden, hidden.detach(), Head(weight), ids, estimator, tile=32)
    scores.loss.sum().backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert (scores.loss == 0).all()
    assert (hidden.grad == 0).all()
    assert (scores.overlap == 1).all()


def test_bf16_hidden_states_get_float32_arithmetic() -> None:
    student, teacher, weight, ids = case(50, 32, 300, torch.float32, seed=6)
    low, low_teacher = student.detach().bfloat16().requires_grad_(), teacher.bfloat16()
    scores = token_losses(low, low_teacher, Head(weight), ids, FORWARD_KL)
    want = token_losses(low.detach().double(), low_teacher.double(), Head(weight.double()), ids, FORWARD_KL)
    assert scores.loss.dtype == torch.float32
    torch.testing.assert_close(scores.loss.detach().double(), want.loss, atol=1e-5, rtol=1e-5)
    scores.loss.sum().backward()  # type: ignore[no-untyped-call]
    assert low.grad is not None
    assert low.grad.dtype == torch.bfloat16


@given(n=st.integers(0, 40), tile=st.integers(1, 50), seed=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_tiles_do_not_matter(n: int, tile: int, seed: int) -> None:
    student, teacher, weight, ids = case(n, 8, 30, torch.float64, seed)
    one = token_losses(student, teacher, Head(weight), ids, JSD(0.4), tile=1000)
    many = token_losses(student, teacher, Head(weight), ids, JSD(0.4), tile=tile)
    torch.testing.assert_close(one.loss, many.loss)
    (a,), (b,) = (torch.autograd.grad(x.loss.sum(), student) for x in (one, many))
    torch.testing.assert_close(a, b)


def test_a_tile_never_outgrows_its_tokens() -> None:
    seen: list[int] = []

    class Spy:
        needs_teacher = True
        sampled = False
        distance = True
        follows = Follows.FORWARD_KL

        def __call__(self, tile: Tile) -> tuple[Tensor, Tensor]:
            seen.append(tile.s.shape[0])
            return FORWARD_KL(tile)

    student, teacher, weight, ids = case(300, 8, 30, torch.float32, 0)
    token_losses(student, teacher, Head(weight), ids, Spy(), tile=128)
    assert seen == [128, 128, 44]


def test_without_gradient_nothing_is_pulled_back() -> None:
    student, teacher, weight, ids = case(5, 8, 30, torch.float32, 0)
    scores = token_losses(student.detach(), teacher, Head(weight), ids, FORWARD_KL)
    assert not scores.loss.requires_grad
    want, _ = FORWARD_KL(tile_of(student.detach() @ weight.T, teacher @ weight.T, ids))
    torch.testing.assert_close(scores.loss, want)
