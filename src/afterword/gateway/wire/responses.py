"""OpenAI's Responses API: its request as a chat request, and an answer in its form, whole or as events.

https://platform.openai.com/docs/api-reference/responses and .../responses-streaming. Never does I/O.
"""

from __future__ import annotations

import time
from typing import Any

import orjson

from afterword.errors import AfterwordError, UsageError, error_response
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

PATH = "/v1/responses"
_SAME = ("model", "temperature", "top_p", "stream", "metadata", "store", "user", "parallel_tool_calls", "seed",
         "safety_identifier", "top_logprobs")  # fmt: skip
_TEXTS = ("input_text", "output_text", "text")


def chat_body(data: Any, earlier: list[Json]) -> Json:
    """The request as a chat request.

    Args:
        data: The parsed body.
        earlier: Messages of the response that `previous_response_id` names, its answer included; its instructions are
            not among them.

    Raises:
        UsageError: A field is invalid, or asks for something that only OpenAI's own servers do.
    """
    body = _some(data, *_SAME)
    messages: list[Json] = []
    if instructions := data.get("instructions"):
        messages.append({"role": "system", "content": _text(instructions, "instructions")})
    body["messages"] = [*messages, *earlier, *_input(data.get("input"))]
    if data.get("max_output_tokens") is not None:
        body["max_tokens"] = data["max_output_tokens"]
    if tools := data.get("tools"):
        if not isinstance(tools, list):
            raise UsageError(f"`tools` must be a list, got {tools!r:.80}.", param="tools")
        body["tools"] = [_tool(tool) for tool in tools]
        if (choice := data.get("tool_choice")) is not None:
            body["tool_choice"] = _tool_choice(choice)
    if found := _format(data.get("text")):
        body["response_format"] = found
    effort = data.get("reasoning")
    if isinstance(effort, dict) and effort.get("effort"):
        body["reasoning_effort"] = effort["effort"]
    if body.get("stream"):
        body["stream_options"] = {"include_usage": True}
    return body


def previous_of(data: Any) -> str | None:
    """The id of the response that is continued.

    Raises:
        UsageError: The body or the id is invalid, or a conversation of OpenAI's servers is named.
    """
    if not isinstance(data, dict):
        raise UsageError(f"the body must be a JSON object, got {type(data).__name__}.")
    if data.get("conversation") is not None:
        raise UsageError(
            "`conversation` is not supported: continue with `previous_response_id`, or send the earlier items.",
            param="conversation",
        )
    if data.get("background"):
        raise UsageError("`background` is not supported: stream the response instead.", param="background")
    previous = data.get("previous_response_id")
    if previous is not None and not isinstance(previous, str):
        raise UsageError(f"`previous_response_id` must be a text, got {previous!r:.80}.", param="previous_response_id")
    return previous or None


def _text(value: Any, param: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"`{param}` must be a text, got {value!r:.80}.", param=param)
    return value


def _input(value: Any) -> list[Json]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise UsageError(f"`input` must be a text or a list of items, got {value!r:.80}.", param="input")
    messages: list[Json] = []
    for number, item in enumerate(value):
        where = f"input[{number}]"
        if not isinstance(item, dict):
            raise UsageError(f"`{where}` must be an object, got {item!r:.80}.", param=where)
        _add_item(messages, item, where)
    return messages


def _add_item(messages: list[Json], item: Json, where: str) -> None:
    kind = item.get("type") or ("message" if "role" in item else None)
    if kind == "message":
        role = "system" if item.get("role") == "developer" else item.get("role")
        messages.append({"role": role, "content": _content(item.get("content"), where)})
    elif kind == "function_call":
        call = {"id": item.get("call_id"), "type": "function",
                "function": {"name": item.get("name"), "arguments": item.get("arguments") or "{}"}}  # fmt: skip
        last = messages[-1] if messages else {}
        if last.get("role") == "assistant":
            last.setdefault("tool_calls", []).append(call)
        else:
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    elif kind == "function_call_output":
        output = item.get("output")
        said = output if isinstance(output, str) else _content(output, where)
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": said})
    elif kind != "reasoning":  # earlier thoughts are not read again
        raise UsageError(
            f"`{where}` has the unknown type {kind!r:.80}: use message, function_call, function_call_output or "
            "reasoning.",
            param=where,
        )


def _content(value: Any, where: str) -> Any:
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise UsageError(f"`{where}.content` must be a text or a list of parts.", param=where)
    if all(part.get("type") in _TEXTS for part in value):
        return "".join(str(part.get("text") or "") for part in value)
    return [_part(part, where) for part in value]


def _part(part: Json, where: str) -> Json:
    kind = part.get("type")
    if kind in _TEXTS:
        return {"type": "text", "text": str(part.get("text") or "")}
    if kind == "refusal":
        return {"type": "text", "text": str(part.get("refusal") or "")}
    if kind == "input_image" and part.get("image_url"):
        return {"type": "image_url", "image_url": {"url": part["image_url"], **_detail(part)}}
    raise UsageError(f"`{where}` has a part of the unsupported type {kind!r:.80}.", param=where)


def _detail(part: Json) -> Json:
    return _some(part, "detail")


def _tool(tool: Any) -> Json:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind != "function":
        raise UsageError(
            f"the tool {kind!r:.80} runs on OpenAI's servers and not here: give the client a function of its own.",
            param="tools",
        )
    return {"type": "function", "function": _some(tool, "name", "description", "parameters", "strict")}


def _some(value: Json, *names: str) -> Json:
    return {name: value[name] for name in names if value.get(name) is not None}


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, dict) and choice.get("type") == "function" and "name" in choice:
        return {"type": "function", "function": {"name": choice["name"]}}
    return choice


def _format(text: Any) -> Json | None:
    found = text.get("format") if isinstance(text, dict) else None
    if not isinstance(found, dict) or found.get("type") in (None, "text"):
        return None
    if found["type"] == "json_schema":
        return {"type": "json_schema", "json_schema": _some(found, "name", "schema", "strict", "description")}
    return {"type": found["type"]}


def _usage(usage: Json) -> Json:
    read, written = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    inner = usage.get("prompt_tokens_details") or {}
    outer = usage.get("completion_tokens_details") or {}
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": int(inner.get("cached_tokens") or 0)},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": int(outer.get("reasoning_tokens") or 0)},
        "total_tokens": read + written,
    }


class ResponsesEncoder:
    """Writes one answer as a response object, or as its events.

    Args:
        data: The request as it came.
    """

    content_type = EVENT_STREAM

    def __init__(self, data: Json) -> None:
        self._data = data
        self._id = ""
        self._model = str(data.get("model", ""))
        self._created = int(time.time())
        self._sequence = 0
        self._items: list[Json] = []
        """Finished and open output items."""
        self._open: int | None = None
        self._calls = CallParts()
        self._of_call: dict[int, int] = {}
        self._reason: str | None = None
        self._tokens: Json | None = None
        self._started = False

    # ---- whole

    def whole(self, body: bytes) -> bytes:
        """A response object."""
        answer = orjson.loads(body)
        choice = answer["choices"][0]
        self._id, self._model = answer["id"], answer.get("model") or self._model
        message, self._reason = choice.get("message") or {}, choice.get("finish_reason")
        if thought := thought_of(message):
            self._items.append(_reasoning(self._name("rs"), thought, "completed"))
        calls = message.get("tool_calls") or ()
        if (words := text_of_delta(message.get("content"))) or not calls:
            self._items.append(_message(self._name("msg"), words, "completed"))
        for call in calls:
            name, given = name_of_call(call), arguments_of(call)
            self._items.append(_call(self._name("fc"), str(call.get("id")), name, given, "completed"))
        self._tokens = _usage(answer.get("usage") or {})
        return orjson.dumps(self._response(self._status()))

    def _name(self, prefix: str) -> str:
        return f"{prefix}_{self._id.removeprefix('chatcmpl-')}_{len(self._items)}"

    def _status(self) -> str:
        return "incomplete" if self._reason in ("length", "content_filter") else "completed"

    def _response(self, status: str, error: Json | None = None) -> Json:
        data = self._data
        why = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(str(self._reason))
        return {
            "id": self._id, "object": "response", "created_at": self._created, "status": status, "error": error,
            "incomplete_details": {"reason": why} if status == "incomplete" else None,
            "instructions": data.get("instructions"), "max_output_tokens": data.get("max_output_tokens"),
            "model": self._model, "output": self._items, "parallel_tool_calls": data.get("parallel_tool_calls", True),
            "previous_response_id": data.get("previous_response_id"), "store": data.get("store", True),
            "temperature": data.get("temperature"), "top_p": data.get("top_p"), "text": data.get("text") or _PLAIN,
            "tool_choice": data.get("tool_choice", "auto"), "tools": data.get("tools") or [],
            "truncation": data.get("truncation", "disabled"), "metadata": data.get("metadata") or {},
            "user": data.get("user"), "reasoning": data.get("reasoning") or _NO_REASONING, "usage": self._tokens,
        }  # fmt: skip

    # ---- streamed

    def feed(self, data: bytes) -> bytes:
        """Converts received bytes into events."""
        if data.startswith(b":"):
            return data
        return b"".join(self._of_chunk(chunk) for chunk in chunks(data))

    def finish(self, data: bytes) -> bytes:
        """The last events."""
        out = self.feed(data) + self._close()
        status = self._status()
        return out + self._event(f"response.{status}", {"response": self._response(status)})

    def failure(self, error: AfterwordError) -> bytes:
        """The response as failed."""
        told = error_response(error)[1]["error"]
        found = {"code": "server_error", "message": told["message"]}
        return self._event("response.failed", {"response": self._response("failed", found)})

    def _event(self, kind: str, body: Json) -> bytes:
        self._sequence += 1
        return event(kind, {"sequence_number": self._sequence - 1, **body})

    def _of_chunk(self, chunk: Json) -> bytes:
        out = b""
        if not self._started:
            self._started = True
            self._id, self._model = chunk["id"], chunk.get("model") or self._model
            for kind in ("response.created", "response.in_progress"):
                out += self._event(kind, {"response": self._response("in_progress")})
        if chunk.get("usage"):
            self._tokens = _usage(chunk["usage"])
        delta, reason = first_choice(chunk)
        if thought := thought_of(delta):
            out += self._grow("reasoning", thought)
        if words := text_of_delta(delta.get("content")):
            out += self._grow("message", words)
        calls = delta.get("tool_calls") or ()
        for part in [calls] if isinstance(calls, dict) else calls:
            out += self._grow_call(part)
        self._reason = reason or self._reason
        return out

    def _begin(self, item: Json) -> bytes:
        out = self._close()
        self._items.append(item)
        self._open = len(self._items) - 1
        # Events show an item as it is now; its parts are told one by one.
        bare = {**item, "content": []} if "content" in item else item
        return out + self._event("response.output_item.added", {"output_index": self._open, "item": bare})

    def _grow(self, kind: str, words: str) -> bytes:
        out = b""
        if self._open is None or self._items[self._open]["type"] != kind:
            made = _message if kind == "message" else _reasoning
            out += self._begin(made(self._name("msg" if kind == "message" else "rs"), "", "in_progress"))
            out += self._event("response.content_part.added", {**self._place(), "part": self._item["content"][0]})
        self._item["content"][0]["text"] += words
        more: Json = {"logprobs": []} if kind == "message" else {}
        what = "output_text" if kind == "message" else "reasoning_text"
        return out + self._event(f"response.{what}.delta", {**self._place(), "delta": words, **more})

    @property
    def _item(self) -> Json:
        assert self._open is not None
        return self._items[self._open]

    def _place(self) -> Json:
        return {"item_id": self._item["id"], "output_index": self._open, "content_index": 0}

    def _grow_call(self, part: Json) -> bytes:
        number, new = self._calls.place(part)
        out = b""
        if new:
            call = str(part.get("id") or f"call_{number}")
            out += self._begin(_call(self._name("fc"), call, name_of_call(part), "", "in_progress"))
            assert self._open is not None
            self._of_call[number] = self._open
        index = self._of_call[number]
        if given := arguments_of(part):
            self._items[index]["arguments"] += given
            about = {"item_id": self._items[index]["id"], "output_index": index}
            out += self._event("response.function_call_arguments.delta", {**about, "delta": given})
        return out

    def _close(self) -> bytes:
        """End the open item."""
        if self._open is None:
            return b""
        item, index, out = self._item, self._open, b""
        item["status"] = "completed"
        if item["type"] == "function_call":
            about = {"item_id": item["id"], "output_index": index, "name": item["name"]}
            out += self._event("response.function_call_arguments.done", {**about, "arguments": item["arguments"]})
        else:
            part = item["content"][0]
            what = "output_text" if item["type"] == "message" else "reasoning_text"
            more: Json = {"logprobs": []} if item["type"] == "message" else {}
            out += self._event(f"response.{what}.done", {**self._place(), "text": part["text"], **more})
            out += self._event("response.content_part.done", {**self._place(), "part": part})
        out += self._event("response.output_item.done", {"output_index": index, "item": item})
        self._open = None
        return out


_PLAIN: Json = {"format": {"type": "text"}}
_NO_REASONING: Json = {"effort": None, "summary": None}


def _message(name: str, words: str, status: str) -> Json:
    part = {"type": "output_text", "text": words, "annotations": [], "logprobs": []}
    return {"id": name, "type": "message", "role": "assistant", "status": status, "content": [part]}


def _reasoning(name: str, words: str, status: str) -> Json:
    content = [{"type": "reasoning_text", "text": words}]
    return {"id": name, "type": "reasoning", "summary": [], "status": status, "content": content}


def _call(name: str, call: str, function: str, arguments: str, status: str) -> Json:
    return {"id": name, "type": "function_call", "call_id": call, "name": function, "arguments": arguments,
            "status": status}  # fmt: skip
