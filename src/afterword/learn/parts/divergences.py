"""Computes per-token losses, each with its exact gradient with respect to the student's logits.

An estimator maps a `Tile` to (loss [n], gradient [n, V]), in nats. T is the teacher, S the student. beta 0 is KL(T||S),
beta 1 KL(S||T), between them the generalised JSD (GKD, arXiv 2306.13649). `follows` names the gradient, for `validate`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from afterword.learn.loss.tiles import Tile, dot

MixtureShare = Annotated[
    float, Field(gt=0, lt=1, description="the formula vanishes at the ends: use ForwardKL or ReverseKL there")
]
_FAR = 80.0
"""Bound of log-ratios (nats) inside exponentials: e^80 fits float32, and such a token has no mass."""
_RATIO = 20.0
"""Bound of the sampled log-ratio inside the exponential of k3 and the square of k2 (as in verl)."""


class Follows(StrEnum):
    """The gradient of an estimator, exact or in expectation over the student's samples."""

    FORWARD_KL = "KL(T||S)"
    REVERSE_KL = "KL(S||T)"
    FLOORED_REVERSE_KL = "KL(S||T), its blame bounded"
    """Biased: tokens with an advantage below the floor count as if they were at it."""
    JSD = "JSD"
    SKEW_FORWARD_KL = "skewed KL(T||S)"
    SKEW_REVERSE_KL = "skewed KL(S||T)"
    LIKELIHOOD = "-log S(y)"
    ENTROPY = "-H(S)"
    """Reads the student alone; no distance is meant."""
    NOTHING = "zero in expectation"
    """The teacher cancels, so training learns noise."""
    NO_DISTANCE = "the gradient of no distance"
    """It does not vanish where the sides agree, or not only there."""


@runtime_checkable
class Estimator(Protocol):
    """The distance between student and teacher at each token."""

    @property
    def needs_teacher(self) -> bool:
        """False for losses that read only the served ids."""

    @property
    def sampled(self) -> bool:
        """True when it compares only the served tokens and is right only over the student's own samples."""

    @property
    def distance(self) -> bool:
        """True when its value is at least 0 and 0 at agreement, so that it can be clipped."""

    @property
    def follows(self) -> Follows:
        """The gradient that it has."""

    def __call__(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Compute loss and gradient.

        Args:
            tile: Distributions of n tokens; must not be changed.

        Returns:
            loss [n] (nats), and d loss / d student logits [n, V] as a new tensor.
        """


@dataclass(frozen=True, slots=True)
class ForwardKL:
    """KL(T||S), beta = 0: mass-covering. Gradient S - T."""

    needs_teacher = True
    sampled = False
    distance = True
    follows = Follows.FORWARD_KL

    def __call__(self, tile: Tile) -> tuple[Tensor, Tensor]:
        return dot(tile.T, tile.t - tile.s), tile.S - tile.T


FORWARD_KL = ForwardKL()


@dataclass(frozen=True, slots=True)
class ReverseKL:
    """KL(S||T), beta = 1: mode-seeking. Gradient S (log S/T - KL)."""

    needs_teacher = True
    sampled = False
    distance = True
    follows = Follows.REVERSE_KL

    def __call__(self, tile: Tile) -> tuple[Tensor, Tensor]:
        ratio = tile.s - tile.t
        loss = dot(tile.S, ratio)
        return loss, ratio.sub_(loss[:, None]).mul_(tile.S)


@dataclass(frozen=True, slots=True)
class JSD:
    """beta KL(T||m) + (1-beta) KL(S||m) with m = beta T + (1-beta) S, 0 < beta < 1 (GKD, OPSD).

    Near agreement about beta (1-beta) KL, so it wants a larger learning rate. The ends are other estimators:
    the formula goes to 0 at both. Gradient (1-beta) S (log S/m - KL(S||m)).
    """

    beta: MixtureShare = 0.5
    needs_teacher = True
    sampled = False
    distance = True
    follows = Follows.JSD

    def __call__(self, tile: Tile) -> tuple[Tensor, Tensor]:
        away = (tile.t - tile.s).clamp_(max=_FAR)
        student_m = _odds(away, self.beta).log1p_().neg_()  # log S/m
        student = dot(tile.S, student_m)
        teacher = dot(tile.T, away.add_(student_m))
        gradient = student_m.sub_(student[:, None]).mul_(tile.S).mul_(1 - self.beta)
        return self.beta * teacher + (1 - self.beta) * student, gradient


@dataclass(frozen=True, slots=True)
class SkewForwardKL:
    """KL(T||m) with m = alpha T + (1-alpha) S, 0 < alpha < 1 (DistiLLM, arXiv 2402.03898); at most -log alpha.

    The gradient flows through the student inside m: -(1-alpha) S (T/m - sum S T/m).
    """

    alpha: MixtureShare = 0.1
    needs_teacher = True
    sampled = False
    distance = True
    follows = Follows.SKEW_FORWARD_KL

    def __call__(self, tile: Tile) -> tuple[Tensor, Tensor]:
        odds = _odds((tile.s - tile.t).clamp_(max=_FAR), 1 - self.alpha)  # m/T - 1
        loss = -dot(tile.T, odds.log1p())
        excess = odds.div_(1 + odds).neg_()  # T/m - 1: exactly 0 where both sides agree
        gradient = excess.sub_(dot(tile.S, excess)[:, None]).mul_(tile.S).mul_(self.alpha - 1)
        return loss, gradient


@dataclass(frozen=True, slots=True)
class SkewReverseKL:
    """KL(S||m) with m = (1-alpha) T + alpha S, 0 < alpha < 1 (DistiLLM); at most -log alpha.

    Gradient S (c - sum S c) with c = log S/m - alpha S/m.
    """

    alpha: MixtureShare = 0.1
    needs_teacher = True
    sampled = False
    distance = True
    follows = Follows.SKEW_REVERSE_KL

    def __call__(self, tile: Tile) -> tuple[Tensor, Tensor]:
        odds = _odds((tile.t - tile.s).clamp_(max=_FAR), 1 - self.alpha)  # m/S - 1
        slope = odds.log1p().neg_()
        loss = dot(tile.S, slope)
        slope.add_(odds.div_(1 + odds), alpha=self.alpha)  # minus alpha (S/m - 1): a constant changes nothing
        return loss, slope.sub_(dot(tile.S, slope)[:, None]).mul_(tile.S)


def _odds(away: Tensor, share: float) -> Tensor:
    """share (e^away - 1), in place: for away = log B/A it is m/A - 1 of the mixture m = share B + (1-share) A."""
    return away.expm1().mul_(share)


class _Sampled(ABC):
    """Estimators of log S(y) and log T(y) alone: gradient slope (onehot(y) - S)."""

    __slots__ = ()
    needs_teacher = True
    sampled = True

    @abstractmethod
    def value(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(loss [n], d loss / d log S(y) [n]) from log S(y) and log T(y), both [n]."""

    def __call__(self, tile: Tile) -> tuple[Tensor, Tensor]:
        loss, slope = self.value(tile.s_y, tile.t_y)
        gradient = tile.S * -slope[:, None]
        return loss, gradient.scatter_add_(1, tile.ids[:, None], slope[:, None])


@dataclass(frozen=True, slots=True)
class PolicyGradient(_Sampled):
    """-A log S(y) on the served token y, A = log T(y) - log S(y) held constant ("k1 as reward").

    Its expected gradient over samples of the student is that of KL(S||T) (arXiv 2603.12273, Lemma B.1).
    `reward` k2 or k3 takes minus that estimator as A instead: biased, and refused unless wanted. `floor` is the
    least that A can be (REOPOLD, arXiv 2603.11137: log(x)/(1-x) with x 0.3, -1.72): a token that the teacher
    abhors then counts no more than others, and the expected gradient is that of KL(S||T) no longer (`follows`).
    """

    reward: Literal["k1", "k2", "k3"] = "k1"
    floor: Annotated[float, Field(le=0)] | None = None
    distance = False

    @property
    def follows(self) -> Follows:
        if self.reward != "k1":
            return Follows.NO_DISTANCE
        return Follows.REVERSE_KL if self.floor is None else Follows.FLOORED_REVERSE_KL

    def value(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        advantage = t - s if self.reward == "k1" else -(_k2(s, t) if self.reward == "k2" else _k3(s, t))[0]
        if self.floor is not None:
            advantage = advantage.clamp(min=self.floor)
        return -advantage * s, -advantage


@dataclass(frozen=True, slots=True)
class K1(_Sampled):
    """log S(y)/T(y) back-propagated. Its value estimates KL(S||T); its gradient is zero in expectation, for the
    teacher is not in it. For monitoring; `PolicyGradient` is k1 as a reward."""

    distance = False
    follows = Follows.NOTHING

    def value(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return s - t, torch.ones_like(s)


@dataclass(frozen=True, slots=True)
class K2(_Sampled):
    """(log S(y)/T(y))^2 / 2 back-propagated: its expected gradient is that of KL(S||T), its value is not."""

    distance = True
    follows = Follows.REVERSE_KL

    def value(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return _k2(s, t)


@dataclass(frozen=True, slots=True)
class K3(_Sampled):
    """r - 1 - log r with r = T(y)/S(y), back-propagated: its value estimates KL(S||T) with little variance, its
    expected gradient is that of KL(T||S) (arXiv 2512.21852)."""

    distance = True
    follows = Follows.FORWARD_KL

    def value(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return _k3(s, t)


def _k2(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    away = (s - t).clamp(-_RATIO, _RATIO)
    return away.square() / 2, away


def _k3(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    away = (t - s).clamp(-_RATIO, _RATIO)
    return away.expm1() - away, -away.expm1()


@dataclass(frozen=True, slots=True)
class NegativeLogLikelihood(_Sampled):
    """-log S(y): plain imitation of the served ids, the control that needs no teacher.

    It is also the way to any function of log S(y): `Scores.loss` carries its exact gradient, so a ratio, a clip
    or an outside advantage is autograd over [N] numbers.
    """

    needs_teacher = False
    sampled = False
    distance = False
    follows = Follows.LIKELIHOOD

    def value(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return -s, torch.full_like(s, -1)
