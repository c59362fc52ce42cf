"""Computes the live metrics of a data directory in a process of its own: `python -m afterword.console.live DATABASE`.

At a million turns they take seconds of Python, which would hold up answers in the gateway's process.
"""

from __future__ import annotations

import os
import subprocess
import sys
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
    command = [sys.executable, "-m", "afterword.console.live", str(store.path)]
    done = subprocess.run(command, capture_output=True, timeout=LIMIT_SECONDS, check=False)
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise StoreError(f"the live metrics cannot be computed: {lines[-1] if lines else done.returncode}")
    found: Json = orjson.loads(done.stdout)
    return found


def main() -> None:
    """Prints the metrics as JSON."""
    os.nice(10)
    with Store.open(Path(sys.argv[1])) as store:
        sys.stdout.buffer.write(orjson.dumps(live_metrics(store)))


if __name__ == "__main__":
    main()
