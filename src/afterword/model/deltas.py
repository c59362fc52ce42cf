"""What a teacher adds to a frozen weight: scale x up down, or a dense matrix once that is smaller.

Owns the average of updates. An average of LoRA updates is not the update of averaged factors: with A and B both
averaged from zero over n steps it would be scaled by (1 - (1-r)^n)^2 instead of 1 - (1-r)^n. Here the product is
averaged, exactly: the factors of both sides are stacked, and a layer becomes dense when its stack outgrows it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Delta:
    """The update of one [out, in] weight, float32."""

    down: Tensor
    """[k, in]; [0, in] for a dense one."""
    up: Tensor
    """[out, k]"""
    scale: float = 1.0
    dense: Tensor | None = None
    """[out, in]"""

    def full(self) -> Tensor:
        """[out, in]"""
        return self.dense if self.dense is not None else (self.up @ self.down).mul_(self.scale)

    @property
    def numel(self) -> int:
        """Numbers that are kept."""
        return self.down.numel() + self.up.numel() if self.dense is None else self.dense.numel()


def mixed(old: Delta, new: Delta, rate: float, rank: int | None = None) -> Delta:
    """(1 - rate) old + rate new. Exact without `rank`; with it the result is the best approximation of that rank,
    taken whenever the stacked factors have grown to twice as much."""
    if old.dense is not None:
        return _dense(old.dense.mul(1 - rate).addmm_(new.up, new.down, alpha=rate * new.scale))
    up = torch.cat([old.up * ((1 - rate) * old.scale), new.up * (rate * new.scale)], 1)
    down = torch.cat([old.down, new.down])
    stacked = Delta(down, up)
    if rank is not None:
        return _nearest(stacked, rank) if len(down) > 2 * rank + len(new.down) else stacked
    return stacked if stacked.numel < up.shape[0] * down.shape[1] else _dense(stacked.full())


def _dense(matrix: Tensor) -> Delta:
    out, width = matrix.shape
    return Delta(matrix.new_empty(0, width), matrix.new_empty(out, 0), 1.0, matrix)


def _nearest(delta: Delta, rank: int) -> Delta:
    """The best approximation of that rank, by the singular values of the factors' triangles (k x k, not out x in)."""
    up_q, up_r = torch.linalg.qr(delta.up)
    down_q, down_r = torch.linalg.qr(delta.down.T)
    left, values, right = torch.linalg.svd((up_r @ down_r.T) * delta.scale, full_matrices=False)
    return Delta((down_q @ right[:rank].T).T.contiguous(), up_q @ (left[:, :rank] * values[:rank]))
