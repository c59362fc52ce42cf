"""Reads and writes DIR/server.json, the state of the running `afterword serve`, and finds the model that it serves.

The lock beside the file says whether a server runs: the system releases it however the process ends. A process id
proves little; it is used again, and every container has a 1.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from afterword.cli.context import CommandContext
from afterword.config import ServeConfig
from afterword.errors import ConfigError, StoreError, UsageError
from afterword.records import Json
from afterword.store.files import write_whole
from afterword.store.locks import try_lock

_PATIENCE = 1.0
"""Seconds: somebody who only looks holds the lock for a moment, too."""


def _path(directory: Path) -> Path:
    return directory / "server.json"


@contextmanager
def owned(directory: Path) -> Iterator[None]:
    """Be the server of this directory. ConfigError when there is one already."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "server.lock").open("ab") as lock:
        end = time.monotonic() + _PATIENCE
        while not try_lock(lock):
            if time.monotonic() > end:
                raise ConfigError(_busy(directory), param="dir")
            time.sleep(0.05)
        _path(directory).unlink(missing_ok=True)  # of one that was killed
        try:
            yield
        finally:
            _path(directory).unlink(missing_ok=True)


def _busy(directory: Path) -> str:
    found = _read(directory) or {}
    where = f" at {found['url']} (process {found.get('pid')})" if "url" in found else ""
    return f"a server runs on {str(directory)!r} already{where}. Stop it, or name another place with --dir."


def announce(directory: Path, data: dict[str, Any]) -> dict[str, Any]:
    """Write the server's state file, readable by its owner only. Gives it back with the process and the time."""
    data = {"pid": os.getpid(), **data, "started": time.time()}
    _write(directory, data)
    return data


def update(directory: Path, data: dict[str, Any]) -> None:
    """Update the state file of an announced server. A full disk does not end it."""
    known = _read(directory)
    if known is not None:
        with suppress(OSError):
            _write(directory, {**known, **data})


def _write(directory: Path, data: dict[str, Any]) -> None:
    write_whole(_path(directory), json.dumps(data), durable=False)


def _read(directory: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(_path(directory).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def running_server(directory: Path) -> dict[str, Any] | None:
    """State of this directory's server; None when none runs or it is not ready."""
    try:
        with (directory / "server.lock").open("rb") as lock:
            if try_lock(lock, shared=True):
                return None
    except (OSError, StoreError):
        return None
    return _read(directory)


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(url: str | urllib.request.Request, limit: float) -> Any:
    """JSON from a server of ours on this machine; the proxies in the environment (`http_proxy`) are not for it.

    Raises OSError (no answer, or an error status) and ValueError (invalid JSON).
    """
    with _direct.open(url, timeout=limit) as answer:
        return json.load(answer)


def health(server: dict[str, Any] | None, limit: float = 2.0) -> dict[str, Any]:
    """The running server's /health; {} without a server, or when it does not answer in time."""
    if server is None:
        return {}
    try:
        found = ask(f"{server['url']}/health", limit)
    except urllib.error.HTTPError as error:  # a part of it is down, and it says which
        with error:
            found = _json(error.read())
    except (OSError, ValueError, KeyError):
        return {}
    return found if isinstance(found, dict) else {}


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def served_name(context: CommandContext) -> str:
    """The name whose versions are published: the setting where it was given, else the running server's."""
    server = _unless_set(context, "name")
    name = context.config.get(ServeConfig).name
    return name if server is None else str(server.get("name", name))


def served_model(context: CommandContext) -> str:
    """The base model to train and measure: the setting if given, else the running server's model.

    UsageError where an upstream of somebody else's does not tell what its model is.
    """
    serve, server = context.config.get(ServeConfig), _unless_set(context, "model")
    if server is None:
        return serve.model
    if server.get("embedded", True):
        return str(server["model"])
    import asyncio  # here: most commands ask no server

    cards = asyncio.run(_cards(str(server["upstream"]), serve.upstream_key))
    bases = [card for card in cards if not card.get("parent")]
    base = next((card for card in bases if card["id"] == serve.upstream_model), bases[0] if bases else {})
    if not base.get("root"):
        raise UsageError(
            f"the upstream {server['upstream']} does not say where its model {base.get('id', '')!r} comes from, and "
            "training needs the same base: set serve.model (or --set serve.model=REF) to its folder or hub id",
            param="serve.model",
        )
    return str(base["root"])


def _unless_set(context: CommandContext, key: str) -> Json | None:
    """What the running server wrote of itself; None without one, or where the setting was given by somebody."""
    source = next(source for name, _, source in context.config.rows() if name == f"serve.{key}")
    return running_server(context.dir) if source == "default" else None


async def _cards(url: str, key: str | None) -> list[Json]:
    from afterword.sampling import Upstream

    async with Upstream(url, key) as upstream:
        return list(await upstream.models())
