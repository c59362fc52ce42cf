"""The flat layout of scored tokens: which answer each token belongs to, and what is known of that answer.

Owns no arithmetic: weights, routes and advantages read from here, never from other answers of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """Rewards of all answers to one prompt, over the whole pass: so that nothing depends on how it is split."""

    size: int = 0
    """Answers whose reward is known."""
    mean: float = 0.0
    deviation: float = 0.0
    """Sample standard deviation (divisor size - 1), 0 below two answers."""


ALONE = Group()


@dataclass(frozen=True, slots=True)
class AnswerInfo:
    """What is known of one answer beside its tokens."""

    kind: str = ""
    """Kind of the feedback that made the interaction."""
    task: str | None = None
    reward: float | None = None
    """-1 .. 1 from the user or a verifier; None when nobody judged it."""
    group: Group = ALONE
    age: float = 0.0
    """Days between this answer and the newest of the run."""


UNKNOWN = AnswerInfo()


Informed = bool | frozenset[Any]
"""The contexts that hold privileged text for an answer; True is every context, False none."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """N scored tokens of R answers, in order of the answers. Prompt and padding tokens are not among them."""

    row: Tensor
    """[N] index of the token's answer, 0 .. R-1."""
    position: Tensor
    """[N] place of the token in its answer, 0 for the first."""
    length: Tensor
    """[R] scored tokens of the answer."""
    weight: Tensor
    """[R] strength of the interaction, float32."""
    privileged: tuple[Informed, ...]
    """[R] the contexts under which the teacher reads something that the student does not."""
    answers: tuple[AnswerInfo, ...]
    """[R]"""
    served: Tensor
    """[N] log-probability (nats) of each token under the policy that sampled it; NaN where it is unknown or was
    measured under another temperature or a cut-off vocabulary."""
    private: Tensor
    """[N] True for tokens that write private data: no term counts them."""
    changed: Tensor
    """[N] True for tokens that the user changed in the answer."""

    def informed(self, context: Hashable) -> Tensor:
        """[N] True for the tokens of the answers of which `context` tells the teacher something."""
        told = [p if isinstance(p, bool) else context in p for p in self.privileged]
        return torch.tensor(told, dtype=torch.bool, device=self.row.device)[self.row]

    def each(self, read: Callable[[AnswerInfo], float]) -> Tensor:
        """[N] a figure of every token's answer, float32."""
        values = torch.tensor([read(a) for a in self.answers], dtype=torch.float32, device=self.row.device)
        return values[self.row]

    def where(self, test: Callable[[AnswerInfo], bool]) -> Tensor:
        """[N] True for the tokens of the answers that pass."""
        passed = torch.tensor([test(a) for a in self.answers], dtype=torch.bool, device=self.row.device)
        return passed[self.row]


def layout(
    lengths: Sequence[int],
    weights: Sequence[float],
    privileged: Sequence[Informed],
    device: torch.device | str = "cpu",
    *,
    answers: Sequence[AnswerInfo] | None = None,
    served: Sequence[float] | None = None,
    private: Sequence[Sequence[int]] = (),
    changed: Sequence[Sequence[int]] = (),
) -> TokenBatch:
    """The layout of answers of these lengths. `served` has one log-probability per token (NaN: unknown); `private` and
    `changed` have for each answer the places of its tokens that are (none when left out)."""
    length = torch.tensor(list(lengths), dtype=torch.long, device=device)
    row = torch.repeat_interleave(torch.arange(len(lengths), device=device), length)
    first = torch.cumsum(length, 0) - length
    position = torch.arange(int(length.sum()), device=device) - first[row]
    return TokenBatch(
        row=row,
        position=position,
        length=length,
        weight=torch.tensor(list(weights), dtype=torch.float32, device=device),
        privileged=tuple(privileged),
        answers=tuple(answers) if answers is not None else (UNKNOWN,) * len(lengths),
        served=torch.tensor(
            [math.nan] * int(length.sum()) if served is None else list(served), dtype=torch.float32, device=device
        ),
        private=_marked(private, first, len(row)),
        changed=_marked(changed, first, len(row)),
    )


def _marked(places: Sequence[Sequence[int]], first: Tensor, size: int) -> Tensor:
    """[N] True at these places of each answer; `first` [R] is where each begins."""
    found = torch.zeros(size, dtype=torch.bool, device=first.device)
    flat = [begin + place for begin, some in zip(first.tolist(), places, strict=False) for place in some]
    found[torch.tensor(flat, dtype=torch.long, device=first.device)] = True
    return found
