"""The tiled loss stage equals the computation that stores all logits, in value and in gradient."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from afterword.errors import ConfigError
from afterword.learn.loss.loss_stage import COLUMNS, Distance, token_losses
from afterword.learn.loss.tiles import Tile, tile_of
from afterword.learn.parts.divergences import (
    FORWARD_KL,
    JSD,
    K1,
    Estimator,
    Follows,
    NegativeLogLikelihood,
    PolicyGradient,
    ReverseKL,
)
from afterword.learn.parts.supports import FULL, Support, TopK
from afterword.learn.parts.targets import Extrapolation, GeometricBridge, Target, Temperature
from afterword.model.head import Head, HeadAdapter

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
    torch.testing.assert_close(scores.top_mass, s.exp().topk(16).values.sum(-1))
    for row, (a, b) in enumerate(zip(s, t, strict=True)):
        both = sorted(set(a.topk(16).indices.tolist()) & set(b.topk(16).indices.tolist()))
        p, q = a[both].log_softmax(-1), b[both].log_softmax(-1)
        want = (p.exp() * (q - p)).mean() if both else torch.zeros((), dtype=p.dtype)
        torch.testing.assert_close(scores.overlap_advantage[row], want)


def test_overlap_advantage_golden_number() -> None:
    p, q = (torch.tensor([x], dtype=torch.float64).log() for x in ([0.5, 0.3, 0.2], [0.7, 0.2, 0.1]))
    eye = Head(torch.eye(3, dtype=torch.float64))
    scores = token_losses(p, q, eye, torch.tensor([0]), ReverseKL())
    assert scores.overlap.item() == 1.0
    assert scores.overlap_advantage.item() == pytest.approx(-0.030678, abs=1e-6)
    assert scores.entropy_student.item() == pytest.approx(1.029653, abs=1e-6)
    assert scores.entropy_teacher.item() == pytest.approx(0.801819, abs=1e-6)


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
@settings(max_examples=40)
def test_neither_tiles_nor_order_matter(n: int, tile: int, seed: int) -> None:
    student, teacher, weight, ids = case(n, 8, 30, torch.float64, seed)
    one = token_losses(student, teacher, Head(weight), ids, JSD(0.4), tile=1000)
    many = token_losses(student, teacher, Head(weight), ids, JSD(0.4), tile=tile)
    torch.testing.assert_close(one.loss, many.loss)
    (a,), (b,) = (torch.autograd.grad(x.loss.sum(), student) for x in (one, many))
    torch.testing.assert_close(a, b)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    moved = token_losses(student[order], teacher[order], Head(weight), ids[order], JSD(0.4), tile=tile)
    for name in COLUMNS:  # no token knows of another
        torch.testing.assert_close(getattr(moved, name), getattr(one, name)[order])


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
    assert seen == [100, 100, 100]  # of like size: a few tokens alone cost as much as a third of a tile


def test_without_gradient_nothing_is_pulled_back() -> None:
    student, teacher, weight, ids = case(5, 8, 30, torch.float32, 0)
    scores = token_losses(student.detach(), teacher, Head(weight), ids, FORWARD_KL)
    assert not scores.loss.requires_grad
    want, _ = FORWARD_KL(tile_of(student.detach() @ weight.T, teacher @ weight.T, ids))
    torch.testing.assert_close(scores.loss, want)


def test_a_reference_and_other_heads_reach_the_distance() -> None:
    """A wider teacher and a reference with their own heads over the same vocabulary."""
    student, _, weight, ids = case(50, 8, 90, torch.float64, 3)
    teacher, _, teacher_weight, _ = case(50, 12, 90, torch.float64, 5)
    reference, _, _, _ = case(50, 8, 90, torch.float64, 7)
    scores = token_losses(
        student,
        teacher,
        Head(weight),
        ids,
        ReverseKL(),
        target=Extrapolation(1.25),
        reference=reference,
        teacher_head=Head(teacher_weight),
        tile=16,
    )
    s = (student @ weight.T).log_softmax(-1)
    t, r = (teacher @ teacher_weight.T).log_softmax(-1), (reference @ weight.T).log_softmax(-1)
    q = (1.25 * t - 0.25 * r).log_softmax(-1).detach()
    want = (s.exp() * (s - q)).sum(-1)
    torch.testing.assert_close(scores.loss, want)
    (got,), (d_want,) = (torch.autograd.grad(x.sum(), student) for x in (scores.loss, want))
    torch.testing.assert_close(got, d_want)
    torch.testing.assert_close(scores.logp_teacher, t.gather(1, ids[:, None])[:, 0].detach())


@pytest.mark.parametrize("target", [Temperature(1.3), GeometricBridge(0.4)])
@pytest.mark.parametrize("support", [FULL, TopK(20), TopK(20, "teacher", "renormalise")])
def test_a_soft_cap_and_a_scale_reach_every_composition(target: Target, support: Support) -> None:
    """The hidden gradient of target, support, cap, scale and bias together, by finite differences."""
    student, teacher, weight, ids = case(3, 6, 300, torch.float64, 9)
    head = Head(weight, torch.linspace(-1, 1, 300, dtype=torch.float64), 0.8, 3.0)

    def losses(h: Tensor) -> Tensor:
        return token_losses(h, teacher, head, ids, ReverseKL(), target=target, support=support).loss

    if target.temperature == 1.0:  # a bridge moves with the student, whose gradient inside it is left out
        frozen = token_losses(student, teacher, head, ids, ReverseKL(), target=target, support=support).loss
        logits = head.logits(student.detach())
        _, d_logits, _ = Distance(ReverseKL(), target, support)(
            tile_of(logits, head.logits(teacher), ids), logits, head.logits(teacher), None
        )
        want = (d_logits * (1 - (logits / 3.0).square()) * 0.8) @ weight
        (got,) = torch.autograd.grad(frozen.sum(), student)
        torch.testing.assert_close(got, want)
    else:
        assert torch.autograd.gradcheck(losses, (student,), eps=1e-6, atol=1e-6)


def test_an_adapter_on_the_head_learns_and_the_teacher_reads_without_it() -> None:
    student, teacher, weight, ids = case(70, 10, 120, torch.float64, 4)
    generator = torch.Generator().manual_seed(1)
    down = torch.randn(4, 10, generator=generator, dtype=torch.float64, requires_grad=True)
    up = torch.randn(120, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    head = Head(weight, None, 0.9, 5.0, HeadAdapter(down, up, 0.3))
    factors = torch.linspace(0, 1, 70, dtype=torch.float64)
    scores = token_losses(student, teacher, head, ids, JSD(0.3), teacher_head=head.bare, tile=32)

    def capped(x: Tensor) -> Tensor:
        return (5.0 * torch.tanh(0.9 * x / 5.0)).log_softmax(-1)

    s = capped(student @ weight.T + 0.3 * (student @ down.T) @ up.T)
    t = capped(teacher @ weight.T)
    m = (0.3 * t.exp() + 0.7 * s.exp()).log()
    want = 0.3 * (t.exp() * (t - m)).sum(-1) + 0.7 * (s.exp() * (s - m)).sum(-1)
    torch.testing.assert_close(scores.loss, want)
    inputs = (student, down, up)
    got, exact = (torch.autograd.grad((x * factors).sum(), inputs) for x in (scores.loss, want))
    for a, b in zip(got, exact, strict=True):
        torch.testing.assert_close(a, b)


def test_any_function_of_the_served_log_probability_is_autograd_over_numbers() -> None:
    """A clipped surrogate on top of NegativeLogLikelihood has the gradient of the materialised one."""
    student, teacher, weight, ids = case(40, 8, 60, torch.float64, 12)
    old = token_losses(student.detach() + 0.1, None, Head(weight), ids, NegativeLogLikelihood()).logp_student

    def surrogate(logp: Tensor, advantage: Tensor) -> Tensor:
        ratio = (logp - old).exp()
        return -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()

    scores = token_losses(student, teacher, Head(weight), ids, NegativeLogLikelihood())
    advantage = scores.logp_teacher - scores.logp_student
    got = torch.autograd.grad(surrogate(-scores.loss, advantage), student)
    plain = (student @ weight.T).log_softmax(-1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(got, torch.autograd.grad(surrogate(plain, advantage), student))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"estimator": FORWARD_KL, "teacher": None}, "compares with a teacher"),
        ({"estimator": FORWARD_KL, "target": Extrapolation()}, "reads a reference"),
        ({"estimator": K1()}, "zero in expectation"),
        ({"estimator": JSD(1.0)}, "use ForwardKL or ReverseKL there"),
    ],
)
def test_what_cannot_be_computed_is_refused(changes: dict[str, Any], says: str) -> None:
    student, teacher, weight, ids = case(2, 4, 9, torch.float32, 0)
    with pytest.raises(ConfigError, match=says):
        token_losses(student, head=Head(weight), ids=ids, **{"teacher": teacher, **changes})


def test_a_larger_vocabulary_makes_smaller_tiles() -> None:
    """Tokens times vocabulary stays bounded, so memory does."""
    shapes: list[tuple[int, int]] = []

    class Watched(Head):
        def logits(self, hidden: Tensor) -> Tensor:
            shapes.append((len(hidden), len(self.weight)))
            return super().logits(hidden)

    for vocabulary in (50, 200_000):
        student, teacher, weight, ids = case(150, 2, vocabulary, torch.float32, 0)
        token_losses(student, teacher, Watched(weight), ids, FORWARD_KL)
    assert {n for n, v in shapes if v == 50} == {75}  # two tiles: 150 are more than 128
    assert 8 << 20 < max(n * v * 4 for n, v in shapes) <= 24 << 20


def test_a_tile_is_freed_before_the_next_one() -> None:
    """A view of a strip that outlives its tile would keep the logits of the whole tile."""
    alive: list[weakref.ref[Any]] = []
    at_start: list[int] = []

    class Watched(Head):
        def logits(self, hidden: Tensor) -> Tensor:
            if len(alive) % 2 == 0:  # the student's product comes first in each tile
                at_start.append(sum(one() is not None for one in alive))
            array = super().logits(hidden).detach().numpy().copy()
            alive.append(weakref.ref(array))
            return torch.from_numpy(array)

    student, teacher, weight, ids = case(300, 4, 50, torch.float32, 0)
    token_losses(student, teacher, Watched(weight), ids, JSD(0.5)).loss.sum().backward()  # type: ignore[no-untyped-call]
    assert at_start == [0, 0, 0]


@pytest.mark.parametrize("n", [0, 1, 3, 200])
def test_the_fast_product_and_the_plain_one_agree(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the operator that not every build of torch has; column order of the hidden states too."""
    student, teacher, weight, ids = case(n, 24, 501, torch.float32, 2)
    student = student.detach().T.contiguous().T.requires_grad_()
    fast = token_losses(student, teacher, Head(weight), ids, ReverseKL()).loss
    (d_fast,) = torch.autograd.grad(fast.sum(), student)
    monkeypatch.setattr("afterword.model.matmul._ONEDNN", None)
    plain = token_losses(student, teacher, Head(weight), ids, ReverseKL()).loss
    (d_plain,) = torch.autograd.grad(plain.sum(), student)
    torch.testing.assert_close(fast, plain, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(d_fast, d_plain, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_without_weight_has_a_gradient_of_exactly_zero_whatever_it_holds(adapted: bool, bad: float) -> None:
    student, teacher, weight, ids = case(5, 4, 9, torch.float64, 0)
    down, up = (torch.randn(k, dtype=torch.float64).requires_grad_() for k in ((2, 4), (9, 2)))
    head = Head(weight, adapter=HeadAdapter(down, up, 1.0) if adapted else None)
    kept = torch.tensor([True, False, True, True, True])
    found = []
    for value in (0.0, bad):
        hidden = student.detach().clone()
        hidden[1] = value
        hidden.requires_grad_()
        loss = token_losses(hidden, teacher, head, ids, FORWARD_KL).loss
        inputs = (hidden, down, up) if adapted else (hidden,)
        found.append(torch.autograd.grad(loss.where(kept, 0.0).sum(), inputs))
    assert bool((found[1][0][1] == 0).all())
    for got, want in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(got, want)
