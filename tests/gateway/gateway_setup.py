"""What a test of the gateway gets: its URL, the fake behind it, the store below it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
from openai import OpenAI
from tests.gateway.fake_upstream import Fake

from afterword.gateway import GatewaySettings
from afterword.records import Feedback, Turn
from afterword.store import Store


@dataclass
class Setup:
    """A running gateway and what is around it."""

    url: str
    fake: Fake
    store: Store
    settings: GatewaySettings
    clients: ExitStack = field(default_factory=ExitStack)
    """Closes the clients at the end of the test: their sockets outlive them otherwise."""

    def openai(self, key: str = "none") -> Any:
        """OpenAI's own client (untyped here, so that plain dicts go in)."""
        return self.clients.enter_context(OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0))

    def stream(self, *words: str, **more: Any) -> Iterator[Any]:
        """The chunks of one streamed answer, through OpenAI's own client."""
        messages = [{"role": ("user", "assistant")[i % 2], "content": w} for i, w in enumerate(words)]
        yield from self.openai().chat.completions.create(model="afterword", messages=messages, stream=True, **more)

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=10, **more)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=10)

    def chat(self, *words: str, **more: Any) -> dict[str, Any]:
        """One answer; `words` alternate between user and assistant."""
        messages = [{"role": ("user", "assistant")[i % 2], "content": w} for i, w in enumerate(words)]
        response = self.post("/v1/chat/completions", {"model": "afterword", "messages": messages, **more})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def turns(self) -> list[Turn]:
        return list(self.store.rows(Turn))

    def feedback(self, **equal: Any) -> list[Feedback]:
        return list(self.store.rows(Feedback, **equal))


Launch = Callable[..., Setup]
