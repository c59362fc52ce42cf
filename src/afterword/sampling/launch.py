"""Start the embedded engine as a child process and wait until it serves.

Owns the child's life: it is told our process id and leaves with us. Never imports the engine (or torch): only its
command line and its first line of output are known here.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

from afterword.errors import ModelError, UpstreamError

_LOG_LINES = 15


@dataclass(slots=True)
class EngineProcess:
    """A running engine. Use it as a context, or call `stop`."""

    url: str
    """Root URL, without `/v1`."""
    model: str
    """Name of the base model as the engine serves it."""
    process: subprocess.Popen[str] = field(repr=False)
    log_path: Path
    """Where its log goes."""
    reader: threading.Thread = field(repr=False)
    """Reads its output to the end."""
    notes: tuple[str, ...] = ()
    """What its operator should know of the model, for example that it cannot be trained."""

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Does it run?"""
        return self.process.poll() is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, patience: float = 10.0) -> int:
        """Ask it to end, after `patience` seconds make it; returns its exit status."""
        if self.alive:
            self.process.terminate()
        try:
            status = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self.reader.join(patience)
        return status


def start_engine(
    model: str | Path | None = None,
    *,
    port: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    log_path: Path,
    wait: float = 300.0,
    extra: Sequence[str] = (),
    module: str = "afterword.engine",
) -> EngineProcess:
    """Start `python -m afterword.engine` and wait for its line {"ready": true, "port": ..., "model": ...}.

    `model` None is the engine's own default; port 0 lets the system choose. Raises UpstreamError with the end of
    this start's log when it dies or is not ready within `wait` seconds, ModelError when it says that it was told
    something impossible.
    """
    command = [sys.executable, "-m", module, "--port", str(port), "--parent-pid", str(os.getpid()), *extra]
    for flag, value in (("--model", model), ("--device", device), ("--dtype", dtype)):
        command += [flag, str(value)] if value is not None else []
    before = log_path.stat().st_size if log_path.exists() else 0
    process = _spawn(command, log_path)
    assert process.stdout is not None
    first: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=_pump, args=(process.stdout, first), name="engine-stdout", daemon=True)
    reader.start()
    engine = EngineProcess(url="", model="", process=process, log_path=log_path, reader=reader)
    try:
        said = json.loads(first.get(timeout=wait))
    except (queue.Empty, json.JSONDecodeError):
        said = None
    except BaseException:  # a signal while it loads: it must not be left behind
        engine.stop(1.0)
        raise
    if not isinstance(said, dict) or not said.get("ready"):
        ended = process.poll() is not None or _ends(process)
        status = engine.stop()
        what = f"ended with status {status}" if ended else f"was not ready within {wait:g} s and was stopped"
        message = f"the engine {what}. The end of its log {log_path}:\n{_tail(log_path, before)}"
        raise ModelError(message) if status == ModelError.exit_code else UpstreamError(message, code="engine")
    engine.url = f"http://127.0.0.1:{said['port']}"
    engine.model = str(said.get("model", ""))
    engine.notes = tuple(map(str, said.get("notes", ())))
    return engine


def _spawn(command: list[str], log_path: Path) -> subprocess.Popen[str]:
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True, encoding="utf-8"
        )


def _ends(process: subprocess.Popen[str]) -> bool:
    """True when a process that closed its output ends at once."""
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        return False
    return True


def _pump(stdout: IO[str], first: queue.Queue[str]) -> None:
    """Hand over the first line ("" when there is none) and read on, so that the child never blocks."""
    with stdout:
        first.put(stdout.readline())
        for _ in stdout:
            pass


def _tail(path: Path, start: int) -> str:
    """The last lines of what was written from the byte `start` on."""
    with path.open("rb") as log:
        log.seek(start)
        lines = log.read().decode("utf-8", "replace").splitlines()[-_LOG_LINES:]
    return "\n".join(lines) or "(empty)"
