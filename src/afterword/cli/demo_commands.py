"""The demo's other processes: `afterword serve`, `afterword cycle`, `afterword heatmap`, as a user would start them.

Owns starting, waiting and stopping; whatever happens to the demo, none of them is left behind.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from afterword.cli.server_state import running_server
from afterword.errors import AfterwordError, NothingToDo, UpstreamError

START_SECONDS = 300.0
STOP_SECONDS = 15.0
_LOG_LINES = 15


def command(directory: Path, *words: str, overrides: Sequence[str] = ()) -> list[str]:
    """The command line of one of our commands on this data directory."""
    settings = [word for pair in overrides for word in ("--set", pair)]
    return [sys.executable, "-m", "afterword", "--dir", str(directory), *words, *settings]


@contextmanager
def serving(directory: Path, overrides: Sequence[str] = ()) -> Iterator[str]:
    """Run `serve` on a free port; gives the gateway's URL. UpstreamError with the end of its log when it fails."""
    log = directory / "logs" / "serve.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("ab") as sink,
        _started(command(directory, "serve", "--port", "0", overrides=overrides), stdout=sink, stderr=sink) as process,
    ):
        yield _wait_ready(process, directory, log)


def _wait_ready(process: subprocess.Popen[bytes], directory: Path, log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        server = running_server(directory)
        if server is not None and server["pid"] == process.pid:
            return str(server["url"])
        time.sleep(0.05)
    what = "is not ready" if process.poll() is None else f"ended with status {process.returncode}"
    tail = "\n".join(log.read_text("utf-8", "replace").splitlines()[-_LOG_LINES:])
    raise UpstreamError(f"`afterword serve` {what}. The end of its log {log}:\n{tail or '(empty)'}")


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
