"""Masks, averages, weights, clips: what a term adds to the objective, however its batch is split."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from afterword.learn.loss.loss_stage import COLUMNS, Scores
from afterword.learn.loss.terms import Term, objective
from afterword.learn.loss.token_batch import TokenBatch, layout
from afterword.learn.parts.contexts import CONTEXTS
from afterword.learn.parts.divergences import FORWARD_KL
from afterword.learn.parts.schedules import Constant, Linear
from afterword.learn.parts.teachers import BASE, START
from afterword.learn.parts.weights import SequenceMean, TokenMean


def term(**changes: object) -> Term:
    settings = {"name": "t", "estimator": FORWARD_KL, "teacher": START, "context": CONTEXTS["appended"], **changes}
    return Term(**settings)  # type: ignore[arg-type]


def scores(losses: Tensor) -> Scores:
    nothing = torch.zeros_like(losses)
    return Scores(losses, *[nothing] * (len(COLUMNS) - 1))


def value(one: Term, losses: Tensor, rows: TokenBatch) -> float:
    return one.value(scores(losses), rows, one.count(rows)).item()


def test_sequences_count_the_same_or_tokens_do() -> None:
    rows = layout([1, 3], [1.0, 1.0], [True, True])
    losses = torch.tensor([8.0, 1.0, 2.0, 3.0])
    assert value(term(reduction=SequenceMean()), losses, rows) == pytest.approx((8 + 2) / 2)
    assert value(term(reduction=TokenMean()), losses, rows) == pytest.approx(14 / 4)


def test_strength_is_in_the_numerator_only() -> None:
    losses = torch.ones(4)
    assert value(term(), losses, layout([2, 2], [1.0, 0.5], [True, True])) == pytest.approx(0.75)


def test_no_hindsight_counts_neither_above_nor_below() -> None:
    rows = layout([2, 2], [1.0, 1.0], [True, False])
    losses = torch.tensor([1.0, 1.0, float("nan"), float("inf")], requires_grad=True)
    one = term()
    result = one.value(scores(losses), rows, one.count(rows))
    result.backward()  # type: ignore[no-untyped-call]
    assert result.item() == 1.0
    assert losses.grad is not None
    assert losses.grad.tolist() == [0.5, 0.5, 0.0, 0.0]
    assert value(term(context=CONTEXTS["none"], teacher=BASE), torch.ones(4), rows) == 1.0


def test_an_empty_batch_is_zero() -> None:
    none = layout([2], [1.0], [False])
    assert value(term(), torch.ones(2), none) == 0.0
    assert value(term(skip_first=2), torch.ones(2), layout([2], [1.0], [True])) == 0.0
    assert value(term(), torch.ones(0), layout([], [], [])) == 0.0


def test_skipped_tokens_count_neither_above_nor_below() -> None:
    rows = layout([3, 1], [1.0, 1.0], [True, True])
    losses = torch.tensor([100.0, 2.0, 4.0, 100.0])
    assert value(term(skip_first=1), losses, rows) == pytest.approx(3.0)


def test_a_clip_caps_a_token_and_stops_its_gradient() -> None:
    losses = torch.tensor([1.0, 9.0], requires_grad=True)
    rows = layout([2], [1.0], [True])
    one = term(clip=4.0)
    result = one.value(scores(losses), rows, one.count(rows))
    result.backward()  # type: ignore[no-untyped-call]
    assert losses.grad is not None
    assert result.item() == pytest.approx(2.5)
    assert losses.grad.tolist() == [0.5, 0.0]


@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    seed=st.integers(0, 99),
    skip=st.integers(0, 2),
    tokens=st.booleans(),
    data=st.data(),
)
@settings(max_examples=60)
def test_the_split_of_a_batch_does_not_matter(
    lengths: list[int], seed: int, skip: int, tokens: bool, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(seed)
    n = len(lengths)
    strength = torch.rand(n, generator=generator).tolist()
    privileged = [bool(x) for x in torch.randint(2, (n,), generator=generator)]
    losses = [torch.rand(k, generator=generator) for k in lengths]
    one = term(skip_first=skip, reduction=TokenMean() if tokens else SequenceMean(), scale=0.5)
    anchor = term(context=CONTEXTS["none"], teacher=BASE, reduction=TokenMean())
    whole = layout(lengths, strength, privileged)
    counts = [t.count(whole) for t in (one, anchor)]

    def over(picked: list[int]) -> Tensor:
        rows = layout([lengths[i] for i in picked], [strength[i] for i in picked], [privileged[i] for i in picked])
        part = scores(torch.cat([losses[i] for i in picked]))
        return objective((one, anchor), (part, part), rows, counts)

    order = data.draw(st.permutations(range(n)))
    cut = data.draw(st.integers(0, n))
    parts = [over(p) for p in (order[:cut], order[cut:]) if p]
    torch.testing.assert_close(torch.stack(parts).sum(), over(list(range(n))))


def test_schedules() -> None:
    assert [Constant()(k, 4) for k in range(4)] == [1.0, 1.0, 1.0, 1.0]
    assert [Constant(warmup=1)(k, 3) for k in range(3)] == [0.5, 1.0, 1.0]
    assert [Linear()(k, 5) for k in range(5)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert [Linear(reach=True)(k, 5) for k in range(5)] == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    assert [Linear(warmup=1)(k, 4) for k in range(4)] == pytest.approx([0.5, 1.0, 2 / 3, 1 / 3])  # 8 interactions
    assert [Linear(warmup=1, floor=0.5)(k, 3) for k in range(3)] == pytest.approx([0.5, 1.0, 0.75])
    assert Linear()(0, 1) == 1.0
