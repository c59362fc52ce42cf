"""Runs the model in a separate process beside the HTTP process; owns that process and the pipe to it.

Two processes instead of two threads: with small models, JSON and sockets take the interpreter's lock from the model's
hundreds of short operations (a third of the tokens/s at 16 streams on two cores).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from afterword.engine.interface import TokenOutputs
from afterword.errors import AfterwordError, ModelError
from afterword.model.generation.request import GenerationRequest, TokenOutput
from afterword.processes import (
    SILENCE,
    STACKS_FOLLOW,
    Pulse,
    announce,
    ask_for_stacks,
    explain,
    python_command,
    python_environment,
)

if TYPE_CHECKING:
    from afterword.engine.worker import Build

log = logging.getLogger("afterword.engine")

_LOST = "the model's process has ended"
_PATIENCE = 5.0
"""Seconds that the process is given to end by itself."""


class EngineStuck(AfterwordError):
    """The model's process makes no progress."""


class Remote:
    """A Host behind a pipe. From `start` on, use it on the event loop's thread."""

    def __init__(self, build: Build, options: argparse.Namespace) -> None:
        """Start the process; `build(options)` runs in it and must be importable there by its name."""
        self._pipe, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                python_command("afterword.engine.worker", str(theirs.fileno()), str(os.getpid())),
                env=python_environment(),
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=2,
                process_group=0,  # Ctrl-C is for us, at whose end the pipe ends
            )  # fmt: skip
        self._pipe.send((build, options))
        self.alive = True
        self.reason: str | None = None
        """Why the process ended, once it has."""
        self.max_model_len = self.vocabulary = 0
        self._pulse = Pulse(self._process.pid, children=False)
        self._ended: Callable[[], object] = lambda: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: set[int] = set()
        self._calls: dict[int, Future[Any]] = {}
        self._numbers = itertools.count()

    def wait_ready(self) -> None:
        """Waits until the model is loaded.

        Raises:
            ModelError: If the process died or made no progress for `SILENCE` seconds.
            AfterwordError: As raised by the loading.
        """
        name = "starting the model's process"
        try:
            while True:
                if not self._pipe.poll(1.0):
                    if (silent := self._pulse.check()) >= SILENCE:
                        raise EngineStuck(self._give_up(name, silent))
                    continue
                ready = self._pipe.recv()
                self._pulse.beat()
                if isinstance(ready, AfterwordError) or ready[0] != "stage":
                    break
                name = ready[1] or name
                announce(ready[1])
        except (EOFError, OSError) as error:
            raise ModelError(
                f"the model's process ended while loading (exit code {self._wait()}): check memory and the engine's log"
            ) from error
        if isinstance(ready, AfterwordError):
            self._wait()
            raise ready
        _, self.max_model_len, self.vocabulary = ready

    def _give_up(self, name: str, silent: float) -> str:
        """Write the stacks of a process that gets nowhere and end it; returns the sentence about it."""
        why = explain(self._process.pid, name, silent)
        log.error("%s; %s", why, STACKS_FOLLOW)
        ask_for_stacks(self._process.pid)
        self.reason = why  # before its end is seen
        self._process.kill()
        return why

    def watch(self) -> None:
        """Ends a model that does not answer while a request waits. Call it every second or two, on any thread."""
        if not (self.alive and self._open):
            self._pulse.beat()
        elif (silent := self._pulse.check()) >= SILENCE:
            self._give_up(f"answering {len(self._open)} requests", silent)

    def start(self, deliver: Callable[[TokenOutputs], object], ended: Callable[[], object] = lambda: None) -> None:
        """Serves on the running event loop.

        Args:
            deliver: Gets outputs by request number.
            ended: Called once when the process has ended unexpectedly.
        """
        self._deliver, self._ended = deliver, ended
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pipe.fileno(), self._receive)

    def close(self) -> None:
        """Ends the process after its current step."""
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

    def submit(self, number: int, ask: GenerationRequest, prompt: list[int], limit: int) -> None:
        """Starts a request; see `interface.Model.submit`."""
        self._open.add(number)
        self._send("submit", number, ask, prompt, limit)

    def cancel(self, number: int) -> None:
        """Cancels a request; see `interface.Model.cancel`."""
        self._open.discard(number)
        self._send("cancel", number)

    def load(self, name: str, path: str, created: int) -> Future[None]:
        """Loads an adapter folder; see `interface.Model.load`."""
        return self._call("load", name, path, created)

    def unload(self, name: str) -> Future[None]:
        """Unloads an adapter; see `interface.Model.unload`."""
        return self._call("unload", name)

    def counts(self) -> Future[dict[str, int]]:
        """Returns requests running and waiting, and tokens generated since the start."""
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
        if kind == "broken":
            self.reason = values[0]
        elif kind == "pieces":
            self._pulse.beat()
            pieces: TokenOutputs = values[0]
            self._open.difference_update(number for number, piece in pieces if piece.finish is not None)
            self._deliver(pieces)
        else:
            number, result, error = values
            future = self._calls.pop(number)
            if not future.set_running_or_notify_cancel():
                pass  # who asked is gone
            elif error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    def _hang_up(self) -> None:
        self.alive = False
        if self._loop is not None:
            self._loop.remove_reader(self._pipe.fileno())
            self._loop = None

    def _lose(self) -> None:
        if not self.alive:
            return
        self._hang_up()
        code = self._wait()
        if self.reason is None:
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            hint = ", as the system does when memory is short" if code == -signal.SIGKILL else ""
            self.reason = f"{_LOST} ({name}{hint})"
        log.error("%s", self.reason)
        self._ended()

    def _fail_open(self) -> None:
        """Nobody waits for a process that is gone."""
        calls, self._calls = self._calls, {}
        for future in calls.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(ModelError(self.reason or _LOST))
        numbers, self._open = self._open, set()
        self._deliver([(number, TokenOutput(finish="error")) for number in numbers])
