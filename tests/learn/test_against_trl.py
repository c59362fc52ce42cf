"""The same inputs through TRL 1.16 and through the loss stage: losses to 1e-5, gradients to 1e-4, in float32.

Needs the extra `compare`; run by `make test-all`. Where TRL computes something else, the test says what and why
ours differs.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from afterword.learn.loss.loss_stage import Scores, token_losses
from afterword.learn.loss.token_batch import layout
from afterword.learn.parts.divergences import FORWARD_KL, JSD, Estimator, PolicyGradient, ReverseKL
from afterword.learn.parts.supports import FULL, Support, TopK
from afterword.learn.parts.targets import IDENTITY, Target, Temperature
from afterword.learn.parts.weights import ImportanceRatio
from afterword.model.head import Head

pytestmark = [
    pytest.mark.compare,
    pytest.mark.skipif(
        importlib.util.find_spec("trl") is None,
        reason="trl is not installed: pip install --constraint constraints.txt 'afterword[compare]'",
    ),
    pytest.mark.filterwarnings("ignore"),  # the peer's own
]
N, HIDDEN, VOCABULARY = 60, 24, 1001
KINDS: list[tuple[float, Estimator]] = [(0.0, FORWARD_KL), (0.25, JSD(0.25)), (0.5, JSD(0.5)), (1.0, ReverseKL())]


def case(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator) / HIDDEN**0.5
    student = torch.randn(N, HIDDEN, generator=generator) * 2
    teacher = student + torch.randn(N, HIDDEN, generator=generator)
    return student.requires_grad_(), teacher, weight, torch.randint(VOCABULARY, (N,), generator=generator)


def ours(estimator: Estimator, target: Target = IDENTITY, support: Support = FULL, **head: Any) -> Scores:
    student, teacher, weight, ids = case()
    return token_losses(student, teacher, Head(weight, **head), ids, estimator, target=target, support=support, tile=32)


def same(got: Scores, want: Tensor, student: Tensor, theirs: Tensor) -> None:
    """`got` was computed from an equal copy of `student`; `want` [N] or its mean comes from `theirs`."""
    (d_want,) = torch.autograd.grad(want.sum(), theirs)
    (d_got,) = torch.autograd.grad(got.loss.sum() if want.ndim else got.loss.mean(), student)
    torch.testing.assert_close(got.loss if want.ndim else got.loss.mean(), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(d_got, d_want, atol=1e-4, rtol=1e-4)


def both(estimator: Estimator, **parts: Any) -> tuple[Scores, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Our scores, our student, and another copy with its logits for the peer."""
    student, teacher, weight, ids = case()
    head = {k: parts.pop(k) for k in ("scale", "cap", "bias") if k in parts}
    got = token_losses(student, teacher, Head(weight, **head), ids, estimator, tile=32, **parts)
    theirs = student.detach().clone().requires_grad_()
    return got, student, theirs, theirs @ weight.T, teacher @ weight.T, ids


@pytest.mark.parametrize("room", ["sdpo", "sdft"])
@pytest.mark.parametrize(("alpha", "estimator"), KINDS)
def test_full_vocabulary_loss_of_sdpo_and_sdft(room: str, alpha: float, estimator: Estimator) -> None:
    """No deviation: alpha is our beta, and both keep the full gradient at the ends."""
    peer = importlib.import_module(f"trl.experimental.{room}.loss_utils")
    got, student, theirs, s, t, _ = both(estimator)
    same(got, peer.compute_full_logit_self_distillation_loss(s, t, distillation_alpha=alpha), student, theirs)


@pytest.mark.parametrize("room", ["sdpo", "sdft"])
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize(("alpha", "estimator"), KINDS)
def test_student_top_k_of_sdpo_and_sdft(room: str, tail: bool, alpha: float, estimator: Estimator) -> None:
    """No deviation at this vocabulary. TRL takes the tail as 1 - sum with that sum held below 1 - 1e-7; we add up
    the tail's own tokens, so at a nearly certain token our tail keeps its digits (next test)."""
    peer = importlib.import_module(f"trl.experimental.{room}.loss_utils")
    support = TopK(20, "student", "tail" if tail else "renormalise")
    got, student, theirs, s, t, _ = both(estimator, support=support)
    want = peer.compute_topk_self_distillation_loss(
        s, t, distillation_topk=20, distillation_alpha=alpha, distillation_add_tail=tail
    )
    same(got, want, student, theirs)


def test_a_tiny_tail_is_where_we_are_nearer_to_float64() -> None:
    """Both sides put all but 1e-8 on the top-k: TRL's clamp gives either tail 1e-7, so their difference is lost."""
    from trl.experimental.sdpo.loss_utils import compute_topk_self_distillation_loss as peer

    s = torch.tensor([[20.0, 0.0, 0.0, -20.0]])
    t = torch.tensor([[20.0, 0.0, 0.0, -3.0]])
    options: dict[str, Any] = {"distillation_topk": 3, "distillation_alpha": 0.0, "distillation_add_tail": True}
    exact = peer(s.double(), t.double(), **options)
    head = Head(torch.eye(4))
    got = token_losses(s, t, head, torch.tensor([0]), FORWARD_KL, support=TopK(3)).loss
    full = token_losses(s.double(), t.double(), Head(torch.eye(4).double()), torch.tensor([0]), FORWARD_KL).loss
    assert abs(float(got - full)) < 1e-9
    assert abs(float(peer(s, t, **options) - full)) > abs(float(got - full))
    assert abs(float(exact - full)) > abs(float(got - full))  # the clamp is there in float64 too


def test_sampled_token_loss_of_sdpo() -> None:
    """TRL's value is (log S - log T) log S with the first factor held; ours is the same number."""
    from trl.experimental.sdpo.loss_utils import compute_sampled_token_self_distillation_loss as peer

    got, student, theirs, s, t, ids = both(PolicyGradient())
    same(got, peer(s, t, ids, distillation_alpha=1.0), student, theirs)


def test_clipped_importance_ratio_of_sdpo() -> None:
    """The ratio is a constant factor per token, as in TRL: upper side only, log-ratio cut at 20. The bound on the
    loss is relative 5e-5: a ratio magnifies the last digit of a log-probability near -10."""
    from trl.experimental.sdpo import loss_utils as peer

    got, student, theirs, s, t, ids = both(PolicyGradient())
    old = got.logp_student - torch.linspace(-1, 2, N)
    want = peer.apply_importance_sampling_clipping(
        peer.compute_sampled_token_self_distillation_loss(s, t, ids, distillation_alpha=1.0),
        s.log_softmax(-1).gather(1, ids[:, None])[:, 0],
        old,
        2.0,
    )
    rows = layout([N], [1.0], [True], served=old.tolist())
    ratio = ImportanceRatio(cap=2.0)(got, rows, torch.ones(N, dtype=torch.bool))
    assert bool((ratio == 2.0).any()) and bool((ratio < 1.0).any())
    torch.testing.assert_close(got.loss * ratio, want, atol=1e-5, rtol=5e-5)
    (d_got,) = torch.autograd.grad((got.loss * ratio).sum(), student)
    (d_want,) = torch.autograd.grad(want.sum(), theirs)
    torch.testing.assert_close(d_got, d_want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.9, 2.0])
@pytest.mark.parametrize(("beta", "estimator"), KINDS)
def test_generalised_jsd_of_gkd(beta: float, estimator: Estimator, temperature: float) -> None:
    """GKD divides both sides' logits by the temperature inside the loss and does not multiply by its square: so
    does `Temperature`. Reduced as TRL does with labels: the mean over tokens that are not -100."""
    from trl.experimental.gkd import GKDTrainer

    got, student, theirs, s, t, ids = both(estimator, target=Temperature(temperature))
    want = GKDTrainer.generalized_jsd_loss(s[None], t[None], labels=ids[None], beta=beta, temperature=temperature)
    same(got, want, student, theirs)


@pytest.mark.parametrize("shape", [{}, {"scale": 0.5, "cap": 6.0}])
@pytest.mark.parametrize(("beta", "estimator"), KINDS)
def test_chunked_divergence_of_the_distillation_trainer(
    beta: float, estimator: Estimator, shape: dict[str, Any]
) -> None:
    """No deviation, its temperature, scale and soft cap included; its entropy is ours too. TRL takes log-sum-exp by
    parts, which costs it digits: the bound here is its own."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    student, teacher, weight, ids = case()
    theirs = student.detach().clone().requires_grad_()
    head = Head(weight, **shape)
    got = token_losses(student, teacher, head, ids, estimator, target=Temperature(1.3), tile=32)
    want, entropy, count = _chunked_divergence_loss(
        theirs[None],
        teacher[None],
        weight,
        weight,
        torch.ones_like(ids)[None],
        beta,
        temperature=1.3,
        student_logit_scale=head.scale,
        teacher_logit_scale=head.scale,
        student_final_logit_softcapping=head.cap,
        teacher_final_logit_softcapping=head.cap,
    )
    same(got, want, student, theirs)
    if not shape:
        plain, *_ = _chunked_divergence_loss(
            theirs[None], teacher[None], weight, weight, torch.ones_like(ids)[None], beta
        )
        torch.testing.assert_close(ours(estimator).loss.mean(), plain, atol=1e-5, rtol=1e-5)
    heated = (got.entropy_student.mean() - entropy / count).abs()
    assert heated > 1e-3  # TRL's entropy is that of the heated softmax, ours always of the plain one
