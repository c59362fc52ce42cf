"""What happens within a step: a micro-batch forward and backward, the drift probe, the rows of a pass.

Owns no state; the order of things is in `loop`. Legend as there: R interactions, N their scored tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from afterword.chat.render import Tokenizer, decode
from afterword.errors import NothingToDo
from afterword.learn.diagnostics import readable_ids, unreadable
from afterword.learn.loss.loss_stage import Scores, token_losses
from afterword.learn.loss.terms import Term
from afterword.learn.parts.anchors import GOLD
from afterword.learn.parts.divergences import ReverseKL
from afterword.learn.parts.teachers import BASE, LIVE
from afterword.learn.recipes import Recipe
from afterword.model.generation.text import stop_ids
from afterword.model.packing import packed
from afterword.records import Excluded, Json
from afterword.train.data.batches import rows_of, student_pairs
from afterword.train.data.examples import Encoded, Prepared, with_groups, with_private_masked
from afterword.train.generation.generation import reward_function, rollout_rows
from afterword.train.generation.generation_metrics import read_generation_metrics, write_generation_metrics
from afterword.train.monitoring.metrics import Tally
from afterword.train.runtime.distributed import Distributed
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


def backward(
    policy: Policy,
    teachers: TeacherStates,
    terms: Sequence[Term],
    counts: Sequence[float],
    micro: Sequence[int],
    tally: Tally,
) -> Tensor:
    """Add the gradient of a micro-batch and tell `tally`; returns the student's states [N, H], detached.

    Teachers read first, while there are no activations of the student's, and keep none. Only one that is the student
    itself reads after it: it goes on from where their prompts part.
    """
    batch = [teachers.rows[i] for i in micro]
    layout = rows_of(batch, policy.device)
    named = [(term.teacher, term.context) for term in terms]
    beside = [(term.reference, term.reference_context) for term in terms]
    found = {who: teachers.get(*who, micro) for who in (*named, *beside) if who[0] != LIVE}
    read = policy.read(student_pairs(batch))
    found |= {who: teachers.get(*who, micro, read) for who in (*named, *beside) if who[0] == LIVE}
    read.kept.clear()  # what of it the backward pass needs is kept there
    student_NH, ids = read.states, packed(read.pairs, policy.device).targets
    kept = [term.keep(layout) for term in terms]
    scored = [keep & bool(term.scale) for term, keep in zip(terms, kept, strict=True)]
    scores = [
        _scores(policy, term, student_NH, ids, found[asked], found[away], keep)
        for term, asked, away, keep in zip(terms, named, beside, scored, strict=True)
    ]
    parts = [term.value(score, layout, count) for term, score, count in zip(terms, scores, counts, strict=True)]
    # Where no token counts the gradient is zero, and not missing: the sum of no states keeps the graph.
    loss = torch.stack(parts).sum() + student_NH[:0].sum()
    loss.backward()  # type: ignore[no-untyped-call]
    shown = next((i for i, term in enumerate(terms) if term.scale), 0)
    tally.add(scores[shown], layout, kept[shown], parts, ids)
    return student_NH.detach()


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

    found = token_losses(
        student_NH if whole else student_NH[at],
        None if side is None else of(side.states),
        policy.head,
        ids if whole else ids[at],
        term.estimator,
        target=term.target,
        support=term.support,
        reference=None if reference is None else of(reference.states),
        teacher_head=None if side is None else side.head,
        reference_head=None if reference is None else reference.head,
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


@dataclass(frozen=True, slots=True)
class Rollouts:
    """The rows of each pass: the served answers, then what the student writes anew."""

    prepared: Prepared
    recipe: Recipe
    tokenizer: Tokenizer
    run_dir: Path
    key: str
    seed: int
    workers: Distributed

    def rows(self, policy: Policy, number: int, step: int) -> Sequence[Encoded]:
        """The rows of pass `number`, which begins after `step` steps. Of several processes the first writes fresh
        answers, the others read its file.

        Raises NothingToDo when the run would begin with a pass in which no token counts.
        """
        rows = self.prepared.rows if number < self.recipe.epochs else self._fresh(policy, number, step)
        if number == 0 and not any(term.count(rows_of(rows)) for term in self.recipe.terms):
            skipped = max(t.skip_first for t in self.recipe.terms)
            raise NothingToDo(
                f"no token of {len(rows)} answers counts for {', '.join(repr(t.name) for t in self.recipe.terms)}, so "
                f"nothing would be learned: their answers are shorter than what is left out (skip_first is {skipped}), "
                "private, of other kinds, or lack what a term reads (a verdict, log-probabilities)"
            )
        return rows

    def answers(self, number: int) -> Json | None:
        """The figures of that pass, in every process; None for one over served answers."""
        return next((figures for figures in read_generation_metrics(self.run_dir) if figures["pass"] == number), None)

    def _fresh(self, policy: Policy, number: int, step: int) -> Sequence[Encoded]:
        """The rows of a pass over answers that the student writes anew."""
        if not self.workers.is_main:
            self.workers.barrier()
        ends, served = stop_ids(policy.model.get_base_model(), self.tokenizer), self.prepared.rows
        rows = rollout_rows(
            policy,
            served,
            ends,
            self.run_dir,
            number=number,
            key=self.key,
            seed=self.seed,
            most=self.recipe.max_fresh,
            limit=self.prepared.limit,
            answers=self.recipe.num_generations,
            judge=reward_function(
                self.recipe.verifier, {e.interaction.id: e.turn for e in self.prepared.used}, self.tokenizer
            ),
        )
        rows = [r for r in rows if r.answer.kind == GOLD] + with_private_masked(
            (r for r in rows if r.answer.kind != GOLD), self.tokenizer, self.recipe.redact
        )
        written = [r for r in rows if r.answer.kind != GOLD]
        if self.workers.is_main:
            if written:
                told = {e.interaction.id: e.interaction.hindsight for e in self.prepared.used}
                write_generation_metrics(
                    self.run_dir, self.tokenizer, served, written, told, number=number, step=step, ends=ends
                )
            self.workers.barrier()
        return rows
