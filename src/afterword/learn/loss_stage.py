"""The loss stage: hidden states of both sides in, per-token losses out, and never a [tokens, vocabulary] tensor.

A tile of tokens at a time goes through the shared head; the estimator gives the loss and its gradient with
respect to the tile's logits, which is pulled back to the student's hidden states at once. What is kept for
backward is [N, H]. Entropies, log-probabilities of the served ids and the top-k overlap come from the same
pass. Nothing here averages or weights: that is `terms`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from afterword.learn.divergences import Estimator, Tile, dot, tile_of
from afterword.learn.head import Head

TILE = 128
"""Tokens at a time: two tiles of a 49,152-token vocabulary are 50 MB in float32."""
TOP = 16
"""Tokens per side that are compared for the overlap."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Per token, all [N] float32. Only `loss` carries a gradient (to the student's hidden states)."""

    loss: Tensor
    logp_student: Tensor
    """log S(y) of the served ids (nats)."""
    logp_teacher: Tensor
    """log T(y); equal to `logp_student` when the estimator has no teacher."""
    entropy_student: Tensor
    entropy_teacher: Tensor
    overlap: Tensor
    """Share of the teacher's TOP most likely tokens that are among the student's."""


def token_losses(
    student: Tensor, teacher: Tensor | None, head: Head, ids: Tensor, estimator: Estimator, *, tile: int = TILE
) -> Scores:
    """Score N served tokens.

    `student` [N, H] and `teacher` [N, H] are the last hidden states from which each of `ids` [N] is
    predicted; `teacher` may be None for an estimator that needs none. float64 heads give float64 scores.
    """
    columns = _TokenLosses.apply(student, teacher, head, ids, estimator, tile)  # type: ignore[no-untyped-call]
    return Scores(*columns)


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor | None,
        head: Head,
        ids: Tensor,
        estimator: Estimator,
        tile: int,
    ) -> tuple[Tensor, ...]:
        wide = torch.promote_types(head.weight.dtype, torch.float32)
        n = student.shape[0]
        columns = student.new_empty((6, n), dtype=wide)
        gradient = torch.empty_like(student, dtype=wide) if ctx.needs_input_grad[0] else None
        for start in range(0, n, tile):
            part = slice(start, start + tile)
            logits = head.logits(student[part])
            other = None if teacher is None else head.logits(teacher[part])
            view = tile_of(logits, other, ids[part])
            del other
            columns[1:, part] = _monitors(view)
            columns[0, part], d_logits = estimator(view)
            del view
            if gradient is not None:
                gradient[part] = head.pull_back(d_logits, logits)
        ctx.save_for_backward(gradient)
        ctx.dtype = student.dtype
        outputs = columns.unbind(0)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        d_student = None if gradient is None else (gradient * d_loss[:, None]).to(ctx.dtype)
        return d_student, None, None, None, None, None


def _monitors(tile: Tile) -> Tensor:
    """[5, n]: log S(y), log T(y), entropy of S, entropy of T, overlap of the most likely tokens."""
    at = tile.ids[:, None]
    own = tile.t is tile.s
    top = min(TOP, tile.s.shape[1])
    entropy_student = -dot(tile.S, tile.s)
    if own:
        overlap = torch.ones_like(entropy_student)
    else:
        ours, theirs = tile.s.topk(top).indices, tile.t.topk(top).indices
        overlap = (ours[:, :, None] == theirs[:, None, :]).any(1).float().mean(1)
    return torch.stack(
        [
            tile.s.gather(1, at)[:, 0],
            tile.t.gather(1, at)[:, 0],
            entropy_student,
            entropy_student if own else -dot(tile.T, tile.t),
            overlap.to(entropy_student.dtype),
        ]
    )
