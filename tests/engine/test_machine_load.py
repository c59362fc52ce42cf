"""How many threads a step gets is a function of readings; the readings here are recorded ones."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest

from afterword.model.generation.machine_load import (
    Limits,
    LoadFollower,
    RunQueue,
    Usage,
    limits,
    longest_wait,
    parse_stat,
    read_usage,
    used_by_others,
)
from afterword.model.generation.thread_tuner import Cores

STAT = """cpu  3189366 1327524 429038 743725 11611 0 7708 4561 0 0
cpu0 1533210 640002 197796 478311 3570 0 972 2331 0 0
cpu1 1656156 687521 231242 265413 8041 5 6736 2230 0 0
intr 1 2 3
"""


@pytest.mark.parametrize(
    ("cores", "normal", "niced", "wanted"),
    [
        (2, 0.1, 0.0, Limits(2, 2)),  # a gateway and a browser
        (2, 1.0, 0.0, Limits(1, 1)),  # one busy process
        (2, 2.0, 0.0, Limits(1, 1)),  # two
        (2, 0.1, 2.0, Limits(2, 1)),  # a training run: it keeps one core
        (2, 0.1, 0.2, Limits(2, 2)),
        (16, 1.0, 0.0, Limits(15, 15)),
        (16, 14.2, 0.0, Limits(2, 2)),
        (16, 0.0, 16.0, Limits(16, 8)),
        (16, 12.0, 4.0, Limits(4, 4)),
        (1, 1.0, 1.0, Limits(1, 1)),
    ],
)
def test_other_processes_decide_how_many_threads_there_are(
    cores: int, normal: float, niced: float, wanted: Limits
) -> None:
    assert limits(cores, normal, niced) == wanted


def test_cpu_time_of_our_cores_is_read_by_priority() -> None:
    assert parse_stat(STAT, [0]) == (1533210 + 197796 + 972 + 2331, 640002)
    assert parse_stat(STAT, [0, 1])[1] == 640002 + 687521
    assert parse_stat("cpu0 1 2 3 4\n", [0]) == (4, 2), "an old kernel has fewer columns"


def test_our_own_time_is_left_out_at_either_priority() -> None:
    before = Usage(10.0, 100.0, 50.0, 7.0)
    assert used_by_others(before, Usage(12.0, 103.0, 51.0, 9.0)) == (0.5, 0.5)
    assert used_by_others(before, Usage(12.0, 101.0, 54.0, 9.0, own_niced=True)) == (0.5, 1.0)
    assert used_by_others(before, Usage(12.0, 100.0, 50.0, 9.0)) == (0.0, 0.0), "counted in hundredths of a second"


class Machine:
    """A clock and what others use from then on."""

    def __init__(self, normal: float = 0.0, niced: float = 0.0) -> None:
        self.now, self.normal, self.niced = 0.0, normal, niced
        self._counted = [0.0, 0.0]

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self._counted[0] += seconds * self.normal
        self._counted[1] += seconds * self.niced

    def usage(self) -> Usage:
        return Usage(self.now, self._counted[0], self._counted[1], 0.0)

    def follower(self, cores: int = 2) -> LoadFollower:
        return LoadFollower(cores, self.usage, lambda: self.now)


def test_the_threads_follow_the_load_within_a_second() -> None:
    machine = Machine()
    follower = machine.follower()
    assert follower.look() == Limits(2, 2)
    machine.normal = 2.0
    machine.pass_time(0.5)
    assert follower.look() == Limits(1, 1)
    machine.normal = 0.0
    machine.pass_time(0.3)
    assert follower.look() == Limits(2, 2)


def test_a_step_whose_threads_waited_halves_them_at_once_and_they_are_tried_again() -> None:
    machine = Machine()
    follower = machine.follower(8)
    follower.record(8, 0.100, 0.010)
    assert follower.look() == Limits(8, 8), "a tenth of a step is no reason"
    follower.record(8, 0.100, 0.080)
    assert follower.look() == Limits(4, 4)
    follower.record(4, 0.100, 0.080)
    assert follower.look() == Limits(2, 2)
    machine.pass_time(1.1)
    assert follower.look() == Limits(8, 8)


def test_trying_too_early_is_tried_later_the_next_time() -> None:
    machine, pauses = Machine(), []
    follower = machine.follower()
    for _ in range(5):
        follower.record(2, 0.1, 0.1)
        began = machine.now
        while follower.look() == Limits(1, 1):
            machine.pass_time(0.1)
        pauses.append(round(machine.now - began, 1))
    assert pauses == sorted(pauses)
    assert pauses[0] <= 0.6
    assert pauses[-1] == pytest.approx(4.0, abs=0.15)
    machine.pass_time(60.0)
    follower.record(2, 0.1, 0.1)
    machine.pass_time(0.6)
    assert follower.look() == Limits(2, 2), "long ago is forgotten"


def test_a_system_that_tells_nothing_limits_nothing() -> None:
    follower = LoadFollower(4, lambda: None)
    follower.record(4, 0.1, 0.0)
    assert follower.look() == Limits(4, 4)


def test_reading_takes_the_cores_of_niced_work_and_writing_leaves_it_half(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    monkeypatch.setattr("afterword.model.generation.thread_tuner._use", used.append)
    machine = Machine(niced=2.0)
    follower = machine.follower()
    machine.pass_time(1.0)
    cores = Cores(2, follower)
    for tokens, reading in ((40, True), (1, False), (16, False), (300, False)):
        with cores.share(tokens, reading):
            pass
    assert used == [2, 1, 1, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_the_counters_of_this_machine_are_read() -> None:
    before = read_usage()
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    after = read_usage()
    assert before is not None
    assert after is not None
    assert after.own - before.own >= 0.2
    # two clocks of the system, one of which counts in ticks on each core
    assert after.normal + after.niced - before.normal - before.niced >= 0.1


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="this kernel does not count run-queue waits")
def test_the_wait_of_two_threads_on_one_core_is_seen() -> None:
    core = min(os.sched_getaffinity(0))
    before_affinity, end = os.sched_getaffinity(0), threading.Event()

    def spin() -> None:
        os.sched_setaffinity(0, {core})
        while not end.is_set():
            hash(b"x" * 100)

    threads = [threading.Thread(target=spin) for _ in range(2)]
    for thread in threads:
        thread.start()
    queue = RunQueue()
    queue.find_threads()
    first = queue.read()
    deadline = time.monotonic() + 20.0
    while longest_wait(first, queue.read()) < 0.05 and time.monotonic() < deadline:
        time.sleep(0.02)
    waited = longest_wait(first, queue.read())
    end.set()
    for thread in threads:
        thread.join()
    queue.find_threads()
    queue.read()  # threads that have ended are dropped
    files = queue._files
    del queue
    assert not files, "its files are closed with it"
    assert waited >= 0.05
    assert os.sched_getaffinity(0) == before_affinity
