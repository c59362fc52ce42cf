"""The built-in model's conversion: once, whole or not at all, in a process of its own."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.serving import until

from afterword.errors import ModelError
from afterword.model import conversion, embedded, loading
from afterword.processes import python_environment

STAND_IN = """
import sys, time
from pathlib import Path
from afterword.model import conversion, embedded

def write(source, work):
    with (work.parent / "written").open("a") as count:
        count.write("x")
    for name in embedded._PARTS:
        (work / name).write_text("half")
    while (work.parent / "hold").exists():
        time.sleep(0.01)
    for name in embedded._PARTS:
        (work / name).write_text("whole")

conversion.write_model, conversion._check_pins = write, lambda folder: None
raise SystemExit(conversion.main(sys.argv[1:]))
"""
"""The real command around a model that takes no time: what is tried is the lock and the rename."""


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", STAND_IN, str(folder)], env=python_environment())


def test_of_three_at_once_one_converts(tmp_path: Path) -> None:
    folder, hold = tmp_path / "model", tmp_path / "hold"
    hold.touch()
    processes = [start(folder) for _ in range(3)]
    until((tmp_path / "written").exists)
    assert not folder.exists(), "nothing is there before it is whole"
    hold.unlink()
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "written").read_text("utf-8") == "x"
    assert embedded.is_whole(folder) and (folder / "config.json").read_text("utf-8") == "whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.lock", "model", "written"]


def test_waiting_for_another_conversion_is_heard_while_that_one_works(tmp_path: Path) -> None:
    folder, hold = tmp_path / "model", tmp_path / "hold"
    hold.touch()
    busy = STAND_IN.replace("time.sleep(0.01)", "pass")  # it computes
    first = subprocess.Popen([sys.executable, "-c", busy, str(folder)], env=python_environment())
    until((tmp_path / "written").exists)
    second = subprocess.Popen(
        [sys.executable, "-c", STAND_IN, str(folder)], env=python_environment(), stdout=subprocess.PIPE, text=True
    )
    assert second.stdout is not None
    assert second.stdout.readline() == f"waiting for process {first.pid}, which converts the built-in model\n"
    os.kill(first.pid, signal.SIGSTOP)  # a holder that does nothing is no progress: the waiting one falls silent
    time.sleep(1.5)
    os.set_blocking(second.stdout.fileno(), False)
    os.read(second.stdout.fileno(), 1 << 16) if select.select([second.stdout], [], [], 0)[0] else None
    time.sleep(2.0)
    assert not select.select([second.stdout], [], [], 0)[0]
    hold.unlink()
    os.kill(first.pid, signal.SIGCONT)
    assert (first.wait(60), second.wait(60)) == (0, 0)
    second.stdout.close()


def test_a_killed_conversion_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    folder, hold = tmp_path / "model", tmp_path / "hold"
    hold.touch()
    killed = start(folder)
    until(lambda: any(tmp_path.glob(".model-*/tokenizer_config.json")))
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    hold.unlink()
    assert not embedded.is_whole(folder) and any(tmp_path.glob(".model-*"))
    assert start(folder).wait(60) == 0
    assert embedded.is_whole(folder) and not any(tmp_path.glob(".model-*")), "what the killed one left is gone"


def test_a_folder_with_a_part_missing_is_converted_again(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("old", "utf-8")
    assert start(folder).wait(60) == 0
    assert (folder / "config.json").read_text("utf-8") == "whole"


def test_a_failed_conversion_is_told_with_its_cause_and_the_remedy(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(ModelError, match=r"could not be converted.*\n?.*(Not a directory|File exists)") as caught:
        embedded.embedded_model(blocked)
    assert "AFTERWORD_CACHE" in caught.value.message


@pytest.mark.slow
def test_two_conversions_at_once_leave_one_whole_folder(tmp_path: Path) -> None:
    workers = [threading.Thread(target=loading.resolve_model, args=(loading.EMBEDDED, tmp_path)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    folder = tmp_path / "smollm2-135m-instruct-v1"
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, f".{folder.name}.lock"}
    assert loading.base_hash(folder) == loading.base_hash(loading.resolve_model(loading.EMBEDDED))
    assert conversion.PINNED
