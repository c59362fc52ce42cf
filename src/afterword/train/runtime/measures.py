"""Takes numbers of whole answers once a pass (mean log S, mean log T, phi), for weights within a group.

They are kept beside the pass's answers, so that a run resumed in the middle of a pass weighs as before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from afterword.learn.loss.loss_stage import Scores, token_losses
from afterword.learn.loss.terms import Term
from afterword.learn.loss.token_batch import Measures
from afterword.learn.parts.divergences import NegativeLogLikelihood
from afterword.learn.recipes import Recipe
from afterword.model.packing import packed
from afterword.store.files import write_whole
from afterword.train.data.batches import rows_of, split
from afterword.train.data.examples import with_groups
from afterword.train.data.rows import Encoded
from afterword.train.runtime.distributed import Distributed
from afterword.train.runtime.policy import Policy
from afterword.train.runtime.teacher_cache import TeacherStates
from afterword.train.runtime.token_budget import token_budget


def measured(
    rows: Sequence[Encoded], recipe: Recipe, policy: Policy, states: TeacherStates, file: Path, key: str,
    workers: Distributed,
) -> Sequence[Encoded]:  # fmt: skip
    """`rows` with the measures that the recipe's terms read, and groups that hold those of all members.

    Args:
        rows: The rows of a pass.
        states: The teachers' hidden states for these rows.
        file: Where the measures of this pass are kept.
        key: Names the run in it.
    """
    terms = [term for term in recipe.terms if term.measures]
    if not terms:
        return rows
    taken: list[list[tuple[str, float]]] | None = None
    if workers.is_main:
        kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if kept.get("key") == key:
            taken = [[(name, value) for name, value in one] for one in kept["measures"]]
        else:
            taken = _take(rows, terms, token_budget(recipe, policy), policy, states)
            write_whole(file, json.dumps({"key": key, "measures": taken}))
    taken = workers.broadcast_object(taken)
    assert taken is not None
    pairs = zip(rows, taken, strict=True)
    return with_groups([replace(r, answer=replace(r.answer, measures=tuple(found))) for r, found in pairs])


@torch.no_grad()
def _take(
    rows: Sequence[Encoded], terms: Sequence[Term], budget: int, policy: Policy, states: TeacherStates
) -> list[list[tuple[str, float]]]:
    found: list[dict[str, float]] = [{} for _ in rows]
    whole = rows_of(rows)
    for term in terms:
        wanted = sorted(set(whole.row[term.keep(whole)].tolist()))
        for group in split(rows, wanted, budget):
            for i, values in zip(group, _of(term, group, rows, policy, states), strict=True):
                found[i].update(values)
    return [list(one.items()) for one in found]


def _of(
    term: Term, group: Sequence[int], rows: Sequence[Encoded], policy: Policy, states: TeacherStates
) -> list[Measures]:
    """The measures of each row of a group, the mean over its scored tokens that are not private."""
    batch = packed([rows[i].parts(term.student_context) for i in group], policy.device, share=True)
    side = states.get(term.teacher, term.context, group) if {"logp_teacher", "p_teacher"} & {*term.measures} else None
    heads = [policy.head, *([side.head] if side is not None else [])]
    tokens = min(len(head.weight) for head in heads)
    scores: Scores = token_losses(
        policy.hidden(batch, "live"), None if side is None else side.states, policy.head.first(tokens), batch.targets,
        NegativeLogLikelihood(), teacher_head=None if side is None else side.head.first(tokens),
    )  # fmt: skip
    columns = {
        "logp_student": scores.logp_student,
        "logp_teacher": scores.logp_teacher,
        "phi": scores.logp_student + scores.entropy_student,
        "p_teacher": scores.logp_teacher.exp(),
    }
    public = ~rows_of([rows[i] for i in group], policy.device).private
    lengths = [len(rows[i].completion) for i in group]
    found: list[list[tuple[str, float]]] = [[] for _ in group]
    for name in term.measures:
        pieces = zip(torch.split(columns[name], lengths), torch.split(public, lengths), strict=True)
        for place, (values, counted) in enumerate(pieces):
            found[place].append((name, float(values[counted].double().mean()) if bool(counted.any()) else 0.0))
    return [tuple(one) for one in found]
