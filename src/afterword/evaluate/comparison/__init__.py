"""Holds what the suites share: held-out interactions, both arms and their answers."""
