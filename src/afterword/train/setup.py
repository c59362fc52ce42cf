"""Prepares a run: checks and encodes its inputs, then loads the model, its teachers and the last checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from afterword.chat.render import Tokenizer
from afterword.learn.recipes import Recipe
from afterword.learn.recipes.validate import check_runnable
from afterword.model.loading import load_tokenizer, model_sizes, native_dtype, resolve_model
from afterword.train.artifact import RunIdentity, identify
from afterword.train.checkpoint import clear_checkpoint, load_checkpoint, save_checkpoint
from afterword.train.data.batches import StepBatch, plan_steps
from afterword.train.data.examples import Example, Prepared, by_content, prepare
from afterword.train.generation.generation import Rollouts, clear_rollouts
from afterword.train.monitoring.alignment import write_alignment
from afterword.train.monitoring.run_log import RunLog
from afterword.train.runtime.distributed import Distributed, local_device
from afterword.train.runtime.policy import Policy, load_policy
from afterword.train.runtime.steps import drop_unreadable
from afterword.train.runtime.teacher_runtime import TeacherRuntime, context_limit, teacher_hashes


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInputs:
    """Data and settings of a run, before any weights are loaded."""

    model: str
    recipe: Recipe
    """With the number format that "auto" stands for on this machine."""
    parent: Path | None
    seed: int
    device: str
    tokenizer: Tokenizer
    prepared: Prepared
    identity: RunIdentity


def read_inputs(
    examples: Sequence[Example], *, model: str, recipe: Recipe, parent: Path | None, seed: int, device: str
) -> RunInputs:
    """Check the recipe and its teachers, and encode the examples; the errors of `train_candidate`."""
    check_runnable(recipe)
    device = local_device(device)
    recipe = replace(recipe, dtype=native_dtype(recipe.dtype, device))
    tokenizer = load_tokenizer(model)
    vocabulary = model_sizes(resolve_model(model))[1]
    limit = context_limit(recipe, model, tokenizer)
    prepared = prepare(by_content(examples), tokenizer, recipe, limit=limit, vocabulary=vocabulary)
    return RunInputs(
        model=model,
        recipe=recipe,
        parent=parent,
        seed=seed,
        device=device,
        tokenizer=tokenizer,
        prepared=prepared,
        identity=identify(
            model, tokenizer, recipe, parent, list(prepared.used), seed, teacher_hashes(recipe), prepared.rows
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRun:
    """A run with its weights in memory, at the step it starts or resumes from."""

    prepared: Prepared
    """Without rows that only the loaded weights exclude."""
    policy: Policy
    teachers: TeacherRuntime
    optimiser: torch.optim.Optimizer
    rollouts: Rollouts
    steps: list[StepBatch]
    first_step: int
    log: RunLog
    end_ids: tuple[int, ...]
    """Token ids that end a turn."""
    workers: Distributed
    run_dir: Path
    fingerprint: str

    def save(self, step: int) -> None:
        """Write the checkpoint before `step`, in the first process."""
        if self.workers.is_main:
            save_checkpoint(
                self.run_dir, self.policy, self.optimiser, self.teachers, step=step, fingerprint=self.fingerprint
            )


def load_run(inputs: RunInputs, run_dir: Path, workers: Distributed) -> LoadedRun:
    """Load policy, teachers and optimiser, restore the checkpoint in `run_dir` if there is one, and open the log."""
    recipe, tokenizer, fingerprint = inputs.recipe, inputs.tokenizer, inputs.identity.fingerprint
    run_dir.mkdir(parents=True, exist_ok=True)
    policy = load_policy(inputs.model, recipe, parent=inputs.parent, seed=inputs.seed, device=inputs.device)
    prepared = drop_unreadable(inputs.prepared, policy, tokenizer)
    teachers = TeacherRuntime(policy, recipe, inputs.model)
    signal = None
    if workers.is_main:
        signal = write_alignment(teachers, tokenizer, prepared, recipe, run_dir, inputs.seed)
    optimiser = torch.optim.AdamW(policy.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    workers.barrier()
    first = load_checkpoint(run_dir, policy, optimiser, teachers, fingerprint=fingerprint)
    return LoadedRun(
        prepared=prepared,
        policy=policy,
        teachers=teachers,
        optimiser=optimiser,
        rollouts=Rollouts(prepared, recipe, tokenizer, run_dir, fingerprint, inputs.seed, workers, teachers),
        steps=plan_steps(prepared.rows, recipe, inputs.seed),
        first_step=first,
        log=RunLog(run_dir, signal, steps_before=first, write=workers.is_main),
        end_ids=prepared.encoder.ends.found,
        workers=workers,
        run_dir=run_dir,
        fingerprint=fingerprint,
    )


def clear_run(workers: Distributed, run_dir: Path, stopped: str | None) -> None:
    """Delete the checkpoint and the answers of a finished run; one that a rule `stopped` may go on and keeps them."""
    if workers.is_main and not stopped:
        clear_checkpoint(run_dir)
        clear_rollouts(run_dir)
