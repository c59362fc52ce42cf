"""Training sees the requests of a server on this machine, also of one that crashed, and gives way to them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from afterword.sharing import BackgroundWork, HalfOfCores, Phase, ServingSignal, engines, phase_of

SERVER = """
import sys
from pathlib import Path
from afterword.sharing import Phase, ServingSignal
signal = ServingSignal(Path(sys.argv[1]))
print("ready", flush=True)
for line in sys.stdin:
    signal.working(Phase[line.strip()])
    print("done", flush=True)
"""


class Process:
    """An engine's signal in a process of its own, or other work."""

    def __init__(self, folder: Path, code: str = SERVER) -> None:
        command = [sys.executable, "-c", code, str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.read()

    def say(self, word: str) -> str:
        self.write(word)
        return self.read()

    def write(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line
        return line

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


class Cores(HalfOfCores):
    """Notes what is asked of it."""

    def __init__(self, several: bool = True) -> None:
        super().__init__()
        self.several, self.half = several, False

    def take(self) -> bool:
        self.half = self.several
        return self.half

    def release(self) -> None:
        self.half = False

    def seen(self) -> bool:
        return self.half


@pytest.fixture(autouse=True)
def not_lowered(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    calls: list[bool] = []
    monkeypatch.setattr("afterword.sharing.lower_priority", lambda: calls.append(True))
    return calls


def test_a_request_in_another_process_is_seen_until_it_ends(tmp_path: Path) -> None:
    server = Process(tmp_path)
    try:
        assert len(engines(tmp_path)) == 1
        for phase in (Phase.READING, Phase.WRITING, Phase.IDLE):
            server.say(phase.name)
            assert phase_of(engines(tmp_path)) == phase
    finally:
        server.kill()
    assert engines(tmp_path) == [], "a killed server leaves nothing that counts"
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_stopped_within_a_request_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ServingSignal(tmp_path)
    server.working(Phase.READING)
    assert phase_of(engines(tmp_path)) == Phase.READING
    now = time.monotonic()
    monkeypatch.setattr("afterword.sharing.time.monotonic", lambda: now + 3.0)
    assert phase_of(engines(tmp_path)) == Phase.IDLE
    monkeypatch.setattr("afterword.sharing.time.monotonic", lambda: now - 3.0)
    assert phase_of(engines(tmp_path)) == Phase.IDLE, "a time of another machine's clock"
    server.close()
    assert engines(tmp_path) == []


@pytest.fixture
def requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Time, list[tuple[float, Phase]]]]:
    """A server in another process, and its phases: each lasts until its moment."""
    moving, phases = Time(), list[tuple[float, Phase]]()

    def phase(paths: list[Path]) -> Phase:
        assert len(paths) == 1
        return next((phase for until, phase in phases if moving.now < until), Phase.IDLE)

    monkeypatch.setattr("afterword.sharing.phase_of", phase)
    server = Process(tmp_path)
    yield moving, phases
    server.kill()


def test_work_stops_while_a_prompt_is_read_and_keeps_two_thirds_of_its_time(
    tmp_path: Path, requests: tuple[Time, list[tuple[float, Phase]]], not_lowered: list[bool]
) -> None:
    moving, phases = requests
    work = BackgroundWork(tmp_path, moving.clock, moving.sleep, Cores())
    with work.piece():
        assert work.give_way() == 0.0
        phases[:] = [(0.2, Phase.READING)]
        assert work.give_way() == pytest.approx(0.2, abs=0.01), "until the prompt is read"
        moving.now += 0.4
        phases[:] = [(1e9, Phase.READING)]
        assert work.give_way() == pytest.approx(1.0, abs=0.01), "what is left of the first second, and half of 0.4"
        moving.now += 2.0
        before = moving.now
        work.pause_point()
        assert moving.now - before == pytest.approx(1.0, abs=0.01), "half of what it worked"
        moving.now += 1000.0
        assert work.give_way() == pytest.approx(5.0, abs=0.01)
    assert work.waited == pytest.approx(7.2, abs=0.04)
    assert work.stops == 4
    assert not_lowered == [True], "once"


def test_answers_take_half_of_the_cores_or_the_time_where_there_is_one_core(
    tmp_path: Path, requests: tuple[Time, list[tuple[float, Phase]]]
) -> None:
    moving, phases = requests
    cores = Cores()
    work = BackgroundWork(tmp_path, moving.clock, moving.sleep, cores)
    with work.piece():
        work.give_way()
        moving.now += 1.0
        phases[:] = [(2.0, Phase.WRITING)]
        work.pause_point()
        assert (moving.now, cores.seen()) == (1.0, True)
        moving.now = 2.0
        work.pause_point()
        assert cores.seen() is False, "all again once the answer is written"
        phases[:] = [(3.0, Phase.WRITING)]
        moving.now += 0.5
        work.pause_point()
        assert cores.seen() is True
    assert cores.seen() is False, "and at the end of the work"
    alone = BackgroundWork(tmp_path, moving.clock, moving.sleep, Cores(several=False))
    with alone.piece():
        assert alone.give_way() == pytest.approx(0.5, abs=0.01)


def test_only_work_that_gives_way_waits_and_never_for_its_own_engine(
    tmp_path: Path, requests: tuple[Time, list[tuple[float, Phase]]]
) -> None:
    moving, phases = requests
    work = BackgroundWork(tmp_path, moving.clock, moving.sleep, Cores())
    phases[:] = [(1e9, Phase.READING)]
    work.pause_point()
    assert work.waited == 0.0, "an engine computes by the same operations"
    ours = ServingSignal(tmp_path)
    assert len(engines(tmp_path)) == 2
    with work.piece():
        assert work.give_way() == pytest.approx(1.0, abs=0.01)  # `phase` asserts that it looks at one engine
    ours.close()


WORKER = """
import os
import sys
import time
from pathlib import Path
from afterword.sharing import BackgroundWork

told = []

def sleep(seconds):
    if not told:
        print("waits", flush=True)
    told.append(seconds)
    time.sleep(seconds)

work = BackgroundWork(Path(sys.argv[1]), clock=lambda: 0.0, sleep=sleep)  # its time never ends
with work.piece():
    print("ready", flush=True)
    for line in sys.stdin:
        told.clear()
        work.give_way()
        print(len(os.sched_getaffinity(0)), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the cores of a process are Linux's")
def test_two_processes_pause_and_go_on(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    server, worker = Process(tmp_path), Process(tmp_path, WORKER)
    try:
        assert worker.say("part") == f"{cores}\n"
        server.say("READING")
        assert worker.say("part") == "waits\n"
        server.say("IDLE")
        assert worker.read() == f"{cores}\n", "it goes on by itself, on all cores"
        server.say("READING")
        assert worker.say("part") == "waits\n"
        server.say("WRITING")
        if cores > 1:
            assert worker.read() == f"{cores - cores // 2}\n", "on half of the cores while the answer is written"
            server.say("READING")
            assert worker.say("part") == "waits\n"
        server.kill()
        assert worker.read() == f"{cores}\n", "a server that was killed holds up nobody"
    finally:
        worker.kill()
        server.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="the cores of a thread are Linux's")
def test_all_threads_leave_half_of_the_cores_and_get_theirs_back() -> None:
    code = """
import os, threading
from afterword.sharing import HalfOfCores
stop = threading.Event()
whole = os.sched_getaffinity(0)
first = threading.Thread(target=stop.wait)
first.start()
one = min(whole)
os.sched_setaffinity(first.native_id, {one})  # somebody bound it
half = HalfOfCores()
assert half.take() == half.take() == (len(whole) > 1)
if len(whole) > 1:
    assert len(os.sched_getaffinity(0)) == len(whole) - len(whole) // 2
    assert len(os.sched_getaffinity(first.native_id)) <= len(whole) - len(whole) // 2
second = threading.Thread(target=stop.wait)
second.start()
half.release()
half.release()
assert os.sched_getaffinity(0) == os.sched_getaffinity(second.native_id) == whole
assert os.sched_getaffinity(first.native_id) == {one}
stop.set()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_system_that_keeps_its_cores_undivided_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forbidden(thread: int, cores: set[int]) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr("os.sched_getaffinity", lambda thread: {0, 1}, raising=False)
    monkeypatch.setattr("os.sched_setaffinity", forbidden, raising=False)
    half = HalfOfCores()
    assert not half.take()
    assert not half.take()
    assert [record.message for record in caplog.records] == [
        "background work cannot leave cores to the server and stops during its requests (Operation not permitted)"
    ]


def test_a_folder_that_cannot_be_used_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    server = ServingSignal(taken)
    server.working(Phase.READING)
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
