"""What is acknowledged survives: a kill -9, a full disk, two processes at once."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from afterword.errors import StoreError, UsageError
from afterword.records import Record, Turn
from afterword.store import Outcome, Store
from afterword.store.writer import MAX_WAIT
from tests.store.store_rows import turn

WRITER = """
import sys
from pathlib import Path
from afterword.records import Turn
from afterword.store import Store
name, count = sys.argv[2], int(sys.argv[3])
with Store.open(Path(sys.argv[1])) as store:
    print("ready", flush=True)
    for i in range(count):
        row = Turn(id=f"{name}{i}", messages=({"role": "user", "content": "x" * 500},), answer={"content": "y"})
        assert store.write(row) == ["stored"]
        print(row.id, flush=True)
"""


def start(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(count)], stdout=subprocess.PIPE, text=True
    )


def test_nothing_that_was_acknowledged_is_lost_by_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    for round_ in range(3):
        process = start(path, f"r{round_}-", 1_000_000)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.15 + 0.05 * round_)
        os.kill(process.pid, signal.SIGKILL)
        acknowledged = process.stdout.read().split("\n")[:-1]
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL and acknowledged
        with Store.open(path) as store:
            missing = [name for name in acknowledged if store.find(Turn, name) is None]
            assert missing == []
            assert store.write(turn(f"after{round_}")) == ["stored"]


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    processes = [start(path, name, 200) for name in "ab"]
    with Store.open(path) as store:
        for i in range(200):
            assert store.write(turn(f"c{i}")) == ["stored"]
        for process in processes:
            output, _ = process.communicate(timeout=60)
            assert process.returncode == 0 and len(output.splitlines()) == 201
        assert store.count(Turn) == 600


def test_a_full_disk_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a.db") as store:
        assert store.write(turn("first")) == ["stored"]
        writer = store._writer
        assert writer is not None
        pages = writer._connection.execute("PRAGMA page_count").fetchone()[0]
        writer._connection.execute(f"PRAGMA max_page_count={pages + 2}")
        big = [turn(f"big{i}", answer={"content": "z" * 20_000}) for i in range(3)]
        with pytest.raises(StoreError, match=r"full.*Nothing of this group was stored"):
            store.write(*big)
        assert store.count(Turn) == 1
        writer._connection.execute("PRAGMA max_page_count=1000000")
        assert store.write(*big) == ["stored"] * 3
        assert store.count(Turn) == 4


def test_a_database_that_stays_locked_is_an_error(tmp_path: Path) -> None:
    from afterword.store.schema import connect

    path = tmp_path / "a.db"
    with Store.open(path) as store:
        store.write(turn("first"))
        assert store._writer is not None
        store._writer._connection.execute("PRAGMA busy_timeout=50")
        other = connect(path)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            store.write(turn("second"))
        other.execute("ROLLBACK")
        other.close()
        assert store.write(turn("second")) == ["stored"]


def test_redaction_runs_in_the_writer_and_its_failure_costs_one_submission(tmp_path: Path) -> None:
    go = threading.Event()

    def clean(record: Record) -> Record:
        assert go.wait(30) and threading.current_thread().name == "afterword-writer"
        if record.id == "bad":
            raise RuntimeError("no model")
        return dataclasses.replace(record, user="[NAME]")  # type: ignore[call-arg]

    with Store.open(tmp_path / "a.db", clean) as store:
        first = store.submit([turn("t1", user="ada")])
        bad, last = store.submit([turn("bad")]), store.submit([turn("t2")])
        assert not first.done(), "nothing is redacted yet, and nobody waited"
        with pytest.raises(UsageError, match="cannot be stored"):
            store.submit([turn("\ud800")])
        go.set()
        assert first.result() == last.result() == ["stored"]
        with pytest.raises(StoreError, match="redaction failed with RuntimeError: no model"):
            bad.result()
        assert store.get(Turn, "t1").user == "[NAME]" and store.find(Turn, "bad") is None


def test_a_row_does_not_wait_for_the_redaction_of_all_that_came_after_it(tmp_path: Path) -> None:
    go, waiting = threading.Event(), []
    futures: list[Future[list[Outcome]]] = []

    def slow(record: Record) -> Record:
        assert go.wait(30)
        waiting.append(sum(not one.done() for one in futures))
        time.sleep(1.5 * MAX_WAIT)
        return record

    with Store.open(tmp_path / "a.db", slow) as store:
        futures.append(store.submit([turn("first")]))  # the writer waits in its redaction while the others queue up
        futures += [store.submit([turn(f"t{n}")]) for n in range(4)]
        go.set()
        assert [one.result() for one in futures] == [["stored"]] * 5
    assert waiting == [5, 4, 3, 2, 1]
