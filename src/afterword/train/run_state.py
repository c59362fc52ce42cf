"""Records each training run in `runs/ID/run.json`: its plan, its status and when it started; the only reader of both.

A killed run keeps the status "running". It counts as interrupted once no training holds the directory's lock.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from afterword import __version__
from afterword.records import Candidate, TrainingPlan
from afterword.store import Store
from afterword.store.files import write_whole

Status = Literal["running", "failed", "finished"]
_FILE = "run.json"
_GIVEN_UP = "given-up"
"""Mark of a failed run in folders of versions before 0.2, which stored no status."""


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A run as its folder records it."""

    plan: TrainingPlan
    status: Status
    started_at: float
    """Unix seconds."""
    code_version: str | None
    """None in folders of versions before 0.2."""


def run_folder(directory: Path, candidate: str) -> Path:
    """Where the run that makes `candidate` keeps its files."""
    return directory / "runs" / candidate


def write_run(directory: Path, plan: TrainingPlan, status: Status) -> None:
    """Record `status`; "running" also records the plan, the time and the version of the code.

    Raises:
        OSError: when the folder cannot be written.
    """
    folder = run_folder(directory, plan.candidate)
    folder.mkdir(parents=True, exist_ok=True)
    before = read_run(folder)
    started = before.started_at if before is not None and status != "running" else time.time()
    record = {**plan.to_dict(), "status": status, "started_at": started, "code_version": __version__}
    write_whole(folder / _FILE, json.dumps(record))
    (folder / _GIVEN_UP).unlink(missing_ok=True)


def read_run(folder: Path) -> TrainingRun | None:
    """The run of one folder; None when it holds none."""
    file = folder / _FILE
    if not file.is_file():
        return None
    record = json.loads(file.read_text("utf-8"))
    old: Status = "failed" if (folder / _GIVEN_UP).exists() else "running"
    return TrainingRun(
        plan=TrainingPlan.from_dict(record),
        status=record.get("status", old),
        started_at=record.get("started_at", file.stat().st_mtime),
        code_version=record.get("code_version"),
    )


def run_interactions(folder: Path) -> set[str]:
    """Ids of the interactions of one folder's run, whatever else of its record is missing."""
    file = folder / _FILE
    return set(json.loads(file.read_text("utf-8")).get("interactions", ())) if file.is_file() else set()


def read_runs(directory: Path) -> list[TrainingRun]:
    """All runs of a data directory, the newest first."""
    found = [run for folder in (directory / "runs").glob("*") if (run := read_run(folder)) is not None]
    return sorted(found, key=lambda run: run.started_at, reverse=True)


def interrupted_run(store: Store, directory: Path) -> TrainingRun | None:
    """The newest run that was killed: it did not fail and wrote no Candidate row.

    Call it under the training lock. A run with an interaction that was retracted, rejected or erased since then is not
    finished: a new run leaves that interaction out.
    """
    usable = {row.id for row in store.usable("train")}
    for run in read_runs(directory):
        open_ = run.status == "running" and store.find(Candidate, run.plan.candidate) is None
        if open_ and usable.issuperset(run.plan.interactions):
            return run
    return None
