"""Training sees the requests of a server on this machine, also of one that crashed, and gives way to them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from afterword.sharing import BackgroundWork, ServingSignal, computing, engines

SERVER = """
import sys
from pathlib import Path
from afterword.sharing import ServingSignal
signal = ServingSignal(Path(sys.argv[1]))
print("ready", flush=True)
for line in sys.stdin:
    signal.working(line.strip() == "busy")
    print("done", flush=True)
"""


class Server:
    """An engine's signal in a process of its own."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-c", SERVER, str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        self._read()

    def _read(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


class Time:
    """A clock that only sleeping and working move."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def not_lowered(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    calls: list[bool] = []
    monkeypatch.setattr("afterword.sharing.lower_priority", lambda: calls.append(True))
    return calls


def test_a_request_in_another_process_is_seen_until_it_ends(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        assert len(engines(tmp_path)) == 1
        assert not computing(engines(tmp_path)), "it answers nobody"
        server.say("busy")
        assert computing(engines(tmp_path))
        server.say("idle")
        assert not computing(engines(tmp_path))
    finally:
        server.kill()
    assert engines(tmp_path) == [], "a killed server leaves nothing that counts"
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_stopped_within_a_request_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ServingSignal(tmp_path)
    server.working(True)
    assert computing(engines(tmp_path))
    now = time.monotonic()
    monkeypatch.setattr("afterword.sharing.time.monotonic", lambda: now + 3.0)
    assert not computing(engines(tmp_path))
    monkeypatch.setattr("afterword.sharing.time.monotonic", lambda: now - 3.0)
    assert not computing(engines(tmp_path)), "a time of another machine's clock"
    server.close()
    assert engines(tmp_path) == []


def test_work_waits_for_a_request_and_keeps_two_thirds_of_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, not_lowered: list[bool]
) -> None:
    moving = Time()
    work = BackgroundWork(tmp_path, moving.clock, moving.sleep)
    assert work.give_way() == 0.0
    moving.now += 10.0
    assert work.give_way() == 0.0, "there is no server"
    assert not not_lowered
    server = ServingSignal(tmp_path)
    busy_until = [100.0]
    monkeypatch.setattr("afterword.sharing.computing", lambda paths: moving.now < busy_until[0])
    moving.now += 1.0
    assert work.give_way() == pytest.approx(0.5, abs=0.01), "half of what it worked"
    busy_until[0] = moving.now + 1.0 + 0.2
    moving.now += 1.0
    assert work.give_way() == pytest.approx(0.2, abs=0.01), "until the request ends"
    busy_until[0] = 1e9
    moving.now += 1000.0
    assert work.give_way() == pytest.approx(5.0, abs=0.01)
    assert work.waited == pytest.approx(5.7, abs=0.03)
    assert not_lowered == [True], "once"
    server.close()


def test_a_folder_that_cannot_be_used_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    server = ServingSignal(taken)
    server.working(True)
    server.close()
    assert engines(taken) == []
    assert "cannot see requests" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="the priority of a thread is Linux's")
def test_all_threads_of_a_process_get_the_lower_priority_and_a_higher_nice_value_stays() -> None:
    code = """
import os, threading
from afterword.sharing import lower_priority
stop = threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()
lower_priority()
print([os.getpriority(os.PRIO_PROCESS, int(t)) for t in os.listdir("/proc/self/task")], os.sched_getscheduler(0))
stop.set()
os.nice(5)
lower_priority()
print(os.getpriority(os.PRIO_PROCESS, 0))
"""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    nice = max(10, before)
    assert done.stdout.splitlines() == [f"[{nice}, {nice}] {os.SCHED_BATCH}", str(min(19, nice + 5))]
