"""Policy gradients: the advantage of each token, and policy clips that bound one batch's change of the policy.

Both are factors on the gradient of -log S(y) and carry no gradient themselves. Group baselines span all answers to a
prompt in a pass (`token_batch.Group`), never the answers that happen to share a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from afterword.learn.loss.loss_stage import Scores
from afterword.learn.loss.token_batch import AnswerInfo, TokenBatch
from afterword.learn.parts.fields import Finite, OpenShare, Positive, UnitInterval

_FAR = 20.0
"""Bound of the log-ratio (nats), against overflow."""


def importance_ratio(scores: Scores, batch: TokenBatch) -> Tensor:
    """Importance ratio S(y) now / S(y) at sampling.

    Returns:
        [N] without a gradient; NaN where the sampler's log-probability is unknown.
    """
    return (scores.logp_student.detach() - batch.served.to(scores.logp_student.dtype)).clamp(-_FAR, _FAR).exp()


@runtime_checkable
class PolicyClip(Protocol):
    """Bounds the change of the policy by one batch: a factor on the gradient of -A log S(y).

    The factor carries no gradient: the term has the gradient of the clipped surrogate, not its value.
    """

    @property
    def needs_served(self) -> bool:
        """True when tokens without the sampler's log-probability cannot count."""

    def __call__(self, advantage: Tensor, ratio: Tensor, scores: Scores) -> Tensor:
        """Compute the factors.

        Args:
            advantage: [N]
            ratio: [N] importance ratios, NaN where the sampler's log-probability is unknown.
            scores: Scores of the N tokens, of both sides.

        Returns:
            [N] without a gradient.
        """


@dataclass(frozen=True, slots=True)
class Plain:
    """Factor 1: unbiased only while the policy is the one that sampled."""

    needs_served = False

    def __call__(self, advantage: Tensor, ratio: Tensor, scores: Scores | None = None) -> Tensor:
        return torch.ones_like(advantage)


NO_CLIP = Plain()


@dataclass(frozen=True, slots=True)
class PPOClip:
    """Gradient of min(ratio A, clip(ratio, 1 - low, 1 + high) A) (PPO, arXiv 1707.06347). `dual` also stops tokens with
    A < 0 whose ratio exceeds it (arXiv 1912.09729)."""

    low: OpenShare = 0.2
    high: Positive = 0.2
    dual: Annotated[float, Field(gt=1)] | None = None
    needs_served = True

    def __call__(self, advantage: Tensor, ratio: Tensor, scores: Scores | None = None) -> Tensor:
        stopped = torch.where(advantage > 0, ratio > 1 + self.high, ratio < 1 - self.low)
        if self.dual is not None:
            stopped |= (advantage < 0) & (ratio > self.dual)
        return ratio.masked_fill(stopped, 0.0)


@dataclass(frozen=True, slots=True)
class Truncated:
    """Truncated importance weight min(ratio, cap): bounded variance, biased beyond `cap`."""

    cap: Positive = 2.0
    needs_served = True

    def __call__(self, advantage: Tensor, ratio: Tensor, scores: Scores | None = None) -> Tensor:
        return ratio.clamp(max=self.cap)


@dataclass(frozen=True, slots=True)
class Masked:
    """The importance weight itself inside [low, high], 0 outside: a token far from its sampler is left out, not moved
    by a truncated weight (MiMo-V2-Flash, arXiv 2601.02780)."""

    low: OpenShare = 0.5
    high: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    needs_served = True

    def __call__(self, advantage: Tensor, ratio: Tensor, scores: Scores | None = None) -> Tensor:
        return ratio.masked_fill((ratio < self.low) | (ratio > self.high), 0.0)


@dataclass(frozen=True, slots=True)
class TeacherRatioClip:
    """PPO's clip with the teacher inside the ratio, r = (S/S_old)^mix (S/T)^(1-mix) (RLAD, arXiv 2602.22495).

    With `mix` 1 it is `PPOClip`. Already before the first step r is not 1: a token that the teacher finds less likely
    than the student is not made likelier. A log-ratio to the teacher counts 20 nats at most.
    """

    mix: UnitInterval = 0.5
    low: OpenShare = 0.2
    high: Positive = 0.28
    needs_served = True
    needs_teacher = True

    def __call__(self, advantage: Tensor, ratio: Tensor, scores: Scores) -> Tensor:
        away = (scores.logp_student - scores.logp_teacher).detach().clamp(-_FAR, _FAR)
        # d r / d log S = r: both parts of the ratio have the student on top, and mix + (1 - mix) is 1
        return PPOClip(self.low, self.high)(advantage, ratio**self.mix * ((1 - self.mix) * away).exp())


@runtime_checkable
class Advantage(Protocol):
    """Factor on the gradient of -log S(y): positive makes a token likelier, negative less likely."""

    @property
    def needs_teacher(self) -> bool:
        """True when it compares with a teacher."""

    @property
    def needs_reward(self) -> bool:
        """True when answers without a reward cannot count."""

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        """Compute the advantages.

        Args:
            scores: Scores of the N tokens; those of excluded tokens may hold any value.
            batch: Their layout.
            keep: [N] True for tokens that count. Excluded tokens must not change the value of another token.

        Returns:
            [N] without a gradient.
        """


@dataclass(frozen=True, slots=True)
class FeedbackPolarity:
    """The user's own reward, +1 or -1; answers without one are excluded."""

    needs_teacher = False
    needs_reward = True

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return batch.each(lambda a: a.reward or 0.0)


@dataclass(frozen=True, slots=True)
class GroupBaseline:
    """The reward against the other answers to the same prompt; 0 for a prompt with one answer.

    "grpo": (r - mean) / (sample deviation + 1e-4) (arXiv 2402.03300); "dr_grpo": r - mean (arXiv 2503.20783);
    "leave_one_out": r - mean of the others (RLOO, arXiv 2402.14740).
    """

    kind: Literal["grpo", "dr_grpo", "leave_one_out"] = "grpo"
    across: bool = False
    """Compare with the answers of every origin rather than of the answer's own: one guide among the student's own."""
    needs_teacher = False
    needs_reward = True

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return batch.each(self.of)

    def of(self, answer: AnswerInfo) -> float:
        """The advantage of one answer."""
        group = answer.group.of(None) if self.across else answer.group
        if answer.reward is None or group.size < 2:
            return 0.0
        above = answer.reward - group.mean
        if self.kind == "grpo":
            return above / (group.deviation + 1e-4)
        return above * group.size / (group.size - 1) if self.kind == "leave_one_out" else above


@dataclass(frozen=True, slots=True)
class LogRatio:
    """log T(y) - log S(y) of each served token: distillation as a policy gradient (arXiv 2603.12273).

    `low` and `high` bound it (REOPOLD floors the reward); `centre` then subtracts its mean over the counted tokens of
    the answer, which changes what a batch moves but not which token of an answer is preferred.
    """

    centre: bool = False
    low: Finite | None = None
    high: Finite | None = None
    needs_teacher = True
    needs_reward = False

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        ratio = (scores.logp_teacher - scores.logp_student).detach()
        if self.low is not None or self.high is not None:
            ratio = ratio.clamp(min=self.low, max=self.high)
        return ratio - _answer_mean(ratio, batch, keep)[batch.row] if self.centre else ratio


@dataclass(frozen=True, slots=True)
class ReturnToGo:
    """Mean of log T - log S over the counted tokens that follow in the same answer; 0 for the last (MiniLLM, arXiv
    2306.08543).

    Divided by how many follow, or short answers win. A ratio counts `limit` nats at most; there is no whitening over
    a batch, which would depend on how the batch is split.
    """

    limit: Positive = 20.0
    needs_teacher = True
    needs_reward = False

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        ratio = (scores.logp_teacher - scores.logp_student).detach().clamp(-self.limit, self.limit)
        # Running sums over a whole batch: in float32 a long one would blur the differences between them.
        after, left = (_following(x, batch) for x in (torch.where(keep, ratio, 0.0).double(), keep.double()))
        return (after / left.clamp(min=1)).to(ratio.dtype)


@dataclass(frozen=True, slots=True)
class Scaled:
    """`factor` times another advantage."""

    part: Advantage
    factor: Finite

    @property
    def needs_teacher(self) -> bool:
        return self.part.needs_teacher

    @property
    def needs_reward(self) -> bool:
        return self.part.needs_reward

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return self.factor * self.part(scores, batch, keep)


@dataclass(frozen=True, slots=True)
class _Several:
    parts: tuple[Advantage, ...]

    @property
    def needs_teacher(self) -> bool:
        return any(part.needs_teacher for part in self.parts)

    @property
    def needs_reward(self) -> bool:
        return any(part.needs_reward for part in self.parts)

    def _each(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        """[parts, N]"""
        return torch.stack([part(scores, batch, keep).to(scores.logp_student.dtype) for part in self.parts])


@dataclass(frozen=True, slots=True)
class Sum(_Several):
    """Advantages added: an outcome for the whole answer and a teacher's word on each token (OPID, MOPD)."""

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return self._each(scores, batch, keep).sum(0)


@dataclass(frozen=True, slots=True)
class Product(_Several):
    """Advantages multiplied."""

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return self._each(scores, batch, keep).prod(0)


@dataclass(frozen=True, slots=True)
class TeacherMagnitude:
    """A ((1 - mix) + mix clip((T/S)^sign(A), 1 - bound, 1 + bound)) with the advantage A of `part` (RLSD, arXiv
    2604.03128): the outcome decides whether a token is made likelier, a teacher by how much. The sign never flips."""

    part: Advantage
    mix: UnitInterval = 0.5
    bound: OpenShare = 0.2
    needs_teacher = True

    @property
    def needs_reward(self) -> bool:
        return self.part.needs_reward

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        advantage = self.part(scores, batch, keep)
        ratio = (scores.logp_teacher - scores.logp_student).detach().clamp(-_FAR, _FAR)
        factor = (advantage.sign() * ratio).exp().clamp(1 - self.bound, 1 + self.bound)
        return advantage * ((1 - self.mix) + self.mix * factor)


@dataclass(frozen=True, slots=True)
class Reward:
    """The reward of the answer as it is, minus a fixed `baseline`."""

    baseline: Finite = 0.0
    needs_teacher = False
    needs_reward = True

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return batch.each(lambda a: (a.reward or 0.0) - self.baseline)


@dataclass(frozen=True, slots=True)
class FirstAttemptBaseline:
    """The reward of an answer against the mean reward of the student's own answers to the prompt, which were written
    without what this one was shown (RLTF, arXiv 2602.02482): it does not vanish where all second attempts are right."""

    needs_teacher = False
    needs_reward = True

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return batch.each(lambda a: (a.reward or 0.0) - a.group.of("student").mean)


def advantage_parts(advantage: Advantage | None) -> tuple[Advantage, ...]:
    """An advantage and all advantages that it is made of."""
    if advantage is None:
        return ()
    inner = advantage.parts if isinstance(advantage, _Several) else (getattr(advantage, "part", None),)
    return (advantage, *(deep for one in inner for deep in advantage_parts(one)))


def _following(values: Tensor, batch: TokenBatch) -> Tensor:
    """[N] sum of the values [N] of the tokens behind each one in the same answer."""
    through = values.cumsum(0)
    last = batch.length.cumsum(0)[batch.row] - 1
    return through[last] - through


def _answer_mean(values: Tensor, batch: TokenBatch, keep: Tensor) -> Tensor:
    """[R] mean over the tokens of each answer that count; 0 where none does."""
    zeros = torch.zeros(len(batch.length), dtype=values.dtype, device=values.device)
    sums = zeros.index_add(0, batch.row, torch.where(keep, values, 0.0))
    return sums / zeros.index_add(0, batch.row, keep.to(values.dtype)).clamp(min=1)
