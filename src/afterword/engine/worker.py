"""Runs the model's process: `python -m afterword.engine.worker FD PARENT` loads a model and serves the pipe FD.

A fresh interpreter: a fork would inherit torch without its threads. The first message is `(build, options)`; the
process ends when the pipe closes.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import logging
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from afterword.errors import AfterwordError
from afterword.model.generation.request import TokenOutput
from afterword.processes import dump_stacks_when_asked, listening, stage

if TYPE_CHECKING:
    from afterword.engine.host import Host

    Build = Callable[[argparse.Namespace], Host]

log = logging.getLogger("afterword.engine")

_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1
"""glibc's numbers for mallopt."""
_SET_PARENT_DEATH_SIGNAL = 1
"""Linux's number for prctl."""


def build(options: argparse.Namespace) -> Host:
    """Loads the model that `python -m afterword.engine` serves.

    Raises:
        ModelError: If it cannot be loaded.
    """
    from afterword.engine.host import Host
    from afterword.model import loading
    from afterword.model.generation.runner import Runner
    from afterword.model.generation.text import Codec, stop_ids

    if sys.platform == "linux":
        _keep_memory()
    start_log()
    tokenizer = loading.load_tokenizer(options.model)
    model = loading.load_model(options.model, dtype=options.dtype, device=options.device)
    with stage("checking the model"):
        runner = Runner(model, ends=frozenset(stop_ids(model, tokenizer)), max_model_len=options.max_model_len)
    base = loading.base_hash(loading.resolve_model(options.model))
    return Host(
        runner,
        Codec(tokenizer),
        options.served_model_name,
        base,
        max_batch=options.max_batch,
        background=options.background,
        prefix_bytes=options.prefix_mib << 20,
    )


def start_log() -> None:
    """Logs to stderr."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")


def _keep_memory() -> None:
    """Tell glibc to keep freed memory: a step's logits are megabytes, and giving them back to the system costs
    more in page faults than the sampling itself (20 ms against 1.5 ms a step at 16 requests on two cores)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, 1 << 25), (_TRIM_THRESHOLD, 1 << 30)):
            mallopt(option, value)


def main() -> None:
    """Reads the build message, then serves."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the process that we belong to decides when we end
    _end_with_starter(int(sys.argv[2]))
    dump_stacks_when_asked()
    pipe = Connection(int(sys.argv[1]))
    try:
        build, options = pipe.recv()
    except EOFError:  # it ended at once
        return
    serve(build, options, pipe)


def serve(build: Build, options: argparse.Namespace, pipe: Connection) -> None:
    """Loads the model, reports it, then handles messages until the pipe closes."""
    from afterword.model.generation.engine import ModelBroken

    loaded = threading.Event()
    threading.Thread(target=_end_with_parent, args=(pipe, loaded), name="pipe-watch", daemon=True).start()
    try:
        with listening(lambda name, _: pipe.send(("stage", name))):
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
                _try(host, pipe.recv(), send)
        except (EOFError, OSError):
            host.stop()

    loaded.set()
    pipe.send(("ready", host.max_model_len, host.vocabulary))
    threading.Thread(target=listen, name="pipe", daemon=True).start()
    # The model stays on the thread that loaded it: a second thread would bring OpenMP threads of its own.
    try:
        host.run(lambda pieces: send(("pieces", pieces)))
    except ModelBroken as error:
        send(("broken", str(error)))
        raise


def _end_with_starter(starter: int) -> None:
    """Linux ends us when the thread that started us ends, whatever we do then: loading a library takes seconds in which
    no Python runs."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
    if prctl is not None:
        prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGKILL))
    if os.getppid() != starter:  # it has ended already
        os._exit(1)


def _end_with_parent(pipe: Connection, loaded: threading.Event) -> None:
    """End at once when the process that we belong to is gone while the model loads, which may take minutes."""
    with contextlib.suppress(OSError):
        pipe.poll(None)  # it says nothing before it knows that the model is loaded: this is its end
    if not loaded.is_set():
        os._exit(1)


def _try(host: Host, message: tuple[Any, ...], send: Callable[[tuple[Any, ...]], None]) -> None:
    """Do what a message says; a fault in it ends this request or call alone."""
    try:
        _do(host, message, send)
    except Exception as error:
        log.exception("a message of kind %r failed", message[0])
        if message[0] == "submit":
            send(("pieces", [(message[1], TokenOutput(finish="error"))]))
        elif message[0] == "call":
            send(("done", message[1], None, RuntimeError(repr(error))))


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


if __name__ == "__main__":
    main()
