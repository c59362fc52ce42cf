"""Anthropic's Messages API: its request as a chat request, and an answer in its form, whole or as events.

https://docs.anthropic.com/en/api/messages and .../messages-streaming. Never does I/O.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import orjson

from afterword.errors import AfterwordError, UsageError, error_response
from afterword.formats.anthropic import messages_of
from afterword.gateway.wire.encoder import (
    EVENT_STREAM,
    CallParts,
    arguments_of,
    chunks,
    event,
    first_choice,
    name_of_call,
    text_of_delta,
    thought_of,
)
from afterword.records import Json

PATH = "/v1/messages"
_SAME = ("model", "max_tokens", "temperature", "top_p", "top_k", "stream", "metadata", "store")
"""Fields that mean the same in both APIs."""
_STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "function_call": "tool_use",
          "content_filter": "refusal"}  # fmt: skip
_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_SESSION = re.compile(r"(user_.+?)_session_([0-9a-fA-F-]{36})")
"""How a command-line agent writes its user and its session into `metadata.user_id`."""


def chat_body(data: Any) -> Json:
    """The request as a chat request.

    Raises:
        UsageError: A field is invalid, or asks for something that only Anthropic's own servers do.
    """
    if not isinstance(data, dict):
        raise UsageError(f"the body must be a JSON object, got {type(data).__name__}.")
    if not isinstance(data.get("messages"), list) or not data["messages"]:
        raise UsageError("`messages` must be a list with at least one message.", param="messages")
    most = data.get("max_tokens")
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise UsageError(f"`max_tokens` must be a number of tokens above 0, got {most!r:.40}.", param="max_tokens")
    body = {name: data[name] for name in _SAME if data.get(name) is not None}
    body["messages"] = messages_of({"system": data.get("system"), "messages": data["messages"]}, Counter())
    if data.get("stop_sequences"):
        body["stop"] = data["stop_sequences"]
    if tools := data.get("tools"):
        body["tools"] = [_tool(tool) for tool in _objects(tools, "tools")]
        body |= _tool_choice(data.get("tool_choice"))
    if body.get("stream"):
        body["stream_options"] = {"include_usage": True}
    _name_session(body)
    return body


def _objects(value: Any, name: str) -> list[Json]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise UsageError(f"`{name}` must be a list of objects, got {value!r:.80}.", param=name)
    return value


def _tool(tool: Json) -> Json:
    if "input_schema" not in tool:
        raise UsageError(
            f"the tool {tool.get('name') or tool.get('type')!r:.80} has no `input_schema`: tools that run on "
            "Anthropic's servers do not run here. Leave it out, or give the client a tool of its own.",
            param="tools",
        )
    named = {"name": tool.get("name"), "parameters": tool["input_schema"]}
    described = {"description": tool["description"]} if tool.get("description") else {}
    return {"type": "function", "function": {**named, **described}}


def _tool_choice(choice: Any) -> Json:
    if choice is None:
        return {}
    kind = choice.get("type") if isinstance(choice, dict) else None
    wanted: Any = {"auto": "auto", "any": "required", "none": "none"}.get(str(kind))
    if kind == "tool":
        wanted = {"type": "function", "function": {"name": choice.get("name")}}
    if wanted is None:
        raise UsageError(f"`tool_choice` is invalid: {choice!r:.80}. Use auto, any, tool or none.", param="tool_choice")
    return {
        "tool_choice": wanted,
        **({"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {}),
    }


def _name_session(body: Json) -> None:
    """Take user and session apart where a client writes both into one name."""
    metadata = body.get("metadata")
    name = metadata.get("user_id") if isinstance(metadata, dict) else None
    if isinstance(name, str) and (both := _SESSION.fullmatch(name)):
        body["metadata"] = {"conversation": both[2], **body["metadata"], "user_id": both[1]}


def error_json(status: int, error: Json) -> Json:
    """An error in this API's form.

    Args:
        status: HTTP status.
        error: The `error` object in OpenAI's form.
    """
    kind = _ERRORS.get(status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": str(error.get("message", ""))}}


def _usage(usage: Json) -> Json:
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return {
        "input_tokens": int(usage.get("prompt_tokens") or 0),
        "output_tokens": int(usage.get("completion_tokens") or 0),
        **({"cache_read_input_tokens": cached} if cached else {}),
    }


def _stop(reason: str | None, choice: Json, wanted: Any) -> Json:
    """`stop_reason` and `stop_sequence`; servers that say which sequence ended the answer are believed."""
    sequence = choice.get("stop_reason")
    if reason == "stop" and isinstance(sequence, str) and isinstance(wanted, list) and sequence in wanted:
        return {"stop_reason": "stop_sequence", "stop_sequence": sequence}
    return {"stop_reason": _STOPS.get(str(reason), "end_turn"), "stop_sequence": None}


class MessagesEncoder:
    """Writes one answer as a message, or as its events.

    Args:
        body: The chat request.
    """

    content_type = EVENT_STREAM

    def __init__(self, body: Json) -> None:
        self._model = str(body.get("model", ""))
        self._wanted = body.get("stop")
        self._started = False
        self._open: str | None = None
        """Kind of the open content block."""
        self._number = -1
        """Of the open (or last) content block."""
        self._calls = CallParts()
        self._blocks: dict[int, int] = {}
        """Tool call -> its content block."""
        self._end: Json = {"stop_reason": "end_turn", "stop_sequence": None}
        self._tokens: Json = {"input_tokens": 0, "output_tokens": 0}

    def whole(self, body: bytes) -> bytes:
        """A message object."""
        answer = orjson.loads(body)
        choice = answer["choices"][0]
        message = choice.get("message") or {}
        content: list[Json] = []
        if thought := thought_of(message):
            content.append({"type": "thinking", "thinking": thought, "signature": ""})
        if words := text_of_delta(message.get("content")):
            content.append({"type": "text", "text": words})
        for call in message.get("tool_calls") or ():
            given = _parsed(arguments_of(call))
            content.append({"type": "tool_use", "id": call.get("id"), "name": name_of_call(call), "input": given})
        return orjson.dumps({
            "id": answer["id"], "type": "message", "role": "assistant", "model": answer.get("model") or self._model,
            "content": content, **_stop(choice.get("finish_reason"), choice, self._wanted),
            "usage": _usage(answer.get("usage") or {}),
        })  # fmt: skip

    def feed(self, data: bytes) -> bytes:
        """Converts received bytes into events."""
        if data.startswith(b":"):
            return event("ping", {}) if self._started else b""
        return b"".join(self._of_chunk(chunk) for chunk in chunks(data))

    def finish(self, data: bytes) -> bytes:
        """The last events."""
        last = self.feed(data) + self._close()
        return last + event("message_delta", {"delta": self._end, "usage": self._tokens}) + event("message_stop", {})

    def failure(self, error: AfterwordError) -> bytes:
        """An error event."""
        status, body = error_response(error)
        return event("error", {"error": error_json(status, body["error"])["error"]})

    def _of_chunk(self, chunk: Json) -> bytes:
        out = b""
        if not self._started:
            self._started = True
            message = {"id": chunk["id"], "type": "message", "role": "assistant", "content": [],
                       "model": chunk.get("model") or self._model, "stop_reason": None, "stop_sequence": None,
                       "usage": {"input_tokens": 0, "output_tokens": 0}}  # fmt: skip
            out += event("message_start", {"message": message})
        if chunk.get("usage"):
            self._tokens = _usage(chunk["usage"])
        delta, reason = first_choice(chunk)
        if thought := thought_of(delta):
            out += self._block("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            out += self._delta({"type": "thinking_delta", "thinking": thought})
        if words := text_of_delta(delta.get("content")):
            out += self._block("text", {"type": "text", "text": ""})
            out += self._delta({"type": "text_delta", "text": words})
        calls = delta.get("tool_calls") or ()
        for part in [calls] if isinstance(calls, dict) else calls:
            out += self._call(part)
        if reason is not None:
            self._end = _stop(reason, (chunk.get("choices") or [{}])[0], self._wanted)
        return out

    def _call(self, part: Json) -> bytes:
        number, new = self._calls.place(part)
        out = b""
        if new:
            start: Json = {
                "type": "tool_use",
                "id": part.get("id") or f"call_{number}",
                "name": name_of_call(part),
                "input": {},
            }
            out += self._block(f"call {number}", start)
            self._blocks[number] = self._number
        if given := arguments_of(part):
            out += event("content_block_delta", {
                "index": self._blocks[number], "delta": {"type": "input_json_delta", "partial_json": given}
            })  # fmt: skip
        return out

    def _block(self, kind: str, start: Json) -> bytes:
        """Open a content block unless it is open already."""
        if self._open == kind:
            return b""
        closed = self._close()
        self._open, self._number = kind, self._number + 1
        return closed + event("content_block_start", {"index": self._number, "content_block": start})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return event("content_block_stop", {"index": self._number})

    def _delta(self, delta: Json) -> bytes:
        return event("content_block_delta", {"index": self._number, "delta": delta})


def _parsed(arguments: str) -> Any:
    """The arguments of a call; text that is no JSON stays text, under a name of its own."""
    try:
        value = orjson.loads(arguments) if arguments else {}
    except orjson.JSONDecodeError:
        return {"arguments": arguments}
    return value if isinstance(value, dict) else {"arguments": value}
