"""A term reads the head for the tokens that it keeps alone, and learns the same from them."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from afterword.learn.loss.loss_stage import Scores, token_losses
from afterword.learn.parts.anchors import gold_mix
from afterword.model.head import Head
from afterword.train.runtime import steps
from afterword.train.runtime.policy import Policy

N, H, V = 7, 5, 11


@pytest.mark.parametrize("kept", [[], [0], [2, 3, 6], list(range(N))])
def test_what_a_term_keeps_is_scored_as_with_all_others(kept: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(N, H, generator=generator).requires_grad_()
    head, ids = Head(torch.randn(V, H, generator=generator)), torch.arange(N) % V
    mask = torch.zeros(N, dtype=torch.bool).index_fill(0, torch.tensor(kept, dtype=torch.long), True)
    term, read = gold_mix(0.3), []

    def counted(student: torch.Tensor, *rest: Any, **named: Any) -> Scores:
        read.append(len(student))
        return token_losses(student, *rest, **named)

    monkeypatch.setattr(steps, "token_losses", counted)
    policy = cast(Policy, SimpleNamespace(head=head))
    found = steps._scores(policy, term, states, ids, None, None, mask)
    assert read == ([len(kept)] if kept else [])
    whole = token_losses(states, None, head, ids, term.estimator)
    for field in dataclasses.fields(Scores):
        got, want = getattr(found, field.name), getattr(whole, field.name)
        torch.testing.assert_close(got, torch.where(mask, want, torch.zeros_like(want)))
    if kept:
        (got,) = torch.autograd.grad(found.loss.sum(), states)
        (want,) = torch.autograd.grad(whole.loss[mask].sum(), states)
        torch.testing.assert_close(got, want)
