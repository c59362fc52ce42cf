"""The training run from examples to an adapter folder: one function, read from top to bottom.

Legend: R interactions of a micro-batch, N their served tokens, H hidden size. The state on disk is the state
*before* a step, so a killed run repeats at most `save_every` steps, with the same losses bit for bit. Several
processes share each step (`workers`); losses are divided by counts over the whole step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from afterword.chat.render import end_of_turn_ids
from afterword.errors import AfterwordError, ConflictError
from afterword.learn.recipes import Recipe, describe
from afterword.learn.recipes.validate import check_runnable
from afterword.model.loading import load_tokenizer, model_sizes, native_dtype, resolve_model
from afterword.records import Json
from afterword.train.artifact import TrainResult, finished, identify, publish
from afterword.train.checkpoint import clear_checkpoint, load_checkpoint, save_checkpoint
from afterword.train.data.batches import by_size, plan_steps, rows_of, split
from afterword.train.data.examples import Encoded, Example, Prepared, prepare
from afterword.train.generation.generation import clear_rollouts
from afterword.train.generation.generation_metrics import generation_scalars, read_generation_metrics
from afterword.train.monitoring.alerts import STRICT, StopRules, step_warnings
from afterword.train.monitoring.alignment import HindsightSignal, write_alignment
from afterword.train.monitoring.events import Events
from afterword.train.monitoring.metrics import StepMetrics, Tally, append_step, truncate_metrics
from afterword.train.runtime.distributed import Distributed, init_distributed, local_device
from afterword.train.runtime.malloc import keep_freed_memory
from afterword.train.runtime.policy import Policy, load_policy
from afterword.train.runtime.steps import Rollouts, backward, drift, drop_unreadable
from afterword.train.runtime.teacher_cache import TeacherCache, TeacherStates
from afterword.train.runtime.teacher_runtime import TeacherRuntime, context_limit, teacher_hashes

PROBE_EVERY = 4
"""Steps between measurements of the drift: one interaction through the base, about a hundredth of the run."""


class TrainingDiverged(AfterwordError):
    """A loss or gradient that is not finite; the state before that step is kept in the run's folder."""

    kind = "training_diverged"


def _silent(metrics: StepMetrics) -> None:
    """The default progress callback."""


@keep_freed_memory
def train_candidate(  # noqa: C901  one function, read from top to bottom
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
    rules: StopRules = STRICT,
    cache: Path | None = None,
) -> TrainResult:
    """Train a LoRA adapter on `examples` and write it to the new folder `out`.

    `run_dir` keeps the state, `metrics.jsonl`, TensorBoard events and `alignment.txt`; calling again with the same
    arguments after a kill goes on where the run stopped, and after its end returns its result. A run that `rules`
    stopped leaves its adapter with the reason in `metrics["stopped"]`; with other rules and another `out` it goes on.
    `cache` keeps the hidden states of frozen teachers. Raises NothingToDo when no example can be trained, ConfigError
    for an impossible recipe, ModelError or AdapterError for a base, parent or teacher that does not fit,
    ConflictError when `out` or `run_dir` belong to something else, TrainingDiverged on NaN.
    """
    started = time.monotonic()
    check_runnable(recipe)
    recipe = replace(recipe, dtype=native_dtype(recipe.dtype, local_device(device)))
    workers = init_distributed()
    tokenizer = load_tokenizer(model)
    vocabulary = model_sizes(resolve_model(model))[1]
    limit = context_limit(recipe, model, tokenizer)
    prepared = prepare(examples, tokenizer, recipe, limit=limit, vocabulary=vocabulary)
    identity = identify(model, tokenizer, recipe, parent, list(prepared.used), seed, teacher_hashes(recipe))
    done = workers.broadcast_object(finished(run_dir, out, identity.fingerprint))
    if done is not None:
        _tidy(workers, run_dir, done.metrics.get("stopped"))
        return done
    if workers.broadcast_object(out.exists()):
        raise ConflictError(f"{str(out)!r} exists already: adapters are never overwritten, name a new folder")
    run_dir.mkdir(parents=True, exist_ok=True)

    policy = load_policy(model, recipe, parent=parent, seed=seed, device=local_device(device))
    prepared = drop_unreadable(prepared, policy, tokenizer)
    teaching = TeacherRuntime(policy, recipe, model)
    signal = write_alignment(teaching, tokenizer, prepared, recipe, run_dir, seed) if workers.is_main else None
    parameters = policy.parameters()
    optimiser = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    passes = Rollouts(prepared, recipe, tokenizer, run_dir, identity.fingerprint, seed, workers)
    steps = plan_steps(prepared.rows, recipe, seed)
    workers.barrier()
    save = partial(save_checkpoint, run_dir, policy, optimiser, teaching, fingerprint=identity.fingerprint)
    first = load_checkpoint(run_dir, policy, optimiser, teaching, fingerprint=identity.fingerprint)
    history = truncate_metrics(run_dir, before=first, write=workers.is_main)
    events = Events(run_dir, _scalars(history, signal, run_dir)) if workers.is_main else None
    ends, kept = end_of_turn_ids(tokenizer), TeacherCache(cache)
    rows: Sequence[Encoded] = ()
    teachers, number, stopped = None, -1, None

    for step in range(first, len(steps)):
        step_started = time.monotonic()
        picked = steps[step].picked
        if teachers is None or (steps[step].epoch != number and steps[step].epoch >= recipe.epochs):
            rows = passes.rows(policy, steps[step].epoch, step)  # served answers stay the same from pass to pass
            answers = passes.answers(steps[step].epoch)
            if events is not None and answers:
                events.add(step, generation_scalars(answers))
            stopped = rules.rollout_stop_reason(answers) if history else None
            if stopped:
                if workers.is_main:
                    save(step=step)
                break
            keep = (
                kept if steps[step].epoch < recipe.epochs else TeacherCache(None)
            )  # fresh answers are never read again
            teachers = TeacherStates(teaching, rows, recipe, keep, identity.weights, workers)
        number = steps[step].epoch
        lr = recipe.lr * recipe.schedule(step, len(steps), history)
        terms = [term.at(step, len(steps), history) for term in recipe.terms]
        whole = rows_of([rows[i] for i in picked])
        counts = [term.count(whole) for term in terms]  # over the whole step, before it is split
        tally = Tally(terms, ends)
        for n, micro in enumerate(split(rows, workers.shard(by_size(rows, picked)), recipe.micro_tokens)):
            student_NH = backward(policy, teachers, terms, counts, micro, tally)
            if n == 0 and workers.is_main and step % PROBE_EVERY == 0:
                tally.add_drift(drift(policy, rows[micro[0]], student_NH))
        workers.all_reduce_gradients(parameters)
        workers.all_reduce(tally.sums, *teaching.drift.values())
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
            if workers.is_main:
                save(step=step)
            raise TrainingDiverged(
                f"step {step + 1} of {len(steps)}: loss {metrics.loss}, gradient norm {grad_norm}. The state "
                f"before it is kept in {str(run_dir)!r}, and the same settings go on from it; or train anew with a "
                f"smaller lr than {recipe.lr}. Its interactions: {', '.join(rows[i].interaction for i in picked)}"
            )
        for group in optimiser.param_groups:
            group["lr"] = lr
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        teaching.follow(step + 1)
        metrics = replace(metrics, warnings=step_warnings([*history, metrics]))
        history.append(metrics)
        stopped = rules.stop_reason(history)
        if events is not None:
            append_step(run_dir, metrics)
            events.add(metrics.step, metrics.scalars())
            if (step + 1) % save_every == 0 or step + 1 == len(steps) or stopped:
                save(step=step + 1)
        progress(metrics)
        if stopped:
            break

    result = TrainResult(
        path=out,
        base=model,
        interactions=tuple(r.interaction for r in prepared.rows),
        excluded=tuple(asdict(one) for one in prepared.excluded),
        recipe=describe(recipe),
        metrics=_summary(policy, prepared, history, signal, time.monotonic() - started)
        | {
            "stopped": stopped,
            "answers": read_generation_metrics(run_dir),
            "warnings": _warnings(history, signal, run_dir),
        },
    )
    if workers.is_main:
        publish(policy, identity, result, run_dir)
    workers.barrier()
    _tidy(workers, run_dir, stopped)
    return result


def _tidy(workers: Distributed, run_dir: Path, stopped: str | None) -> None:
    """A finished run needs its state no more; one that was stopped may go on."""
    if workers.is_main and not stopped:
        clear_checkpoint(run_dir)
        clear_rollouts(run_dir)


def _scalars(
    history: Sequence[StepMetrics], signal: HindsightSignal | None, run_dir: Path
) -> dict[int, dict[str, float]]:
    """What a run has to plot when it begins, or goes on: by the number of steps taken."""
    found = {m.step: m.scalars() for m in history}
    found[0] = signal.scalars() if signal else {}
    for figures in read_generation_metrics(run_dir):
        if figures["step"] < len(history):  # a pass that begins again says it anew
            found[figures["step"]].update(generation_scalars(figures))
    return dict(sorted(found.items()))


def _warnings(history: Sequence[StepMetrics], signal: HindsightSignal | None, run_dir: Path) -> list[str]:
    """Every bound that was crossed, with where it was first."""
    said = [f"before the first step: {sentence}" for sentence in (signal.warnings() if signal else {}).values()]
    first: dict[str, str] = {}
    for m in history:
        first = {name: f"step {m.step}: {sentence}" for name, sentence in m.warnings.items()} | first
    said += first.values()
    for figures in read_generation_metrics(run_dir):
        said += [f"pass {figures['pass']}: {sentence}" for sentence in figures["warnings"].values()]
    return said


def _summary(
    policy: Policy, prepared: Prepared, history: list[StepMetrics], signal: HindsightSignal | None, seconds: float
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
        "drift_last": next((m.drift for m in reversed(history) if m.drift is not None), None),
        "signal": asdict(signal) if signal else None,
        "steps": len(history),
        "interactions": len(prepared.rows),
        "off_policy": sum(not r.on_policy for r in prepared.rows),
        "left_out": prepared.reasons,
        "private_tokens": sum(len(r.private) for r in prepared.rows),
        "hindsight_cut": sum(r.cut for r in prepared.rows),
        "tokens": sum(m.tokens for m in history),
        "device": str(policy.device),
        "seconds": round(seconds, 2),
    }
