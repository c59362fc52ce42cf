"""Which base model and name the stages work for: what is configured, or else what the running server serves.

Owns the question; asks the upstream's `/v1/models` at most once a command and never starts anything.
"""

from __future__ import annotations

import asyncio

from afterword.cli.context import Context
from afterword.cli.server_state import running_server
from afterword.config import ServeConfig
from afterword.errors import UsageError
from afterword.records import Json
from afterword.sampling import Upstream


def served_name(context: Context) -> str:
    """The name whose versions are published: the setting where it was given, else the running server's."""
    server = _unless_set(context, "name")
    name = context.config.get(ServeConfig).name
    return name if server is None else str(server.get("name", name))


def served_model(context: Context) -> str:
    """The base that is trained and measured: the setting where it was given, else what the running server serves.

    UsageError where an upstream of somebody else's does not tell what its model is.
    """
    serve, server = context.config.get(ServeConfig), _unless_set(context, "model")
    if server is None:
        return serve.model
    if server.get("embedded", True):
        return str(server["model"])
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


def _unless_set(context: Context, key: str) -> Json | None:
    """What the running server wrote of itself; None without one, or where the setting was given by somebody."""
    source = next(source for name, _, source in context.config.rows() if name == f"serve.{key}")
    return running_server(context.dir) if source == "default" else None


async def _cards(url: str, key: str | None) -> list[Json]:
    async with Upstream(url, key) as upstream:
        return list(await upstream.models())
