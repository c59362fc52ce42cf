"""Interactions to a candidate: `train_candidate` and what it needs.

Owns a training run from its examples to the adapter folder. It never reads the store, never decides what is
released, and never trains a holdout interaction.
"""

import os

# Before torch is loaded: OpenMP threads that spin for long while they wait for each other make a training step ten
# times slower as soon as anything else computes on the same cores (2.5 s became 20 to 70 s beside a server on two). Two
# thousand turns, some microseconds, keep a quiet machine's pace: with none, a step takes one and a half times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
