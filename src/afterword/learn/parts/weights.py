"""Which answers and tokens count, and how much: routes and masks, weights on top, reductions below.

A route selects answers for a term, a mask selects tokens. A weight maps (scores, batch) to [N] factors without a
gradient. A reduction gives the divisor of a term's losses. None depends on how a batch is split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from afterword.learn.loss.loss_stage import Scores
from afterword.learn.loss.token_batch import AnswerInfo, TokenBatch
from afterword.learn.parts.advantages import importance_ratio
from afterword.learn.parts.fields import Entropy, Finite, Positive, Share


@runtime_checkable
class TermRoute(Protocol):
    """Does this answer belong to the term?"""

    def __call__(self, answer: AnswerInfo) -> bool:
        """True when it does."""


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
    """Answers that were judged right (reward above 0), or those judged wrong (0, as verifiers say it, or below). What
    nobody judged is neither."""

    correct: bool

    def __call__(self, answer: AnswerInfo) -> bool:
        return answer.reward is not None and (answer.reward > 0 if self.correct else answer.reward <= 0)


@dataclass(frozen=True, slots=True)
class ByTask:
    """Answers of one of these tasks (`code`, `support` ...); None is "no task"."""

    tasks: tuple[str | None, ...]

    def __call__(self, answer: AnswerInfo) -> bool:
        return answer.task in self.tasks


@runtime_checkable
class Weight(Protocol):
    """Factors for the tokens of a batch; needs only rows of the same answer, never other answers.

    A token whose factor is 0 still counts in the denominator: what must not count is for `Mask` and `Route`.
    """

    @property
    def needs_served(self) -> bool:
        """True when tokens without the sampler's log-probability cannot count."""

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        """[N] factors, no gradient; `keep` [N] is True for tokens that count. The others' factors are not read and
        their scores may be anything: neither they nor their number may change the factor of a token that counts."""


@dataclass(frozen=True, slots=True)
class InteractionWeight:
    """The strength of the interaction that a token belongs to, in the numerator only.

    Strengths act relative to the other rows of a batch. An optimiser that normalises the gradient, as AdamW does, takes
    the same step when all of them are halved."""

    needs_served = False

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return batch.weight[batch.row]


@dataclass(frozen=True, slots=True)
class ChangedTokens:
    """Where the user edited the answer, its changed tokens count `boost` times as much as the ones that were kept;
    together the tokens of an answer that count at all count as before. 1 for answers that nobody edited."""

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
    """min(S(y) now / S(y) when it was served, cap): answers of an older policy count as often as this one would
    say them (arXiv 2601.20802 caps at 2)."""

    cap: Positive = 2.0
    needs_served = True

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return importance_ratio(scores, batch).clamp(max=self.cap)


@dataclass(frozen=True, slots=True)
class EntropyGate:
    """1 where the entropy (nats) of one side is above `threshold`, else 0; `above` False turns it round.

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
    """Half as much for every `half_life` days that an answer is older than the newest of the run."""

    half_life: Positive = 30.0
    needs_served = False

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return batch.each(lambda a: float(0.5 ** (a.age / self.half_life)))


@dataclass(frozen=True, slots=True)
class Position:
    """Half as much for every `half_life` tokens into the answer: later tokens follow from earlier ones."""

    half_life: Positive = 64.0
    needs_served = False

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return 0.5 ** (batch.position.float() / self.half_life)


@runtime_checkable
class Mask(Protocol):
    """Which tokens count at all, above and below. Reads the layout only, so counts are known before scoring."""

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
    """No token counts more than `most` nats: its loss and gradient are scaled down to that, after the sum over the
    vocabulary. Unlike `Term.clip` it keeps the direction of a token that is far beyond."""

    most: Positive
    needs_served = False

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return self.most / scores.loss.clamp(min=self.most)


@dataclass(frozen=True, slots=True)
class LeastRatio:
    """1 where log T(y) - log S(y) is at least `low`, else 0: tokens that the teacher finds absurd are left alone
    (REOPOLD, arXiv 2603.11137)."""

    low: Finite
    needs_served = False

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return (scores.logp_teacher - scores.logp_student >= self.low).float()


@dataclass(frozen=True, slots=True)
class TopEntropy:
    """1 at the share of each answer's counted tokens with the highest student entropy, else 0; at least one token.

    By the answer, not by the batch as in REOPOLD, so that nothing depends on how a batch is split.
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


def chain(weights: Sequence[Weight], scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
    """[N] product of all factors, ones for an empty chain."""
    factors = torch.ones_like(scores.entropy_student)
    for weight in weights:
        factors = factors * weight(scores, batch, keep).to(factors.dtype)
    return factors


@runtime_checkable
class Reduction(Protocol):
    """What the losses of a term are divided by."""

    def share(self, keep: Tensor, batch: TokenBatch) -> Tensor:
        """[N] share of each kept token; `keep` [N] is True for tokens that count."""

    def count(self, keep: Tensor, batch: TokenBatch) -> float:
        """The divisor: the sum of all shares of a whole batch."""


@dataclass(frozen=True, slots=True)
class SequenceMean:
    """Every answer counts the same: one decisive first token is not lost in a mean over long answers."""

    def share(self, keep: Tensor, batch: TokenBatch) -> Tensor:
        kept = torch.zeros(len(batch.length), device=keep.device).index_add_(0, batch.row, keep.float())
        return keep.float() / kept.clamp(min=1)[batch.row]

    def count(self, keep: Tensor, batch: TokenBatch) -> float:
        return float(len(torch.unique(batch.row[keep])))


SEQUENCE_MEAN = SequenceMean()


@dataclass(frozen=True, slots=True)
class TokenMean:
    """Every token counts the same, so long answers count more."""

    def share(self, keep: Tensor, batch: TokenBatch) -> Tensor:
        return keep.float()

    def count(self, keep: Tensor, batch: TokenBatch) -> float:
        return float(keep.sum())


TOKEN_MEAN = TokenMean()
