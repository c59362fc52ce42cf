"""Two processes with gloo train what one process trains."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from afterword.train.monitoring.metrics import read_metrics
from afterword.train.runtime.distributed import SINGLE, Distributed, init_distributed
from tests.train.tiny_model import tiny_folder

PROGRAM = """
import sys
from pathlib import Path
from tests.train.tiny_model import example
from afterword.learn.recipes import recipe
from afterword.learn.parts.teachers import EMA, TrustRegion
from afterword.train.loop import train_candidate

model, folder = sys.argv[1], Path(sys.argv[2])
words = ("Shorter, please.", "Say hello first.", "In Spanish?")
examples = [example(model, i, hindsight=words[i % 3]) for i in range(11)]
for name, settings in (
    ("start", dict(epochs=1, fresh=1, anchor=0.1)),
    ("trust", dict(epochs=1, fresh=0, teacher=TrustRegion(rate=0.3, bound=1e-4))),
    ("groups", dict(fresh=1, num_generations=2, verifier="tests.learn.recipe_inputs:some_letters", max_fresh=6)),
):
    result = train_candidate(
        examples, model=model, out=folder / name / "out", run_dir=folder / name / "run", seed=7,
        recipe=recipe("srpo" if name == "groups" else "sdpo-interactions", batch=3, dtype="float32", **settings),
    )
    print(result.metrics["steps"], flush=True)
"""


def launch(model: str, folder: Path, size: int) -> None:
    """As torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}:{os.environ.get('PYTHONPATH', '')}"}
    base |= {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, model, str(folder)],
            env={**base, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    for process in running:
        out, errors = process.communicate(timeout=280)
        assert process.returncode == 0, errors[-3000:]
        assert out.split() == ["8", "4", "8"]  # every process has the result


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "model")
    for size in (1, 2):
        launch(model, tmp_path / str(size), size)
    for name in ("start", "trust", "groups"):
        one, two = (read_metrics(tmp_path / size / name / "run") for size in ("1", "2"))
        assert [m.interactions for m in one] == [m.interactions for m in two]
        for field in ("loss", "grad_norm", "entropy_student", "overlap"):
            assert [getattr(m, field) for m in two] == pytest.approx([getattr(m, field) for m in one], rel=2e-4), field
        weights = [load_file(tmp_path / size / name / "out" / "adapter_model.safetensors") for size in ("1", "2")]
        for key, tensor in weights[0].items():
            torch.testing.assert_close(weights[1][key], tensor, atol=2e-4, rtol=1e-2)


def test_shares_are_level_and_whole() -> None:
    items = list(range(11))
    parts = [Distributed(rank, 3).shard(items) for rank in range(3)]
    assert sorted(x for part in parts for x in part) == items
    assert {len(part) for part in parts} == {3, 4}


def test_a_lone_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world, total = init_distributed(), torch.ones(2)
    world.all_reduce(total)
    world.barrier()
    assert world is SINGLE and world.is_main and world.broadcast_object("x") == "x" and total.tolist() == [1.0, 1.0]


def test_on_gpus_the_sums_on_the_cpu_have_a_backend_too(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", made.append)
    monkeypatch.setattr(dist, "init_process_group", made.append)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr("atexit.register", made.append)
    assert init_distributed() == Distributed(1, 2)
    assert made == [1, "cpu:gloo,cuda:nccl", dist.destroy_process_group]
