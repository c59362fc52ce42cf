"""The model in a process of its own, beside the one that answers HTTP. Owns that process and the pipe to it.

Two processes and not two threads: a step of a small model is hundreds of short operations, and whatever JSON and
sockets cost in the same interpreter is taken from them one lock hand-over at a time (at 16 streams on two
cores a third of the tokens per second).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any

from afterword.engine.core import Piece
from afterword.engine.cores import after_fork
from afterword.engine.host import Host, Pieces
from afterword.engine.protocol import Ask
from afterword.errors import AfterwordError, ModelError

log = logging.getLogger("afterword.engine")

_LOST = "the model's process has ended; the log says why; start the engine again"
_PATIENCE = 5.0
"""Seconds that the process is given to end by itself."""

Build = Callable[[argparse.Namespace], Host]


class Remote:
    """A Host behind a pipe. Made before the event loop runs (it forks), used on the loop's thread."""

    def __init__(self, build: Build, options: argparse.Namespace) -> None:
        # A fork shares the imported libraries' memory; elsewhere forking is not safe.
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(build, options, theirs, self._pipe), daemon=True)
        self._process.start()
        theirs.close()
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
            self._process.join(_PATIENCE)
            raise ModelError(
                f"the model's process ended while loading (exit code {self._process.exitcode}): out of memory?"
            ) from error
        if isinstance(ready, AfterwordError):
            self._process.join(_PATIENCE)
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
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

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


def _serve(build: Build, options: argparse.Namespace, pipe: Connection, other_end: Connection) -> None:
    """The model's process: load, say so, then do what comes through the pipe until it closes."""
    other_end.close()
    after_fork()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the process that we belong to decides when we end
    loaded = threading.Event()
    threading.Thread(target=_end_with_parent, args=(pipe, loaded), name="pipe-watch", daemon=True).start()
    try:
        host = build(options)
    except AfterwordError as error:
        error.__cause__ = None
        pipe.send(error)
        return
    lock = threading.Lock()

    def send(message: tuple[Any, ...]) -> None:
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        try:
            with lock:
                pipe.send_bytes(data)
        except OSError:
            host.stop()  # nobody is there to read it

    def listen() -> None:
        try:
            while True:
                _do(host, pipe.recv(), send)
        except (EOFError, OSError):
            host.stop()

    loaded.set()
    pipe.send(host.max_model_len)
    threading.Thread(target=listen, name="pipe", daemon=True).start()
    # The model stays on the thread that loaded it: a second thread would bring OpenMP threads of its own.
    host.run(lambda pieces: send(("pieces", pieces)))


def _end_with_parent(pipe: Connection, loaded: threading.Event) -> None:
    """End at once when the process that we belong to is gone while the model loads, which may take minutes."""
    with contextlib.suppress(OSError):
        pipe.poll(None)  # it says nothing before it knows that the model is loaded: this is its end
    if not loaded.is_set():
        os._exit(1)


def _do(host: Host, message: tuple[Any, ...], send: Callable[[tuple[Any, ...]], None]) -> None:
    kind, *values = message
    if kind == "submit":
        host.submit(*values)
    elif kind == "cancel":
        host.cancel(*values)
    else:
        number, what, *arguments = values
        future: Future[Any] = getattr(host, what)(*arguments)
        future.add_done_callback(lambda done: send(("done", number, *_outcome(done))))


def _outcome(done: Future[Any]) -> tuple[Any, BaseException | None]:
    error = done.exception()
    if error is not None:
        error.__cause__ = None  # a cause may hold what cannot be pickled
        return None, error
    return done.result(), None
