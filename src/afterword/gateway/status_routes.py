"""Handles the GET routes: models, health, metrics. Reads only."""

from __future__ import annotations

import asyncio
import time

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from afterword.errors import AfterwordError, NotFoundError, StoreError, UpstreamError
from afterword.gateway.middleware import json_response
from afterword.gateway.state import GATEWAY, Gateway
from afterword.records import Json
from afterword.store.channels import Serving

WELCOME = (
    "Afterword: an OpenAI-compatible API that learns from what users do next.\n"
    "POST /v1/chat/completions, POST /v1/feedback, GET /v1/models, /health, /metrics, /openapi.json\n"
)


async def welcome(request: web.Request) -> web.Response:
    """Returns a short text for a person."""
    return web.Response(text=WELCOME)


async def list_models(request: web.Request) -> web.Response:
    """Lists base models, versions and aliases."""
    return json_response({"object": "list", "data": await model_cards(request.app[GATEWAY])})


async def get_model(request: web.Request) -> web.Response:
    """Returns one model card.

    Raises:
        NotFoundError: If the model does not exist.
    """
    wanted = request.match_info["id"]
    for card in await model_cards(request.app[GATEWAY]):
        if card["id"] == wanted:
            return json_response(card)
    raise NotFoundError(
        f"the model {wanted!r:.200} does not exist: GET /v1/models lists all.", param="model", code="model_not_found"
    )


async def model_cards(gateway: Gateway) -> list[Json]:
    """Base models, versions and aliases as `/v1/models` lists them."""
    if not gateway.adapters.bases:
        await gateway.adapters.sync()
    return gateway.adapters.cards()


async def live(request: web.Request) -> web.Response:
    """Answers while the process runs."""
    return json_response({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """Answers 503 until the upstream's models are known; later swaps and training runs do not change that."""
    adapters = request.app[GATEWAY].adapters
    known = bool(adapters.bases)
    return json_response({"status": "ok" if known else "waiting", "problem": adapters.problem}, 200 if known else 503)


async def health(request: web.Request) -> web.Response:
    """Reports each dependency: 503 when answers or turns fail, 200 with "degraded" for anything less."""
    gateway = request.app[GATEWAY]
    upstream, store = await asyncio.gather(_upstream(gateway, quoted=_may_read(request)), _store(gateway))
    adapters, capture = gateway.adapters, gateway.capture
    adapter: Json = {
        "status": "ok" if adapters.problem is None else "degraded",
        "serves": adapters.adapter or "base",
        "release": adapters.current.id if adapters.current else None,
        "channels": {name: _channel(state) for name, state in adapters.serving.items()},
    }
    if adapters.problem is not None:
        adapter["problem"] = adapters.problem
    body: Json = {
        "upstream": upstream,
        "store": store,
        "adapter": adapter,
        "capture": {"pending": capture.pending, "late": capture.late, "dropped": capture.dropped},
        "answers": {"cut": gateway.metrics.cut_counts(), "full_context": gateway.metrics.full_context_counts()},
    }
    parts = [part["status"] for part in (upstream, store, adapter)]
    status = "down" if "down" in parts else "degraded" if "degraded" in parts else "ok"
    return json_response({"status": status, **body}, 503 if status == "down" else 200)


def _channel(state: Serving) -> Json:
    canary = state.canary
    trial = {"adapter": canary.adapter, "share": canary.share, "release": canary.id} if canary else None
    return {"serves": state.adapter, "canary": trial}


def _may_read(request: web.Request) -> bool:
    """Does the request come from an administrator, or to a server without keys from this machine? An error of the model
    server may quote what somebody else wrote."""
    gateway = request.app[GATEWAY]
    try:
        if gateway.keys.check(request.headers.get("Authorization"), "admin") is None:
            gateway.origin_policy.check(request.headers)
    except AfterwordError:
        return False
    return True


async def _upstream(gateway: Gateway, *, quoted: bool) -> Json:
    started = time.perf_counter()
    engine = gateway.settings.engine
    known: Json = {"url": gateway.upstream.url, **gateway.outcomes.to_dict(quoted=quoted)}
    if servers := gateway.upstream.replicas():
        known["servers"] = servers
    if engine is not None:
        known["engine"] = engine()
    try:
        await gateway.upstream.health()
    except UpstreamError as error:
        return {"status": "down", **known, "problem": error.message}
    if (problem := gateway.outcomes.problem(quoted=quoted)) is not None:  # it says that it is well, and answers nobody
        known["problem"] = problem
    return {
        "status": "ok" if problem is None else "degraded",
        **known,
        **({"servers": servers} if (servers := gateway.upstream.replicas()) else {}),
        "ms": round(1000 * (time.perf_counter() - started), 1),
        "gives_token_ids": gateway.upstream.gives_ids,
    }


async def _store(gateway: Gateway) -> Json:
    try:
        held = await asyncio.to_thread(gateway.store.held)
    except StoreError as error:
        return {"status": "down", "problem": error.message}
    found: Json = {"status": "ok", "held_feedback": held}
    if gateway.capture.problem is not None:
        # Answers still leave, but they are not kept: that is an outage of capture, not of serving.
        found |= {"status": "degraded", "problem": gateway.capture.problem}
    return found


async def metrics(request: web.Request) -> web.Response:
    """Returns the metrics in Prometheus' text format."""
    gateway = request.app[GATEWAY]
    gateway.metrics.pending.set(gateway.capture.pending)
    for server in gateway.upstream.replicas():
        gateway.metrics.server_ready.labels(server["url"]).set(server["status"] == "ok")
        gateway.metrics.server_in_flight.labels(server["url"]).set(server["in_flight"])
    return web.Response(body=gateway.metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})
