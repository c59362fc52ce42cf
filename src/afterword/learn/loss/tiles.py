"""A few tokens over the whole vocabulary, normalised: what every estimator, target and support reads.

Owns the numerics that they share (log-probabilities that never hold -inf, row-wise products, an exact top-k that
is cheap). It knows nothing of hidden states, distances or batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = -1e4
"""Log-probabilities below are read as this: a token that both sides forbid (-inf) then contributes exactly 0."""
_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class Tile:
    """A few tokens. All tensors are float32 or wider, carry no gradient and may be read but never written to."""

    s: Tensor
    """[n, V] student log-probabilities."""
    S: Tensor
    """[n, V] student probabilities."""
    t: Tensor
    """[n, V] log-probabilities of what is distilled (the teacher, or a target made of it); the student's own when
    there is no teacher."""
    T: Tensor
    """[n, V] their probabilities."""
    ids: Tensor
    """[n] the served token at each position."""
    s_y: Tensor
    """[n] log S(y) of the served tokens."""
    t_y: Tensor
    """[n] log T(y); for a target up to the constant that normalises it, as the papers' sampled forms have it."""


def normalise(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities and probabilities [n, V] of logits [n, V]; equal logits give equal bits.

    Not log_softmax: its single-precision sum is off by 1e-5 at 50,000 tokens, and a second exp costs more.
    """
    logs = logits - logits.amax(-1, keepdim=True)
    probabilities = logs.exp()
    total = probabilities.sum(-1, keepdim=True)
    return logs.sub_(total.log()).clamp_(min=FLOOR), probabilities.div_(total)


def tile_of(student_logits: Tensor, teacher_logits: Tensor | None, ids: Tensor) -> Tile:
    """Normalise the logits [n, V] of both sides."""
    s, S = normalise(student_logits)
    s_y = pick(s, ids)
    if teacher_logits is None:
        return Tile(s, S, s, S, ids, s_y, s_y)
    t, T = normalise(teacher_logits)
    return Tile(s, S, t, T, ids, s_y, pick(t, ids))


def pick(rows: Tensor, ids: Tensor) -> Tensor:
    """[n] the entry of each row [n, V] at its id."""
    return rows.gather(1, ids[:, None])[:, 0]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """[n] row by row inner product of [n, V] with [n, V]."""
    return (a * b).sum(-1)


def top_k(rows: Tensor, k: int) -> Tensor:
    """[n, k] indices of the k largest entries of each row [n, V], largest first.

    Exact, and several times faster than topk over a whole vocabulary: an entry among the k largest lies in one of
    the k columns of blocks whose maxima are largest, so only those are searched.
    """
    n, vocabulary = rows.shape
    width = vocabulary // _BLOCKS
    if width < 4 * k:
        return rows.topk(min(k, vocabulary)).indices
    columns = rows[:, : width * _BLOCKS].reshape(n, _BLOCKS, width).amax(1).topk(k).indices
    every = torch.arange(_BLOCKS, device=rows.device) * width
    rest = torch.arange(width * _BLOCKS, vocabulary, device=rows.device)
    candidates = torch.cat([(columns[:, :, None] + every).flatten(1), rest.expand(n, -1)], 1)
    return candidates.gather(1, rows.gather(1, candidates).topk(k).indices)
