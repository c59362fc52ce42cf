"""Advantages over the turns of episodes, and those that a teacher with a skill gives.

`EpisodeCredit` names a rule; `train.data.credit` evaluates it once over all episodes of a run, so its values do not
depend on how a batch is split. The other advantages here read the scores of a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from afterword.learn.loss.loss_stage import Scores
from afterword.learn.loss.token_batch import AnswerInfo, TokenBatch
from afterword.learn.parts.contexts import Context
from afterword.learn.parts.fields import Positive, UnitInterval

Baseline = Literal["grpo", "dr_grpo", "leave_one_out", "none"]
Group = Literal["task", "position", "state"]
Value = Literal["outcome", "return", "rubric"]
_EPSILON = 1e-4
_FAR = 20.0


@dataclass(frozen=True, slots=True)
class EpisodeCredit:
    """The value of a turn against its group; every token of the turn has it, and a rubric item may name its own tokens.

    Groups: all episodes of the task; those of the task at the same turn ("position"); turns of the task at which the
    environment said the same ("state", GiGPO, arXiv 2505.10978). A group of one gives 0.
    """

    of: Value = "outcome"
    """"outcome": the episode's reward, the same for all of its turns. "return": the rewards of this and later turns,
    discounted, the outcome at the last one. "rubric": the weighted items of `rubric`."""
    group: Group = "task"
    baseline: Baseline = "grpo"
    """As `GroupBaseline`; "none" takes the value as it is."""
    discount: UnitInterval = 1.0
    decisions: bool = False
    """Only turns at which the agent did different things in the same state; 0 elsewhere."""
    rubric: tuple[tuple[str, float], ...] = ()
    """Rubric items and their weights, for "rubric"."""
    needs_teacher = False
    needs_reward = True

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        found = batch.credit.get(self)
        return torch.zeros_like(scores.logp_student) if found is None else found.to(scores.logp_student.dtype)


@dataclass(frozen=True, slots=True)
class SampledK3:
    """-(l) with l = log S(y) - log T(y): the gradient of rho k3, k3 = exp(-l) - 1 + l, with rho = S(y) / S_old(y)
    differentiated too (Skill-SD, arXiv 2604.10674). Beyond `most` k3 is constant, and so is its gradient."""

    limit: Positive = 20.0
    """Bound of l, nats."""
    most: Positive = 10.0
    needs_teacher = True
    needs_reward = False

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        away = (scores.logp_student - scores.logp_teacher).detach()
        away = away.clamp(-self.limit, self.limit)
        k3 = (-away).exp() - 1 + away
        return -torch.where(k3 < self.most, away, torch.full_like(away, self.most))


@dataclass(frozen=True, slots=True)
class TeacherOverServed:
    """log T(y) - log S_old(y): what a teacher thinks of a token more than the policy that sampled it (OPID, arXiv
    2606.26790). 0 where the sampler's log-probability is unknown."""

    needs_teacher = True
    needs_reward = False

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        gap = scores.logp_teacher.detach() - batch.served.to(scores.logp_teacher.dtype)
        return gap.clamp(-_FAR, _FAR).nan_to_num(nan=0.0)


@dataclass(frozen=True, slots=True)
class TeacherShare:
    """(R - mean R) / (sd R + 1e-4) within the task, R = p x outcome, p the mean probability of the turn's tokens under
    the teacher, scaled to 0 .. 1 between the least and the greatest of the task (TAMTRL, arXiv 2603.21663)."""

    needs_teacher = True
    needs_reward = True
    measures = ("p_teacher",)

    def __call__(self, scores: Scores, batch: TokenBatch, keep: Tensor) -> Tensor:
        return batch.each(self.of)

    def of(self, answer: AnswerInfo) -> float:
        """The advantage of one turn; 0 without two turns that have a measure and a reward."""
        known = [(dict(m.measures)["p_teacher"], m.reward) for m in answer.group.members
                 if m.reward is not None and "p_teacher" in dict(m.measures)]  # fmt: skip
        own = dict(answer.measures).get("p_teacher")
        if own is None or answer.reward is None or len(known) < 2:
            return 0.0
        least, most = min(p for p, _ in known), max(p for p, _ in known)
        scaled = [((p - least) / (most - least) if most > least else 1.0) * reward for p, reward in known]
        mine = ((own - least) / (most - least) if most > least else 1.0) * answer.reward
        mean = sum(scaled) / len(scaled)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in scaled) / (len(scaled) - 1))
        return (mine - mean) / (deviation + _EPSILON)


@dataclass(frozen=True, slots=True)
class Uninformed:
    """Only tokens of answers for which `context` shows nothing: those that a term with the context leaves out."""

    context: Context

    def __call__(self, batch: TokenBatch) -> Tensor:
        return ~batch.informed(self.context)
