"""Runs a computation beside the server: `python -m afterword.console.live COMMAND`, in the processor's idle time.

At a million turns the live metrics take seconds of Python, which would hold up answers in the gateway's process.
COMMAND is `metrics DATABASE`, or `run MODULE` with its words.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import orjson

from afterword.console.overview import live_metrics
from afterword.errors import StoreError
from afterword.records import Feedback, Json
from afterword.store import Store
from afterword.store.polling import last_seq

LARGE = 5_000
"""Feedback rows from which a process of its own is worth its start."""
LIMIT_SECONDS = 600.0


def live_metrics_beside(store: Store) -> Json:
    """As `live_metrics`; for a large store computed in another process, with less priority.

    Raises:
        StoreError: The process failed.
    """
    if last_seq(store, Feedback) < LARGE:
        return live_metrics(store)
    return beside("metrics", str(store.path), what="the live metrics")


def beside(*words: str, what: str) -> Json:
    """The JSON that a command of this module prints.

    Args:
        words: The command.
        what: What it computes, for the error.

    Raises:
        StoreError: The process failed.
    """
    command = [sys.executable, "-m", "afterword.console.live", *words]
    done = subprocess.run(command, capture_output=True, timeout=LIMIT_SECONDS, check=False)
    if done.returncode:
        raise StoreError(f"{what} cannot be computed: {_reason(done)}")
    found: Json = orjson.loads(done.stdout)
    return found


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    with suppress(orjson.JSONDecodeError, KeyError, TypeError):
        return str(orjson.loads(done.stdout)["error"]["message"])
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def _idle() -> None:
    """Gives way to everything else; on Linux also for the time that a wake-up takes (SCHED_IDLE)."""
    os.nice(10)
    with suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def main() -> None:
    """Runs the command of `sys.argv`."""
    _idle()
    command, first, *words = sys.argv[1:]
    if command == "metrics":
        with Store.open(Path(first)) as store:
            sys.stdout.buffer.write(orjson.dumps(live_metrics(store)))
        return
    sys.argv = [first, *words]
    runpy.run_module(first, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
