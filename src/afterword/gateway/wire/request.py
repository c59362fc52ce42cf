"""OpenAI's chat request: what a client may send, checked, and what of it the model server gets. Never does I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from afterword.chat.canonical import check_messages
from afterword.errors import UsageError
from afterword.gateway.who import Who, unit_of
from afterword.records import Json

SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens", "stop", "seed", "n",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias",
)  # fmt: skip
_OURS = ("store", "metadata")
"""Addressed to us; not passed on."""


class BadJson(UsageError):
    """A body that is not JSON."""

    status = 400


@dataclass(slots=True)
class ChatRequest:
    """One chat request, its wire format left behind."""

    body: Json
    """What the client sent."""
    messages: list[Json]
    model: str
    stream: bool
    keep: bool
    """False with `store: false`: answer, but keep nothing."""
    key: str | None
    """Public id of the API key."""
    user: str | None
    conversation: str | None
    previous: str | None
    """Turn that the client says it continues."""
    task: str | None
    team: str | None
    who: Who
    """For channels and shares."""

    @property
    def scope(self) -> tuple[str | None, str | None]:
        """Within which turns are linked."""
        return (self.key, self.user)

    def for_upstream(self, model: str) -> Json:
        """The body that the model server gets."""
        body = {**self.body, "model": model}
        for name in _OURS:
            body.pop(name, None)
        return body

    def sampling(self) -> Json:
        """The sampling parameters that the client set."""
        return {name: self.body[name] for name in SAMPLING if self.body.get(name) is not None}


def load_json(body: bytes) -> Any:
    """Parsed JSON; BadJson tells where it breaks off."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        start = max(0, error.pos - 20)
        near = body.decode("utf-8", "replace")[start : error.pos + 20]
        raise BadJson(
            f"the body is not valid JSON: {error.msg} at character {error.pos}, near {near!r}.", code="invalid_json"
        ) from error


def parse_chat(body: bytes, headers: Mapping[str, str], key: str | None) -> ChatRequest:
    """A chat request from its body and headers (headers win). UsageError names the field that is wrong."""
    data = load_json(body)
    if not isinstance(data, dict):
        raise UsageError(f"the body must be a JSON object, got {type(data).__name__}.")
    messages = check_messages(data.get("messages"))
    model = data.get("model")
    if not isinstance(model, str) or not model:
        raise UsageError(f"`model` must be a model name, got {model!r:.80}. GET /v1/models lists them.", param="model")
    metadata = data.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise UsageError(f"`metadata` must be an object, got {metadata!r:.80}.", param="metadata")
    if data.get("tools") is not None and not isinstance(data["tools"], list):
        raise UsageError(f"`tools` must be a list, got {data['tools']!r:.80}.", param="tools")

    def named(field: str, value: Any, where: str) -> str | None:
        value = headers.get(f"x-afterword-{field}") or value
        if value is not None and not isinstance(value, str):
            raise UsageError(f"`{where}` must be a string, got {value!r:.80}.", param=where)
        return value or None

    user = named("user", data.get("user"), "user")
    conversation = named("conversation", metadata.get("conversation"), "metadata.conversation")
    task = named("task", metadata.get("task"), "metadata.task")
    team = named("team", metadata.get("team"), "metadata.team")
    return ChatRequest(
        body=data,
        messages=messages,
        model=model,
        stream=bool(data.get("stream")),
        keep=data.get("store") is not False,
        key=key,
        user=user,
        conversation=conversation,
        previous=headers.get("x-afterword-previous-turn") or None,
        task=task,
        team=team,
        who=Who(unit_of(key, user, conversation, messages), user, team, task),
    )
