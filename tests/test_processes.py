"""Stages, progress and stacks of child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from afterword import processes
from afterword.errors import UpstreamError
from afterword.processes import Pulse, Stages, explain
from afterword.sampling import start_engine
from tests.serving import until

SLEEPS, WORKS = "import time; print(flush=True); time.sleep(600)", "print(flush=True)\nwhile True: pass"


@contextmanager
def running(code: str, **streams: object) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, **streams)  # type: ignore[call-overload]
    try:
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def silent_for(pulse: Pulse, seconds: float) -> float:
    end = time.monotonic() + seconds
    silent = 0.0
    while time.monotonic() < end:
        time.sleep(0.1)
        silent = pulse.check()
    return silent


def test_a_process_that_only_waits_is_silent_and_one_that_computes_is_not() -> None:
    with running(SLEEPS) as sleeping, running(WORKS) as working:
        pulses = Pulse(sleeping.pid), Pulse(working.pid)
        end = time.monotonic() + 3.0
        while time.monotonic() < end:
            time.sleep(0.1)
            silent = [pulse.check() for pulse in pulses]
    assert silent[0] > 2.0 and silent[1] < 2.0


def test_work_of_a_child_counts() -> None:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WORKS!r}])"
    with running(code) as parent:
        assert silent_for(Pulse(parent.pid), 3.0) < 2.0
        processes.kill_tree(parent.pid)


def test_a_stopped_process_is_named_with_its_remedy() -> None:
    with running(WORKS) as process:
        os.kill(process.pid, signal.SIGSTOP)
        until(lambda: "is stopped" in explain(process.pid, "loading", 45.0))
        assert f"kill -CONT {process.pid}" in explain(process.pid, "loading", 45.0)
        pulse = Pulse(process.pid)
        assert silent_for(pulse, 1.0) > 0.5


def test_stacks_are_written_by_those_that_answer_and_nobody_else_is_hurt(tmp_path: Path) -> None:
    code = "from afterword.processes import dump_stacks_when_asked\ndump_stacks_when_asked()\n"
    code += f"def waits():\n    {SLEEPS}\nwaits()"
    log = tmp_path / "log"
    with log.open("wb") as file, running(code, stderr=file) as asked, running(SLEEPS) as other:
        processes.ask_for_stacks(asked.pid)
        processes.ask_for_stacks(other.pid)
        assert "in waits" in log.read_text("utf-8")
        assert asked.poll() is None and other.poll() is None


def test_stages_are_told_with_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    said: list[str] = []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stages = Stages(said.append)
    stages.begin("quick")
    now[0] += 0.5
    stages.begin("loading")
    for _ in range(13):
        now[0] += 1.0
        stages.tick()
    stages.begin("")
    assert said == ["loading ...", "loading ... 11 s", "loading: 13.0 s"]
    assert stages.seconds == {"quick": 0.5, "loading": 13.0}


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An engine that says a stage and then waits for ever, or works for a while and is ready."""
    code = """
        import json, sys, time
        from afterword.processes import dump_stacks_when_asked
        dump_stacks_when_asked()
        print(json.dumps({"stage": "loading the model"}), flush=True)
        def deadlock():
            time.sleep(600)
        if "waits" in sys.argv:
            deadlock()
        end = time.monotonic() + 6
        while time.monotonic() < end:
            sum(range(1000))
        print(json.dumps({"ready": True, "port": 1, "model": "m"}), flush=True)
        time.sleep(600)
    """
    (tmp_path / "slow_engine.py").write_text(textwrap.dedent(code), "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return "slow_engine"


def test_a_start_that_makes_no_progress_ends_with_the_cause_and_its_stacks(engine: str, tmp_path: Path) -> None:
    log, stages, began = tmp_path / "log", [], time.monotonic()
    with (
        processes.listening(lambda name, _: stages.append(name)),
        pytest.raises(UpstreamError, match=r"no progress for \d+ s while loading the model") as caught,
    ):
        start_engine(log_path=log, silence=3.0, extra=("waits",), module=engine)
    assert time.monotonic() - began < 60
    assert str(log) in caught.value.message and "in deadlock" in log.read_text("utf-8")
    assert "File" not in caught.value.message, "the stacks are in the log"
    assert stages == ["starting the engine", "loading the model", ""]


def test_slow_work_is_not_ended(engine: str, tmp_path: Path) -> None:
    with start_engine(log_path=tmp_path / "log", silence=3.0, extra=("works",), module=engine) as started:
        assert started.stages["loading the model"] >= 5.0
