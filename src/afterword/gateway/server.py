"""Runs the gateway process: socket, event loop, signals.

On stop, answers in flight complete and pending records are written.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

from aiohttp import web

from afterword.chat.private import redactor
from afterword.errors import ConfigError
from afterword.gateway.app import Extend, make_app
from afterword.gateway.keys import key_file, list_keys
from afterword.gateway.origin_policy import OriginPolicy
from afterword.gateway.settings import GatewaySettings
from afterword.sampling.urls import is_loopback
from afterword.store import Store

if sys.platform == "win32":
    _new_loop = asyncio.new_event_loop  # pragma: no cover
else:
    import uvloop

    _new_loop = uvloop.new_event_loop

OnReady = Callable[[str], object]


def run_gateway(
    settings: GatewaySettings,
    on_ready: OnReady | None = None,
    stop: threading.Event | None = None,
    extend: Extend | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM (in the main thread) or until `stop` is set.

    Args:
        settings: Settings of the gateway.
        on_ready: Called once with the URL, when the socket is open and the upstream was polled.
        stop: Ends the server when set.
        extend: Adds routes of other rooms.

    Raises:
        ConfigError: If the address is in use, invalid or not allowed.
        StoreError: If the database cannot be opened.
    """
    check_address(settings)
    with (
        bind(settings) as listener,
        Store.open(settings.database, redactor(settings.redact), settings.artifacts) as store,
        asyncio.Runner(loop_factory=_new_loop) as runner,
    ):
        runner.run(_serve(settings, make_app(settings, store, extend), listener, on_ready, stop))


@contextlib.contextmanager
def serve_in_thread(settings: GatewaySettings, extend: Extend | None = None) -> Iterator[str]:
    """Runs a gateway in a thread of this process, for tests and the demo.

    Args:
        settings: Settings of the gateway.
        extend: Adds routes of other rooms.

    Yields:
        Its URL.

    Raises:
        ConfigError, StoreError: As `run_gateway`.
    """
    stop, ready = threading.Event(), threading.Event()
    urls: list[str] = []
    errors: list[BaseException] = []

    def opened(url: str) -> None:
        urls.append(url)
        ready.set()

    def run() -> None:
        try:
            run_gateway(settings, opened, stop, extend)
        except BaseException as error:  # noqa: BLE001  (handed to the caller below)
            errors.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="afterword-gateway")
    thread.start()
    try:
        ready.wait()
        if errors:
            raise errors[0]
        yield urls[0]
    finally:
        stop.set()
        thread.join()


def check_address(settings: GatewaySettings) -> None:
    """Checks that the address is valid and not open to other machines without a key.

    Raises:
        ConfigError: If the port or an origin is invalid, or the address needs an API key and none exists.
    """
    OriginPolicy(settings.allow_origins)
    if not 0 <= settings.port <= 65535:
        raise ConfigError(f"--port {settings.port} is invalid: use 1 to 65535, or 0 for any free port.", param="port")
    keys = list_keys(settings.dir)
    if not keys and not is_loopback(settings.host):
        raise ConfigError(
            f"--host {settings.host} is open to other machines, but no API key exists in "
            f"{key_file(settings.dir)}. Create one with `afterword keys create`, or listen on 127.0.0.1.",
            param="host",
        )


def bind(settings: GatewaySettings) -> socket.socket:
    """Opens the listening socket.

    Raises:
        ConfigError: If the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            why = f"port {settings.port} is in use on {settings.host}: set --port to another one, or to 0 for any."
        else:
            why = f"cannot listen on {settings.host}:{settings.port}: {error}. Check --host and --port."
        raise ConfigError(why, param="port") from error
    return listener


async def _serve(
    settings: GatewaySettings,
    app: web.Application,
    listener: socket.socket,
    on_ready: OnReady | None,
    stop: threading.Event | None,
) -> None:
    loop = asyncio.get_running_loop()
    end = asyncio.Event()
    main = threading.current_thread() is threading.main_thread()
    if main:
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):  # Windows has no handlers in the loop
                loop.add_signal_handler(number, end.set)
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=settings.stop_patience,
        keepalive_timeout=75.0,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        if main:
            gc.freeze()  # what exists now lives as long as the process: the collector need not look at it again
        if on_ready is not None:
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            on_ready(f"http://{host}:{listener.getsockname()[1]}")
        while not end.is_set() and not (stop is not None and stop.is_set()):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(end.wait(), 0.1 if stop is not None else None)
    finally:
        await runner.cleanup()
