"""One worker at a time: across processes, also after kill -9, and never against itself."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from afterword.errors import ConflictError, StoreError
from afterword.store.locks import EVALUATE, TRAIN, alone

HOLD = """
import sys, time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from afterword.store.locks import alone
with alone(Path(sys.argv[1]), sys.argv[2], "a training run"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(directory: Path, name: str = TRAIN) -> Iterator[int]:
    """Another process that holds the lock, by its id; killed at the end."""
    command = [sys.executable, "-c", HOLD, str(directory), name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process.pid
        finally:
            process.send_signal(signal.SIGKILL)


def test_the_second_is_refused_with_who_works_and_a_kill_frees_the_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as pid:
        with pytest.raises(ConflictError, match=rf"a training run works on .*\(process {pid} on .* since 20"):
            take(tmp_path)
        with alone(tmp_path, EVALUATE, "an evaluation"):  # other work goes on
            pass
    with alone(tmp_path, TRAIN, "a training run"):  # although its file still names the dead process
        note = json.loads((tmp_path / "locks" / "train.lock").read_text())
        assert note["pid"] == os.getpid()
        with alone(tmp_path, TRAIN, "a training run"):  # work within work
            pass
        refused = subprocess.run(
            [sys.executable, "-c", HOLD, str(tmp_path), TRAIN], capture_output=True, text=True, check=False, timeout=60
        )
        assert refused.returncode == 1 and "ConflictError" in refused.stderr
    assert (tmp_path / "locks" / "train.lock").read_text() == ""


def take(directory: Path) -> None:
    with alone(directory, TRAIN, "a training run"):
        pass


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(StoreError, match=r"No locks available.*--dir"):
        take(tmp_path)
