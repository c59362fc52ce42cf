"""Starts the demo's other processes (`serve`, `cycle`, `heatmap`) and measures their memory and CPU time.

`serving` and `run_json` never leave a process behind. CPU time and memory come from /proc; on other systems than Linux
they are None.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from afterword.cli.server_state import running_server
from afterword.errors import AfterwordError, NothingToDo, UpstreamError
from afterword.processes import SILENCE, Pulse, ask_for_stacks, explain, kill_tree

STOP_SECONDS = 15.0
_LOG_LINES = 15


def command(directory: Path, *words: str, overrides: Sequence[str] = ()) -> list[str]:
    """The command line of one of our commands on this data directory."""
    settings = [word for pair in overrides for word in ("--set", pair)]
    return [sys.executable, "-m", "afterword", "--dir", str(directory), *words, *settings]


@contextmanager
def serving(
    directory: Path, overrides: Sequence[str] = (), tell: Callable[[str], object] = lambda text: None
) -> Iterator[str]:
    """Run `serve` on a free port; yields the gateway's URL, and passes its output to `tell` until it is ready.
    UpstreamError with the end of its log when it fails or makes no progress."""
    log = directory / "logs" / "serve.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("ab") as sink,
        _started(command(directory, "serve", "--port", "0", overrides=overrides), stdout=sink, stderr=sink) as process,
    ):
        yield _wait_ready(process, directory, log, tell)


def _wait_ready(process: subprocess.Popen[bytes], directory: Path, log: Path, tell: Callable[[str], object]) -> str:
    pulse, looked = Pulse(process.pid), time.monotonic()
    with log.open("r", encoding="utf-8", errors="replace") as words:
        words.seek(0, os.SEEK_END)
        while process.poll() is None:
            server = running_server(directory)
            if server is not None and server["pid"] == process.pid:
                return str(server["url"])
            for line in words:
                tell(line.rstrip())
            if time.monotonic() - looked >= 1.0:
                looked = time.monotonic()
                # `serve` ends itself first, and says why; this is for a `serve` that cannot.
                if (silent := pulse.check()) >= SILENCE + 10.0:
                    why = explain(process.pid, "waiting for `afterword serve`", silent)
                    ask_for_stacks(process.pid)
                    kill_tree(process.pid)
                    raise UpstreamError(f"{why}. The stacks of its threads are in {log}.")
            time.sleep(0.05)
    tail = "\n".join(log.read_text("utf-8", "replace").splitlines()[-_LOG_LINES:])
    raise UpstreamError(
        f"`afterword serve` ended with status {process.returncode}. The end of its log {log}:\n{tail or '(empty)'}"
    )


def run_json(directory: Path, *words: str, overrides: Sequence[str] = (), fine: Sequence[int] = (0,)) -> Any:
    """Run a command with `--json` and return its output; its progress goes to our stderr.

    An exit code that is not `fine` becomes an error with the command's own message.
    """
    line = command(directory, *words, "--json", overrides=overrides)
    with _started(line, stdout=subprocess.PIPE) as process:
        out, _ = process.communicate()
    data = _parsed(out)
    if process.returncode in fine:
        return data
    error = data.get("error", {}) if isinstance(data, dict) else {}
    message = f"`afterword {words[0]}` ended with {process.returncode}: {error.get('message', 'see above')}"
    raise NothingToDo(message) if process.returncode == NothingToDo.exit_code else AfterwordError(message)


def _parsed(out: bytes) -> Any:
    try:
        return json.loads(out)
    except ValueError:
        return None


@contextmanager
def _started(line: Sequence[str], **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A child in a session of its own, so that Ctrl-C reaches us first; it is ended when we leave."""
    process = subprocess.Popen(line, stdin=subprocess.DEVNULL, start_new_session=True, **streams)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


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
    """Memory of these processes together; shared pages count once (PSS)."""
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
        """Measure the block as the stage `name`."""
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
