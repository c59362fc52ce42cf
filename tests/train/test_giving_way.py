"""A run gives way to the requests of a server in another process, and its adapter stays the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from afterword import sharing
from afterword.learn.recipes import sdpo_interactions
from afterword.train.loop import train_candidate
from tests.train.tiny_model import example, tiny_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

SERVER = """
import time
from afterword.sharing import Phase, ServingSignal
signal = ServingSignal()
signal.working(Phase.READING)
print("busy", flush=True)
for n in range(10**6):
    time.sleep(0.05)
    signal.working(Phase.READING if n % 4 else Phase.WRITING)
"""


def _trained(model: str, folder: Path) -> bytes:
    rows = [example(model, n) for n in range(4)]
    recipe = sdpo_interactions(dtype="float32", batch=2, micro_tokens=60, epochs=2, fresh=0)
    result = train_candidate(rows, model=model, recipe=recipe, out=folder / "out", run_dir=folder / "run")
    return (result.path / "adapter_model.safetensors").read_bytes()


def test_a_run_waits_between_micro_batches_while_a_server_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFTERWORD_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setattr("afterword.sharing.BACKGROUND._lowered", False)
    lowered: list[bool] = []
    monkeypatch.setattr("afterword.sharing.lower_priority", lambda: lowered.append(True))
    model, waited = tiny_folder(tmp_path / "model"), sharing.BACKGROUND.waited
    alone = _trained(model, tmp_path / "alone")
    assert sharing.BACKGROUND.waited == waited, "without a server nothing waits"
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "busy\n"
        beside = _trained(model, tmp_path / "beside")
    finally:
        server.kill()
        server.communicate()
    assert sharing.BACKGROUND.waited > waited
    assert lowered == [True]
    assert beside == alone
