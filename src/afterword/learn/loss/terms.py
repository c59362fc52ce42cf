"""Composes the objective: a sum of terms, each the sum of weight x loss divided by the term's own divisor.

Divisors cover the whole optimiser batch, so micro-batches and accumulation do not change the result: counts are known
before it is split, sums of weights (`WeightMean`) after its last part is scored. Runs no model.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from afterword.learn.loss.loss_stage import Scores
from afterword.learn.loss.token_batch import TokenBatch
from afterword.learn.parts.advantages import NO_CLIP, Advantage, PolicyClip, advantage_parts, importance_ratio
from afterword.learn.parts.contexts import CONTEXTS, Context
from afterword.learn.parts.divergences import Estimator
from afterword.learn.parts.fields import Positive, SkippedTokens, TermScale
from afterword.learn.parts.schedules import CONSTANT, Schedule
from afterword.learn.parts.supports import FULL, Support
from afterword.learn.parts.targets import IDENTITY, Target
from afterword.learn.parts.teachers import Teacher
from afterword.learn.parts.weights import (
    EVERYTHING,
    NUMERATOR_ONLY,
    SEQUENCE_MEAN,
    InteractionWeight,
    Mask,
    Measure,
    Reduction,
    TermRoute,
    Weight,
    WeightMean,
    chain,
    measures_of,
    reads_teacher,
)

FieldSchedule = tuple[str, Schedule]
"""A path to a number of a term, and its factor over the run."""
DRAWN_CAP = 5.0
"""Bound of the importance ratio of answers that were drawn from another distribution than the student's. Over a random
vocabulary of 50 the expected gradient then has a cosine of 1.00 with the exact one at temperature 0.7, 0.99 at 0.5 and
0.9 at 0.3 (without a ratio 0.96, 0.88, 0.7), at less than twice the variance of plain samples."""


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
    student_context: Context = CONTEXTS["none"]
    """The context that the student reads; its own prompt by default."""
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
    pool: str = ""
    """Terms of one pool share a divisor: the sum of their counts. Each term has its own by default."""
    schedule: Schedule = CONSTANT
    """Factor on `scale` over the run."""
    schedules: tuple[FieldSchedule, ...] = ()
    """Factors on other numbers of the term over the run, by path (`target.beta`, `advantage.mix`, `weights.1.beta`)."""
    target_schedule: InitVar[Schedule | None] = None
    """Old name of a schedule of `target.beta`, read for one more release."""

    def __post_init__(self, target_schedule: Schedule | None) -> None:
        if target_schedule is not None:
            warnings.warn(
                'target_schedule is now schedules=(("target.beta", ...),): the old name ends with the next release',
                FutureWarning,
                stacklevel=3,
            )
            object.__setattr__(self, "schedules", (*self.schedules, ("target.beta", target_schedule)))

    @property
    def needs_served(self) -> bool:
        """True when tokens without the sampler's log-probability cannot count."""
        return self.policy_clip.needs_served or any(w.needs_served for w in self.weights)

    @property
    def needs_plain(self) -> bool:
        """True when the term is right only over samples of the student itself: it compares with a teacher at the tokens
        that were sampled, and has no importance ratio. Answers that were drawn otherwise are then weighted by one, up
        to `DRAWN_CAP`, or excluded where their distribution is unknown."""
        credits = self.advantage is not None and self.advantage.needs_teacher
        return not self.needs_served and (credits or (self.estimator.sampled and self.estimator.needs_teacher))

    def at(self, step: int, steps: int, past: Sequence[Any]) -> Term:
        """The term as its schedules make it at this step."""
        if self.schedule == CONSTANT and not self.schedules:
            return self
        term = replace(self, scale=self.scale * self.schedule(step, steps, past))
        for path, schedule in self.schedules:
            term = scaled_field(term, path.split("."), schedule(step, steps, past))
        return term

    @property
    def loosest(self) -> Term:
        """The term with all that its schedules could ever keep: those of a mask, a route or of `skip_first`."""
        moved = {path.split(".")[0] for path, _ in self.schedules}
        loose: dict[str, Any] = {"masks": (), "route": EVERYTHING, "skip_first": 0}
        return replace(self, **{field: value for field, value in loose.items() if field in moved})

    @property
    def by_weight(self) -> bool:
        """True when the divisor is a sum of weights, known only after scoring."""
        return isinstance(self.reduction, WeightMean)

    @property
    def reads_teacher(self) -> bool:
        """True when it reads a teacher's scores."""
        parts = (self.estimator, self.advantage, self.policy_clip, *self.weights)
        return any(map(reads_teacher, parts)) or not {"logp_teacher", "p_teacher"}.isdisjoint(self.measures)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Measures of whole answers that a pass has to take for it."""
        parts = (*self.weights, *advantage_parts(self.advantage))
        return tuple(dict.fromkeys(measure for part in parts for measure in measures_of(part)))

    def keep(self, batch: TokenBatch) -> Tensor:
        """Select the tokens that count in this term.

        Excluded are private tokens, masked tokens, answers of another route or that a filter left out, and answers
        without the hindsight, the reward or the sampler's log-probabilities that the term needs.

        Returns:
            [N] bool
        """
        keep = (batch.position >= self.skip_first) & ~batch.private
        for mask in self.masks:
            keep = keep & mask(batch)
        for where in (self.context, self.student_context):
            if where.privileged:
                keep = keep & batch.informed(where)
        keep = keep & batch.where(lambda a: a.accepted)
        if self.route != EVERYTHING:
            keep = keep & batch.where(self.route)
        if self.advantage is not None and self.advantage.needs_reward:
            keep = keep & batch.where(lambda a: a.reward is not None)
        if self.needs_plain:
            # who sampled the earlier turns of a conversation is not known
            keep = keep & ((batch.where(lambda a: a.plain) & batch.final) | torch.isfinite(batch.served))
        if self.needs_plain or self.needs_served:  # a sample of the student as it is scored
            under = self.student_context if self.student_context.privileged else None
            keep = keep & batch.where(lambda a: a.under == under)
        return keep & torch.isfinite(batch.served) if self.needs_served else keep

    def count(self, batch: TokenBatch) -> float:
        """The divisor for a whole optimiser batch; for `WeightMean` the tokens that may count."""
        return self.reduction.count(self.keep(batch), batch)

    def weight_sum(self, scores: Scores, batch: TokenBatch) -> Tensor:
        """Sum of the weights of the tokens that count, the divisor of `WeightMean`: a scalar without a gradient."""
        keep = self.keep(batch)
        weights = [w for w in self.weights if not isinstance(w, NUMERATOR_ONLY)]
        return torch.where(keep, chain(weights, scores, batch, keep).detach(), 0.0).sum()

    def value(self, scores: Scores, batch: TokenBatch, count: float) -> Tensor:
        """The term's part of the objective, scale x sum(weight x loss) / count.

        Args:
            scores: Scores of the N tokens of `batch`.
            batch: Some answers of an optimiser batch.
            count: Divisor of the whole optimiser batch; 0 gives 0.

        Returns:
            A scalar with a gradient.
        """
        keep = self.keep(batch)
        loss = scores.loss if self.clip is None else scores.loss.clamp(max=self.clip)
        factors = self.reduction.share(keep, batch).to(loss.dtype) * chain(self.weights, scores, batch, keep).detach()
        factors = factors * self._push(scores, batch, keep).to(loss.dtype)
        if self.needs_plain:
            factors = factors * _drawn_ratio(scores, batch).to(loss.dtype)
        # Where a token does not count its factor may be anything, also NaN for want of a log-probability.
        factors = torch.where(keep, factors, torch.zeros_like(factors))
        # A token that does not count must not count even when its loss is not finite.
        loss = torch.where(keep & (factors != 0), loss, torch.zeros_like(loss))
        return self.scale * (factors * loss).sum() / (count if count > 0 else 1.0)

    def _push(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        """[N] advantage x policy clip, without a gradient."""
        if self.advantage is not None:
            advantage = self.advantage(scores, batch, keep).detach()
        elif self.policy_clip == NO_CLIP:
            return torch.ones_like(scores.logp_student)
        else:  # the estimator holds the advantage: the policy clip needs only its sign
            advantage = (scores.logp_teacher - scores.logp_student).detach()
        factor = self.policy_clip(advantage, importance_ratio(scores, batch), scores)
        return factor if self.advantage is None else advantage * factor


def scaled_field(part: Any, path: Sequence[str], factor: float) -> Any:
    """`part` with the number at `path` times `factor`; a whole number stays one, and tuples are entered by index.

    Raises:
        AttributeError, ValueError, IndexError: No part has this path.
        TypeError: It leads to no number.
    """
    name, *rest = path
    if isinstance(part, tuple):
        at = int(name)
        return (*part[:at], _scaled(part[at], rest, factor), *part[at + 1 :])
    return replace(part, **{name: _scaled(getattr(part, name), rest, factor)})


def _scaled(value: Any, rest: Sequence[str], factor: float) -> Any:
    if rest:
        return scaled_field(value, rest, factor)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return round(value * factor) if isinstance(value, int) else value * factor


def divisors(terms: Sequence[Term], batch: TokenBatch) -> list[float]:
    """The divisor of each term for a whole optimiser batch; those of one pool share the sum of their counts.

    For a term with `by_weight` it multiplies the mean: 1, or its share of the pool as 1 / share.
    """
    counts = [term.count(batch) for term in terms]
    pools: dict[str, float] = {}
    for term, count in zip(terms, counts, strict=True):
        if term.pool and term.scale:
            pools[term.pool] = pools.get(term.pool, 0.0) + count
    found = []
    for term, count in zip(terms, counts, strict=True):
        pooled = pools.get(term.pool, 0.0) if term.pool else count
        if not term.by_weight:
            found.append(pooled)
        else:
            found.append(pooled / count if count else 0.0)
    return found


def _drawn_ratio(scores: Scores, batch: TokenBatch) -> Tensor:
    """[N] importance ratio of tokens that were drawn from another distribution, truncated; 1 for plain samples."""
    ratio = importance_ratio(scores, batch).clamp(max=DRAWN_CAP)
    return torch.where(batch.where(lambda a: a.plain), torch.ones_like(ratio), ratio)


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
