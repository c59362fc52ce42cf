"""Runs the forward pass of a micro-batch, measures the drift, and drops rows that the weights cannot read.

Shapes: R interactions, N their scored tokens, H hidden size. Keeps no state; `loop` has the order of things.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from afterword.chat.render import Tokenizer, decode
from afterword.errors import NothingToDo
from afterword.learn.diagnostics import readable_ids, unreadable
from afterword.learn.loss.loss_stage import Scores, token_losses
from afterword.learn.loss.terms import Term
from afterword.learn.loss.token_batch import TokenBatch
from afterword.learn.parts.divergences import ReverseKL
from afterword.learn.parts.teachers import BASE, LIVE
from afterword.model.packing import packed
from afterword.records import Excluded
from afterword.train.data.batches import rows_of, student_pairs
from afterword.train.data.examples import Encoded, Prepared, with_groups
from afterword.train.runtime.policy import Policy
from afterword.train.runtime.teacher_cache import TeacherStates
from afterword.train.runtime.teacher_runtime import TeacherOutput


def drop_unreadable(prepared: Prepared, policy: Policy, tokenizer: Tokenizer) -> Prepared:
    """`prepared` without rows that hold a token whose embedding is not finite: one such row would make the loss of its
    whole step NaN. Raises NothingToDo when none is left."""
    known = readable_ids(policy.model)
    left, kept = [], []
    for example, row in zip(prepared.used, prepared.rows, strict=True):
        ids = {*row.prompt, *row.completion, *(i for prompt in row.teacher_prompts.values() for i in prompt)}
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
    """[N, H] the student's last hidden states, with their graph."""
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
    sides = [(term.teacher, term.context) for term in terms]
    references = [(term.reference, term.reference_context) for term in terms]
    found = {who: teachers.get(*who, picked) for who in (*sides, *references) if who[0] != LIVE}
    read = policy.read(student_pairs(rows))
    found |= {who: teachers.get(*who, picked, read) for who in (*sides, *references) if who[0] == LIVE}
    read.kept.clear()  # the graph keeps what the backward pass needs
    student_NH, ids = read.states, packed(read.pairs, policy.device).targets
    kept = [term.keep(tokens) for term in terms]
    scores = [
        _scores(policy, term, student_NH, ids, found[side], found[reference], keep & bool(term.scale))
        for term, side, reference, keep in zip(terms, sides, references, kept, strict=True)
    ]
    return ForwardBatch(tokens, ids, student_NH, kept, scores)


def _scores(
    policy: Policy,
    term: Term,
    student_NH: Tensor,
    ids: Tensor,
    side: TeacherOutput | None,
    reference: TeacherOutput | None,
    kept: Tensor,
) -> Scores:
    """A term's scores [N], of the tokens that it keeps alone, for each token read costs a product over the vocabulary.
    The others are 0."""
    whole, at, names = bool(kept.all()), kept.nonzero()[:, 0], [f.name for f in fields(Scores)]
    if not len(at):
        return Scores(**{name: ids.new_zeros(len(ids), dtype=policy.head.dtype) for name in names})

    def of(states: Tensor | None) -> Tensor | None:
        return states if whole or states is None else states[at]

    # Models of one tokenizer may pad their vocabularies differently: both sides are compared over the ids of both.
    heads = [policy.head, *(other.head for other in (side, reference) if other is not None)]
    tokens = min(len(head.weight) for head in heads)
    found = token_losses(
        student_NH if whole else student_NH[at],
        None if side is None else of(side.states),
        policy.head.first(tokens),
        ids if whole else ids[at],
        term.estimator,
        target=term.target,
        support=term.support,
        reference=None if reference is None else of(reference.states),
        teacher_head=None if side is None else side.head.first(tokens),
        reference_head=None if reference is None else reference.head.first(tokens),
    )
    if whole:
        return found
    parts = {name: getattr(found, name) for name in names}
    return Scores(**{name: part.new_zeros(len(kept)).index_copy(0, at, part) for name, part in parts.items()})


@torch.no_grad()
def drift(policy: Policy, row: Encoded, student_NH: Tensor) -> Tensor:
    """KL(student || base) [n] of `row`, the first of a micro-batch whose student states are there already."""
    batch = packed([(row.prompt, row.completion)], policy.device)
    base_nH, own_nH = policy.hidden(batch, BASE.key), student_NH[: len(row.completion)]
    return token_losses(own_nH, base_nH, policy.head, batch.targets, ReverseKL(), teacher_head=policy.head.bare).loss
