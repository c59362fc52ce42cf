"""Afterword: a deployed language model that learns from what its users do next."""

from afterword import moved

__version__ = "0.1.0"

moved.install()
