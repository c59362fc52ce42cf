"""Runs the forward pass of a micro-batch, measures the drift, and drops rows that the weights cannot read.

Shapes: R interactions, N their scored tokens, H hidden size. Keeps no state; `loop` has the order of things.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from afterword.chat.render import Tokenizer, decode
from afterword.errors import NothingToDo
from afterword.learn.diagnostics import readable_ids, unreadable
from afterword.learn.loss.loss_stage import Distance, LossRequest, Scores, Side, requested_losses, token_losses
from afterword.learn.loss.terms import Term
from afterword.learn.loss.token_batch import TokenBatch
from afterword.learn.parts.contexts import Context
from afterword.learn.parts.divergences import ReverseKL
from afterword.learn.parts.teachers import BASE, LIVE, Teacher, TrustRegion
from afterword.model.packing import packed
from afterword.records import Excluded
from afterword.train.data.batches import rows_of, student_parts
from afterword.train.data.examples import Prepared, with_groups
from afterword.train.data.rows import NONE, Encoded
from afterword.train.runtime.policy import Policy
from afterword.train.runtime.teacher_cache import TeacherStates
from afterword.train.runtime.teacher_runtime import TeacherOutput


def drop_unreadable(prepared: Prepared, policy: Policy, tokenizer: Tokenizer) -> Prepared:
    """`prepared` without rows that hold a token whose embedding is not finite: one such row would make the loss of its
    whole step NaN. Raises NothingToDo when none is left."""
    known = readable_ids(policy.model)
    left, kept = [], []
    for example, row in zip(prepared.used, prepared.rows, strict=True):
        ids = {i for where in (NONE, *row.teacher_prompts) for part in row.parts(where) for i in part}
        wrong = unreadable(known, ids)
        if wrong is None:
            kept.append((example, row))
        else:
            text = decode(tokenizer, [wrong], special=True)
            detail = f"the model's embedding of its token {text!r} (id {wrong}) is not finite: it was never trained"
            left.append(Excluded(row.interaction, "not_finite", detail))
    if not kept:
        raise NothingToDo(f"none of {len(left)} interactions can be trained. The first: {left[0].detail}. Use a model "
                          "whose weights are whole")  # fmt: skip
    if not left:
        return prepared
    rows = with_groups([row for _, row in kept])
    return replace(
        prepared, rows=tuple(rows), used=tuple(example for example, _ in kept), excluded=(*prepared.excluded, *left)
    )


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """A micro-batch after its forward pass, R interactions with N scored tokens."""

    tokens: TokenBatch
    ids: Tensor
    """[N] the scored token ids."""
    student_NH: Tensor
    """[N, H] the student's last hidden states, with their graph, under `context`."""
    context: Context
    """What the student reads: its own prompt, where some term reads that."""
    kept: list[Tensor]
    """For each term [N], True for the tokens that it keeps."""
    scores: list[Scores]
    """For each term [N], 0 for the tokens that it does not keep."""

    def shown(self, terms: Sequence[Term]) -> tuple[Scores, TokenBatch, Tensor]:
        """Scores, tokens and mask of the term that the metrics describe: the first whose scale is not 0."""
        i = next((i for i, term in enumerate(terms) if term.scale), 0)
        return self.scores[i], self.tokens, self.kept[i]


def forward(policy: Policy, teachers: TeacherStates, terms: Sequence[Term], picked: Sequence[int]) -> ForwardBatch:
    """Score the rows `picked` under the student and every teacher of `terms`.

    Teachers run first, without a gradient and while no activations of the student are in memory. Only a teacher that is
    the student itself runs after it: it resumes where their prompts part.
    """
    rows = [teachers.rows[i] for i in picked]
    tokens = rows_of(rows, policy.device)
    kept = [term.keep(tokens) for term in terms]
    counting = [bool(term.scale) and bool(keep.any()) for term, keep in zip(terms, kept, strict=True)]
    # A trust region measures its distance from the start in every step, also while its term counts nothing.
    asked = [t for t, counts in zip(terms, counting, strict=True) if counts or isinstance(t.teacher, TrustRegion)]
    wanted = dict.fromkeys(side for term in asked for side in _sides(term))
    found = {who: teachers.get(*who, picked) for who in wanted if who[0] != LIVE}
    own, *others = student_contexts(terms)
    read = policy.read(student_parts(rows, own))
    found |= {who: teachers.get(*who, picked, read) for who in wanted if who[0] == LIVE}
    read.kept.clear()  # the graph keeps what the backward pass needs
    students, ids = {own: read.states}, packed(read.pairs, policy.device).targets
    for where in others:
        masks = [keep for term, keep in zip(terms, kept, strict=True) if _reads(term) == where and term.scale]
        reading = set(tokens.row[torch.stack(masks).any(0)].tolist())
        students[where] = _read_some(policy, rows, where, reading, read.states)
    sides = {who: other for who, other in found.items() if other is not None}
    keeps = [keep if counts else None for keep, counts in zip(kept, counting, strict=True)]
    return ForwardBatch(tokens, ids, read.states, own, kept, _scores(policy, terms, students, ids, sides, keeps))


def student_contexts(terms: Sequence[Term]) -> list[Context]:
    """The contexts under which the student is read, its own prompt first; terms at scale 0 read nothing."""
    wanted = dict.fromkeys(_reads(term) for term in terms if term.scale)
    return sorted(wanted, key=lambda where: where != NONE) or [NONE]


def _reads(term: Term) -> Context:
    return term.student_context if term.student_context.privileged else NONE


def _read_some(policy: Policy, rows: Sequence[Encoded], where: Context, wanted: set[int], like: Tensor) -> Tensor:
    """[N, H] hidden states of the student under another context, with their graph; 0 for rows that no term keeps."""
    asked = [i for i in range(len(rows)) if i in wanted]
    lengths = [len(row.completion) for row in rows]
    if not asked:
        return torch.zeros_like(like)
    states = policy.read(student_parts([rows[i] for i in asked], where)).states
    pieces = dict(zip(asked, torch.split(states, [lengths[i] for i in asked]), strict=True))
    return torch.cat(
        [pieces[i] if i in pieces else states.new_zeros(n, states.shape[1]) for i, n in enumerate(lengths)]
    )


def _sides(term: Term) -> list[tuple[Teacher | None, Context]]:
    """Whose states the term reads, and under which context."""
    return [(term.teacher, term.context), (term.reference, term.reference_context)]


def _scores(
    policy: Policy,
    terms: Sequence[Term],
    students: Mapping[Context, Tensor],
    ids: Tensor,
    found: Mapping[tuple[Teacher | None, Context], TeacherOutput],
    kept: Sequence[Tensor | None],
) -> list[Scores]:
    """The scores [N] of every term, of the tokens that it keeps alone: each token read costs a product over the
    vocabulary. The others are 0, as are all of a term that counts nothing (None). Terms share the logits of a side."""
    zero = ids.new_zeros(len(ids), dtype=policy.head.dtype)
    scores = [Scores(*(zero,) * len(fields(Scores))) for _ in terms]
    # Models of one tokenizer may pad their vocabularies differently: both sides are compared over the ids of both.
    sizes = [
        min(len(head.weight) for head in (policy.head, *(found[side].head for side in _sides(t) if side in found)))
        for t in terms
    ]
    groups: dict[tuple[Context, int], list[int]] = {}
    for i, keep in enumerate(kept):
        if keep is not None:
            groups.setdefault((_reads(terms[i]), sizes[i]), []).append(i)
    for (where, tokens), numbers in groups.items():
        sides = {who: Side(other.states, other.head.first(tokens)) for who, other in found.items()}
        requests = [_request(terms[i], kept[i], sides) for i in numbers]
        got = requested_losses(students[where], policy.head.first(tokens), ids, requests)
        for i, one in zip(numbers, got, strict=True):
            scores[i] = one
    return scores


def _request(term: Term, keep: Tensor | None, sides: Mapping[tuple[Teacher | None, Context], Side]) -> LossRequest:
    assert keep is not None
    teacher, reference = (sides.get(side) for side in _sides(term))
    return LossRequest(Distance(term.estimator, term.target, term.support), keep, teacher, reference)


@torch.no_grad()
def drift(policy: Policy, row: Encoded, context: Context, student_NH: Tensor) -> Tensor:
    """KL(student || base) [n] of `row`, the first of a micro-batch whose student states are there already."""
    batch = packed([row.parts(context)], policy.device)
    base_nH, own_nH = policy.hidden(batch, BASE.key), student_NH[: len(row.completion)]
    return token_losses(own_nH, base_nH, policy.head, batch.targets, ReverseKL(), teacher_head=policy.head.bare).loss
