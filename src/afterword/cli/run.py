"""Commands that run something: serve, demo; simulate is in `simulate`."""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from afterword.cli.context import Context
from afterword.cli.demo import register_demo
from afterword.cli.releases import watching
from afterword.cli.simulate import register_simulate
from afterword.config import PrivacyConfig, ServeConfig
from afterword.errors import UpstreamError
from afterword.gateway.server import bind, check_address, run_gateway
from afterword.gateway.settings import GatewaySettings
from afterword.sampling import EngineProcess, start_engine


def register(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    register_demo(commands, common)
    register_simulate(commands, common)
    serve = commands.add_parser("serve", parents=[common], help="the gateway, and the embedded engine behind it")
    serve.add_argument("--host", dest="serve.host", help="address (default 127.0.0.1)")
    serve.add_argument("--port", dest="serve.port", type=int, help="port (default 8400; 0 takes a free one)")
    serve.add_argument("--upstream", dest="serve.upstream", metavar="URL", help="an OpenAI-compatible server")
    serve.add_argument("--model", dest="serve.model", metavar="REF", help="built-in name, folder or hub id")
    serve.add_argument("--device", dest="serve.device", choices=("auto", "cpu", "cuda"))
    serve.add_argument("--name", dest="serve.name", help="model name that users address (default afterword)")
    serve.set_defaults(run=run_serve)


def run_serve(context: Context) -> int:
    """Serve until a signal comes; the engine is started, watched and stopped with the gateway."""
    config = context.config.get(ServeConfig)
    settings = GatewaySettings(
        dir=context.dir,
        upstream=config.upstream or "",
        upstream_key=config.upstream_key,
        host=config.host,
        port=config.port,
        name=config.name,
        upstream_timeout=config.upstream_timeout,
        redact=context.config.get(PrivacyConfig).redact_stored,
        allow_origins=config.allow_origins,
        train=config.train,
    )
    # What would stop us does so before the engine loads: the address, the port, the database.
    check_address(settings)
    bind(settings).close()
    context.open_store(create=True).close()
    state = context.dir / "server.json"
    with _model_server(context, config) as upstream:
        try:
            with watching(context):
                run_gateway(
                    replace(settings, upstream=upstream),
                    on_ready=lambda url: _ready(context, state, url, upstream, config),
                )
        finally:
            state.unlink(missing_ok=True)
    return 0


@contextmanager
def _model_server(context: Context, config: ServeConfig) -> Iterator[str]:
    """The URL behind the gateway: the given upstream, or an engine of our own that is restarted when it dies."""
    if config.upstream is not None:
        yield config.upstream
        return
    context.say(f"starting the engine with {config.model} ...")
    watched = _Engine(config, context.dir / "logs" / "engine.log")
    try:
        yield watched.process.url
    finally:
        watched.stop()


class _Engine:
    """The engine process and the thread that starts it again, on the same port, when it dies."""

    def __init__(self, config: ServeConfig, log: Path) -> None:
        self._config, self._log = config, log
        self._stopping = threading.Event()
        self.process = self._start(0)
        self._thread = threading.Thread(target=self._watch, name="engine-watch", daemon=True)
        self._thread.start()

    def _start(self, port: int) -> EngineProcess:
        config = self._config
        return start_engine(
            config.model,
            port=port,
            device=config.device,
            dtype=config.dtype,
            log_path=self._log,
            extra=("--max-batch", str(config.max_batch)),
        )

    def _watch(self) -> None:
        port = int(self.process.url.rsplit(":", 1)[1])
        while not self._stopping.wait(0.5):
            if not self.process.alive:
                self._restart(port)

    def _restart(self, port: int) -> None:
        self.process.stop()
        try:
            self.process = self._start(port)
        except UpstreamError:
            time.sleep(5.0)  # its log has the reason, and /health says that the upstream is down

    def stop(self) -> None:
        """End the watch, then the engine."""
        self._stopping.set()
        self._thread.join()
        self.process.stop()


def _ready(context: Context, state: Path, url: str, upstream: str, config: ServeConfig) -> None:
    data = {
        "pid": os.getpid(), "url": url, "upstream": upstream, "embedded": config.upstream is None,
        "model": config.model, "name": config.name, "started": time.time(),
    }  # fmt: skip
    fresh = state.with_suffix(".json.new")
    fresh.write_text(json.dumps(data), encoding="utf-8")
    fresh.replace(state)
    if context.json:
        context.emit(data)
    context.say(f"[green]ready[/] {url}/v1  (model {config.name!r}; Ctrl-C stops)")
