"""OpenAI's chat JSON: read a request, rewrite an answer chunk by chunk, and learn from it what was served.

Owns which fields are asked of the upstream, which are taken out again because the client did not ask, and how the
deltas of a stream add up to one message. Never does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from afterword.chat.canonical import check_messages
from afterword.errors import UpstreamError, UsageError
from afterword.gateway.who import Who, unit_of
from afterword.records import Json
from afterword.sampling.answer import read_logprobs

SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens", "stop", "seed", "n",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias",
)  # fmt: skip
_OURS = ("store", "metadata")
"""Addressed to us; not passed on."""
DONE = b"data: [DONE]\n\n"


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


class Served:
    """What was served, read while the answer is rewritten for the client: id replaced, what was not asked taken out.

    For a stream call `feed` with the bytes as they come and `finish` at their end; else `whole` once.
    """

    def __init__(self, turn: str, chat: ChatRequest) -> None:
        body = chat.body
        self.turn = turn
        self.prompt_ids: list[int] | None = None
        self.ids: list[int] | None = None
        self.logprobs: list[float | None] = []
        self.message: Json = {"role": "assistant", "content": None}
        self.finish_reason: str | None = None
        self.usage: Json = {}
        self.model = ""
        """Who answered, as the upstream calls it."""
        self.shown: dict[str, str] = {}
        """Names that the client sees in place of the upstream's."""
        self.error: str | None = None
        self.done = False
        """The upstream said that the stream is complete."""
        self._text: dict[str, list[str]] = {}
        self._tools: dict[int, Json] = {}
        self._keep_ids = bool(body.get("return_token_ids"))
        self._keep_logprobs = bool(body.get("logprobs"))
        self._keep_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self._open = body.get("n") or 1
        self._rest = b""
        self._held: list[bytes] = []

    @property
    def started(self) -> bool:
        """Did any part of an answer arrive?"""
        return bool(self._text or self._tools or self.ids or self.finish_reason or self.message.get("content"))

    # ---- streamed

    def feed(self, data: bytes) -> bytes:
        """Bytes to forward now. From the chunk that ends the answer on they are held back until `finish`."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        out: list[bytes] = []
        for line in lines:
            if line.startswith(b"data:"):
                payload = line[5:].strip()
                if payload == b"[DONE]":
                    self.done = True
                    break
                chunk = self._chunk(payload)
                if chunk is not None:
                    (out if self._open > 0 else self._held).append(chunk)
            elif line.startswith(b":"):
                out.append(line.strip() + b"\n\n")
        return b"".join(out)

    def finish(self) -> bytes:
        """The bytes that were held back, and the end mark."""
        self._held.append(DONE)
        tail = b"".join(self._held)
        self._held.clear()
        return tail

    def _chunk(self, payload: bytes) -> bytes | None:
        try:
            chunk = orjson.loads(payload)
            if "error" in chunk:
                self.error = str((chunk["error"] or {}).get("message", chunk["error"]))
                self.done = True
                return None
            if self._read_chunk(chunk):
                return b"data: " + orjson.dumps(chunk) + b"\n\n"
            return None
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise UpstreamError(
                f"the model server sent a chunk that is no chat.completion.chunk ({error!r}): {payload[:200]!r}."
            ) from error

    def _read_chunk(self, chunk: Json) -> bool:
        """Learn from a chunk and rewrite it in place; False when nothing of it is for the client."""
        chunk["id"] = self.turn
        if not self.model:
            self.model = chunk.get("model") or ""
        if self.shown:
            chunk["model"] = self.shown.get(self.model, self.model)
        prompt = chunk.get("prompt_token_ids") if self._keep_ids else chunk.pop("prompt_token_ids", None)
        if prompt is not None:
            self.prompt_ids = prompt
        choices = chunk["choices"]
        for choice in choices:
            self._read_choice(choice)
            if (delta := choice.get("delta")) and choice.get("index", 0) == 0:
                self._add(delta)
        usage = chunk.get("usage") if self._keep_usage else chunk.pop("usage", None)
        if usage:
            self.usage = usage
            return self._keep_usage or bool(choices)
        return True

    def _read_choice(self, choice: Json) -> None:
        """Token ids, log-probabilities and the end of a choice of either kind."""
        ids = choice.get("token_ids") if self._keep_ids else choice.pop("token_ids", None)
        logprobs = choice.get("logprobs")
        if logprobs is not None and not self._keep_logprobs:
            choice["logprobs"] = None
        reason = choice.get("finish_reason")
        if reason is not None:
            self._open -= 1
        if choice.get("index", 0) == 0:
            if ids is not None:
                self.ids = ids if self.ids is None else self.ids + ids
            if logprobs is not None:
                self.logprobs += read_logprobs(logprobs)
            if reason is not None:
                self.finish_reason = reason

    def _add(self, delta: Json) -> None:
        for name, value in delta.items():
            if name == "tool_calls":
                for part in value or ():
                    _merge_call(self._tools.setdefault(part.get("index", 0), {}), part)
            elif name != "role" and isinstance(value, str):
                self._text.setdefault(name, []).append(value)

    # ---- whole

    def whole(self, data: bytes) -> bytes:
        """The body for the client from the upstream's body."""
        try:
            body = orjson.loads(data)
            body["id"] = self.turn
            self.model = body.get("model") or ""
            if self.shown:
                body["model"] = self.shown.get(self.model, self.model)
            self.prompt_ids = body.get("prompt_token_ids") if self._keep_ids else body.pop("prompt_token_ids", None)
            self.usage = body.get("usage") or {}
            for choice in body["choices"]:
                self._read_choice(choice)
            self.message = body["choices"][0]["message"]
            self.done = True
            return orjson.dumps(body)
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
            raise UpstreamError(
                f"the model server's answer is not a chat completion ({error!r}): {data[:200]!r}.", code="not_json"
            ) from error

    # ---- for the turn

    def answer(self) -> Json:
        """The assistant message that was served."""
        message = dict(self.message)
        for name, parts in self._text.items():
            message[name] = "".join(parts)
        if self._tools:
            message["tool_calls"] = [self._tools[index] for index in sorted(self._tools)]
        elif message["content"] is None:
            message["content"] = ""
        return message

    def aligned_logprobs(self) -> tuple[float | None, ...] | None:
        """One value for each token id; None when they do not match one by one."""
        return tuple(self.logprobs) if self.ids and len(self.logprobs) == len(self.ids) else None


def _merge_call(call: Json, part: Json) -> None:
    """Add the part of a streamed tool call: names and arguments grow, ids and types are set once."""
    for name, value in part.items():
        if name == "function" and isinstance(value, dict):
            function = call.setdefault("function", {})
            for field, text in value.items():
                function[field] = function.get(field, "") + text if isinstance(text, str) else text
        elif name != "index" and value is not None:
            call[name] = value
