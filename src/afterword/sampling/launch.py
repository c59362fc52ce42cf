"""Starts the embedded engine as a child process and waits until it serves.

Owns the child's life: the child gets our process id and ends with us. Never imports the engine or torch; knows only its
command line and its first lines of output.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from afterword.errors import AfterwordError, ModelError, UpstreamError
from afterword.processes import SILENCE, STACKS_FOLLOW, Pulse, Stages, announce, ask_for_stacks, explain, kill_tree

_LOG_LINES = 15
_FIRST = "starting the engine"


@dataclass(slots=True)
class EngineProcess:
    """A running engine; use it as a context manager, or call `stop`."""

    url: str
    """Root URL, without `/v1`."""
    model: str
    """Name of the base model as the engine serves it."""
    process: subprocess.Popen[str] = field(repr=False)
    log_path: Path
    """Where its log goes."""
    reader: threading.Thread | None = field(default=None, repr=False)
    """Reads its output to the end."""
    notes: tuple[str, ...] = ()
    """What its operator should know of the model, for example that it cannot be trained."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage of its start."""
    ended: str = ""
    """Why it ended, in its own words."""

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        return self.process.poll() is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, patience: float = 10.0) -> int:
        """Terminates the process, and kills it after a delay.

        Args:
            patience: Seconds before it is killed.

        Returns:
            Its exit status.
        """
        if self.alive:
            self.process.terminate()
        try:
            status = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        if self.reader is not None:
            self.reader.join(patience)
        return status

    def last_words(self, status: int) -> str:
        """Describes why the process ended.

        Args:
            status: Exit status, from `stop`.
        """
        if self.ended:
            return self.ended
        name = signal.Signals(-status).name if status < 0 else f"status {status}"
        return f"the engine's process ended with {name}"


def start_engine(
    model: str | Path | None = None,
    *,
    port: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    log_path: Path,
    wait: float = 1800.0,
    silence: float = SILENCE + 5.0,
    abandon: threading.Event | None = None,
    environment: Mapping[str, str] | None = None,
    extra: Sequence[str] = (),
    module: str = "afterword.engine",
) -> EngineProcess:
    """Starts `python -m afterword.engine` and waits for its line {"ready": true, "port": ..., "model": ...}.

    Announces its stages to listeners in this process (`processes.listening`).

    Args:
        model: Built-in name, folder or hub id; None: the engine's default.
        port: 0: any free port.
        device: "cpu", "cuda" or "cuda:N"; None: the engine's default.
        dtype: "bfloat16" or "float32"; None: the engine's default.
        log_path: File that its log is appended to.
        wait: Seconds for the whole start.
        silence: Seconds without progress before the start is aborted.
        abandon: Aborts the start when set.
        environment: Additional environment variables.
        extra: Additional arguments.
        module: Module to run.

    Raises:
        UpstreamError: If it died, made no progress or was not ready in time; with the end of this start's log.
        ModelError: If the model or an argument is invalid.
    """
    command = [sys.executable, "-m", module, "--port", str(port), "--parent-pid", str(os.getpid()), *extra]
    for flag, value in (("--model", model), ("--device", device), ("--dtype", dtype)):
        command += [flag, str(value)] if value is not None else []
    before = log_path.stat().st_size if log_path.exists() else 0
    process = _spawn(command, log_path, environment)
    assert process.stdout is not None
    said: queue.Queue[dict[str, Any] | None] = queue.Queue()
    engine = EngineProcess(url="", model="", process=process, log_path=log_path)
    engine.reader = threading.Thread(
        target=_pump, args=(process.stdout, said, engine), name="engine-stdout", daemon=True
    )
    engine.reader.start()
    stages = Stages(lambda text: None)
    try:
        ready, why = _until_ready(process.pid, said, stages, wait, silence, abandon or threading.Event())
    except BaseException:  # a signal while it loads: it must not be left behind
        engine.stop(1.0)
        raise
    finally:
        announce("")
    stages.begin("")
    engine.stages = stages.seconds
    if ready is None:
        raise _failed(engine, why, before)
    engine.url = f"http://127.0.0.1:{ready['port']}"
    engine.model = str(ready.get("model", ""))
    engine.notes = tuple(map(str, ready.get("notes", ())))
    return engine


def _until_ready(
    pid: int,
    said: queue.Queue[dict[str, Any] | None],
    stages: Stages,
    wait: float,
    silence: float,
    abandon: threading.Event,
) -> tuple[dict[str, Any] | None, str]:
    """The line that says that it is ready; or None and why it is not, "" when it ended."""
    stages.begin(_FIRST)
    announce(_FIRST)
    deadline, pulse = time.monotonic() + wait, Pulse(pid)
    while time.monotonic() < deadline:
        if abandon.is_set():
            return None, "no longer wanted"
        try:
            line = said.get(timeout=min(1.0, wait))
        except queue.Empty:
            if (silent := pulse.check()) >= silence:
                return None, explain(pid, stages.name, silent)
            continue
        if line is None:
            return None, ""
        pulse.beat()
        if line.get("ready"):
            return line, ""
        if "stage" in line:
            stages.begin(str(line["stage"]) or _FIRST)
            announce(stages.name)
    return None, f"not ready within {wait:g} s"


def _failed(engine: EngineProcess, why: str, before: int) -> AfterwordError:
    """End an engine that did not become ready, with all that belongs to it; the error about it."""
    tail = _tail(engine.log_path, before)
    if why and engine.alive:
        ask_for_stacks(engine.pid)
        kill_tree(engine.pid)
        engine.stop()
        message = f"the engine made {why}" if why.startswith("no progress") else f"the engine was {why} and was stopped"
        return UpstreamError(
            f"{message}. The stacks of its threads are in {engine.log_path}. Try again; if it happens again, report "
            f"them. The end of the log before:\n{tail}",
            code="engine",
        )
    _ends(engine.process)
    status = engine.stop()
    cause = f": {engine.ended.rstrip('.')}" if engine.ended else ""
    message = f"the engine ended with status {status}{cause}. The end of its log {engine.log_path}:\n" + _tail(
        engine.log_path, before
    )
    return ModelError(message) if status == ModelError.exit_code else UpstreamError(message, code="engine")


def _spawn(command: list[str], log_path: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            stdin=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, **(environment or {})},
        )


def _ends(process: subprocess.Popen[str]) -> bool:
    """True when a process that closed its output ends at once."""
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        return False
    return True


def _pump(stdout: IO[str], said: queue.Queue[dict[str, Any] | None], engine: EngineProcess) -> None:
    """Hand over the JSON lines up to "ready", None at the end, and read on, so that the child never blocks."""
    waits = True
    with stdout:
        for line in stdout:
            data = _parsed(line)
            engine.ended = str(data.get("ended") or "") or engine.ended
            if waits and data:
                said.put(data)
            waits = waits and not data.get("ready")
    said.put(None)


def _parsed(line: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _tail(path: Path, start: int) -> str:
    """The last lines of what was written from the byte `start` on, without stacks."""
    with path.open("rb") as log:
        log.seek(start)
        lines = log.read().decode("utf-8", "replace").partition(STACKS_FOLLOW)[0].splitlines()[-_LOG_LINES:]
    return "\n".join(lines) or "(empty)"
