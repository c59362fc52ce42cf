"""Runs the model's side of the engine: requests by number, adapters by name, over one Engine.

Takes plain values that can cross a pipe; knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import torch

from afterword.engine.interface import TokenOutputs
from afterword.errors import AdapterError
from afterword.model.generation.adapters import Adapter, read_adapter
from afterword.model.generation.engine import Engine, Request
from afterword.model.generation.request import GenerationRequest, TokenOutput
from afterword.model.generation.runner import Runner
from afterword.model.generation.text import Codec
from afterword.sharing import BACKGROUND, ServingSignal


class Host:
    """The model in this process, on the thread that calls `run`."""

    def __init__(
        self,
        runner: Runner,
        codec: Codec,
        name: str,
        base: str,
        *,
        max_batch: int = 32,
        background: bool = False,
        prefix_bytes: int = 0,
    ) -> None:
        """`name`: under which requests mean the base model; `base`: hash of its weights; `background`: it gives way to
        other engines on this machine instead of telling training that it computes; `prefix_bytes`: bound of the keys
        kept of prompts."""
        self.runner = runner
        self.max_model_len, self.vocabulary = runner.max_model_len, runner.vocabulary
        self._signal = None if background else ServingSignal()
        working = (lambda phase: BACKGROUND.give_way()) if self._signal is None else self._signal.working
        self.engine = Engine(runner, self._hand_over, max_batch=max_batch, working=working, prefix_bytes=prefix_bytes)
        self._codec, self._name, self._base = codec, name, base
        self._adapters: dict[str, Adapter] = {}
        self._requests: dict[int, Request] = {}
        # Folders are read on one thread of their own. It must not start OpenMP threads beside the model's: with
        # more of them than cores libgomp no longer spins at its barriers, and every short operation pays a wake-up.
        self._reader = ThreadPoolExecutor(
            1, thread_name_prefix="adapters", initializer=torch.set_num_threads, initargs=(1,)
        )

    @property
    def alive(self) -> bool:
        """True until the model has ended."""
        return self.engine.alive

    def run(self, deliver: Callable[[TokenOutputs], object]) -> None:
        """Works until `stop`.

        Args:
            deliver: Gets all new outputs of a step, by request number.
        """
        self._deliver = deliver
        try:
            with nullcontext() if self._signal is not None else BACKGROUND.piece():
                self.engine.run()
        finally:
            if self._signal is not None:
                self._signal.close()
            self._reader.shutdown()

    def stop(self) -> None:
        """Ends `run` after its current step."""
        self.engine.stop()

    def submit(self, number: int, ask: GenerationRequest, prompt: list[int], limit: int) -> None:
        """Queues a request; see `interface.Model.submit`."""
        adapter = None if ask.model == self._name else self._adapters.get(ask.model)
        if adapter is None and ask.model != self._name:  # unloaded while the prompt was written
            self._deliver([(number, TokenOutput(finish="error"))])
            return
        request = self._requests[number] = Request(number, ask, prompt, limit, adapter, self._codec)
        self.engine.submit(request)

    def cancel(self, number: int) -> None:
        """Cancels a request; see `interface.Model.cancel`."""
        request = self._requests.pop(number, None)
        if request is not None:
            self.engine.cancel(request)

    def load(self, name: str, path: str, created: int) -> Future[None]:
        """Loads an adapter folder; see `interface.Model.load`."""
        return self._reader.submit(self._load, name, path, created)

    def unload(self, name: str) -> Future[None]:
        """Unloads an adapter; see `interface.Model.unload`."""
        return self.engine.remove_adapter(self._adapters.pop(name))

    def counts(self) -> Future[dict[str, int]]:
        """Returns requests running and waiting, and tokens generated since the start."""
        future: Future[dict[str, int]] = Future()
        future.set_result(self.engine.counts())
        return future

    def _load(self, name: str, path: str, created: int) -> None:
        adapter = read_adapter(name, Path(path), self.runner.lines, self._base, created)
        try:
            self.engine.add_adapter(adapter).result()
        except RuntimeError as error:
            raise AdapterError(f"the adapter {path!r} could not be loaded into the model: {error}") from error
        self._adapters[name] = adapter

    def _hand_over(self, pieces: list[tuple[Request, TokenOutput]]) -> None:
        for request, piece in pieces:
            if piece.finish is not None:
                self._requests.pop(request.number, None)
        self._deliver([(request.number, piece) for request, piece in pieces])
