"""The demo's other processes: `afterword serve`, `afterword cycle`, `afterword heatmap`, as a user would start them.

Owns starting, waiting and stopping; whatever happens to the demo, none of them is left behind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    """Run `serve` on a free port; gives the gateway's URL, and passes on to `tell` what it says until it is ready.
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
    """Run a command with `--json` and return what it printed; its progress goes to our stderr.

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
