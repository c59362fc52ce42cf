"""One process of a training in several: finishes the run that its parent recorded, and prints what happens as events.

python -m afterword.train.worker DATABASE CANDIDATE DEVICE [ARTIFACTS]

`afterword.train.runtime.local_workers` starts it.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from afterword.store import Store
from afterword.train.runtime.distributed import init_distributed
from afterword.train.runtime.local_workers import WorkerEvent
from afterword.train.stage import finish_run


def main(database: str, candidate: str, device: str, artifacts: str = "") -> int:
    """Train.

    Args:
        database: File of the store whose directory holds the run.
        candidate: Id of the candidate that the run makes.
        device: "auto", "cpu" or "cuda".
        artifacts: URL of the object store, if there is one.

    Returns:
        The exit code: 0 at the end, 1 after an error, which was printed as an event.
    """
    logging.basicConfig(format="%(asctime)s %(name)s %(message)s")
    first = init_distributed().is_main

    def say(event: WorkerEvent) -> None:
        sys.stdout.write(event.line() + "\n")
        sys.stdout.flush()

    def tell(event: WorkerEvent) -> None:
        if first:
            say(event)

    store = Store.open(Path(database), artifacts=artifacts or None)
    try:
        finish_run(
            store,
            Path(database).parent,
            candidate,
            device=device,
            progress=lambda metrics: tell(WorkerEvent(step=metrics)),
            note=lambda text: tell(WorkerEvent(note=text)),
        )
    except Exception as error:  # the parent raises it
        logging.getLogger("afterword.train").exception("this worker failed")
        say(WorkerEvent.of(error))
        return 1
    finally:
        store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
