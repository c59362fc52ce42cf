"""Golden numbers, gradients by autograd and by enumeration, whose gradient each one follows, degenerate rows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from afterword.learn.loss.tiles import Tile, tile_of
from afterword.learn.parts.divergences import (
    FORWARD_KL,
    JSD,
    K1,
    K2,
    K3,
    Estimator,
    Follows,
    NegativeLogLikelihood,
    PolicyGradient,
    ReverseKL,
    SkewForwardKL,
    SkewReverseKL,
    _Sampled,
)

DISTANCES: list[Estimator] = [
    FORWARD_KL,
    ReverseKL(),
    JSD(0.1),
    JSD(0.5),
    JSD(0.9),
    SkewForwardKL(0.1),
    SkewForwardKL(0.6),
    SkewReverseKL(0.1),
    SkewReverseKL(0.6),
]

SAMPLED: list[Estimator] = [PolicyGradient(), PolicyGradient(floor=-0.1), K1(), K2(), K3(), NegativeLogLikelihood()]


def test_an_estimator_of_sampled_tokens_without_a_value_cannot_be_made() -> None:
    class Nameless(_Sampled):
        pass

    with pytest.raises(TypeError, match=r"abstract method '?value"):
        Nameless()  # type: ignore[abstract]


def tile(student: list[float], teacher: list[float], ids: list[int] | None = None) -> Tile:
    """From probabilities of one position, at each of `ids`."""
    at = torch.tensor(ids or [0])
    s, t = (torch.tensor([p], dtype=torch.float64).log().expand(len(at), -1) for p in (student, teacher))
    return tile_of(s, t, at)


def expected(estimator: Estimator, s: Tensor, t: Tensor) -> Tensor:
    """The distance as it is written in the papers, from logits [n, V]."""
    log_s, log_t = s.log_softmax(-1), t.log_softmax(-1)

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (p.exp() * (p - q)).sum(-1)

    def mix(share: float) -> Tensor:
        return (share * log_t.exp() + (1 - share) * log_s.exp()).log()

    match estimator:
        case JSD(beta=b):
            return b * kl(log_t, mix(b)) + (1 - b) * kl(log_s, mix(b))
        case SkewForwardKL(alpha=a):
            return kl(log_t, mix(a))
        case SkewReverseKL(alpha=a):
            return kl(log_s, mix(1 - a))
        case ReverseKL():
            return kl(log_s, log_t)
    return kl(log_t, log_s)


CORE = ([0.5, 0.3, 0.15, 0.05], [0.2, 0.6, 0.1, 0.1])  # the pairs of methods_core 0.3, methods_menu C, peers 5.3
MENU = ([0.5, 0.3, 0.2], [0.7, 0.2, 0.1])
PEERS = ([0.8, 0.2], [0.5, 0.5])
FAR = ([0.1, 0.9], [0.9, 0.1])


@pytest.mark.parametrize(
    ("pair", "estimator", "value", "gradient"),
    [
        (CORE, FORWARD_KL, 0.261398, [0.3, -0.3, 0.05, -0.05]),
        (CORE, ReverseKL(), 0.276364, [0.319964, -0.290853, 0.019365, -0.048476]),
        (CORE, JSD(0.5), 0.065456, [0.073226, -0.070386, 0.008891, -0.011731]),
        (CORE, JSD(0.1), 0.023443, None),
        (CORE, JSD(0.9), 0.024478, None),
        (MENU, FORWARD_KL, 0.085123, [-0.2, 0.1, 0.1]),
        (MENU, ReverseKL(), 0.092033, [-0.214253, 0.094030, 0.120223]),
        (MENU, JSD(0.1), 0.007695, None),
        (MENU, JSD(0.5), 0.021901, [-0.050848, 0.024187, 0.026661]),
        (MENU, JSD(0.9), 0.008185, None),
        (MENU, JSD(0.001), 0.001 * 0.085041, None),
        (MENU, JSD(0.999), 0.001 * 0.091929, None),
        (MENU, SkewForwardKL(0.1), 0.069578, [-0.162413, 0.079807, 0.082606]),
        (MENU, SkewReverseKL(0.1), 0.072828, [-0.168928, 0.077093, 0.091835]),
        (PEERS, FORWARD_KL, 0.22314355, [0.3, -0.3]),
        (PEERS, ReverseKL(), 0.19274476, [0.22180710, -0.22180710]),
        (PEERS, JSD(0.1), 0.01959944, None),
        (PEERS, JSD(0.25), 0.03958016, None),
        (PEERS, JSD(0.5), 0.05067184, None),
        (PEERS, JSD(0.75), 0.03689362, None),
        (FAR, FORWARD_KL, 1.757780, None),
        (FAR, JSD(0.25), 0.285781, None),
        (FAR, JSD(0.5), 0.368064, None),
        (FAR, JSD(0.75), 0.285781, None),
        (FAR, ReverseKL(), 1.757780, None),
        (([0.8, 0.15, 0.05], [0.4, 0.35, 0.25]), FORWARD_KL, 0.42165486, None),
    ],
)
def test_golden_numbers(
    pair: tuple[list[float], list[float]], estimator: Estimator, value: float, gradient: list[float] | None
) -> None:
    loss, d_logits = estimator(tile(*pair))
    assert loss.item() == pytest.approx(value, abs=1e-6)
    if gradient is not None:
        assert d_logits[0].tolist() == pytest.approx(gradient, abs=1e-6)


def test_golden_numbers_of_sampled_estimators() -> None:
    every = tile(*CORE, ids=[0, 1, 2, 3])
    k3, _ = K3()(every)
    assert k3.tolist() == pytest.approx([0.316291, 0.306853, 0.072132, 0.306853], abs=1e-6)
    assert (every.s_y.exp() * k3).sum().item() == pytest.approx(0.276364, abs=1e-6)
    k1, _ = K1()(every)
    assert (every.s_y.exp() * k1).sum().item() == pytest.approx(0.276364, abs=1e-6)
    menu = tile(*MENU, ids=[0, 1, 2])
    k2, _ = K2()(menu)
    assert (menu.s_y.exp() * k2).sum().item() == pytest.approx(0.101009, abs=1e-6)
    for s, t, value in ((0.9, 0.6, -0.04272001), (0.7, 0.2, -0.44682916)):
        loss, _ = PolicyGradient()(tile([s, 1 - s], [t, 1 - t]))
        assert loss.item() == pytest.approx(value, abs=1e-7)


def test_skewed_distances_are_bounded_even_without_common_tokens() -> None:
    apart = tile_of(torch.tensor([[0.0, -math.inf]]), torch.tensor([[-math.inf, 0.0]]), torch.tensor([0]))
    for estimator in (SkewForwardKL(0.1), SkewReverseKL(0.1)):
        loss, gradient = estimator(apart)
        assert loss.item() == pytest.approx(-math.log(0.1), abs=1e-5)
        assert torch.isfinite(gradient).all()
    loss, _ = JSD(0.5)(apart)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("estimator", DISTANCES)
def test_value_and_gradient_equal_autograd(estimator: Estimator) -> None:
    generator = torch.Generator().manual_seed(3)
    student = (torch.randn(7, 11, generator=generator, dtype=torch.float64) * 3).requires_grad_()
    teacher = torch.randn(7, 11, generator=generator, dtype=torch.float64) * 3
    want = expected(estimator, student, teacher)
    (d_want,) = torch.autograd.grad(want.sum(), student)
    loss, d_logits = estimator(tile_of(student.detach(), teacher, torch.zeros(7, dtype=torch.long)))
    torch.testing.assert_close(loss, want.detach(), atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(d_logits, d_want, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("estimator", SAMPLED)
def test_sampled_estimators_equal_autograd(estimator: Estimator) -> None:
    student = torch.randn(5, 9, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 9, dtype=torch.float64)
    ids = torch.tensor([0, 8, 3, 3, 1])
    s = student.log_softmax(-1).gather(1, ids[:, None])[:, 0]
    t = teacher.log_softmax(-1).gather(1, ids[:, None])[:, 0]
    match estimator:
        case PolicyGradient(floor=floor):
            want = -(t - s).detach().clamp(min=-math.inf if floor is None else floor) * s
        case K1():
            want = s - t
        case K2():
            want = (s - t) ** 2 / 2
        case K3():
            want = (t - s).exp() - 1 - (t - s)
        case _:
            want = -s
    (d_want,) = torch.autograd.grad(want.sum(), student)
    loss, d_logits = estimator(tile_of(student.detach(), teacher, ids))
    torch.testing.assert_close(loss, want.detach())
    torch.testing.assert_close(d_logits, d_want)


@pytest.mark.parametrize(
    "estimator", [*DISTANCES, PolicyGradient(), PolicyGradient("k2"), PolicyGradient("k3"), K1(), K2(), K3()]
)
def test_each_follows_the_gradient_that_it_names(estimator: Estimator) -> None:
    """By enumeration of a small vocabulary: the mean over the student's samples, exact for the others."""
    generator = torch.Generator().manual_seed(5)
    student = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    teacher = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    every = torch.arange(6)
    _, each = estimator(tile_of(student.expand(6, -1), teacher.expand(6, -1), every))
    mean = (student.softmax(-1)[0][:, None] * each).sum(0)
    one = tile_of(student, teacher, every[:1])
    named = {
        Follows.FORWARD_KL: FORWARD_KL(one)[1][0],
        Follows.REVERSE_KL: ReverseKL()(one)[1][0],
        Follows.NOTHING: torch.zeros_like(mean),
    }
    named |= {e.follows: e(one)[1][0] for e in [estimator] if not e.sampled}
    if estimator.follows is Follows.NO_DISTANCE:
        assert all((mean - other).abs().max() > 1e-3 for other in named.values())
    else:
        torch.testing.assert_close(mean, named[estimator.follows], atol=1e-12, rtol=1e-10)


def test_k3_as_reward_is_the_difference_of_two_gradients() -> None:
    every = tile(*MENU, ids=[0, 1, 2])
    _, each = PolicyGradient("k3")(every)
    mean = (every.s_y.exp()[:, None] * each).sum(0)
    assert mean.tolist() == pytest.approx([-0.014253, -0.005970, 0.020223], abs=1e-6)


@given(
    rows=st.integers(1, 5),
    vocabulary=st.integers(1, 40),
    seed=st.integers(0, 1000),
    size=st.sampled_from([0.01, 1.0, 30.0, 300.0]),
    forbidden=st.booleans(),
)
@settings(max_examples=60)
def test_distances_are_distances(rows: int, vocabulary: int, seed: int, size: float, forbidden: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, vocabulary, generator=generator) * size
    teacher = torch.randn(rows, vocabulary, generator=generator) * size
    if forbidden and vocabulary > 1:  # a padded vocabulary: both sides say -inf
        student[:, 0] = teacher[:, 0] = -math.inf
    ids = torch.full((rows,), vocabulary - 1)
    for estimator in [*DISTANCES, K2(), K3()]:
        assert estimator.distance
        loss, d_logits = estimator(tile_of(student, teacher, ids))
        assert torch.isfinite(loss).all()
        assert torch.isfinite(d_logits).all()
        assert (loss > -1e-5 * max(1.0, size)).all()
        same, d_same = estimator(tile_of(student, student.clone(), ids))
        assert (same == 0).all()
        assert (d_same == 0).all()
        if not estimator.sampled:
            torch.testing.assert_close(d_logits.sum(-1), torch.zeros(rows), atol=1e-4 * max(1.0, size), rtol=0)


def test_a_token_that_only_the_student_forbids_costs_much_but_finite() -> None:
    student = torch.tensor([[0.0, 0.0, -math.inf]])
    loss, d_logits = FORWARD_KL(tile_of(student, torch.zeros(1, 3), torch.tensor([0])))
    assert 1000 < loss.item() < math.inf
    assert torch.isfinite(d_logits).all()


def test_the_floor_bounds_what_a_token_can_be_blamed_for() -> None:
    abhorred = tile([0.5, 0.5], [1e-9, 1 - 1e-9])
    free, _ = PolicyGradient()(abhorred)
    held, gradient = PolicyGradient(floor=math.log(0.3) / 0.7)(abhorred)
    assert free.item() == pytest.approx(math.log(0.5) * -math.log(2e-9), rel=1e-6)
    assert held.item() == pytest.approx(1.71996 * math.log(0.5), rel=1e-5)
    assert gradient[0].tolist() == pytest.approx([1.71996 / 2, -1.71996 / 2], rel=1e-5)
