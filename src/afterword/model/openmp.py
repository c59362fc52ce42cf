"""Sets how OpenMP threads wait for each other: the only place for these variables, which child processes inherit. Takes
effect only before torch is loaded.

While other processes use the cores, an engine's step runs on fewer threads (`generation.machine_load`), which spares
both the spinning and the wake-ups."""

from __future__ import annotations

import os

_BRIEFLY = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}


def wait_briefly() -> None:
    """Let OpenMP threads spin for some microseconds and then sleep; variables that are set already stay.

    Long spinning makes a training step ten times slower when other processes use the same cores (2.5 s became 20 to
    70 s beside a server on two). 2,000 turns keep the speed of a quiet machine; with none a step takes 1.5 times as
    long.
    """
    for name, value in _BRIEFLY.items():
        os.environ.setdefault(name, value)


def wait_as_usual() -> None:
    """Remove the variables that a parent process set by `wait_briefly`.

    An engine has hundreds of short operations a step and would pay a wake-up for each. Nothing changes when only one
    of the two variables has that value.
    """
    if all(os.environ.get(name) == value for name, value in _BRIEFLY.items()):
        for name in _BRIEFLY:
            del os.environ[name]
