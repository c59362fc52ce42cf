"""Interactions to a candidate: `train_candidate` and what it needs.

Owns a training run from its examples to the adapter folder. It never reads the store, never decides what is
released, and never trains a holdout interaction.
"""

from afterword.model import openmp

openmp.wait_briefly()  # before torch is loaded
