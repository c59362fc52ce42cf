"""The model in a process of its own, beside the one that answers HTTP. Owns that process and the pipe to it.

Two processes and not two threads: a step of a small model is hundreds of short operations, and whatever JSON and
sockets cost in the same interpreter is taken from them one lock hand-over at a time (at 16 streams on two
cores a third of the tokens per second).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import multiprocessing
import subprocess
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from afterword.engine.interface import Piece, Pieces
from afterword.engine.protocol import Ask
from afterword.errors import AfterwordError, ModelError
from afterword.processes import python_command, python_environment

if TYPE_CHECKING:
    from afterword.engine.worker import Build

log = logging.getLogger("afterword.engine")

_LOST = "the model's process has ended; the log says why; start the engine again"
_PATIENCE = 5.0
"""Seconds that the process is given to end by itself."""


class Remote:
    """A Host behind a pipe. Used on the event loop's thread from `start` on."""

    def __init__(self, build: Build, options: argparse.Namespace) -> None:
        """Start the process; `build(options)` runs in it and must be importable there by its name."""
        self._pipe, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                python_command("afterword.engine.worker", str(theirs.fileno())), env=python_environment(),
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=2,
                process_group=0,  # Ctrl-C is for us, at whose end the pipe ends
            )  # fmt: skip
        self._pipe.send((build, options))
        self.alive = True
        self.max_model_len = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: set[int] = set()
        self._calls: dict[int, Future[Any]] = {}
        self._numbers = itertools.count()

    def wait_ready(self) -> None:
        """Return when the model is loaded. Raises what the loading raised, ModelError when the process died."""
        try:
            ready = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise ModelError(
                f"the model's process ended while loading (exit code {self._wait()}): out of memory?"
            ) from error
        if isinstance(ready, AfterwordError):
            self._wait()
            raise ready
        self.max_model_len = ready

    def start(self, deliver: Callable[[Pieces], object]) -> None:
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pipe.fileno(), self._receive)

    def close(self) -> None:
        """End the process after its current step."""
        self._hang_up()
        self._pipe.close()
        self._wait()

    def _wait(self) -> int:
        """The process's exit code; it is killed when it does not end by itself."""
        try:
            return self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def submit(self, number: int, ask: Ask, prompt: list[int], limit: int) -> None:
        self._open.add(number)
        self._send("submit", number, ask, prompt, limit)

    def cancel(self, number: int) -> None:
        self._open.discard(number)
        self._send("cancel", number)

    def load(self, name: str, path: str, created: int) -> Future[None]:
        return self._call("load", name, path, created)

    def unload(self, name: str) -> Future[None]:
        return self._call("unload", name)

    def counts(self) -> Future[dict[str, int]]:
        return self._call("counts")

    def _call(self, what: str, *arguments: Any) -> Future[Any]:
        number = next(self._numbers)
        future = self._calls[number] = Future()
        self._send("call", number, what, *arguments)
        return future

    def _send(self, *message: Any) -> None:
        if self.alive:
            try:
                self._pipe.send(message)
                return
            except OSError:
                self._lose()
        self._fail_open()

    def _receive(self) -> None:
        try:
            kind, *values = self._pipe.recv()
        except (EOFError, OSError):
            self._lose()
            self._fail_open()
            return
        if kind == "pieces":
            pieces: Pieces = values[0]
            self._open.difference_update(number for number, piece in pieces if piece.finish is not None)
            self._deliver(pieces)
        else:
            number, result, error = values
            future = self._calls.pop(number)
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    def _hang_up(self) -> None:
        self.alive = False
        if self._loop is not None:
            self._loop.remove_reader(self._pipe.fileno())
            self._loop = None

    def _lose(self) -> None:
        self._hang_up()
        log.error(_LOST)

    def _fail_open(self) -> None:
        """Nobody waits for a process that is gone."""
        calls, self._calls = self._calls, {}
        for future in calls.values():
            future.set_exception(ModelError(_LOST))
        numbers, self._open = self._open, set()
        self._deliver([(number, Piece(finish="error")) for number in numbers])
