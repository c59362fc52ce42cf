"""What scalar says that an answer, or a token of it, should become more likely.

An advantage multiplies the gradient of -log S(y); it carries no gradient itself. Baselines over a group are taken
over all answers to a prompt in a pass (`rows.Group`), never over what happens to share a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from afterword.learn.loss.loss_stage import Scores
from afterword.learn.loss.token_batch import Answer, Rows


@runtime_checkable
class Advantage(Protocol):
    """Positive: more of it; negative: less of it; 0: nothing is learned from this token."""

    @property
    def needs_teacher(self) -> bool:
        """True when it compares with a teacher."""

    @property
    def needs_reward(self) -> bool:
        """True when answers without a reward cannot count."""

    def __call__(self, scores: Scores, rows: Rows, keep: Tensor) -> Tensor:
        """[N], no gradient; `keep` [N] is True for tokens that count. The others' scores may be anything: neither they
        nor their number may change the value of a token that counts."""


@dataclass(frozen=True, slots=True)
class FeedbackPolarity:
    """The user's own verdict: +1 content, -1 not; what nobody judged does not count."""

    needs_teacher = False
    needs_reward = True

    def __call__(self, scores: Scores, rows: Rows, keep: Tensor) -> Tensor:
        return rows.each(lambda a: a.reward or 0.0)


@dataclass(frozen=True, slots=True)
class GroupBaseline:
    """The reward against the other answers to the same prompt; 0 for a prompt with one answer.

    "grpo": (r - mean) / (sample deviation + 1e-4) (arXiv 2402.03300); "dr_grpo": r - mean (arXiv 2503.20783);
    "leave_one_out": r - mean of the others (RLOO, arXiv 2402.14740).
    """

    kind: Literal["grpo", "dr_grpo", "leave_one_out"] = "grpo"
    needs_teacher = False
    needs_reward = True

    def __call__(self, scores: Scores, rows: Rows, keep: Tensor) -> Tensor:
        return rows.each(self._of)

    def _of(self, answer: Answer) -> float:
        group = answer.group
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
    low: float | None = None
    high: float | None = None
    needs_teacher = True
    needs_reward = False

    def __call__(self, scores: Scores, rows: Rows, keep: Tensor) -> Tensor:
        ratio = (scores.logp_teacher - scores.logp_student).detach()
        if self.low is not None or self.high is not None:
            ratio = ratio.clamp(min=self.low, max=self.high)
        return ratio - _answer_mean(ratio, rows, keep)[rows.row] if self.centre else ratio


@dataclass(frozen=True, slots=True)
class ReturnToGo:
    """Mean of log T - log S over the counted tokens that follow in the same answer; 0 for the last (MiniLLM, arXiv
    2306.08543).

    Divided by how many follow, or short answers win. A ratio counts `limit` nats at most; there is no whitening over
    a batch, which would depend on how the batch is split.
    """

    limit: float = 20.0
    needs_teacher = True
    needs_reward = False

    def __call__(self, scores: Scores, rows: Rows, keep: Tensor) -> Tensor:
        ratio = (scores.logp_teacher - scores.logp_student).detach().clamp(-self.limit, self.limit)
        # Running sums over a whole batch: in float32 a long one would blur the differences between them.
        after, left = (_following(x, rows) for x in (torch.where(keep, ratio, 0.0).double(), keep.double()))
        return (after / left.clamp(min=1)).to(ratio.dtype)


def _following(values: Tensor, rows: Rows) -> Tensor:
    """[N] sum of the values [N] of the tokens behind each one in the same answer."""
    through = values.cumsum(0)
    last = rows.length.cumsum(0)[rows.row] - 1
    return through[last] - through


def _answer_mean(values: Tensor, rows: Rows, keep: Tensor) -> Tensor:
    """[R] mean over the tokens of each answer that count; 0 where none does."""
    zeros = torch.zeros(len(rows.length), dtype=values.dtype, device=values.device)
    sums = zeros.index_add(0, rows.row, torch.where(keep, values, 0.0))
    return sums / zeros.index_add(0, rows.row, keep.to(values.dtype)).clamp(min=1)
