"""Restricts a distance to some tokens of the vocabulary, with a rule for the remaining mass.

A support maps a tile over the vocabulary to one over a few tokens, and the gradient back; the choice of tokens has no
gradient. A truncated sum with neither tail nor renormalisation can be negative, so it is not offered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from afterword.learn.loss.tiles import FLOOR, Tile, top_k
from afterword.learn.parts.divergences import Estimator
from afterword.learn.parts.fields import Count

Remainder = Literal["tail", "renormalise", "teacher"]


@runtime_checkable
class Support(Protocol):
    """A subset of the vocabulary for each token."""

    def apply(self, tile: Tile, estimator: Estimator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Apply an estimator on the support.

        Args:
            tile: Distributions over the vocabulary.
            estimator: A full-vocabulary estimator.

        Returns:
            loss [n], gradient with respect to the student's logits [n, V], and the student's probability of the support
            [n] (None for the whole vocabulary).
        """


@dataclass(frozen=True, slots=True)
class Full:
    """The whole vocabulary, exact."""

    def apply(self, tile: Tile, estimator: Estimator) -> tuple[Tensor, Tensor, Tensor | None]:
        return *estimator(tile), None


FULL = Full()


@dataclass(frozen=True, slots=True)
class TopK:
    """The k most likely tokens of one side, or those among the k of both.

    Remainders: "tail" puts the rest of each side into one more bucket (SDPO): at least 0, at most the full
    divergence, growing with k. "renormalise" compares the two conditional distributions on the support
    (Revisit-OPD); mass off the support is not seen, so watch `Scores.top_mass`. "teacher" renormalises the teacher
    only (EOPD, HDPO): at agreement it leaves -log of the teacher's mass as its value and a small gradient towards
    the support. The teacher's tokens are those of the target.
    """

    k: Count
    of: Literal["student", "teacher", "both"] = "student"
    remainder: Remainder = "tail"

    def apply(self, tile: Tile, estimator: Estimator) -> tuple[Tensor, Tensor, Tensor | None]:
        at, outside = self._tokens(tile)
        rest_S, rest_T = tile.S.scatter(1, at, 0.0), tile.T.scatter(1, at, 0.0)
        s, t = tile.s.gather(1, at), tile.t.gather(1, at)
        if outside is not None:  # what one side alone names belongs to the rest
            rest_S.scatter_(1, at, tile.S.gather(1, at) * outside)
            rest_T.scatter_(1, at, tile.T.gather(1, at) * outside)
            s.masked_fill_(outside, FLOOR)
            t.masked_fill_(outside, FLOOR)
        tail_S, tail_T = rest_S.sum(-1, keepdim=True), rest_T.sum(-1, keepdim=True)
        loss, part = estimator(self._small(tile, s, t, tail_S, tail_T))
        k = at.shape[1]
        if self.remainder == "renormalise":
            gradient = torch.zeros_like(tile.S)
        else:  # the tail's logit is the logsumexp of its tokens' logits
            gradient = rest_S.mul_(part[:, k:] / tail_S.clamp(min=torch.finfo(tail_S.dtype).tiny))
        inside = part[:, :k] if outside is None else part[:, :k].masked_fill(outside, 0.0)
        return loss, gradient.scatter_add_(1, at, inside), 1 - tail_S[:, 0]

    def _tokens(self, tile: Tile) -> tuple[Tensor, Tensor | None]:
        """Indices [n, k], and [n, k] True at tokens outside of the other side's top k (None for one side)."""
        at = top_k(tile.t if self.of == "teacher" else tile.s, self.k)
        if self.of != "both":
            return at, None
        theirs = top_k(tile.t, self.k)
        return at, ~(at[:, :, None] == theirs[:, None, :]).any(-1)

    def _small(self, tile: Tile, s: Tensor, t: Tensor, tail_S: Tensor, tail_T: Tensor) -> Tile:
        """The distributions over the support, with the tail as one more token unless both are renormalised."""
        if self.remainder == "renormalise":
            s, t = _renormalised(s), _renormalised(t)
        else:
            s = torch.cat([s, tail_S.log().clamp_(min=FLOOR)], 1)
            if self.remainder == "tail":
                t = torch.cat([t, tail_T.log().clamp_(min=FLOOR)], 1)
            else:
                t = torch.cat([_renormalised(t), torch.full_like(tail_T, FLOOR)], 1)
        return Tile(s, s.exp(), t, t.exp(), tile.ids, tile.s_y, tile.t_y)


def _renormalised(logs: Tensor) -> Tensor:
    return logs.log_softmax(-1).clamp_(min=FLOOR)
