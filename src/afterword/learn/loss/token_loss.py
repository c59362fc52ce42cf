"""Estimator, target and support composed: what one term of an objective computes at a token.

Owns the order in which they act (temperature, target, support, estimator) and what does not go together. It never
sees hidden states, weights or batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from afterword.learn.loss.tiles import Tile, tile_of
from afterword.learn.parts.divergences import JSD, Estimator, Follows, ReverseKL, SkewForwardKL, SkewReverseKL
from afterword.learn.parts.supports import FULL, Support, TopK
from afterword.learn.parts.targets import IDENTITY, Extrapolation, GeometricBridge, Target, targeted


@dataclass(frozen=True, slots=True)
class Distance:
    """A divergence or estimator, towards which target, over which tokens."""

    estimator: Estimator
    target: Target = IDENTITY
    support: Support = FULL

    def __call__(
        self, tile: Tile, student: Tensor, teacher: Tensor | None, reference: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(loss [n], gradient towards the student's logits [n, V], its mass on the support or None for all).

        `tile` holds the plain softmax of the logits [n, V] of `student` and `teacher`.
        """
        heat = self.target.temperature
        if heat != 1.0:
            tile = tile_of(student / heat, None if teacher is None else teacher / heat, tile.ids)
            reference = None if reference is None else reference / heat
        if teacher is not None:
            tile = targeted(tile, self.target, reference)
        loss, gradient, mass = self.support.apply(tile, self.estimator)
        return loss, gradient if heat == 1.0 else gradient.div_(heat), mass

    def faults(self) -> list[str]:
        """Why these parts do not fit each other, a sentence with its remedy each; empty when they do."""
        return [fault for fault in (self._teaches(), self._share(), self._target(), self._support()) if fault]

    def _teaches(self) -> str | None:
        name = type(self.estimator).__name__
        if self.estimator.follows is Follows.NOTHING:
            return f"the gradient of {name} is zero in expectation, so it teaches only noise: use PolicyGradient or K2"
        if self.estimator.follows is Follows.NO_DISTANCE:
            return f"{self.estimator} follows the gradient of no distance: use k1 as the reward"
        if not self.estimator.needs_teacher and self.target != IDENTITY:
            return f"{name} reads no teacher, so there is no target to change: leave out {self.target}"
        return None

    def _share(self) -> str | None:
        part = self.estimator
        share = part.beta if isinstance(part, JSD) else None
        if isinstance(part, SkewForwardKL | SkewReverseKL):
            share = part.alpha
        if share is None or 0 < share < 1:
            return None
        return (
            f"{part} wants a share between 0 and 1: the formula vanishes at the ends; use ForwardKL or ReverseKL there"
        )

    def _target(self) -> str | None:
        target = self.target
        if not (math.isfinite(target.temperature) and target.temperature > 0):
            return f"a temperature must be positive and finite, got {target.temperature}"
        if isinstance(target, GeometricBridge) and not 0 <= target.beta <= 1:
            return f"{target} has no target in between: beta lies from 0 (the teacher) to 1"
        if isinstance(target, Extrapolation) and not (math.isfinite(target.scale) and target.scale >= 0):
            return f"{target} must have a finite scale of at least 0 (1 is the teacher)"
        if isinstance(target, Extrapolation) and not 0 <= target.plausible < 1:
            return f"{target}: plausible is a probability, from 0 (any token) to below 1"
        return None

    def _support(self) -> str | None:
        if not isinstance(self.support, TopK):
            return None
        if self.support.k < 1:
            return f"{self.support} keeps no token: give k of at least 1"
        if self.support.k < 2 and self.support.remainder == "renormalise":
            return f"{self.support} leaves one token with probability 1 on both sides, so the loss is 0: give k of 2"
        if self.support.remainder == "teacher" and isinstance(self.estimator, ReverseKL):
            return (
                f"{self.support} gives the teacher nothing outside of the support, where KL(S||T) is infinite: use the "
                "remainder 'tail' or 'renormalise', or ForwardKL"
            )
        if self.support.remainder == "teacher" and self.support.of == "both":
            return (
                f"{self.support} has nothing to renormalise the teacher on where the sides share no token: use its own "
                "tokens (of='teacher'), or another remainder"
            )
        if self.estimator.sampled or not self.estimator.needs_teacher:
            return (
                f"{type(self.estimator).__name__} reads only the served token: leave out {self.support}, or use a "
                "divergence"
            )
        return None
