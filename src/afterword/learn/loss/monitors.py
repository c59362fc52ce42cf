"""What the loss stage observes at each token beside the loss, from tensors that it has anyway.

Owns the columns of `Scores` and the figures of arXiv 2604.13016 (overlap of the most likely tokens and the
advantage on them). No rules and no averages: those belong to the run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from afterword.learn.loss.tiles import Tile, dot, top_k

TOP = 16
"""Tokens per side that are compared."""
COLUMNS = (
    "loss",
    "logp_student",
    "logp_teacher",
    "entropy_student",
    "entropy_teacher",
    "overlap",
    "overlap_advantage",
    "top_mass",
)
"""In the order of the fields of `Scores`."""


def observe(tile: Tile, loss: Tensor, mass: Tensor | None) -> Tensor:
    """[len(COLUMNS), n] from the tile of the plain softmax, its loss, and the student's mass on the support."""
    alone = tile.t is tile.s
    ours = top_k(tile.s, TOP)
    entropy = -dot(tile.S, tile.s)
    one, none = torch.ones_like(loss), torch.zeros_like(loss)
    overlap, advantage = (one, none) if alone else _overlap(tile, ours)
    return torch.stack(
        [
            loss,
            tile.s_y,
            tile.t_y,
            entropy,
            entropy if alone else -dot(tile.T, tile.t),
            overlap,
            advantage,
            tile.S.gather(1, ours).sum(-1) if mass is None else mass,
        ]
    )


def _overlap(tile: Tile, ours: Tensor) -> tuple[Tensor, Tensor]:
    """[n] share of the teacher's top tokens among the student's, and the mean advantage on the shared ones."""
    shared = (ours[:, :, None] == top_k(tile.t, TOP)[:, None, :]).any(-1)
    count = shared.sum(-1)
    apart = ~shared
    s = tile.s.gather(1, ours).masked_fill_(apart, -torch.inf).log_softmax(-1)
    t = tile.t.gather(1, ours).masked_fill_(apart, -torch.inf).log_softmax(-1)
    gain = (s.exp() * (t - s)).masked_fill_(apart, 0.0).sum(-1).masked_fill_(count == 0, 0.0)
    return count.to(gain.dtype) / ours.shape[1], gain / count.clamp(min=1)
