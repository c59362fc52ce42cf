"""Holds normalised distributions of a few tokens over the vocabulary, the input of estimators, targets and supports.

Owns their shared numerics: log-probabilities without -inf, row-wise products, a fast exact top-k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = -1e4
"""Least log-probability (nats): a token that both sides forbid (-inf) then contributes exactly 0."""
_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class Tile:
    """n tokens. All tensors are float32 or wider, carry no gradient and must not be changed."""

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
    """Log-probabilities and probabilities of logits; equal logits give equal bits.

    torch's log_softmax has an error of 1e-5 in single precision at 50,000 tokens, and a second exp costs more.

    Args:
        logits: [n, V]

    Returns:
        log-probabilities [n, V] (nats, at least FLOOR) and probabilities [n, V].
    """
    logs = logits - logits.amax(-1, keepdim=True)
    probabilities = logs.exp()
    total = probabilities.sum(-1, keepdim=True)
    return logs.sub_(total.log()).clamp_(min=FLOOR), probabilities.div_(total)


def tile_of(student_logits: Tensor, teacher_logits: Tensor | None, ids: Tensor) -> Tile:
    """Normalise the logits of both sides.

    Args:
        student_logits: [n, V]
        teacher_logits: [n, V]; None makes the student its own teacher.
        ids: [n] served token ids.
    """
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
    """Indices of the k largest entries of each row, largest first. Exact, several times faster than `Tensor.topk`.

    The row is cut into 64 blocks; entries among the k largest lie in the k columns whose maxima over the blocks are
    largest, so only those columns are searched.

    Args:
        rows: [n, V]
        k: At most V; a larger one gives V.

    Returns:
        [n, k]
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
