"""Wall time, CPU time and memory of the demo and everything it started, stage by stage.

Reads /proc, so CPU and memory are only known on Linux; elsewhere they are None and only wall time is told.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

T = TypeVar("T")

PROC = Path("/proc")
EVERY = 1.0
"""Seconds between looks at the memory."""


def process_tree(root: int) -> list[int]:
    """`root` and its descendants that live now."""
    children: dict[int, list[int]] = {}
    for entry in PROC.glob("[0-9]*"):
        fields = _stat(int(entry.name))
        if fields:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty when the process is gone."""
    try:
        return (PROC / str(pid) / "stat").read_text("utf-8").rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return []


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of these processes and of their children that have ended."""
    ticks = sum(sum(map(int, fields[11:15])) for pid in pids if (fields := _stat(pid)))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(pids: list[int]) -> int:
    """Memory of these processes together; what several share is counted once (PSS)."""
    return sum(_pss(pid) for pid in pids)


def _pss(pid: int) -> int:
    try:
        for line in (PROC / str(pid) / "smaps_rollup").read_text("utf-8").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


class Meter:
    """Use as a context around the demo, and `with meter.stage("chat")` around each stage."""

    def __init__(self) -> None:
        self.known = (PROC / "self" / "smaps_rollup").exists()
        self.stages: dict[str, dict[str, Any]] = {}
        self._started = time.monotonic()
        self._cpu_at_start = self._cpu()
        self._peak = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="demo-meter", daemon=True)

    def __enter__(self) -> Self:
        if self.known:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Book what happens inside under `name`."""
        wall, cpu = time.monotonic(), self._cpu()
        try:
            yield
        finally:
            self.stages[name] = {"wall": round(time.monotonic() - wall, 1), "cpu": self._since(cpu)}

    @contextmanager
    def entering(self, name: str, inner: AbstractContextManager[T]) -> Iterator[T]:
        """A stage that is over when `inner` is entered; `inner` lasts as long as this context."""
        with ExitStack() as stack:
            with self.stage(name):
                value = stack.enter_context(inner)
            yield value

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return round(time.monotonic() - self._started, 1)

    def totals(self) -> dict[str, Any]:
        """CPU seconds and peak memory so far."""
        return {"cpu_seconds": self._since(self._cpu_at_start), "peak_memory_bytes": self._peak if self.known else None}

    def _since(self, start: float | None) -> float | None:
        now = self._cpu()
        return None if now is None or start is None else round(now - start, 1)

    def _cpu(self) -> float | None:
        return cpu_seconds(process_tree(os.getpid())) if self.known else None

    def _watch(self) -> None:
        while not self._end.wait(EVERY):
            self._peak = max(self._peak, memory_bytes(process_tree(os.getpid())))
