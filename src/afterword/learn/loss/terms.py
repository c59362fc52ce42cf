"""Composes the objective: a sum of terms, each the sum of weight x loss divided by the term's own count.

Counts cover the whole optimiser batch before it is split, so micro-batches and accumulation do not change the result.
Runs no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from afterword.learn.loss.loss_stage import Scores
from afterword.learn.loss.token_batch import TokenBatch
from afterword.learn.parts.advantages import NO_CLIP, Advantage, PolicyClip, importance_ratio
from afterword.learn.parts.contexts import CONTEXTS, Context
from afterword.learn.parts.divergences import Estimator
from afterword.learn.parts.fields import Positive, SkippedTokens, TermScale
from afterword.learn.parts.schedules import CONSTANT, Schedule
from afterword.learn.parts.supports import FULL, Support
from afterword.learn.parts.targets import IDENTITY, Target
from afterword.learn.parts.teachers import Teacher
from afterword.learn.parts.weights import (
    EVERYTHING,
    SEQUENCE_MEAN,
    InteractionWeight,
    Mask,
    Reduction,
    TermRoute,
    Weight,
    chain,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One term of the objective. `recipes.formula` prints it."""

    name: str
    """Name in metrics; unique in a recipe."""
    estimator: Estimator
    teacher: Teacher | None
    """None for estimators that read only the served ids."""
    context: Context
    """The context that the teacher reads."""
    reference: Teacher | None = None
    """Whose weights give the reference of a target that needs one."""
    reference_context: Context = CONTEXTS["none"]
    """The context that the reference reads; the student's by default."""
    target: Target = IDENTITY
    """Transforms the teacher's scores."""
    support: Support = FULL
    """Tokens of the vocabulary that are compared."""
    reduction: Reduction = SEQUENCE_MEAN
    route: TermRoute = EVERYTHING
    """Which answers belong to the term."""
    weights: tuple[Weight, ...] = (InteractionWeight(),)
    masks: tuple[Mask, ...] = ()
    advantage: Advantage | None = None
    """A signed factor on each token's loss; for the negative log-likelihood, which it makes a policy gradient."""
    policy_clip: PolicyClip = NO_CLIP
    """Bounds the change of the policy by one batch, relative to the one that sampled."""
    skip_first: SkippedTokens = 0
    """Tokens excluded at the start of each answer."""
    clip: Positive | None = None
    """Largest loss of one token (nats), after the sum over the vocabulary; a clipped token has no gradient."""
    scale: TermScale = 1.0
    """Factor of the term in the objective."""
    schedule: Schedule = CONSTANT
    """Factor on `scale` over the run."""
    target_schedule: Schedule = CONSTANT
    """Factor on the `beta` of a target that has one (a bridge whose beta falls to 0)."""

    @property
    def needs_served(self) -> bool:
        """True when tokens without the sampler's log-probability cannot count."""
        return self.policy_clip.needs_served or any(w.needs_served for w in self.weights)

    @property
    def needs_plain(self) -> bool:
        """True when the term is right only over samples of the student itself: it compares with a teacher at the tokens
        that were sampled, and no importance ratio corrects for how."""
        credits = self.advantage is not None and self.advantage.needs_teacher
        return not self.needs_served and (credits or (self.estimator.sampled and self.estimator.needs_teacher))

    def at(self, step: int, steps: int, past: Sequence[Any]) -> Term:
        """The term as its schedules make it at this step."""
        if self.schedule == CONSTANT and self.target_schedule == CONSTANT:
            return self
        target: Any = self.target
        if self.target_schedule != CONSTANT:
            target = replace(target, beta=target.beta * self.target_schedule(step, steps, past))
        return replace(self, scale=self.scale * self.schedule(step, steps, past), target=target)

    def keep(self, batch: TokenBatch) -> Tensor:
        """Select the tokens that count in this term.

        Excluded are private tokens, masked tokens, answers of another route, and answers without the hindsight, the
        reward or the sampler's log-probabilities that the term needs.

        Returns:
            [N] bool
        """
        keep = (batch.position >= self.skip_first) & ~batch.private
        for mask in self.masks:
            keep = keep & mask(batch)
        if self.context.privileged:
            keep = keep & batch.informed(self.context)
        if self.route != EVERYTHING:
            keep = keep & batch.where(self.route)
        if self.advantage is not None and self.advantage.needs_reward:
            keep = keep & batch.where(lambda a: a.reward is not None)
        if self.needs_plain:
            keep = keep & batch.where(lambda a: a.plain)
        return keep & torch.isfinite(batch.served) if self.needs_served else keep

    def count(self, batch: TokenBatch) -> float:
        """The divisor for a whole optimiser batch."""
        return self.reduction.count(self.keep(batch), batch)

    def value(self, scores: Scores, batch: TokenBatch, count: float) -> Tensor:
        """The term's part of the objective, scale x sum(weight x loss) / count.

        Args:
            scores: Scores of the N tokens of `batch`.
            batch: Some answers of an optimiser batch.
            count: `count()` of the whole optimiser batch; 0 gives 0.

        Returns:
            A scalar with a gradient.
        """
        keep = self.keep(batch)
        loss = scores.loss if self.clip is None else scores.loss.clamp(max=self.clip)
        factors = self.reduction.share(keep, batch).to(loss.dtype) * chain(self.weights, scores, batch, keep).detach()
        factors = factors * self._push(scores, batch, keep).to(loss.dtype)
        # Where a token does not count its factor may be anything, also NaN for want of a log-probability.
        factors = torch.where(keep, factors, torch.zeros_like(factors))
        # A token that does not count must not count even when its loss is not finite.
        loss = torch.where(keep & (factors != 0), loss, torch.zeros_like(loss))
        return self.scale * (factors * loss).sum() / max(count, 1.0)

    def _push(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        """[N] advantage x policy clip, without a gradient."""
        if self.advantage is not None:
            advantage = self.advantage(scores, batch, keep).detach()
        elif self.policy_clip == NO_CLIP:
            return torch.ones_like(scores.logp_student)
        else:  # the estimator holds the advantage: the policy clip needs only its sign
            advantage = (scores.logp_teacher - scores.logp_student).detach()
        factor = self.policy_clip(advantage, importance_ratio(scores, batch))
        return factor if self.advantage is None else advantage * factor


def objective(terms: Sequence[Term], scores: Sequence[Scores], batch: TokenBatch, counts: Sequence[float]) -> Tensor:
    """Sum the terms over some answers of an optimiser batch.

    Args:
        terms: Terms as `Term.at` gives them for this step.
        scores: Scores for each term.
        batch: The layout of the scored tokens.
        counts: Divisor of each term, over the whole optimiser batch.

    Returns:
        A scalar with a gradient.
    """
    values = [t.value(s, batch, n) for t, s, n in zip(terms, scores, counts, strict=True)]
    return torch.stack(values).sum()
