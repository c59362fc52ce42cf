"""Handles requests in the forms of other APIs: OpenAI's Responses, Anthropic's Messages and Ollama's.

A request becomes a chat request and its answer is written back in the client's form; the turn is the same in all.
"""

from __future__ import annotations

import asyncio
from time import perf_counter

import orjson
from aiohttp import web

from afterword.errors import NotFoundError
from afterword.gateway.chat import answer
from afterword.gateway.episodes import headers_of
from afterword.gateway.middleware import json_response
from afterword.gateway.state import GATEWAY, KEY, Gateway
from afterword.gateway.status_routes import model_cards
from afterword.gateway.wire import messages, ollama, responses
from afterword.gateway.wire.request import ChatRequest, load_json, parse_chat
from afterword.records import Json, Turn

_LATE = (0.0, 0.05, 0.2, 0.5)
"""Seconds between looks for the turn of a response: a reply may outrun the commit."""


def _parsed(request: web.Request, gateway: Gateway, body: Json, dialect: str) -> ChatRequest:
    chat = parse_chat(orjson.dumps(body), headers_of(request), request.get(KEY), gateway.names)
    chat.dialect = dialect
    return chat


async def create_message(request: web.Request) -> web.StreamResponse:
    """Answers one request of Anthropic's Messages API."""
    start, gateway = perf_counter(), request.app[GATEWAY]
    body = messages.chat_body(load_json(await request.read()))
    return await answer(
        request, _parsed(request, gateway, body, "messages"), start, lambda: messages.MessagesEncoder(body)
    )


async def count_tokens(request: web.Request) -> web.StreamResponse:
    """Counts the tokens of a request by asking the model server for one token; keeps nothing."""
    gateway = request.app[GATEWAY]
    data = load_json(await request.read())
    if isinstance(data, dict):
        data = {**data, "max_tokens": 1, "stream": False, "store": False}
    chat = _parsed(request, gateway, messages.chat_body(data), "messages")
    response = await answer(request, chat, perf_counter(), lambda: messages.MessagesEncoder(chat.body))
    assert isinstance(response, web.Response) and isinstance(response.body, bytes)
    return json_response({"input_tokens": orjson.loads(response.body)["usage"]["input_tokens"]})


async def create_response(request: web.Request) -> web.StreamResponse:
    """Answers one request of OpenAI's Responses API."""
    start, gateway = perf_counter(), request.app[GATEWAY]
    data = load_json(await request.read())
    previous = responses.previous_of(data)
    earlier = [] if previous is None else await _earlier(request, gateway, previous)
    chat = _parsed(request, gateway, responses.chat_body(data, earlier), "responses")
    chat.previous = chat.previous or previous
    return await answer(request, chat, start, lambda: responses.ResponsesEncoder(data))


async def _earlier(request: web.Request, gateway: Gateway, previous: str) -> list[Json]:
    """The messages of an earlier response with its answer, without its instructions."""
    for pause in _LATE:
        await asyncio.sleep(pause)
        turn = await asyncio.to_thread(gateway.store.find, Turn, previous)
        if turn is not None:
            break
    if turn is None or turn.key != request.get(KEY):
        raise NotFoundError(
            f"the response {previous!r:.80} does not exist here, or was not stored: send the earlier items in `input`.",
            param="previous_response_id", code="previous_response_not_found",
        )  # fmt: skip
    answered = {name: value for name, value in turn.answer.items() if name in ("role", "content", "tool_calls")}
    said = [message for message in turn.messages if message.get("role") not in ("system", "developer")]
    return [*said, {"role": "assistant", **answered}]


async def ollama_chat(request: web.Request) -> web.StreamResponse:
    """Answers one request of Ollama's `/api/chat`."""
    start, gateway = perf_counter(), request.app[GATEWAY]
    data = load_json(await request.read())
    body = ollama.chat_body(data)
    if ollama.loads_only(data):
        return await _loaded(gateway, data, "message")
    return await answer(request, _parsed(request, gateway, body, "ollama"), start, lambda: ollama.OllamaEncoder(body))


async def ollama_generate(request: web.Request) -> web.StreamResponse:
    """Answers one request of Ollama's `/api/generate`."""
    start, gateway = perf_counter(), request.app[GATEWAY]
    data = load_json(await request.read())
    body = ollama.generate_body(data)
    if ollama.loads_only(data):
        return await _loaded(gateway, data, "response")
    chat = _parsed(request, gateway, body, "ollama generate")
    return await answer(request, chat, start, lambda: ollama.OllamaEncoder(body, "response"))


async def _loaded(gateway: Gateway, data: Json, field: str) -> web.Response:
    """Says that a model is loaded, once it is known to exist."""
    await gateway.adapters.resolve(str(data.get("model") or ""))
    return json_response(ollama.loaded(data, field))


async def ollama_tags(request: web.Request) -> web.Response:
    """Lists models and aliases in Ollama's form."""
    return json_response({"models": [ollama.model_card(card) for card in await model_cards(request.app[GATEWAY])]})


async def ollama_running(request: web.Request) -> web.Response:
    """Lists the same models as loaded: nothing is loaded on demand."""
    return await ollama_tags(request)


async def ollama_version(request: web.Request) -> web.Response:
    """Returns the version of Ollama's API that is answered."""
    return json_response({"version": ollama.VERSION})


async def ollama_show(request: web.Request) -> web.Response:
    """Describes one model in Ollama's form.

    Raises:
        NotFoundError: If the model does not exist.
    """
    data = load_json(await request.read())
    wanted = (data.get("model") or data.get("name")) if isinstance(data, dict) else None
    for card in await model_cards(request.app[GATEWAY]):
        if card["id"] in (wanted, str(wanted).removesuffix(":latest")):
            return json_response({
                "modelfile": "", "parameters": "", "template": "", "details": ollama.DETAILS, "model_info": {},
                "capabilities": ["completion", "tools"],
            })  # fmt: skip
    raise NotFoundError(f"the model {wanted!r:.200} does not exist: GET /api/tags lists all.", param="model")
