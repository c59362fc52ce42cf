"""Runs a training in several processes of this machine, and starts them again when one is lost.

The caller plans the run and records it; the workers find it as the run that was interrupted, so a restart goes on from
its checkpoint. Each worker prints events as JSON lines: a step, a note, an error. What else it prints goes to a log in
the run's folder.
"""

from __future__ import annotations

import json
import math
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

from torch.distributed import DistError

from afterword.errors import AfterwordError
from afterword.train.monitoring.metrics import StepMetrics

RESTARTS = 3
"""Restarts of one run without a step between them; more would repeat what ends it."""
_LOST = ("connection closed by peer", "connection reset", "connection refused", "broken pipe", "timed out")
"""What gloo says in the other processes after one has ended."""
_GRACE = 10.0
"""Seconds for a worker to end by itself after another did."""


class WorkersError(AfterwordError):
    """Workers of a training were lost again and again, or one raised what has no class of ours."""

    kind = "workers_failed"


@dataclass(frozen=True)
class WorkerEvent:
    """One line of a worker."""

    step: StepMetrics | None = None
    note: str | None = None
    error: str | None = None
    kind: str = ""
    """Class of the error."""
    lost: bool = False
    """The error says that another process is gone, not what happened to it."""

    def line(self) -> str:
        """One line of JSON."""
        data = {name: value for name, value in asdict(self).items() if value not in (None, "", False)}
        return json.dumps(data)

    @classmethod
    def read(cls, line: str) -> WorkerEvent | None:
        """The event of a line; None when a library printed it."""
        try:
            data: dict[str, Any] = json.loads(line)
            step = data.pop("step", None)
            return cls(step=StepMetrics(**step) if step else None, **data)
        except (ValueError, TypeError, AttributeError):
            return None

    @classmethod
    def of(cls, error: BaseException) -> WorkerEvent:
        """The event of an exception."""
        text = error.message if isinstance(error, AfterwordError) else str(error) or type(error).__name__
        communication = isinstance(error, DistError) or (
            isinstance(error, RuntimeError) and any(words in text.lower() for words in _LOST)
        )
        return cls(error=text, kind=type(error).__name__, lost=communication)


def run_workers(
    command: Sequence[str],
    count: int,
    logs: Path,
    *,
    progress: Callable[[StepMetrics], None],
    note: Callable[[str], None],
    again: Callable[[], None],
) -> None:
    """Run `command` in `count` processes that find each other, until all of them end well.

    Args:
        command: Program and arguments of a worker; rank and size come in torchrun's variables.
        count: Processes, at least 2.
        logs: Folder of `worker-RANK.log`.
        progress: Called with the metrics of each step.
        note: Called with each sentence for a person.
        again: Called before the workers are started again, to record the run as interrupted.

    Raises:
        WorkersError: A worker raised an error, or workers were lost more than `RESTARTS` times without a step.
        KeyboardInterrupt: Raised here; the workers end first.
    """
    logs.mkdir(parents=True, exist_ok=True)
    tries = 0

    def stepped(metrics: StepMetrics) -> None:
        nonlocal tries
        tries = 0
        progress(metrics)

    while (lost := _run_once(command, count, logs, stepped, note)) is not None:
        tries += 1
        if tries > RESTARTS:
            raise WorkersError(
                f"training in {count} processes ended {tries} times without a step: {lost}. "
                f"See {logs / 'worker-0.log'} and the others there; fewer train.workers need less memory."
            )
        note(f"{lost}: starting the {count} workers again from the last checkpoint")
        again()


def _run_once(
    command: Sequence[str],
    count: int,
    logs: Path,
    progress: Callable[[StepMetrics], None],
    note: Callable[[str], None],
) -> str | None:
    """None when all ended well, else which worker was lost."""
    running: list[subprocess.Popen[str]] = []
    with ExitStack() as stack:
        streams = [
            stack.enter_context((logs / f"worker-{rank}.log").open("a", encoding="utf-8")) for rank in range(count)
        ]
        stack.callback(_end, running)
        for environment, stream in zip(_environments(count), streams, strict=True):
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                encoding="utf-8",
            )
            running.append(process)
            assert process.stdout is not None
            stack.enter_context(process.stdout)
        lost, errors = _followed(running, streams, progress, note)
    causes = [(rank, event) for rank, event in errors if not event.lost]
    if causes:
        _raise(*causes[0], logs)
    if lost is None:
        return None
    rank, code = lost
    return f"worker {rank} was ended by signal {-code}" if code < 0 else f"worker {rank} ended with code {code}"


def _raise(rank: int, event: WorkerEvent, logs: Path) -> NoReturn:
    kinds = {kind.__name__: kind for kind in _kinds(AfterwordError)}
    if event.kind in kinds and kinds[event.kind].__init__ is AfterwordError.__init__:
        raise kinds[event.kind](str(event.error))
    raise WorkersError(f"worker {rank}: {event.kind}: {event.error}. See {logs / f'worker-{rank}.log'}.")


def _kinds(kind: type[AfterwordError]) -> list[type[AfterwordError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _kinds(child))]


def _environments(count: int) -> list[dict[str, str]]:
    """Variables of torchrun, one dictionary a worker; cores are shared out where the user did not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = str(max(1, len(os.sched_getaffinity(0)) // count))
    shared = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
    }  # fmt: skip
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _followed(
    running: Sequence[subprocess.Popen[str]],
    streams: Sequence[TextIO],
    progress: Callable[[StepMetrics], None],
    note: Callable[[str], None],
) -> tuple[tuple[int, int] | None, list[tuple[int, WorkerEvent]]]:
    """Pass the workers' events on until all have ended; the first that ended badly with its code, and all errors."""
    lines: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
    readers = [
        threading.Thread(target=_read, args=(rank, process, lines), daemon=True) for rank, process in enumerate(running)
    ]
    for reader in readers:
        reader.start()
    errors: list[tuple[int, WorkerEvent]] = []
    lost: tuple[int, int] | None = None
    deadline = math.inf
    open_ = len(running)
    while open_:
        with suppress(queue.Empty):
            rank, line = lines.get(timeout=0.5)
            if not line:
                open_ -= 1
            elif (event := WorkerEvent.read(line)) is None:
                streams[rank].write(line)
            elif event.step is not None:
                progress(event.step)
            elif event.note is not None:
                note(event.note)
            elif event.error is not None:
                errors.append((rank, event))
        if lost is None and (lost := _lost(running)) is not None:
            deadline = time.monotonic() + _GRACE  # the others wait for it: they get a moment, then they are ended
        if time.monotonic() > deadline:
            _end(running)
    for process in running:
        process.wait()
    return lost or _lost(running), errors


def _lost(running: Sequence[subprocess.Popen[str]]) -> tuple[int, int] | None:
    """Rank and code of a worker that ended badly, one that a signal ended before others."""
    bad = [(rank, code) for rank, process in enumerate(running) if (code := process.poll())]
    return min(bad, key=lambda one: one[1] > 0, default=None)


def _read(rank: int, process: subprocess.Popen[str], lines: queue.SimpleQueue[tuple[int, str]]) -> None:
    """Every line of a worker, and an empty one at its end."""
    assert process.stdout is not None
    for line in process.stdout:
        lines.put((rank, line))
    lines.put((rank, ""))


def _end(running: Sequence[subprocess.Popen[str]]) -> None:
    for process in running:
        if process.poll() is None:
            process.terminate()
    for process in running:
        try:
            process.wait(timeout=_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def worker_command(database: Path, candidate: str, device: str, artifacts: str | None) -> list[str]:
    """The program of a worker (`afterword.train.worker`)."""
    return [sys.executable, "-m", "afterword.train.worker", str(database), candidate, device, artifacts or ""]
