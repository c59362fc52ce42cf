"""Nothing is scored in vain: a term reads the head for the tokens that it keeps alone, terms share the logits of one
side, and a teacher reads nothing for a term that counts nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from afterword.learn.loss.loss_stage import Distance, LossRequest, Scores, Side, requested_losses, token_losses
from afterword.learn.loss.terms import Term
from afterword.learn.parts.anchors import gold_mix
from afterword.learn.parts.contexts import CONTEXTS, Context
from afterword.learn.parts.divergences import (
    FORWARD_KL,
    JSD,
    Estimator,
    NegativeLogLikelihood,
    PolicyGradient,
    ReverseKL,
)
from afterword.learn.parts.supports import FULL, Support, TopK
from afterword.learn.parts.targets import IDENTITY, Extrapolation, Target, Temperature
from afterword.learn.parts.teachers import BASE, LIVE, Teacher
from afterword.model.head import Head, HeadAdapter
from afterword.train.data.rows import NONE
from afterword.train.runtime import steps
from afterword.train.runtime.policy import Policy
from afterword.train.runtime.teacher_runtime import TeacherOutput

N, H, V = 7, 5, 11


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Tokens of every product over the vocabulary."""
    read: list[int] = []
    logits, backward = Head.logits, Head.backward

    def counted_logits(self: Head, hidden: Tensor) -> Tensor:
        read.append(len(hidden))
        return logits(self, hidden)

    def counted_backward(self: Head, gradient: Tensor) -> Tensor:
        read.append(len(gradient))
        return backward(self, gradient)

    monkeypatch.setattr(Head, "logits", counted_logits)
    monkeypatch.setattr(Head, "backward", counted_backward)
    yield read


def _mask(kept: list[int]) -> Tensor:
    return torch.zeros(N, dtype=torch.bool).index_fill(0, torch.tensor(kept, dtype=torch.long), True)


@pytest.mark.parametrize("kept", [[], [0], [2, 3, 6], list(range(N))])
def test_what_a_term_keeps_is_scored_as_with_all_others(kept: list[int], products: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(N, H, generator=generator).requires_grad_()
    head, ids = Head(torch.randn(V, H, generator=generator)), torch.arange(N) % V
    mask, term = _mask(kept), gold_mix(0.3)
    policy = cast(Policy, SimpleNamespace(head=head))
    (found,) = steps._scores(policy, [term], {NONE: states}, ids, {}, [mask if kept else None])
    assert sum(products) == 2 * len(kept)
    whole = token_losses(states, None, head, ids, term.estimator)
    for field in dataclasses.fields(Scores):
        got, want = getattr(found, field.name), getattr(whole, field.name)
        torch.testing.assert_close(got, torch.where(mask, want, torch.zeros_like(want)))
    if kept:
        (got,) = torch.autograd.grad(found.loss.sum(), states)
        (want,) = torch.autograd.grad(whole.loss[mask].sum(), states)
        torch.testing.assert_close(got, want)


_DISTANCES: list[tuple[Estimator, Target, Support, int | None, int | None]] = [
    (PolicyGradient(), IDENTITY, FULL, 0, None),
    (FORWARD_KL, IDENTITY, TopK(4, of="teacher", remainder="teacher"), 0, None),
    (NegativeLogLikelihood(), IDENTITY, FULL, None, None),
    (ReverseKL(), Extrapolation(1.5), FULL, 1, 0),
    (JSD(0.3), Temperature(2.0), FULL, 1, None),
]


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_several_distances_in_one_pass_equal_a_pass_each(seed: int, adapted: bool) -> None:
    """Random subsets of the tokens and of the distances, all tokens in some; in tiles and strips of a few tokens."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    down, up = (random(2, H).requires_grad_(), random(V, 2).requires_grad_())
    states = random(N, H).requires_grad_()
    head = Head(random(V, H), cap=5.0, adapter=HeadAdapter(down, up, 0.5) if adapted else None)
    ids = torch.randint(V, (N,), generator=generator)
    sides = [Side(random(N, H), head.bare), Side(random(N, H), Head(random(V, H)))]
    picked = torch.randperm(len(_DISTANCES), generator=generator)[: 1 + seed % 4].tolist()
    requests, alone, weights = [], [], []
    for i in picked:
        estimator, target, support, teacher, reference = _DISTANCES[i]
        keep = torch.rand(N, generator=generator) < (2.0 if i % 2 == seed % 2 else 0.4)
        teaches, refers = (None if k is None else sides[k] for k in (teacher, reference))
        requests.append(LossRequest(Distance(estimator, target, support), keep, teaches, refers))
        alone.append(
            token_losses(
                states, None if teaches is None else teaches.states, head, ids, estimator, target=target,
                support=support, reference=None if refers is None else refers.states,
                teacher_head=None if teaches is None else teaches.head,
                reference_head=None if refers is None else refers.head,
            )
        )  # fmt: skip
        weights.append(random(N))
    found = requested_losses(states, head, ids, requests, tile=3)
    for request, one, whole in zip(requests, found, alone, strict=True):
        for field in dataclasses.fields(Scores):
            got, want = getattr(one, field.name), getattr(whole, field.name)
            torch.testing.assert_close(got, torch.where(request.keep, want, torch.zeros_like(want)))
    got_loss = torch.stack([(w * s.loss).sum() for w, s in zip(weights, found, strict=True)]).sum()
    want_loss = torch.stack(
        [(w * s.loss)[r.keep].sum() for w, s, r in zip(weights, alone, requests, strict=True)]
    ).sum()
    trained = [states, down, up] if adapted else [states]
    for got, want in zip(torch.autograd.grad(got_loss, trained), torch.autograd.grad(want_loss, trained), strict=True):
        torch.testing.assert_close(got, want)


def _term(estimator: Estimator, teacher: Any, **parts: Any) -> Term:
    return Term(name=str(estimator), estimator=estimator, teacher=teacher, context=CONTEXTS["none"], **parts)


def test_terms_with_one_teacher_form_its_logits_once(products: list[int]) -> None:
    """Two distances to one teacher: student, teacher and a gradient each, 4 products where there were 6."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(N, H, generator=generator).requires_grad_()
    head, ids = Head(torch.randn(V, H, generator=generator)), torch.arange(N) % V
    terms = [_term(PolicyGradient(), BASE), _term(FORWARD_KL, BASE), _term(ReverseKL(), BASE, scale=0.0)]
    side = TeacherOutput(torch.randn(N, H, generator=generator), head)
    everything = torch.ones(N, dtype=torch.bool)
    found: dict[tuple[Teacher | None, Context], TeacherOutput] = {(BASE, CONTEXTS["none"]): side}
    policy = cast(Policy, SimpleNamespace(head=head))
    scores = steps._scores(policy, terms, {NONE: states}, ids, found, [everything, everything, None])
    assert sum(products) == 4 * N
    assert not scores[2].loss.any() and scores[0].loss.any() and scores[1].loss.any()


def test_a_term_that_counts_nothing_asks_no_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    tokens = SimpleNamespace()

    class Teachers:
        rows = (SimpleNamespace(parts=lambda where: ((1,), (2, 3))),)

        def get(self, teacher: Any, context: Any, picked: Any, read: Any = None) -> None:
            asked.append(teacher)

    monkeypatch.setattr(steps, "rows_of", lambda rows, device: tokens)
    monkeypatch.setattr(Term, "keep", lambda self, batch: torch.ones(2, dtype=torch.bool))
    policy: Any = SimpleNamespace(
        device=torch.device("cpu"),
        head=Head(torch.randn(V, H)),
        read=lambda pairs: SimpleNamespace(pairs=pairs, states=torch.randn(2, H), kept={}),
    )
    terms = [
        _term(NegativeLogLikelihood(), None),
        _term(FORWARD_KL, LIVE, scale=0.0),
        _term(ReverseKL(), BASE, scale=0),
    ]
    steps.forward(policy, cast(Any, Teachers()), terms, [0])
    assert asked == [None]
