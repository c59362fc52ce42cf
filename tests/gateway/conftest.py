"""A gateway over a fake upstream, both on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.fake_upstream import Fake, fake_upstream
from tests.gateway.gateway_setup import Launch, Setup

from afterword.gateway import GatewaySettings, serve_in_thread
from afterword.gateway.app import Extend
from afterword.store import Store


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start a gateway: `launch(fake=..., **settings)`."""
    with ExitStack() as stack:

        def start(
            fake: Fake | None = None, directory: Path | None = None, extend: Extend | None = None, **more: Any
        ) -> Setup:
            fake = fake or Fake()
            if not fake.url:
                stack.enter_context(fake_upstream(fake))
            # The long wait makes "answered" mean "stored" on a busy machine, too; the bound has tests of its own.
            given = {
                "dir": directory or tmp_path / "data",
                "upstream": fake.url,
                "port": 0,
                "poll_ms": 20.0,
                "capture_wait_ms": 5000.0,
                **more,
            }
            settings = GatewaySettings(**given)
            url = stack.enter_context(serve_in_thread(settings, extend))
            store = stack.enter_context(Store.open(settings.database))
            return Setup(url, fake, store, settings, stack.enter_context(ExitStack()))

        yield start


@pytest.fixture
def gateway(launch: Launch) -> Setup:
    return launch()
