"""A training run that is killed with SIGKILL goes on with the same losses, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from afterword.errors import ConflictError
from afterword.learn.recipes import sdpo_interactions
from afterword.train.loop import train_candidate
from afterword.train.monitoring.metrics import read_metrics
from tests.train.tiny_model import example, tiny_folder

PROGRAM = """
import sys
from pathlib import Path
from tests.train.tiny_model import example
from afterword.learn.recipes import sdpo_interactions
from afterword.learn.parts.teachers import BASE, LIVE, START, EMA, Copy, Released, Routed, TrustRegion
from afterword.train.loop import train_candidate

model, folder, pause = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
teacher = eval(sys.argv[4])
def slow(metrics):
    print(metrics.step, flush=True)
    import time; time.sleep(pause)
words = ("Shorter, please.", "Say hello first.", "In Spanish?")
train_candidate(
    [example(model, i, hindsight=words[i % 3]) for i in range(12)], model=model, out=folder / "out",
    run_dir=folder / "run", recipe=sdpo_interactions(batch=3, epochs=1, fresh=1, anchor=0.1, teacher=teacher),
    seed=7, progress=slow, save_every=2,
)
"""


def start(model: str, folder: Path, pause: float, teacher: str) -> subprocess.Popen[str]:
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(Path(__file__).parents[2] / one) for one in ("", "src")),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, model, str(folder), str(pause), teacher],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> list[int]:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return [int(line) for line in out.split()]


def killed_and_straight(model: str, folder: Path, teacher: str) -> None:
    killed = start(model, folder / "killed", 0.2, teacher)
    assert killed.stdout is not None
    for line in killed.stdout:
        if int(line) == 5:
            break
    time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (folder / "killed" / "out").exists()
    again = finish(start(model, folder / "killed", 0.0, teacher))
    assert again[0] in (5, 6) and again[-1] == 8  # step 5 was not saved, so it is repeated
    assert finish(start(model, folder / "straight", 0.0, teacher)) == [1, 2, 3, 4, 5, 6, 7, 8]
    one, other = (read_metrics(folder / name / "run") for name in ("killed", "straight"))
    assert [m.loss for m in one] == [m.loss for m in other]
    assert [m.grad_norm for m in one] == [m.grad_norm for m in other]
    file = Path("out") / "adapter_model.safetensors"
    assert (folder / "killed" / file).read_bytes() == (folder / "straight" / file).read_bytes()


def test_kill_and_resume_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    killed_and_straight(tiny_folder(tmp_path / "model"), tmp_path, "START")


@pytest.mark.slow
@pytest.mark.parametrize(
    "teacher",
    [
        "LIVE",
        "BASE",
        "EMA(rate=0.1)",
        "EMA(rate=0.1, rank=4)",
        "TrustRegion(rate=0.3, bound=1e-5)",
        "Copy(every=2)",
        "Released(folder=str(folder.parent / 'released'))",
        "Routed(routes=(('code', EMA(rate=0.2)),), default=Copy(every=3))",
    ],
)
def test_every_kind_of_teacher_comes_back_after_a_kill(tmp_path: Path, teacher: str) -> None:
    model = tiny_folder(tmp_path / "model")
    if teacher.startswith("Released"):
        recipe = sdpo_interactions(batch=4, epochs=1, fresh=0)
        given = [example(model, i) for i in range(4)]
        train_candidate(given, model=model, out=tmp_path / "released", run_dir=tmp_path / "other", recipe=recipe)
    killed_and_straight(model, tmp_path, teacher)


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "model")
    examples = [example(model, i) for i in range(4)]

    class Stop(Exception):
        pass

    def stop(metrics: object) -> None:
        raise Stop

    recipe = sdpo_interactions(batch=2, epochs=2, fresh=0, dtype="float32")
    run: dict[str, Any] = {"model": model, "out": tmp_path / "out", "run_dir": tmp_path / "run"}
    with pytest.raises(Stop):
        train_candidate(examples, recipe=recipe, progress=stop, save_every=1, **run)
    with pytest.raises(ConflictError, match="another run"):
        train_candidate(examples, recipe=recipe, seed=1, **run)
    cut = tmp_path / "run" / "metrics.jsonl"
    cut.write_text(cut.read_text() + '{"step": 2, "st')  # a line that a kill cut in two
    result = train_candidate(examples, recipe=recipe, **run)
    assert [m.step for m in read_metrics(tmp_path / "run")] == [1, 2, 3, 4]
    assert result.metrics["steps"] == 4
