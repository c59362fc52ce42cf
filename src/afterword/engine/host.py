"""The model's side of the engine: requests by number, adapters by name, over one Engine. Owns what the HTTP side
may ask of the model, in plain values that can cross a pipe; knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from afterword.engine.interface import TokenOutputs
from afterword.errors import AdapterError
from afterword.model.generation.adapters import Adapter, read_adapter
from afterword.model.generation.engine import Engine, Request
from afterword.model.generation.request import GenerationRequest, TokenOutput
from afterword.model.generation.runner import Runner
from afterword.model.generation.text import Codec


class Host:
    """The model in this process, on the thread that calls `run`."""

    def __init__(self, runner: Runner, codec: Codec, name: str, base: str, *, max_batch: int = 32) -> None:
        """`name`: under which requests mean the base model; `base`: hash of its weights."""
        self.runner = runner
        self.max_model_len, self.vocabulary = runner.max_model_len, runner.vocabulary
        self.engine = Engine(runner, self._hand_over, max_batch=max_batch)
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
        return self.engine.alive

    def run(self, deliver: Callable[[TokenOutputs], object]) -> None:
        """Work until `stop`; `deliver` gets all new pieces of a step, by their requests' numbers."""
        self._deliver = deliver
        try:
            self.engine.run()
        finally:
            self._reader.shutdown()

    def stop(self) -> None:
        """End `run` after its current step."""
        self.engine.stop()

    def submit(self, number: int, ask: GenerationRequest, prompt: list[int], limit: int) -> None:
        adapter = None if ask.model == self._name else self._adapters.get(ask.model)
        if adapter is None and ask.model != self._name:  # unloaded while the prompt was written
            self._deliver([(number, TokenOutput(finish="error"))])
            return
        request = self._requests[number] = Request(number, ask, prompt, limit, adapter, self._codec)
        self.engine.submit(request)

    def cancel(self, number: int) -> None:
        request = self._requests.pop(number, None)
        if request is not None:
            self.engine.cancel(request)

    def load(self, name: str, path: str, created: int) -> Future[None]:
        return self._reader.submit(self._load, name, path, created)

    def unload(self, name: str) -> Future[None]:
        return self.engine.remove_adapter(self._adapters.pop(name))

    def counts(self) -> Future[dict[str, int]]:
        future: Future[dict[str, int]] = Future()
        future.set_result(self.engine.counts())
        return future

    def _load(self, name: str, path: str, created: int) -> None:
        adapter = read_adapter(name, Path(path), self.runner.lines, self._base, created)
        try:
            self.engine.add_adapter(adapter).result()
        except RuntimeError as error:
            raise AdapterError(f"adapter {path!r} could not be laid into the model: {error}") from error
        self._adapters[name] = adapter

    def _hand_over(self, pieces: list[tuple[Request, TokenOutput]]) -> None:
        for request, piece in pieces:
            if piece.finish is not None:
                self._requests.pop(request.number, None)
        self._deliver([(request.number, piece) for request, piece in pieces])
