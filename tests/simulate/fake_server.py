"""A small OpenAI-compatible server for the simulated users: answers by a function, remembers what it was asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Reply = Callable[[list[dict[str, Any]]], str]


@dataclass
class FakeServer:
    """What happened at the server; set `reply` and `fault` before talking to it."""

    url: str = ""
    reply: Reply = lambda messages: "Water boils at a hundred degrees, so wait for the bubbles."
    fault: Callable[[int, dict[str, Any]], str | None] = lambda number, body: None
    """By number of the request: None, "500", "401", "cut" or "thinks" (its tokens went into a field of thoughts)."""
    takes_feedback: bool = True
    requests: list[dict[str, Any]] = field(default_factory=list)
    feedback: list[dict[str, Any]] = field(default_factory=list)
    conversations: set[str | None] = field(default_factory=set)
    """The names of conversations in the headers; None for a request without one."""

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "afterword", "object": "model"}]})

    async def events(self, request: web.Request) -> web.Response:
        if not self.takes_feedback:
            return web.json_response({"error": {"message": "no route"}}, status=404)
        self.feedback.append(await request.json())
        return web.json_response({"status": "stored"}, status=202)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        number = len(self.requests)
        self.requests.append(body)
        self.conversations.add(request.headers.get("x-afterword-conversation"))
        fault = self.fault(number, body)
        if fault in {"500", "401"}:
            return web.json_response({"error": {"message": f"fault {fault}"}}, status=int(fault))
        if not body.get("stream"):
            said: dict[str, Any] = {"role": "assistant", "content": self.reply(body["messages"])}
            if fault == "thinks":
                said |= {"content": None, "reasoning_content": "Okay, the user"}
            choice = {"index": 0, "message": said, "finish_reason": "length" if fault == "thinks" else "stop"}
            return web.json_response(
                {"id": f"c-{number}", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
            )
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "x-afterword-adapter": "base"})
        await response.prepare(request)
        words = self.reply(body["messages"]).split(" ")
        for i, word in enumerate(words):
            await self._chunk(response, number, {"content": word if i == 0 else f" {word}"}, None)
        if fault == "cut":
            return response
        await self._chunk(response, number, {}, "stop")
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _chunk(self, response: web.StreamResponse, number: int, delta: dict[str, Any], end: str | None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": end}
        chunk = {
            "id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": 1, "model": "afterword",
            "choices": [choice],
        }  # fmt: skip
        await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
