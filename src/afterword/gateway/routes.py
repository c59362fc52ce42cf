"""Defines all routes in one table; the application and /openapi.json are built from it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from aiohttp import web

import afterword
from afterword.gateway import episode_routes, status_routes
from afterword.gateway.chat import chat_completions
from afterword.gateway.client_files import client_file
from afterword.gateway.dialects import (
    count_tokens,
    create_message,
    create_response,
    ollama_chat,
    ollama_generate,
    ollama_running,
    ollama_show,
    ollama_tags,
    ollama_version,
)
from afterword.gateway.feedback_api import delete_feedback, post_feedback
from afterword.gateway.middleware import Handler, json_response
from afterword.gateway.pass_through import PASSED, pass_on
from afterword.records import FEEDBACK_KINDS, SOURCES, Json

_STRING: Json = {"type": "string"}
_FREE: Json = {"type": "object", "additionalProperties": True}
_KINDS = [kind for kind in FEEDBACK_KINDS if kind != "retraction"]

SCHEMAS: Json = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": _STRING,
                    "type": _STRING,
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "integer", "null"]},
                },
            }
        },
    },
    "Chat": {
        "type": "object",
        "description": "OpenAI's chat completion request; further fields pass through to the model server.",
        "required": ["model", "messages"],
        "additionalProperties": True,
        "properties": {
            "model": _STRING,
            "messages": {"type": "array", "minItems": 1, "items": _FREE},
            "stream": {"type": "boolean"},
            "store": {"type": "boolean", "description": "false: answer, but keep nothing"},
            "user": _STRING,
            "metadata": {
                "type": "object",
                "additionalProperties": True,
                "properties": {"conversation": _STRING, "task": _STRING, "team": _STRING},
            },
        },
    },
    "Event": {
        "type": "object",
        "description": "Also accepted: TensorZero feedback, Langfuse scores, the `events` record.",
        "required": ["turn", "kind"],
        "additionalProperties": True,
        "properties": {
            "id": _STRING,
            "turn": _STRING,
            "kind": {"enum": _KINDS},
            "text": _STRING,
            "final_text": _STRING,
            "value": {"type": "number"},
            "exit_code": {"type": "integer"},
            "output": _STRING,
            "user": _STRING,
            "occurred_at": {"type": ["number", "string"]},
            "source": {"enum": list(SOURCES)},
            "metadata": _FREE,
        },
    },
    "Events": {
        "type": "object",
        "required": ["events"],
        "properties": {"events": {"type": "array", "minItems": 1, "maxItems": 1000, "items": _FREE}},
    },
    "Results": {
        "type": "object",
        "required": ["results"],
        "properties": {
            "results": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["id", "status"],
                    "properties": {
                        "id": {"type": ["string", "null"]},
                        "turn": _STRING,
                        "status": {"enum": ["stored", "duplicate", "held", "rejected"]},
                        "why": _STRING,
                    },
                },
            }
        },
    },
}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route: method, path, handler, scope and its OpenAPI description."""

    method: str
    path: str
    handler: Handler
    scope: str | None
    """Scope that the API key needs; None: no key."""
    summary: str
    body: Json | None = None
    """JSON schema of the request."""
    answers: dict[int, tuple[str, Json | None]] = field(default_factory=dict)
    """Status -> content type and schema of an answer that is no error."""
    errors: tuple[int, ...] = ()


async def openapi(request: web.Request) -> web.Response:
    """Returns the OpenAPI document."""
    return json_response(description())


_JSON: dict[int, tuple[str, Json | None]] = {200: ("application/json", _FREE)}
_INFER = (401, 403, 502, 504)

_MODELS: tuple[Endpoint, ...] = (
    Endpoint(
        "POST", "/v1/chat/completions", chat_completions, "infer",
        "One answer, streamed or not. Its id is the turn id.",
        _ref("Chat"), _JSON, (400, 401, 403, 404, 413, 422, 429, 502, 504),
    ),
    Endpoint(
        "POST", "/v1/responses", create_response, "infer",
        "The same in the form of OpenAI's Responses API; functions as tools, `previous_response_id`.",
        _FREE, _JSON, (400, 401, 403, 404, 413, 422, 429, 502, 504),
    ),
    Endpoint(
        "POST", "/v1/messages", create_message, "infer",
        "The same in the form of Anthropic's Messages API; the key may come as `x-api-key`.",
        _FREE, _JSON, (400, 401, 403, 404, 413, 422, 429, 502, 504),
    ),
    Endpoint(
        "POST", "/v1/messages/count_tokens", count_tokens, "infer", "Tokens of such a request; nothing is kept.",
        _FREE, _JSON, (400, 401, 403, 404, 413, 422, 429, 502, 504),
    ),
    Endpoint(
        "GET", "/v1/models", status_routes.list_models, "infer", "Models and aliases.", None, _JSON, _INFER
    ),
    Endpoint("GET", "/v1/models/{id}", status_routes.get_model, "infer", "One model.", None, _JSON, (404, *_INFER)),
)  # fmt: skip
_PASSED = tuple(
    Endpoint(
        "POST", path, pass_on, "infer", "Passed on to the model server, if it has the route; nothing is kept.",
        None, {200: ("application/octet-stream", None)}, (401, 403, 404, 413, 502, 504),
    )
    for path in PASSED
)  # fmt: skip
_OLLAMA: tuple[Endpoint, ...] = (
    Endpoint(
        "POST", "/api/chat", ollama_chat, "infer",
        "The same in the form of Ollama's API, streamed unless `stream` is false.",
        _FREE, _JSON, (400, 401, 403, 404, 413, 422, 429, 502, 504),
    ),
    Endpoint(
        "POST", "/api/generate", ollama_generate, "infer", "The same for one prompt with a system text.",
        _FREE, _JSON, (400, 401, 403, 404, 413, 422, 429, 502, 504),
    ),
    Endpoint("GET", "/api/tags", ollama_tags, "infer", "Models and aliases in Ollama's form.", None, _JSON, _INFER),
    Endpoint("GET", "/api/ps", ollama_running, "infer", "The same.", None, _JSON, _INFER),
    Endpoint(
        "POST", "/api/show", ollama_show, "infer", "One model in Ollama's form.", _FREE, _JSON, (400, 404, *_INFER)
    ),
    Endpoint("GET", "/api/version", ollama_version, None, "The version of that API.", None, _JSON),
)  # fmt: skip
_of_an_episode = tuple(
    replace(one, path=f"/episodes/{{episode}}{one.path}", summary=f"The same within an episode. {one.summary}")
    for one in _MODELS
)

ROUTES: tuple[Endpoint, ...] = (
    *_MODELS,
    *_OLLAMA,
    *_PASSED,
    Endpoint(
        "POST", "/v1/feedback", post_feedback, "feedback",
        "What happened after an answer: one event or up to 1,000. On disk before it is answered.",
        {"oneOf": [_ref("Event"), _ref("Events"), _FREE]}, {202: ("application/json", _ref("Results"))},
        (400, 401, 403, 409, 413, 422, 500),
    ),
    Endpoint(
        "DELETE", "/v1/feedback/{id}", delete_feedback, "feedback", "Take an event back, by a new row.",
        None, _JSON, (401, 403, 404, 422, 500),
    ),
    Endpoint(
        "POST", "/v1/episodes", episode_routes.create_episode, "infer",
        "Begin an episode: `id`, `task_id`, `seed`, `harness`, `parent_id`, `user`, `metadata`, all optional.",
        _FREE, {200: _JSON[200], 201: _JSON[200]}, (400, 401, 403, 409, 422, 500),
    ),
    Endpoint(
        "GET", "/v1/episodes", episode_routes.list_episodes, "feedback", "The newest episodes.", None, _JSON,
        (401, 403, 422),
    ),
    Endpoint(
        "POST", "/v1/episodes/{id}/feedback", episode_routes.episode_feedback, "feedback",
        "Reward an episode, or with `turn` one of its turns: `value`, `rubric`, `metrics`. The newest counts.",
        _FREE, {202: ("application/json", _FREE)}, (400, 401, 403, 404, 409, 422, 500),
    ),
    Endpoint(
        "POST", "/v1/episodes/{id}/end", episode_routes.end_episode, "infer",
        "End an episode: `status` (finished, failed, truncated), `reason`, and a reward as above.",
        _FREE, _JSON, (400, 401, 403, 404, 422, 500),
    ),
    Endpoint(
        "GET", "/v1/episodes/{id}", episode_routes.get_episode, "feedback", "One episode with its turns.", None, _JSON,
        (401, 403, 404),
    ),
    *_of_an_episode,
    Endpoint(
        "GET", "/afterword.js", client_file, None, "The client for web pages.", None, {200: ("text/javascript", None)}
    ),
    Endpoint("GET", "/afterword.d.ts", client_file, None, "Its types.", None, {200: ("text/plain", None)}),
    Endpoint("GET", "/health", status_routes.health, None, "Each dependency.", None, {**_JSON, 503: _JSON[200]}),
    Endpoint("GET", "/health/live", status_routes.live, None, "The process answers.", None, _JSON),
    Endpoint(
        "GET", "/health/ready", status_routes.ready, None, "The model is known.", None, {**_JSON, 503: _JSON[200]}
    ),
    Endpoint("GET", "/metrics", status_routes.metrics, None, "Prometheus metrics.", None, {200: ("text/plain", None)}),
    Endpoint("GET", "/openapi.json", openapi, None, "This description.", None, _JSON),
    Endpoint("GET", "/", status_routes.welcome, None, "A few words for a person.", None, {200: ("text/plain", None)}),
)  # fmt: skip


def description() -> Json:
    """Builds the OpenAPI 3.1 document of all routes."""
    paths: dict[str, Json] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Afterword", "version": afterword.__version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "needed once keys exist"}},
        },
    }


def _operation(route: Endpoint) -> Json:
    responses: Json = {}
    for status, (content_type, schema) in route.answers.items():
        content: Json = {content_type: {"schema": schema} if schema else {}}
        if route.handler in (chat_completions, create_message, create_response):
            content["text/event-stream"] = {}
        if route.handler in (ollama_chat, ollama_generate):
            content["application/x-ndjson"] = {}
        responses[str(status)] = {"description": "OK" if status < 300 else "not ready", "content": content}
    for status in route.errors:
        responses[str(status)] = {"description": "error", "content": {"application/json": {"schema": _ref("Error")}}}
    found: Json = {"summary": route.summary, "responses": responses}
    if route.body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": route.body}}}
    if route.scope is not None:
        found["security"] = [{"key": []}]
    if names := re.findall(r"{(\w+)}", route.path):
        found["parameters"] = [{"name": name, "in": "path", "required": True, "schema": _STRING} for name in names]
    return found
