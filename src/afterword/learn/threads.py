"""How the threads of torch wait for each other; to be said before torch is loaded. Owns nothing else."""

from __future__ import annotations

import os


def wait_briefly() -> None:
    """Let OpenMP threads spin for some microseconds and then sleep, unless the environment says otherwise.

    Threads that spin for long make a training step ten times slower as soon as anything else computes on the same cores
    (2.5 s became 20 to 70 s beside a server on two). Two thousand turns keep a quiet machine's pace: with none, a step
    takes one and a half times as long. Without effect once torch is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
