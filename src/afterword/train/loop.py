"""The training run from examples to an adapter folder: one function, read from top to bottom.

Legend: R interactions of a micro-batch, N their served tokens, H hidden size. The state on disk is the state
*before* a step, so a killed run repeats at most `save_every` steps, with the same losses bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from afterword.chat.render import end_of_turn_ids
from afterword.errors import AfterwordError, ConflictError
from afterword.learn.loss_stage import token_losses
from afterword.learn.models import load_tokenizer, resolve_model
from afterword.learn.recipes import Recipe, describe
from afterword.learn.validate import validate
from afterword.records import Json
from afterword.train.alignment import Signal, write_alignment
from afterword.train.batches import TeacherStates, plan, rows_of, split, student_batch
from afterword.train.examples import Encoded, Example, Prepared, prepare
from afterword.train.fresh import clear_fresh, fresh_rows
from afterword.train.metrics import StepMetrics, Tally, append_step, keep_steps
from afterword.train.output import TrainResult, finished, identify, publish
from afterword.train.policy import Policy, load_policy
from afterword.train.sizes import model_sizes
from afterword.train.state import clear_state, load_state, save_state


class TrainingDiverged(AfterwordError):
    """A loss or gradient that is not finite; the state before that step is kept in the run's folder."""

    kind = "training_diverged"


def _silent(metrics: StepMetrics) -> None:
    """The default progress callback."""


def train_candidate(
    examples: Sequence[Example],
    *,
    model: str,
    out: Path,
    recipe: Recipe,
    run_dir: Path,
    parent: Path | None = None,
    seed: int = 0,
    progress: Callable[[StepMetrics], None] = _silent,
    device: str = "auto",
    save_every: int = 4,
) -> TrainResult:
    """Train a LoRA adapter on `examples` and write it to the new folder `out`.

    `run_dir` keeps the state, `metrics.jsonl` and `alignment.txt`; calling again with the same arguments after a
    kill goes on where the run stopped, and after its end returns its result. Raises NothingToDo when no example
    can be trained, ConfigError for an impossible recipe, ModelError or AdapterError for a base or parent that
    does not fit, ConflictError when `out` or `run_dir` belong to something else, TrainingDiverged on NaN.
    """
    started = time.monotonic()
    validate(recipe)
    tokenizer = load_tokenizer(model)
    limit, vocabulary = model_sizes(resolve_model(model))
    prepared = prepare(examples, tokenizer, recipe, limit=limit, vocabulary=vocabulary)
    identity = identify(model, tokenizer, recipe, parent, list(prepared.used), seed)
    if (done := finished(run_dir, out, identity.fingerprint)) is not None:
        clear_state(run_dir)
        clear_fresh(run_dir)
        return done
    if out.exists():
        raise ConflictError(f"{str(out)!r} exists already: adapters are never overwritten, name a new folder")
    run_dir.mkdir(parents=True, exist_ok=True)

    policy = load_policy(model, recipe, parent=parent, seed=seed, device=device)
    signal = write_alignment(policy, tokenizer, prepared, recipe, run_dir, seed)
    ends = end_of_turn_ids(tokenizer)
    parameters = policy.parameters()
    optimiser = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    steps = plan(len(prepared.rows), recipe, seed)
    first = load_state(run_dir, policy, optimiser, fingerprint=identity.fingerprint)
    history = keep_steps(run_dir, before=first)
    rows: Sequence[Encoded] = prepared.rows
    teachers, seen = None, -1

    for step in range(first, len(steps)):
        step_started = time.monotonic()
        number, picked = steps[step].number, steps[step].picked
        if number >= recipe.passes and number != seen:  # a pass over answers of the student as it is now
            where = {"number": number, "key": identity.fingerprint, "seed": seed, "most": recipe.max_fresh}
            rows = fresh_rows(policy, prepared.rows, ends, run_dir, **where)  # type: ignore[arg-type]
            teachers = None
        if teachers is None:
            teachers = TeacherStates(policy, rows, recipe, policy.head.weight.shape[1])
        seen = number
        lr = recipe.lr * recipe.schedule(step, len(steps), history)
        whole = rows_of([rows[i] for i in picked])
        counts = [term.count(whole) for term in recipe.terms]  # over the whole step, before it is split
        tally = Tally(recipe.terms)
        for micro in split(rows, picked, recipe.micro_tokens):
            batch = [rows[i] for i in micro]
            layout = rows_of(batch, policy.device)
            student_in = student_batch(batch, policy.device)
            teacher_NH = [teachers.get(term, micro) for term in recipe.terms]
            student_NH = policy.hidden(student_in, "live")
            scores = [
                token_losses(
                    student_NH,
                    teacher,
                    policy.head,
                    student_in.targets,
                    term.estimator,
                    target=term.target,
                    support=term.support,
                )
                for term, teacher in zip(recipe.terms, teacher_NH, strict=True)
            ]
            parts = [
                term.value(score, layout, count)
                for term, score, count in zip(recipe.terms, scores, counts, strict=True)
            ]
            torch.stack(parts).sum().backward()  # type: ignore[no-untyped-call]
            tally.add(scores[0], layout, recipe.terms[0].keep(layout), parts)
        grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm))
        metrics = tally.close(
            step=step + 1,
            steps=len(steps),
            grad_norm=grad_norm,
            lr=lr,
            off_policy=sum(not rows[i].on_policy for i in picked),
            seconds=time.monotonic() - step_started,
            scored=sum(len(rows[i].completion) for i in picked),
        )
        if not (math.isfinite(metrics.loss) and math.isfinite(grad_norm)):
            save_state(run_dir, policy, optimiser, step=step, fingerprint=identity.fingerprint)
            raise TrainingDiverged(
                f"step {step + 1} of {len(steps)}: loss {metrics.loss}, gradient norm {grad_norm}. The state "
                f"before it is kept in {str(run_dir)!r}; train anew with a smaller lr than {recipe.lr}, or "
                f"look at the interactions {', '.join(rows[i].interaction for i in picked)}"
            )
        for group in optimiser.param_groups:
            group["lr"] = lr
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        append_step(run_dir, metrics)
        history.append(metrics)
        if (step + 1) % save_every == 0 or step + 1 == len(steps):
            save_state(run_dir, policy, optimiser, step=step + 1, fingerprint=identity.fingerprint)
        progress(metrics)

    result = TrainResult(
        path=out,
        base=model,
        interactions=tuple(r.interaction for r in prepared.rows),
        left=tuple(asdict(one) for one in prepared.left),
        recipe=describe(recipe),
        metrics=_summary(policy, prepared, history, signal, time.monotonic() - started),
    )
    publish(policy, identity, result, run_dir)
    clear_state(run_dir)
    clear_fresh(run_dir)
    return result


def _summary(
    policy: Policy, prepared: Prepared, history: list[StepMetrics], signal: Signal | None, seconds: float
) -> Json:
    """The figures that a candidate carries."""
    early, late = history[0], history[-1]
    return {
        "loss_first": early.loss,
        "loss_last": late.loss,
        "divergence_first": early.divergence,
        "divergence_last": late.divergence,
        "entropy_ratio": late.entropy_student / max(early.entropy_student, 1e-9),
        "overlap_last": late.overlap,
        "signal": asdict(signal) if signal else None,
        "steps": len(history),
        "interactions": len(prepared.rows),
        "off_policy": sum(not r.on_policy for r in prepared.rows),
        "left_out": prepared.reasons,
        "hindsight_cut": sum(r.cut for r in prepared.rows),
        "tokens": sum(m.tokens for m in history),
        "device": str(policy.device),
        "seconds": round(seconds, 2),
    }
