"""Afterword: a deployed language model that learns from what its users do next."""

__version__ = "0.1.0"
