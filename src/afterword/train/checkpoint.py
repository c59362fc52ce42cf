"""Saves and restores all state that the next step depends on, in one file that is replaced atomically.

Holds adapter, optimiser, random generators, moving teachers and the step. Schedules, data order and frozen teachers are
functions of step, seed, metrics and model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from afterword.errors import ConflictError
from afterword.store.files import replacing
from afterword.train.runtime.policy import Policy
from afterword.train.runtime.teacher_runtime import TeacherRuntime

_FILE = "state.pt"


def save_checkpoint(
    run_dir: Path,
    policy: Policy,
    optimiser: torch.optim.Optimizer,
    teachers: TeacherRuntime,
    *,
    step: int,
    fingerprint: str,
) -> None:
    """Write the state before `step`, fsynced; a kill leaves the old file or the new one."""
    state = {
        "fingerprint": fingerprint,
        "step": step,
        "adapter": policy.adapter_state(),
        "optimiser": optimiser.state_dict(),
        "teachers": teachers.state(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if policy.device.type == "cuda" else [],
    }
    with replacing(run_dir / _FILE) as stream:
        torch.save(state, stream)


def load_checkpoint(
    run_dir: Path, policy: Policy, optimiser: torch.optim.Optimizer, teachers: TeacherRuntime, *, fingerprint: str
) -> int:
    """Restore the checkpoint in `run_dir`.

    Returns:
        The step to resume with, 0 without a checkpoint.

    Raises:
        ConflictError: the checkpoint belongs to another run.
    """
    file = run_dir / _FILE
    if not file.is_file():
        return 0
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    if state["fingerprint"] != fingerprint:
        raise ConflictError(
            f"{str(run_dir)!r} holds the checkpoint of another run (other interactions, recipe, model, parent or "
            "seed): use a new folder, or delete this one to start again"
        )
    policy.load_adapter_state(state["adapter"])
    optimiser.load_state_dict(state["optimiser"])
    teachers.load(state["teachers"])
    torch.set_rng_state(state["random"])
    if state["random_cuda"]:
        torch.cuda.set_rng_state_all(state["random_cuda"])
    return int(state["step"])


def clear_checkpoint(run_dir: Path) -> None:
    """Delete the checkpoint; metrics and reports stay."""
    (run_dir / _FILE).unlink(missing_ok=True)
    for pattern in (f"{_FILE}.new", f".{_FILE}.*.new"):  # what a killed run left, of older versions too
        for file in run_dir.glob(pattern):
            file.unlink(missing_ok=True)
