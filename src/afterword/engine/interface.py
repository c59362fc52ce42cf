"""What the HTTP side sees of the model, in plain values that cross a pipe. Loads no torch."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from afterword.model.generation.request import GenerationRequest, TokenOutput

TokenOutputs = list[tuple[int, TokenOutput]]
"""Pieces by the number of their request."""


class Model(Protocol):
    """The model, wherever it runs."""

    @property
    def max_model_len(self) -> int:
        """Context in tokens."""

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the model can read: those from 0 up to it."""

    @property
    def alive(self) -> bool:
        """False once the model has ended; every request then fails."""

    def submit(self, number: int, ask: GenerationRequest, prompt: list[int], limit: int) -> None:
        """Answer a prompt under a number of the caller's with at most `limit` tokens."""

    def cancel(self, number: int) -> None:
        """Stop working for a request; harmless when it is done."""

    def load(self, name: str, path: str, created: int) -> Future[None]:
        """Make an adapter folder usable under a name; the future may hold an AdapterError."""

    def unload(self, name: str) -> Future[None]:
        """Take an adapter away once the requests that use it are done; its name is free at once."""

    def counts(self) -> Future[dict[str, int]]:
        """Requests running and waiting, tokens generated since the start."""
