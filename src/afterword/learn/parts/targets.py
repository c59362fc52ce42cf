"""Transforms the teacher's scores into the distribution that is distilled.

A target is one formula for a token and for a vocabulary. The vocabulary is normalised; the sampled token is not, as in
the papers' advantages, which changes no expected gradient. No gradient flows through the student inside a target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from afterword.learn.loss.tiles import FLOOR, Tile, normalise, pick
from afterword.learn.parts.fields import Positive, UnitInterval

Extrapolated = Annotated[float, Field(gt=0, le=10)]
"""1 is the teacher."""
_RATIO = 20.0
"""Bound of log T/R (nats) in an extrapolation, against noise in the tails."""


@runtime_checkable
class Target(Protocol):
    """A transform of the teacher's scores before the distance."""

    @property
    def needs_reference(self) -> bool:
        """True when it reads a third side."""

    @property
    def temperature(self) -> float:
        """Divides the logits of both sides first; monitors stay at 1."""

    def scores(self, s: Tensor, t: Tensor, r: Tensor | None) -> Tensor:
        """Compute the scores of the target.

        Args:
            s: Log-probabilities of the student, [n, V] or [n].
            t: The same of the teacher.
            r: The same of the reference, None for a target without one.

        Returns:
            Log-scores up to a constant per token, in the same shape: a new tensor or `t` itself.
        """


@dataclass(frozen=True, slots=True)
class IdentityTarget:
    """The teacher as it is."""

    needs_reference = False
    temperature = 1.0

    def scores(self, s: Tensor, t: Tensor, r: Tensor | None) -> Tensor:
        return t


IDENTITY = IdentityTarget()


@dataclass(frozen=True, slots=True)
class Temperature:
    """Both sides softened (above 1) or sharpened: softmax(logits / temperature), as GKD and OPSD do when they
    sample at that temperature. The gradient shrinks by 1 / temperature."""

    temperature: Positive
    needs_reference = False

    def scores(self, s: Tensor, t: Tensor, r: Tensor | None) -> Tensor:
        return t


@dataclass(frozen=True, slots=True)
class GeometricBridge:
    """Q ~ T S^beta (Veto, arXiv 2601.07155): a target on the way from the student to the teacher.

    At a constant beta the fixed point is T^(1/(1-beta)), sharper than the teacher, and at 1 there is none: beta
    has to fall to 0 over the run, so a schedule belongs to it.
    """

    beta: UnitInterval
    needs_reference = False
    temperature = 1.0

    def scores(self, s: Tensor, t: Tensor, r: Tensor | None) -> Tensor:
        return t.add(s, alpha=self.beta) if self.beta else t


@dataclass(frozen=True, slots=True)
class Extrapolation:
    """log Q = scale log T + (1 - scale) log R (ExOPD / G-OPD, arXiv 2602.12125): beyond the teacher, away from the
    reference R (the student at the start, or the teacher before it was trained). scale 1 is the teacher and R
    cancels exactly; 0 is R; 1.5 and more was seen to collapse. log T/R is cut at 20 nats.

    With a reference that reads a message of no content in place of the user's own, what any complaint does (an apology)
    is divided out and what this one asks for is raised."""

    scale: Extrapolated = 1.25
    plausible: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Tokens that the teacher gives less probability than this are never raised: the ratio of two tails is noise
    (contrastive decoding, arXiv 2210.15097, with a fixed bound)."""
    needs_reference = True
    temperature = 1.0

    def scores(self, s: Tensor, t: Tensor, r: Tensor | None) -> Tensor:
        assert r is not None, "an extrapolation has no reference"
        away = (t - r).clamp_(-_RATIO, _RATIO).mul_(self.scale - 1)
        if self.plausible:
            away = torch.where(t < math.log(self.plausible), away.clamp(max=0.0), away)
        return away.add_(t)


def targeted(tile: Tile, target: Target, reference: Tensor | None) -> Tile:
    """Replace the teacher of a tile by the target.

    Args:
        tile: Distributions of student and teacher.
        target: The transform.
        reference: [n, V] logits of the reference, None for a target without one.

    Returns:
        A tile with the target as its teacher; `tile` itself where nothing changes.
    """
    if reference is None:
        r, r_y = None, None
    else:
        r, _ = normalise(reference)
        r_y = pick(r, tile.ids)
    scores = target.scores(tile.s, tile.t, r)
    if scores is tile.t:
        return tile
    t, T = normalise(scores)
    t_y = target.scores(tile.s_y, tile.t_y, r_y).clamp(min=FLOOR)
    return Tile(tile.s, tile.S, t, T, tile.ids, tile.s_y, t_y)
