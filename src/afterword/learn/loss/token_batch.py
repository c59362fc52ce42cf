"""Lays out scored tokens flat: the answer of each token, and the facts about each answer.

Weights, routes and advantages read these facts alone, never other answers that share the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Origin = Literal["served", "student", "privileged", "teacher", "spliced"]
"""Who wrote an answer: the deployed model or a person; the student anew; the student reading something more; other
weights; the student and then other weights."""
Measures = tuple[tuple[str, float], ...]
"""Numbers of a whole answer by name (`weights.Measure`), taken once a pass: they do not depend on how it is split."""


@dataclass(frozen=True, slots=True)
class Member:
    """An answer as the others to the same prompt see it."""

    reward: float | None = None
    origin: Origin = "served"
    measures: Measures = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Statistics of the rewards of all answers to one prompt of one origin, over the whole pass: independent of its
    split."""

    size: int = 0
    """Answers whose reward is known."""
    mean: float = 0.0
    deviation: float = 0.0
    """Sample standard deviation (divisor size - 1), 0 below two answers."""
    members: tuple[Member, ...] = field(default=(), compare=False, repr=False)
    """All answers to the prompt that were kept, of every origin, this one too."""

    def of(self, origin: Origin | None) -> Group:
        """The statistics of the members of one origin, of all for None."""
        return group_of([m for m in self.members if origin in (None, m.origin)], self.members)

    @property
    def pass_rate(self) -> float:
        """Share of the members with a reward above 0, of those whose reward is known; 0 without any."""
        known = [m.reward for m in self.members if m.reward is not None]
        return sum(reward > 0 for reward in known) / max(1, len(known))


ALONE = Group()


def group_of(counted: Sequence[Member], members: Sequence[Member]) -> Group:
    """The statistics of the rewards of `counted`, which are some of `members`."""
    rewards = [m.reward for m in counted if m.reward is not None]
    n = len(rewards)
    if not n:
        return Group(members=tuple(members))
    mean = sum(rewards) / n
    spread = sum((r - mean) ** 2 for r in rewards)
    deviation = math.sqrt(spread / (n - 1)) if n > 1 else 0.0
    return Group(size=n, mean=mean, deviation=deviation, members=tuple(members))


@dataclass(frozen=True, slots=True)
class AnswerInfo:
    """Facts about one answer besides its tokens."""

    kind: str = ""
    """Kind of the feedback that made the interaction."""
    task: str | None = None
    reward: float | None = None
    """-1 .. 1 from the user or a verifier; None when unknown."""
    group: Group = ALONE
    age: float = 0.0
    """Days between this answer and the newest of the run."""
    plain: bool = True
    """False for a served answer that is not known to be a sample of the model's own distribution: another temperature,
    a cut-off vocabulary, a penalty, a grammar, or fields whose value the server chose."""
    origin: Origin = "served"
    under: Hashable = None
    """The context that the student read when it sampled the answer; None for its own prompt."""
    accepted: bool = True
    """False for an answer that a filter of the pass left out: no term counts it."""
    measures: Measures = ()


UNKNOWN = AnswerInfo()


Informed = bool | frozenset[Any]
"""Contexts with privileged text for an answer; True is every context, False none."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """N scored tokens of R answers, in order of the answers, without prompts and padding.

    A row may score several spans: the turns of an episode, or the parts of an answer that different policies wrote.
    They share one interaction, and a mean over an answer is a mean over all of its spans.
    """

    row: Tensor
    """[N] index of the token's answer, 0 .. R-1."""
    position: Tensor
    """[N] position of the token in its span, from 0."""
    span: Tensor
    """[N] index of the token's scored span in its row, from 0; 0 throughout for rows of one answer."""
    length: Tensor
    """[R] scored tokens of the answer."""
    weight: Tensor
    """[R] strength of the interaction, float32."""
    privileged: tuple[Informed, ...]
    """[R] the contexts under which the teacher reads something that the student does not."""
    answers: tuple[AnswerInfo, ...]
    """[R]"""
    served: Tensor
    """[N] log-probability (nats) of each token under the distribution that it was drawn from; NaN where it is unknown
    or a part of the vocabulary was cut off."""
    private: Tensor
    """[N] True for tokens that write private data: no term counts them."""
    changed: Tensor
    """[N] True for tokens that the user changed in the answer."""
    credit: Mapping[Hashable, Tensor] = field(default_factory=dict)
    """Rule of credit (`parts.credit.EpisodeCredit`) -> [N] advantage of each token, 0 for rows of no episode."""

    @property
    def last(self) -> Tensor:
        """[N] True for the last token of each span."""
        return torch.cat([self.position[1:] == 0, self.position.new_ones(min(1, len(self.position)), dtype=torch.bool)])

    @property
    def final(self) -> Tensor:
        """[N] True for tokens of the last span of their row: an interaction's own answer."""
        if not len(self.row):
            return self.last
        return self.span == self.span[self.length.cumsum(0)[self.row] - 1]

    def informed(self, context: Hashable) -> Tensor:
        """[N] True for tokens of answers with privileged text under `context`."""
        known = [p if isinstance(p, bool) else context in p for p in self.privileged]
        return torch.tensor(known, dtype=torch.bool, device=self.row.device)[self.row]

    def each(self, read: Callable[[AnswerInfo], float]) -> Tensor:
        """[N] float32: `read` of each token's answer."""
        values = torch.tensor([read(a) for a in self.answers], dtype=torch.float32, device=self.row.device)
        return values[self.row]

    def where(self, test: Callable[[AnswerInfo], bool]) -> Tensor:
        """[N] True for tokens of answers that pass `test`."""
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
    breaks: Sequence[Sequence[int]] = (),
    credit: Sequence[Sequence[tuple[Hashable, Sequence[float]]]] = (),
) -> TokenBatch:
    """Build the layout of R answers with N tokens.

    Args:
        lengths: [R] scored tokens of each answer.
        weights: [R] strength of each interaction.
        privileged: [R] contexts with privileged text.
        device: Where the tensors go.
        answers: [R] facts; unknown by default.
        served: [N] log-probability (nats) of each token at sampling, NaN where unknown; all unknown by default.
        private: [R] positions of private tokens in each answer.
        changed: [R] positions of tokens that the user changed.
        breaks: [R] positions at which another span begins, ascending and above 0; none by default.
        credit: [R] rules of credit, each with the advantage of every token of the answer; none by default.
    """
    length = torch.tensor(list(lengths), dtype=torch.long, device=device)
    row = torch.repeat_interleave(torch.arange(len(lengths), device=device), length)
    first = torch.cumsum(length, 0) - length
    place = torch.arange(int(length.sum()), device=device)
    begins = _marked(breaks, first, len(row))
    begins[first[length > 0]] = True
    spans = begins.cumsum(0) - 1  # over the whole batch
    starts = begins.nonzero()[:, 0]
    return TokenBatch(
        row=row,
        position=place - starts[spans],
        span=spans - spans[first[row]],
        length=length,
        weight=torch.tensor(list(weights), dtype=torch.float32, device=device),
        privileged=tuple(privileged),
        answers=tuple(answers) if answers is not None else (UNKNOWN,) * len(lengths),
        served=torch.tensor(
            [math.nan] * int(length.sum()) if served is None else list(served), dtype=torch.float32, device=device
        ),
        private=_marked(private, first, len(row)),
        changed=_marked(changed, first, len(row)),
        credit=_credit(credit, lengths, device),
    )


def _credit(
    credit: Sequence[Sequence[tuple[Hashable, Sequence[float]]]], lengths: Sequence[int], device: torch.device | str
) -> dict[Hashable, Tensor]:
    """[N] for each rule that some answer has."""
    by_answer = [dict(some) for some in credit]
    rules = dict.fromkeys(rule for some in by_answer for rule in some)
    return {
        rule: torch.tensor(
            [x for some, n in zip(by_answer, lengths, strict=True) for x in some.get(rule, (0.0,) * n)],
            dtype=torch.float32,
            device=device,
        )
        for rule in rules
    }


def _marked(places: Sequence[Sequence[int]], first: Tensor, size: int) -> Tensor:
    """[N] True at these positions of each answer; `first` [R] is the index of its first token."""
    found = torch.zeros(size, dtype=torch.bool, device=first.device)
    flat = [begin + place for begin, some in zip(first.tolist(), places, strict=False) for place in some]
    found[torch.tensor(flat, dtype=torch.long, device=first.device)] = True
    return found
