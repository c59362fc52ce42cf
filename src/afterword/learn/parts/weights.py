"""Which answers and tokens count, and how much: routes and masks, weights on top, reductions below.

A route selects answers for a term, a mask selects tokens. A weight maps (scores, batch) to [N] factors without a
gradient. A reduction gives the divisor of a term's losses. None depends on how a batch is split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from afterword.learn.loss.loss_stage import Scores
from afterword.learn.loss.token_batch import AnswerInfo, Measures, TokenBatch
from afterword.learn.parts.advantages import importance_ratio
from afterword.learn.parts.fields import Entropy, Finite, NonNegative, Positive, Share, UnitInterval


@runtime_checkable
class TermRoute(Protocol):
    """Selects the answers of a term; others count in neither its numerator nor its denominator."""

    def __call__(self, answer: AnswerInfo) -> bool:
        """True when the answer belongs to the term."""


@dataclass(frozen=True, slots=True)
class Everything:
    """All answers."""

    def __call__(self, answer: AnswerInfo) -> bool:
        return True


EVERYTHING = Everything()


@dataclass(frozen=True, slots=True)
class ByKind:
    """Answers whose feedback is of one of these kinds (`follow_up`, `edited`, `tests` ...)."""

    kinds: tuple[str, ...]

    def __call__(self, answer: AnswerInfo) -> bool:
        return answer.kind in self.kinds


@dataclass(frozen=True, slots=True)
class NotKind:
    """Answers whose feedback is of any other kind."""

    kinds: tuple[str, ...]

    def __call__(self, answer: AnswerInfo) -> bool:
        return answer.kind not in self.kinds


@dataclass(frozen=True, slots=True)
class ByCorrectness:
    """Answers with a reward above 0 (`correct`), or with a reward of at most 0; none without a reward."""

    correct: bool

    def __call__(self, answer: AnswerInfo) -> bool:
        return answer.reward is not None and (answer.reward > 0 if self.correct else answer.reward <= 0)


@dataclass(frozen=True, slots=True)
class ByTask:
    """Answers of one of these tasks (`code`, `support` ...); None is "no task"."""

    tasks: tuple[str | None, ...]

    def __call__(self, answer: AnswerInfo) -> bool:
        return answer.task in self.tasks


@dataclass(frozen=True, slots=True)
class ByOrigin:
    """Answers that these wrote (`served`, `student`, `privileged`, `teacher`, `spliced`)."""

    origins: tuple[str, ...]

    def __call__(self, answer: AnswerInfo) -> bool:
        return answer.origin in self.origins


@dataclass(frozen=True, slots=True)
class ByPassRate:
    """Answers to prompts of which at least `low` and at most `high` of the answers have a reward above 0."""

    low: UnitInterval = 0.0
    high: UnitInterval = 1.0

    def __call__(self, answer: AnswerInfo) -> bool:
        return self.low <= answer.group.pass_rate <= self.high


@dataclass(frozen=True, slots=True)
class Both:
    """Answers that belong to each of several routes."""

    routes: tuple[TermRoute, ...]

    def __call__(self, answer: AnswerInfo) -> bool:
        return all(route(answer) for route in self.routes)


@dataclass(frozen=True, slots=True)
class Other:
    """Answers that do not belong to a route."""

    route: TermRoute

    def __call__(self, answer: AnswerInfo) -> bool:
        return not self.route(answer)


def routes_of(route: TermRoute) -> tuple[TermRoute, ...]:
    """A route and those that it is made of without negation."""
    return (route, *(deep for one in route.routes for deep in routes_of(one))) if isinstance(route, Both) else (route,)


def kinds_of(route: TermRoute) -> tuple[str, ...] | None:
    """The kinds of feedback that a route reads, None for all."""
    named = [one.kinds for one in routes_of(route) if isinstance(one, ByKind)]
    return tuple(kind for kinds in named for kind in kinds) if named else None


@runtime_checkable
class Weight(Protocol):
    """Factors for the tokens of a batch, from each token's own answer alone.

    A token with factor 0 still counts in the denominator; `Mask` and `TermRoute` exclude tokens from both.
    """

    @property
    def needs_served(self) -> bool:
        """True when tokens without the sampler's log-probability cannot count."""

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        """Compute the factors.

        Args:
            scores: Scores of the N tokens; those of excluded tokens may hold any value.
            batch: Their layout.
            keep: [N] True for tokens that count. Excluded tokens must not change the factor of another token.

        Returns:
            [N] without a gradient.
        """


@dataclass(frozen=True, slots=True)
class InteractionWeight:
    """The weight of the token's interaction, in the numerator only.

    It acts relative to the other interactions: AdamW normalises the gradient, so halving all changes nothing.
    """

    needs_served = False

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return batch.weight[batch.row]


@dataclass(frozen=True, slots=True)
class ChangedTokens:
    """Tokens that the user changed weigh `boost` times as much as unchanged ones; the mean over an answer stays 1."""

    boost: Positive = 4.0
    needs_served = False

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        factors = torch.where(batch.changed, self.boost, 1.0)
        kept, total = (
            torch.zeros(len(batch.length), device=factors.device).index_add_(0, batch.row, counted)
            for counted in (keep.float(), factors * keep)
        )
        return factors * (kept / total.where(kept > 0, 1.0))[batch.row]


@dataclass(frozen=True, slots=True)
class ImportanceRatio:
    """Truncated importance weight: min(S(y) now / S(y) at sampling, cap) (arXiv 2601.20802 caps at 2)."""

    cap: Positive = 2.0
    needs_served = True

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return importance_ratio(scores, batch).clamp(max=self.cap)


@dataclass(frozen=True, slots=True)
class EntropyGate:
    """1 where the entropy (nats) of one side exceeds `threshold`, else 0; the reverse with `above` False.

    EOPD adds a forward KL only where the teacher is uncertain, 0.8 nats (arXiv 2603.07079).
    """

    threshold: Entropy = 0.8
    side: Literal["teacher", "student"] = "teacher"
    above: bool = True
    needs_served = False

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        entropy = scores.entropy_teacher if self.side == "teacher" else scores.entropy_student
        return ((entropy > self.threshold) == self.above).float()


@dataclass(frozen=True, slots=True)
class Staleness:
    """0.5^(age / half_life), age in days before the newest answer of the run."""

    half_life: Positive = 30.0
    needs_served = False

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return batch.each(lambda a: float(0.5 ** (a.age / self.half_life)))


@dataclass(frozen=True, slots=True)
class Position:
    """0.5^(position / half_life) for the token position in the answer: later tokens follow from earlier ones."""

    half_life: Positive = 64.0
    needs_served = False

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return 0.5 ** (batch.position.float() / self.half_life)


@runtime_checkable
class Mask(Protocol):
    """Selects tokens for numerator and denominator. Reads the layout alone, so counts are known before scoring."""

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[N] True for tokens that count."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """Only the first `tokens` of an answer."""

    tokens: Annotated[int, Field(ge=1, le=1_000_000)]

    def __call__(self, batch: TokenBatch) -> Tensor:
        return batch.position < self.tokens


@dataclass(frozen=True, slots=True)
class Sampled:
    """Only tokens whose log-probability at sampling is known."""

    def __call__(self, batch: TokenBatch) -> Tensor:
        return torch.isfinite(batch.served)


@dataclass(frozen=True, slots=True)
class Cap:
    """Scales a token's loss and gradient down to `most` nats, after the sum over the vocabulary. Unlike `Term.clip` it
    keeps the gradient's direction."""

    most: Positive
    needs_served = False

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return self.most / scores.loss.clamp(min=self.most)


@dataclass(frozen=True, slots=True)
class LeastRatio:
    """1 where log T(y) - log S(y) is at least `low` nats, else 0 (REOPOLD, arXiv 2603.11137)."""

    low: Finite
    needs_served = False
    needs_teacher = True

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return (scores.logp_teacher - scores.logp_student >= self.low).float()


@dataclass(frozen=True, slots=True)
class TopEntropy:
    """1 at the share of each answer's tokens with the highest student entropy (at least one token), else 0.

    REOPOLD takes the share of the batch; by answer it does not depend on how a batch is split.
    """

    share: Share = 0.2
    needs_served = False

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        gate = torch.zeros_like(scores.entropy_student)
        for answer in range(len(batch.length)):
            counted = (keep & (batch.row == answer)).nonzero()[:, 0]
            if len(counted):
                most = max(1, round(self.share * len(counted)))
                gate[counted[scores.entropy_student[counted].topk(most).indices]] = 1.0
        return gate


@dataclass(frozen=True, slots=True)
class TeacherConfidence:
    """exp(-beta H(T)): less where the teacher is unsure (SRPO, arXiv 2604.02288)."""

    beta: NonNegative = 1.0
    needs_served = False
    needs_teacher = True

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return (-self.beta * scores.entropy_teacher).exp()


@dataclass(frozen=True, slots=True)
class GapGate:
    """sigmoid(beta (log T(y) - log S(y))): more where the teacher finds the token likelier (SDAR, arXiv 2605.15155)."""

    beta: NonNegative = 5.0
    needs_served = False
    needs_teacher = True

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return (self.beta * (scores.logp_teacher - scores.logp_student)).sigmoid()


Measure = Literal["logp_student", "logp_teacher", "phi", "p_teacher"]
"""A number of a whole answer, the mean over its tokens: log S(y) and log T(y) (nats), and log S(y) + H(S), which is 0
in expectation over the student's own samples (arXiv 2602.12222), and T(y)."""


@dataclass(frozen=True, slots=True)
class GroupSoftmax:
    """softmax(measure / temperature) among the answers to the prompt that are right as this one is, or wrong as it is,
    times their number: 1 on average (SCOPE, arXiv 2604.10688). A negative temperature prefers low values."""

    measure: Measure
    temperature: Finite = 1.0
    needs_served = False

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Measures that the pass has to take."""
        return (self.measure,)

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return batch.each(self._of)

    def _of(self, answer: AnswerInfo) -> float:
        own = dict(answer.measures).get(self.measure)
        if own is None:
            return 1.0
        right = (answer.reward or 0.0) > 0
        like = [m for m in answer.group.members if m.origin == answer.origin and ((m.reward or 0.0) > 0) == right]
        beside = [value for m in like if (value := dict(m.measures).get(self.measure)) is not None]
        total = sum(math.exp((value - own) / self.temperature) for value in beside)
        return len(beside) / total if total else 1.0


@dataclass(frozen=True, slots=True)
class AnswerPower:
    """exp(factor x measure) of the whole answer, at most `cap`."""

    measure: Measure
    factor: Finite = 1.0
    cap: Positive = 10.0
    needs_served = False

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Measures that the pass has to take."""
        return (self.measure,)

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        most = math.log(self.cap)
        return batch.each(lambda a: math.exp(min(most, self.factor * dict(a.measures).get(self.measure, 0.0))))


@dataclass(frozen=True, slots=True)
class LikeliestRight:
    """1 for the right answer to the prompt that is likeliest under the student relative to the teacher, by
    log S(y) - log T(y) a token, 0 for every other: the trace that needs its hint least (arXiv 2509.22637)."""

    needs_served = False

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Measures that the pass has to take."""
        return ("logp_student", "logp_teacher")

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return batch.each(self._of)

    def _of(self, answer: AnswerInfo) -> float:
        own = self._ratio(answer.measures)
        if own is None or (answer.reward or 0.0) <= 0:
            return 0.0
        right = [m for m in answer.group.members if m.origin == answer.origin and (m.reward or 0.0) > 0]
        return float(all(own >= ratio for m in right if (ratio := self._ratio(m.measures)) is not None))

    @staticmethod
    def _ratio(measures: Measures) -> float | None:
        found = dict(measures)
        if "logp_student" not in found or "logp_teacher" not in found:
            return None
        return found["logp_student"] - found["logp_teacher"]


@dataclass(frozen=True, slots=True)
class InDistribution:
    """S(y)^g with g = 1 + mix (clip(exp(-phi / beta), low, high) - 1) and phi = log S(y) + H(S), which is 0 in
    expectation over the student's own samples (IDFT, arXiv 2602.12222): a token that the student would not write is
    imitated less. g 0 is the plain likelihood, 1 its product with S(y) (DFT, arXiv 2508.05629)."""

    beta: Positive = 1.0
    mix: UnitInterval = 1.0
    low: Positive = 0.1
    high: Positive = 2.0
    needs_served = False

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        own = scores.logp_student.detach()
        power = (-(own + scores.entropy_student.detach()) / self.beta).exp().clamp(self.low, self.high)
        return ((1 + self.mix * (power - 1)) * own).exp()


@dataclass(frozen=True, slots=True)
class Solvable:
    """4 p (1 - p) with the prompt's pass rate p: prompts that are always or never solved teach least (PACED, arXiv
    2603.11178)."""

    needs_served = False

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return batch.each(lambda a: 4 * a.group.pass_rate * (1 - a.group.pass_rate))


def measures_of(weight: Any) -> tuple[Measure, ...]:
    """Measures that a weight or an advantage reads."""
    found: tuple[Measure, ...] = getattr(weight, "measures", ())
    return found


def reads_teacher(part: Any) -> bool:
    """True when a weight, an advantage or a policy clip reads the teacher's scores."""
    return (isinstance(part, EntropyGate) and part.side == "teacher") or bool(getattr(part, "needs_teacher", False))


NUMERATOR_ONLY = (InteractionWeight, ChangedTokens)
"""Weights that no reduction divides by: less of an interaction stays less."""


def chain(weights: Sequence[Weight], scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
    """Multiply the factors of several weights: [N], ones for none."""
    factors = torch.ones_like(scores.entropy_student)
    for weight in weights:
        factors = factors * weight(scores, batch, keep).to(factors.dtype)
    return factors


@runtime_checkable
class Reduction(Protocol):
    """The divisor of a term's losses."""

    def share(self, keep: Tensor, batch: TokenBatch) -> Tensor:
        """[N] share of each token, 0 where `keep` [N] is False."""

    def count(self, keep: Tensor, batch: TokenBatch) -> float:
        """The divisor for a whole optimiser batch: the sum of its shares."""


@dataclass(frozen=True, slots=True)
class SequenceMean:
    """Mean over the tokens of each answer, then over answers: one decisive first token is not lost in long answers."""

    def share(self, keep: Tensor, batch: TokenBatch) -> Tensor:
        kept = torch.zeros(len(batch.length), device=keep.device).index_add_(0, batch.row, keep.float())
        return keep.float() / kept.clamp(min=1)[batch.row]

    def count(self, keep: Tensor, batch: TokenBatch) -> float:
        return float(len(torch.unique(batch.row[keep])))


SEQUENCE_MEAN = SequenceMean()


@dataclass(frozen=True, slots=True)
class TokenMean:
    """Mean over all tokens, so long answers count more."""

    def share(self, keep: Tensor, batch: TokenBatch) -> Tensor:
        return keep.float()

    def count(self, keep: Tensor, batch: TokenBatch) -> float:
        return float(keep.sum())


TOKEN_MEAN = TokenMean()


@dataclass(frozen=True, slots=True)
class WeightMean:
    """Mean over tokens by their weights: divided by the sum of the weights of the step, known only after scoring.

    `InteractionWeight` and `ChangedTokens` are not in it. For gates: the strength of the term does not depend on how
    many tokens pass.
    """

    def share(self, keep: Tensor, batch: TokenBatch) -> Tensor:
        return keep.float()

    def count(self, keep: Tensor, batch: TokenBatch) -> float:
        """Tokens that may count: the divisor if all weights were 1."""
        return float(keep.sum())


WEIGHT_MEAN = WeightMean()
