"""Training in several processes of one machine: what they say arrives, a lost one is replaced, one result."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from afterword.config import TrainConfig
from afterword.errors import NothingToDo, UsageError
from afterword.feedback.select.plan import plan_training
from afterword.records import Candidate, TrainingPlan
from afterword.store import Store
from afterword.train.monitoring.metrics import StepMetrics, read_metrics
from afterword.train.run_state import read_run, run_folder
from afterword.train.runtime import local_workers
from afterword.train.runtime.local_workers import RESTARTS, WorkerEvent, WorkersError, run_workers
from afterword.train.stage import StoreEncoder, train_stage
from tests.train.test_train_stage import filled
from tests.train.tiny_model import tiny_folder

STEP = StepMetrics(
    step=1, steps=2, loss=0.5, terms={"a": 0.5}, grad_norm=1.0, lr=1e-3, interactions=1, off_policy=0, tokens=4,
    length=4.0, divergence=0.1, entropy_student=1.0, entropy_teacher=1.0, entropy_gap=0.0, overlap=0.9, signal=0.1,
    depth={"0": 1.0}, seconds=0.1, tokens_per_second=40.0,
)  # fmt: skip


class Told:
    """What a parent hears."""

    def __init__(self) -> None:
        self.steps: list[StepMetrics] = []
        self.notes: list[str] = []
        self.restarts = 0

    def again(self) -> None:
        self.restarts += 1

    def run(self, program: str, folder: Path, count: int = 2) -> None:
        run_workers(
            [sys.executable, "-c", textwrap.dedent(program), str(folder)],
            count,
            folder / "logs",
            progress=self.steps.append,
            note=self.notes.append,
            again=self.again,
        )


def test_an_event_is_one_line_and_comes_back() -> None:
    for event in (
        WorkerEvent(step=STEP),
        WorkerEvent(note="one"),
        WorkerEvent(error="no\nmemory", kind="MemoryError", lost=True),
    ):
        assert "\n" not in event.line() and WorkerEvent.read(event.line()) == event
    for line in ("downloading 3 %", "[1, 2]", '{"unknown": 1}', '{"step": {"step": 1}}', ""):
        assert WorkerEvent.read(line) is None


def test_workers_find_each_other_and_are_heard(tmp_path: Path) -> None:
    told = Told()
    told.run(
        f"""
        import os, sys
        from pathlib import Path
        names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT".split()
        Path(sys.argv[1], os.environ["RANK"]).write_text(" ".join(os.environ[name] for name in names))
        print("a library says hello")
        print("a warning", file=sys.stderr)
        if os.environ["RANK"] == "0":
            for _ in range(200):
                print({WorkerEvent(step=STEP).line()!r})
            print({WorkerEvent(note="done").line()!r})
        """,
        tmp_path,
        count=3,
    )
    assert told.steps == [STEP] * 200 and told.notes == ["done"] and told.restarts == 0
    seen = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [one[:4] for one in seen] == [[str(r), str(r), "3", "3"] for r in range(3)]
    assert len({tuple(one[4:]) for one in seen}) == 1
    log = (tmp_path / "logs" / "worker-1.log").read_text()
    assert "a library says hello" in log and "a warning" in log


def test_a_worker_that_is_killed_starts_all_again(tmp_path: Path) -> None:
    told = Told()
    told.run(
        """
        import os, signal, sys, time
        from pathlib import Path
        first = Path(sys.argv[1], "first")
        if os.environ["RANK"] == "1" and not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        while not first.exists():
            time.sleep(0.01)
        """,
        tmp_path,
    )
    assert told.restarts == 1
    assert told.notes == ["worker 1 was ended by signal 9: starting the 2 workers again from the last checkpoint"]


def test_workers_that_are_always_lost_end_the_run(tmp_path: Path) -> None:
    told = Told()
    with pytest.raises(WorkersError, match=rf"ended {RESTARTS + 1} times without a step: worker \d ended with code 7"):
        told.run("raise SystemExit(7)", tmp_path)
    assert told.restarts == RESTARTS


@pytest.mark.parametrize(("kind", "raised"), [("UsageError", UsageError), ("MemoryError", WorkersError)])
def test_an_error_is_raised_once_whatever_the_others_say(
    tmp_path: Path, kind: str, raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_workers, "_GRACE", 0.2)
    lost, cause = (
        WorkerEvent.of(RuntimeError("Connection closed by peer [127.0.0.1]:1")),
        WorkerEvent(error="why", kind=kind),
    )
    assert lost.lost
    told = Told()
    with pytest.raises(raised, match="why"):
        told.run(
            f"""
            import os, sys, time
            print({lost.line()!r} if os.environ["RANK"] == "0" else {cause.line()!r})
            sys.exit(1)
            """,
            tmp_path,
        )
    assert told.restarts == 0


def test_a_worker_that_waits_for_a_lost_one_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_workers, "_GRACE", 0.2)
    monkeypatch.setattr(local_workers, "RESTARTS", 0)
    with pytest.raises(WorkersError, match="worker 1 ended with code 3"):
        Told().run(
            """
            import os, sys, time
            if os.environ["RANK"] == "1":
                sys.exit(3)
            time.sleep(600)
            """,
            tmp_path,
        )


def planned(store: Store, model: str, workers: int) -> TrainingPlan:
    recipe = {"dtype": "float32", "batch": 3}
    settings = TrainConfig(min_interactions=1, epochs=2, fresh=1, workers=workers, options=recipe)
    return plan_training(store, settings, encoder=StoreEncoder(store, settings, model))


def test_more_workers_than_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_folder(tmp_path / "model")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with filled(tmp_path, model, [5, 6, 7]) as store:
        plan = planned(store, model, 2)
        with pytest.raises(UsageError, match=r"train\.workers is 2, but this machine has 1 GPU"):
            train_stage(store, tmp_path, lambda: plan, device="cuda")
    run = read_run(run_folder(tmp_path, plan.candidate))
    assert run is not None and run.status == "failed"  # else the next `train` would try the same again


def trained(home: Path, model: str, workers: int, *, kill: bool = False) -> tuple[list[StepMetrics], Path, list[str]]:
    """The steps and the adapter of one run, and what was said; with `kill` its second worker dies after step 3."""
    home.mkdir()
    notes: list[str] = []

    def stepped(metrics: StepMetrics) -> None:
        if kill and metrics.step == 3 and not any("again" in text for text in notes):
            threading.Thread(target=kill_rank_1).start()

    with filled(home, model, [4 + i % 7 for i in range(11)]) as store:
        plan = dataclasses.replace(planned(store, model, workers), candidate="cand-same")
        candidate = train_stage(store, home, lambda: plan, device="cpu", progress=stepped, note=notes.append)
        assert store.get(Candidate, candidate.id) == candidate
    folder = run_folder(home, candidate.id)
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    return read_metrics(folder), home / candidate.path / "adapter_model.safetensors", notes


@pytest.mark.slow
def test_workers_train_what_one_process_does_and_survive_a_kill(tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "model")
    steps, file, _ = trained(tmp_path / "one", model, 1)
    assert len(steps) > 4
    for name, workers in (("two", 2), ("four", 4), ("killed", 2)):
        others, adapter, notes = trained(tmp_path / name, model, workers, kill=name == "killed")
        assert any(f"starting the {workers} workers again" in text for text in notes) == (name == "killed"), notes
        for field in ("step", "loss", "grad_norm", "entropy_student", "overlap"):
            ours = [getattr(m, field) for m in others]
            assert ours == pytest.approx([getattr(m, field) for m in steps], rel=1e-5, abs=1e-5), (name, field)
        weights = load_file(adapter)
        for key, tensor in load_file(file).items():
            torch.testing.assert_close(weights[key], tensor, atol=1e-5, rtol=1e-4)


def kill_rank_1() -> None:
    """End the second worker of this process's training as a machine without memory would."""
    time.sleep(0.05)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if b"RANK=1" in environment and parent == os.getpid():
                os.kill(int(entry.name), signal.SIGKILL)


def test_a_run_whose_interactions_are_gone_is_not_trained(tmp_path: Path) -> None:
    from afterword.train.stage import finish_run

    model = tiny_folder(tmp_path / "model")
    with filled(tmp_path, model, [5, 6]) as store, pytest.raises(NothingToDo, match="was taken back"):
        finish_run(store, tmp_path, "cand-gone")
