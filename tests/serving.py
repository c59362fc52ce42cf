"""A real `afterword serve` in a process of its own, for tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen[str]

    def kill(self) -> None:
        """As a power cut would: no chance to clean up."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


@contextmanager
def serving(directory: Path, *flags: str, wait: float = 120.0) -> Iterator[Server]:
    """Start `afterword serve` on a free port, wait until it is ready, stop it at the end."""
    log = directory.parent / f"{directory.name}-serve.log"
    command = [sys.executable, "-m", "afterword", "serve", "--dir", str(directory), "--port", "0", "--json", *flags]
    with log.open("ab") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ})
    try:
        yield Server(_url(process, log, wait), process)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


def _url(process: subprocess.Popen[str], log: Path, wait: float) -> str:
    """The URL from the JSON that the server prints when it is ready."""
    assert process.stdout is not None
    lines: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith("}"):
                break

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(wait)
    text = "".join(lines)
    assert text.rstrip().endswith("}"), f"not ready in {wait} s: {log.read_text('utf-8')[-2000:]}"
    return str(json.loads(text)["url"])


def afterword(directory: Path, *arguments: str, wait: float = 300.0) -> subprocess.CompletedProcess[str]:
    """Run one command of the command line to its end."""
    command: Sequence[str] = [sys.executable, "-m", "afterword", *arguments, "--dir", str(directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=wait, check=False)


def until(condition: object, seconds: float = 20.0) -> None:
    """Wait until `condition()` is true; fail when it does not become so."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
