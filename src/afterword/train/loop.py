"""Trains one adapter: `train_candidate` reads like the algorithm, its helpers are below and in `setup`.

Shapes: R interactions of a micro-batch, N their scored tokens, H hidden size. A checkpoint is the state *before* a
step, so a killed run repeats at most `save_every` steps, bit for bit. Losses are divided by counts over the whole step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from afterword.errors import AfterwordError, ConflictError
from afterword.learn.loss.terms import divisors
from afterword.learn.recipes import Recipe, describe
from afterword.sharing import BACKGROUND
from afterword.train.artifact import TrainResult, finished_result, publish
from afterword.train.data.batches import by_size, rows_of, split
from afterword.train.data.examples import Example
from afterword.train.data.rows import Encoded
from afterword.train.monitoring.alerts import STRICT, StopRules
from afterword.train.monitoring.metrics import StepMetrics, Tally
from afterword.train.runtime.distributed import init_distributed
from afterword.train.runtime.gradients import StepGradient
from afterword.train.runtime.malloc import keep_freed_memory
from afterword.train.runtime.measures import measured
from afterword.train.runtime.steps import drift, forward
from afterword.train.runtime.teacher_cache import TeacherCache, TeacherStates
from afterword.train.runtime.token_budget import token_budget
from afterword.train.setup import clear_run, load_run, read_inputs

PROBE_EVERY = 4
"""Steps between measurements of the drift: one interaction through the base, about a hundredth of the run."""


class TrainingDiverged(AfterwordError):
    """A loss or gradient is not finite. The checkpoint before that step is in the run's folder."""

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

    Calling again with the same arguments resumes a killed run, and returns the result of a finished one.

    Args:
        examples: interactions with their turns; one given twice is trained once.
        model: base model: built-in name, folder or hub id.
        out: adapter folder; it must not exist.
        recipe: objective and hyperparameters.
        run_dir: checkpoint, `metrics.jsonl`, TensorBoard events and `alignment.txt`.
        parent: adapter folder to start from; None starts a new adapter.
        seed: order of the interactions, first values of a new adapter, sampling.
        progress: called with the metrics of each step.
        device: "auto", "cpu", "cuda" or "cuda:N".
        save_every: steps between checkpoints.
        rules: stop early; the adapter is published and `metrics["stopped"]` has the reason. With other rules and
            another `out` the run goes on.
        cache: folder for hidden states of frozen teachers; None keeps them in memory only.

    Returns:
        The adapter's folder, what was trained and excluded, and the metrics.

    Raises:
        NothingToDo: no example can be trained.
        ConfigError: the recipe cannot be trained.
        ModelError, AdapterError: base, parent or teacher do not fit.
        ConflictError: `out` or `run_dir` belong to another run.
        TrainingDiverged: a loss or gradient is not finite.
    """
    started = time.monotonic()
    BACKGROUND.step_back()
    workers = init_distributed()
    inputs = read_inputs(examples, model=model, recipe=recipe, parent=parent, seed=seed, device=device)
    done = workers.broadcast_object(finished_result(run_dir, out, inputs.identity.fingerprint))
    if done is not None:
        clear_run(workers, run_dir, done.metrics.get("stopped"))
        return done
    if workers.broadcast_object(out.exists()):
        raise ConflictError(f"{str(out)!r} exists already: adapters are never overwritten, name a new folder")

    run = load_run(inputs, run_dir, workers)
    recipe, policy, teachers, optimiser, log = inputs.recipe, run.policy, run.teachers, run.optimiser, run.log
    parameters, steps, disk = policy.parameters(), run.steps, TeacherCache(cache)
    rows: Sequence[Encoded] = ()
    states: TeacherStates | None = None
    last_epoch, stopped, budget = -1, None, token_budget(recipe, policy)

    for step in range(run.first_step, len(steps)):
        step_started, history = time.monotonic(), log.history
        epoch, picked = steps[step].epoch, steps[step].picked

        # Rollout: the served answers first, which stay the same; then what the student writes at the start of an epoch.
        if states is None or (epoch != last_epoch and epoch >= recipe.epochs):
            rows = run.rollouts.rows(policy, epoch, step)
            generated = run.rollouts.metrics(epoch)
            log.add_rollout(step, generated)
            stopped = rules.rollout_stop_reason(generated) if history else None
            if stopped:
                run.save(step)
                break
            kept = disk if epoch < recipe.epochs else TeacherCache(None)  # fresh answers are never read again
            states = TeacherStates(teachers, rows, recipe, kept, inputs.identity.weights, workers)
            file = run_dir / f"fresh-{epoch if epoch >= recipe.epochs else 0}-measures.json"
            rows = states.rows = measured(rows, recipe, policy, states, file, inputs.identity.fingerprint, workers)
        last_epoch = epoch

        # Objective: the terms at this step, and the tokens that count over all micro-batches and processes.
        terms = [term.at(step, len(steps), history) for term in recipe.terms]
        whole = rows_of([rows[i] for i in picked])
        gradient = StepGradient(parameters, terms, divisors(terms, whole))

        picked = [i for i in picked if rows[i].answer.accepted]  # no term counts the others

        # Teacher, student, loss, gradient: one micro-batch at a time; between two, users' requests go first.
        tally = Tally(terms, run.end_ids)
        mine = split(rows, workers.shard(by_size(rows, picked)), budget)
        for n, micro in enumerate(BACKGROUND.between(mine)):
            batch = forward(policy, states, terms, micro)
            losses = gradient.add(batch)
            tally.add(*batch.shown(terms), losses, batch.ids)
            if n == 0 and workers.is_main and step % PROBE_EVERY == 0:
                tally.add_drift(drift(policy, rows[micro[0]], batch.context, batch.student_NH.detach()))
            del batch, losses  # before the next forward pass: they hold the graph
        late = gradient.close(workers)
        workers.all_reduce(tally.sums, *teachers.drift.values())
        tally.divide(late)

        # Optimiser step; the teachers that follow the student move after it.
        lr = recipe.lr * recipe.schedule(step, len(steps), history)
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
            run.save(step)
            raise _diverged(metrics, run_dir, [rows[i].interaction for i in picked])
        for group in optimiser.param_groups:
            group["lr"] = lr
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        teachers.follow(step + 1)

        metrics = log.add(metrics)
        stopped = rules.stop_reason(log.history)
        if (step + 1) % save_every == 0 or step + 1 == len(steps) or stopped:
            run.save(step + 1)
        progress(metrics)
        if stopped:
            break

    trained = {name for row in run.prepared.rows for name in row.interactions}
    result = TrainResult(
        path=out,
        base=model,
        interactions=tuple(name for name in dict.fromkeys(e.interaction.id for e in examples) if name in trained),
        excluded=tuple(asdict(one) for one in run.prepared.excluded),
        recipe=describe(recipe),
        metrics=log.summary(run.prepared, str(policy.device), time.monotonic() - started, stopped),
    )
    if workers.is_main:
        publish(policy, inputs.identity, result, run_dir)
    workers.barrier()
    clear_run(workers, run_dir, stopped)
    return result


def _diverged(metrics: StepMetrics, run_dir: Path, interactions: Sequence[str]) -> TrainingDiverged:
    return TrainingDiverged(
        f"step {metrics.step} of {metrics.steps}: loss {metrics.loss}, gradient norm {metrics.grad_norm}. The "
        f"checkpoint before it is kept in {str(run_dir)!r}, and the same settings resume it; or train anew with a "
        f"learning rate below {metrics.lr}. Its interactions: {', '.join(interactions)}"
    )
