"""How far one batch may move the policy: factors on the gradient of -A log S(y), from the ratio to the sampler.

ratio = S(y) now / S(y) when it was sampled. The factors carry no gradient: A x factor x grad(-log S) is exactly the
gradient of the clipped surrogate, so the value of such a term is not the surrogate's, its gradient is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from afterword.learn.loss.loss_stage import Scores
from afterword.learn.loss.token_batch import Rows

_FAR = 20.0
"""Log-ratios beyond are read as this: e^20 is already no weight that anyone wants."""


def importance_ratio(scores: Scores, rows: Rows) -> Tensor:
    """[N] S(y) now over S(y) at sampling, NaN where the sampler's log-probability is unknown. No gradient."""
    return (scores.logp_student.detach() - rows.served.to(scores.logp_student.dtype)).clamp(-_FAR, _FAR).exp()


@runtime_checkable
class Update(Protocol):
    """Factors for tokens of advantage A and importance ratio `ratio`."""

    @property
    def needs_served(self) -> bool:
        """True when tokens without the sampler's log-probability cannot count."""

    def __call__(self, advantage: Tensor, ratio: Tensor) -> Tensor:
        """[N] factors on the gradient of -A log S(y)."""


@dataclass(frozen=True, slots=True)
class Plain:
    """The sampled gradient as it is: right while the policy is the one that sampled."""

    needs_served = False

    def __call__(self, advantage: Tensor, ratio: Tensor) -> Tensor:
        return torch.ones_like(advantage)


PLAIN = Plain()


@dataclass(frozen=True, slots=True)
class PPOClip:
    """Gradient of min(ratio A, clip(ratio, 1 - low, 1 + high) A) (arXiv 1707.06347): a token that has moved far
    enough in its direction stands still. `dual` also stops tokens with A < 0 whose ratio exceeds it (arXiv
    1912.09729)."""

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None
    needs_served = True

    def __call__(self, advantage: Tensor, ratio: Tensor) -> Tensor:
        stopped = torch.where(advantage > 0, ratio > 1 + self.high, ratio < 1 - self.low)
        if self.dual is not None:
            stopped |= (advantage < 0) & (ratio > self.dual)
        return ratio.masked_fill(stopped, 0.0)


@dataclass(frozen=True, slots=True)
class Truncated:
    """Importance weights with an upper bound: min(ratio, cap). Biased beyond it, of bounded variance."""

    cap: float = 2.0
    needs_served = True

    def __call__(self, advantage: Tensor, ratio: Tensor) -> Tensor:
        return ratio.clamp(max=self.cap)
