"""Holds the inputs that all suites share: held-out interactions, both arms and their answers."""
