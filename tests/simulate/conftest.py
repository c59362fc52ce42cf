"""A running fake server for the simulated users."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from aiohttp import web

from tests.simulate.fake_server import FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A running fake server on a free port of the loopback."""
    fake, loop = FakeServer(), asyncio.new_event_loop()
    app = web.Application()
    app.add_routes(
        [
            web.get("/v1/models", fake.models),
            web.post("/v1/feedback", fake.events),
            web.post("/v1/chat/completions", fake.chat),
        ]
    )
    runner = web.AppRunner(app)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield fake
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.run_until_complete(runner.cleanup())
    loop.close()
