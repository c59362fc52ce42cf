"""The processes of a running `afterword serve`: none shares a torch that was forked."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serving import serving, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

_FORKED_WITHOUT_EXEC = 0x40
"""PF_FORKNOEXEC in the flags of /proc/PID/stat: forked, and no program executed since."""


def tree(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text("utf-8").split():
            yield from tree(int(child))


def has_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text("utf-8")


def is_fork(pid: int) -> bool:
    flags = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[6]
    return bool(int(flags) & _FORKED_WITHOUT_EXEC)


def test_no_two_processes_of_a_server_share_a_forked_torch(tiny: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--model", str(tiny)) as server:
        pids = list(tree(server.process.pid))
        with_torch = [pid for pid in pids if has_torch(pid)]
        assert len(pids) >= 3 and with_torch, pids
        assert not [pid for pid in with_torch if is_fork(pid)]


def test_a_forked_torch_would_be_seen() -> None:
    code = "import os, torch\nif os.fork() == 0: input()\nelse: os.wait()"
    parent = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stdin=subprocess.PIPE)
    until(lambda: len(list(tree(parent.pid))) == 2, 60)
    child = list(tree(parent.pid))[1]
    seen = has_torch(child) and is_fork(child), is_fork(parent.pid)
    parent.communicate(b"\n")
    assert seen == (True, False)
