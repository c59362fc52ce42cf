"""Defines the model's interface for the HTTP side, in plain values that cross a pipe. Loads no torch."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from afterword.model.generation.request import GenerationRequest, TokenOutput

TokenOutputs = list[tuple[int, TokenOutput]]
"""Pieces by the number of their request."""


class Model(Protocol):
    """The model, in this process or another."""

    @property
    def max_model_len(self) -> int:
        """Context length in tokens."""

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the model accepts: 0 up to it."""

    @property
    def alive(self) -> bool:
        """False once the model has ended; every request then fails."""

    def submit(self, number: int, ask: GenerationRequest, prompt: list[int], limit: int) -> None:
        """Starts a request.

        Args:
            number: Number chosen by the caller; outputs carry it.
            ask: The validated request.
            prompt: Prompt ids.
            limit: Maximal number of new tokens.
        """

    def cancel(self, number: int) -> None:
        """Cancels a request; does nothing when it is done."""

    def load(self, name: str, path: str, created: int) -> Future[None]:
        """Loads an adapter folder under a name; the future may raise AdapterError."""

    def unload(self, name: str) -> Future[None]:
        """Unloads an adapter once its requests are done; its name is free at once."""

    def counts(self) -> Future[dict[str, int]]:
        """Returns requests running and waiting, and tokens generated since the start."""
