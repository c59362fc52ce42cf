"""How the threads of torch wait for each other; to be said before torch is loaded. Owns nothing else."""

from __future__ import annotations

import os

_BRIEFLY = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}


def wait_briefly() -> None:
    """Let OpenMP threads spin for some microseconds and then sleep, unless the environment says otherwise.

    Threads that spin for long make a training step ten times slower as soon as anything else computes on the same cores
    (2.5 s became 20 to 70 s beside a server on two). Two thousand turns keep a quiet machine's pace: with none, a step
    takes one and a half times as long. Without effect once torch is loaded.
    """
    for name, value in _BRIEFLY.items():
        os.environ.setdefault(name, value)


def wait_as_usual() -> None:
    """Forget what a parent process said by `wait_briefly`.

    An engine that was started by a process that trains or measures inherits it, and its steps of hundreds of short
    operations then pay a wake-up each; it finds out by itself whether a second thread pays (`engine.cores`). Nothing is
    changed where only one of the two variables has that value. Without effect once torch is loaded.
    """
    if all(os.environ.get(name) == value for name, value in _BRIEFLY.items()):
        for name in _BRIEFLY:
            del os.environ[name]
