"""Trains candidates: `stage` executes a plan, `loop` is the algorithm.

Reads the store only in `stage` and `revise`. Never trains a held-out interaction, never decides a release.
"""

from afterword.model import openmp

openmp.wait_briefly()  # before torch is loaded
