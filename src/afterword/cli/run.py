"""`afterword serve`: runs the gateway, and the embedded engine behind it."""

from __future__ import annotations

import argparse
import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from rich.markup import escape

from afterword.chat.sampling_fields import PLAIN
from afterword.cli.console import console_of
from afterword.cli.context import CommandContext
from afterword.cli.extras import require_extra
from afterword.cli.releases import watching
from afterword.cli.server_state import announce, owned, update
from afterword.config import PrivacyConfig, ServeConfig, StoreConfig
from afterword.errors import AfterwordError, ConfigError, UpstreamError
from afterword.gateway.server import bind, check_address, run_gateway
from afterword.gateway.settings import REMEDY, GatewaySettings
from afterword.records import Json
from afterword.sampling import EngineProcess, Timeouts, Upstream, split_urls, start_engine

_PATIENCE = 5.0
"""Seconds between two attempts to start an engine that does not start."""


def register(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    serve = commands.add_parser("serve", parents=[common])
    serve.add_argument("--host", dest="serve.host", help="address (default 127.0.0.1)")
    serve.add_argument("--port", dest="serve.port", type=int, help="port (default 8400; 0 takes a free one)")
    serve.add_argument("--upstream", dest="serve.upstream", metavar="URL", help="OpenAI-compatible server (or URL,URL)")
    serve.add_argument(
        "--upstream-model", dest="serve.upstream_model", metavar="NAME", help="the upstream's model to serve"
    )
    serve.add_argument("--model", dest="serve.model", metavar="REF", help="built-in name, folder or hub id")
    serve.add_argument(
        "--device", dest="serve.device", metavar="auto|cpu|cuda|cuda:N", help="of the model (default auto)"
    )
    serve.add_argument("--name", dest="serve.name", help="model name that users address (default afterword)")
    serve.set_defaults(run=run_serve)


def run_serve(context: CommandContext) -> int:
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
        artifacts=context.config.get(StoreConfig).artifacts,
        allow_origins=config.allow_origins,
        train=config.train,
        user_from=config.user_from,
        conversation_from=config.conversation_from,
        upstream_model=config.upstream_model,
        preferred_model=_preferred_model(context),
        embedded=config.upstream is None,
        max_tokens=_max_tokens(config),
        sampling_defaults=PLAIN if not config.upstream or config.upstream_sampling == "plain" else {},
        max_adapters=config.max_adapters,
        traces=config.traces,
        episode_turns=config.episode_turns,
        episode_tokens=config.episode_tokens,
        episode_seconds=config.episode_seconds,
        on_full_context=config.on_full_context or ("error" if config.upstream else "drop_oldest"),
    )
    if config.upstream is None:
        require_extra("model", "serving a model on this machine (without --upstream URL)")
    # What would stop us does so before the engine loads: the address, the port, the database, another server.
    check_address(settings)
    if config.upstream is not None:
        for url in split_urls(config.upstream) or [config.upstream]:
            _check_url(url)
    bind(settings).close()
    context.open_store(create=True).close()
    with owned(context.dir), _model_server(context, config) as server, watching(context):
        run_gateway(
            replace(settings, upstream=server.url, upstream_remedy=server.remedy, engine=server.state),
            on_ready=lambda url: _ready(context, url, server, config),
            extend=console_of(context),
        )
    return 0


_BUILT_IN_TOKENS, _ENGINE_TOKENS = 512, 4096
"""Bounds of an answer: a small model that finds no end has said all by then; a model that thinks needs more."""


def _max_tokens(config: ServeConfig) -> int | None:
    """The bound of an answer whose request names none."""
    if config.max_tokens is not None:
        return config.max_tokens or None
    if config.upstream is not None:
        return None
    return _BUILT_IN_TOKENS if config.model == ServeConfig().model else _ENGINE_TOKENS


def _preferred_model(context: CommandContext) -> str | None:
    """`serve.model` when somebody set it: with an upstream it means that one of its models, if it is there."""
    sources = {name: source for name, _, source in context.config.rows()}
    return None if sources["serve.model"] == "default" else context.config.get(ServeConfig).model


def _check_url(upstream: str) -> None:
    parts = urlsplit(upstream)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"--upstream {upstream} is no URL of a server; write it like http://127.0.0.1:8000/v1.", param="upstream"
        )


class ModelServer(NamedTuple):
    """The model server behind the gateway."""

    url: str
    remedy: str
    """What to do when nobody answers there."""
    state: Callable[[], Json] | None
    """How often an engine of our own was started again and why; None for somebody else's server."""


@contextmanager
def _model_server(context: CommandContext, config: ServeConfig) -> Iterator[ModelServer]:
    """The URL behind the gateway and what to do when nobody answers there: the given upstream, or an engine of our
    own that is restarted when it dies."""
    if config.upstream is not None:
        _warn_if_down(context, config)
        yield ModelServer(config.upstream, REMEDY, None)
        return
    context.say(f"starting the engine with {config.model} ...")
    log = context.dir / "logs" / "engine.log"
    watched = _Engine(config, log, context)
    for note in watched.process.notes:
        context.say(f"[yellow]warning:[/] {escape(note)}")
    try:
        yield ModelServer(
            watched.process.url,
            f"It is the built-in engine, which starts again by itself; see its log {log}.",
            watched.state,
        )
    finally:
        watched.stop()


def _warn_if_down(context: CommandContext, config: ServeConfig) -> None:
    """A gateway may start before its model server, but its operator is told."""

    async def ask(url: str) -> None:
        async with Upstream(url, config.upstream_key, Timeouts(connect=3.0), remedy=REMEDY) as upstream:
            await upstream.health()

    urls = split_urls(config.upstream or "")
    then = "Until it answers, requests get a 502." if len(urls) == 1 else "It gets requests once it answers."
    for url in urls:
        try:
            asyncio.run(ask(url))
        except UpstreamError as error:
            context.say(f"[yellow]warning:[/] {escape(error.message)} {then}")


class _Engine:
    """The engine process and the thread that starts it again, on the same port, when it dies."""

    def __init__(self, config: ServeConfig, log: Path, context: CommandContext) -> None:
        self._config, self._log, self._say, self._dir = config, log, context.say, context.dir
        self._stopping = threading.Event()
        self._restarts = 0
        self._last: Json = {}
        self._ended: EngineProcess | None = None
        self.process = self._start(0)
        self._thread = threading.Thread(target=self._watch, name="engine-watch", daemon=True)
        self._thread.start()

    def state(self) -> Json:
        """Whether it runs, how often it was started again, when last and why."""
        return {"status": "ok" if self.process.alive else "down", "restarts": self._restarts, **self._last}

    def _start(self, port: int) -> EngineProcess:
        config = self._config
        return start_engine(
            config.model,
            port=port,
            device=config.device,
            dtype=config.dtype,
            log_path=self._log,
            extra=("--max-batch", str(config.max_batch), "--prefix-mib", str(config.prefix_mib)),
            abandon=self._stopping,
        )

    def _watch(self) -> None:
        port = int(self.process.url.rsplit(":", 1)[1])
        while not self._stopping.wait(0.5):
            if not self.process.alive:
                self._restart(port)

    def _restart(self, port: int) -> None:
        if self._ended is not self.process:  # a start that failed leaves the one that ended before
            self._ended = self.process
            reason = self.process.last_words(self.process.stop())
            self._restarts += 1
            self._last = {"last_reason": reason, "last_at": time.time()}
            self._say(f"[yellow]{escape(reason)}; the engine is started again[/] (its log: {self._log})")
        update(self._dir, {"engine": self.state()})
        try:
            self.process = self._start(port)
        except (AfterwordError, OSError) as error:
            self._say(f"[red]the engine did not start:[/] {escape(str(error))}\nTrying again in {_PATIENCE:g} s.")
            self._stopping.wait(_PATIENCE)
        else:
            update(self._dir, {"engine": self.state()})
            self._say("the engine runs again")

    def stop(self) -> None:
        """End the watch, then the engine."""
        self._stopping.set()
        self._thread.join()
        self.process.stop()


def _ready(context: CommandContext, url: str, server: ModelServer, config: ServeConfig) -> None:
    state = {} if server.state is None else {"engine": server.state()}
    data = announce(
        context.dir,
        {"url": url, "upstream": server.url, "embedded": config.upstream is None, "model": config.model,
         "name": config.name, **state},
    )  # fmt: skip
    if context.json:
        context.emit(data)
    context.say(f"[green]ready[/] {url}/v1  (model {config.name!r}; Ctrl-C stops)")
    context.say(f"chat {url}/chat, console {url}/console")
