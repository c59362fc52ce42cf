"""Runs the model server as a process: `python -m afterword.engine`.

Prints one JSON line on stdout when it answers ({"ready": true, "port", "model", ...}), logs on stderr. Ends on SIGTERM,
SIGINT, or when the process named by --parent-pid is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from aiohttp import web

from afterword.engine.server import Server
from afterword.engine.worker import build, start_log
from afterword.engine.worker_client import Remote
from afterword.errors import AfterwordError
from afterword.model.embedded import EMBEDDED, embedded_model, model_name
from afterword.model.generation.text import Codec
from afterword.processes import dump_stacks_when_asked, listening

log = logging.getLogger("afterword.engine")

PREFIX_MIB = 384
"""MiB of keys kept of prompts: 17,000 tokens of the built-in model."""


def parser() -> argparse.ArgumentParser:
    """Builds the command line parser."""
    it = argparse.ArgumentParser("python -m afterword.engine", description=__doc__.splitlines()[0])
    it.add_argument("--model", default=EMBEDDED, help="folder, hub id, or " + EMBEDDED)
    it.add_argument("--port", type=int, default=0, help="0 takes a free one")
    it.add_argument("--host", default="127.0.0.1")
    it.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    it.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    it.add_argument("--max-batch", type=_positive, default=32, help="requests at once")
    it.add_argument("--prefix-mib", type=_size, default=PREFIX_MIB, help="MiB of keys kept of prompts; 0 keeps none")
    it.add_argument("--max-model-len", type=int, help="context in tokens; the model's own by default")
    it.add_argument("--served-model-name", help="name in /v1/models; the model's own by default")
    it.add_argument("--background", action="store_true", help="give way to the engines that serve on this machine")
    it.add_argument("--parent-pid", type=int, help="end when this process is gone")
    return it


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is invalid: use 1 or more")
    return value


def _size(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is invalid: use 0 or more")
    return value


async def serve(remote: Remote, codec: Codec, options: argparse.Namespace) -> None:
    """Serves until a signal, or until the parent or the model ends."""
    server = Server(remote, codec, options.served_model_name, options.model)
    web_runner = web.AppRunner(server.app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await web_runner.setup()
    stop = asyncio.Event()
    remote.start(server.distribute, stop.set)
    try:
        await web.TCPSite(web_runner, options.host, options.port).start()
        port = web_runner.addresses[0][1]
        notes = codec.faults()
        for note in notes:
            log.warning("%s", note)
        ready = {"ready": True, "port": port, "model": server.name, "max_model_len": remote.max_model_len}
        ready |= {"notes": notes} if notes else {}
        _say(ready)
        await _until_stopped(options.parent_pid, remote, stop)
    finally:
        await web_runner.cleanup()
        remote.close()


def _say(data: dict[str, Any]) -> None:
    """One line on stdout, for whoever started us."""
    sys.stdout.write(json.dumps(data) + "\n")
    sys.stdout.flush()


async def _until_stopped(parent: int | None, remote: Remote, stop: asyncio.Event) -> None:
    """Return on `stop`, SIGTERM, SIGINT, or when `parent` is gone."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    ended = threading.Event()
    # A thread, because this one may wait for a model's process that reads nothing any more.
    threading.Thread(target=_watch_model, args=(remote, ended), name="watch", daemon=True).start()
    watch = asyncio.create_task(_watch(parent, stop))
    try:
        await stop.wait()
    finally:
        ended.set()
        watch.cancel()


def _watch_model(remote: Remote, ended: threading.Event) -> None:
    while not ended.wait(2.0):
        remote.watch()


async def _watch(parent: int | None, stop: asyncio.Event) -> None:
    """Set `stop` when `parent` is gone. A direct parent is told by our own parent id, which changes at once."""
    direct = parent == os.getppid()
    while parent is not None:
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            break
        if direct and os.getppid() != parent:
            break
        await asyncio.sleep(0.5)
    else:
        return
    log.warning("process %d is gone: ending", parent)
    stop.set()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the server.

    Returns:
        0 after a clean end, 2 for a usage error, 1 for an unavailable port or a lost model.
    """
    options = parser().parse_args(arguments)
    options.served_model_name = options.served_model_name or model_name(options.model)
    start_log()
    dump_stacks_when_asked()
    try:
        with listening(lambda name, _: _say({"stage": name})):
            return _run(options)
    except AfterwordError as error:
        _say({"ended": error.message})
        sys.stderr.write(f"afterword.engine: {error.message}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"afterword.engine: cannot serve on {options.host}:{options.port}: {error}\n")
        return 1


def _run(options: argparse.Namespace) -> int:
    if options.model == EMBEDDED:
        embedded_model()  # converted once, before two processes read it
    with contextlib.closing(Remote(build, options)) as remote, ThreadPoolExecutor(1) as beside:
        loading = beside.submit(_codec, options.model)  # on another thread, so that the model's process is watched
        remote.wait_ready()
        codec = loading.result()
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(serve(remote, codec, options))
    if remote.reason is not None:
        _say({"ended": remote.reason})
        return 1
    return 0


def _codec(model: str) -> Codec:
    # Nothing computes in this process, and torch takes two thirds of the seconds that a tokenizer takes to load. What
    # is None among the modules cannot be imported, so transformers does without it.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    sys.modules.setdefault("torch", cast(Any, None))
    from afterword.model.loading import load_tokenizer

    return Codec(load_tokenizer(model))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return cast(Callable[[], asyncio.AbstractEventLoop], uvloop.new_event_loop)


if __name__ == "__main__":
    raise SystemExit(main())
