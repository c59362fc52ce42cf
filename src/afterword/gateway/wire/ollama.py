"""Ollama's API: its chat and generate requests as chat requests, and an answer in its form, whole or line by line.

https://github.com/ollama/ollama/blob/main/docs/api.md. Never does I/O.
"""

from __future__ import annotations

from datetime import UTC, datetime
from time import perf_counter
from typing import Any

import orjson

from afterword.errors import AfterwordError, UsageError, error_response
from afterword.gateway.wire.encoder import (
    CallParts,
    arguments_of,
    chunks,
    first_choice,
    name_of_call,
    text_of_delta,
    thought_of,
)
from afterword.records import Json

PATH = "/api/"
NDJSON = "application/x-ndjson"
VERSION = "0.12.0"
"""The version of Ollama's API that is answered: clients ask for it before they send tools or thoughts."""
_OPTIONS = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p", "seed": "seed", "stop": "stop",
    "num_predict": "max_tokens", "presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty",
    "repeat_penalty": "repetition_penalty",
}  # fmt: skip
"""Option -> the chat request's field. Options of loading (`num_ctx`, `num_gpu` ...) mean nothing here."""
_USUAL = {"min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repeat_penalty": 1.0}
"""Values that change nothing: left out, since not every model server takes the field."""
_KEPT = ("user", "metadata", "store")


def chat_body(data: Any) -> Json:
    """A request of `/api/chat` as a chat request.

    Raises:
        UsageError: A field is invalid.
    """
    body = _common(data)
    messages = data.get("messages")
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise UsageError(f"`messages` must be a list of objects, got {messages!r:.80}.", param="messages")
    named = _Calls()
    body["messages"] = [_message(one, named) for one in messages]
    if data.get("tools"):
        body["tools"] = data["tools"]
    return body


def generate_body(data: Any) -> Json:
    """A request of `/api/generate` as a chat request: its system text and its prompt as messages.

    Raises:
        UsageError: A field is invalid, or asks for what a chat cannot do.
    """
    body = _common(data)
    for name, remedy in (("suffix", "send it to the model server"), ("context", "send the messages to /api/chat"),
                         ("raw", "leave the template to the server")):  # fmt: skip
        if data.get(name):
            raise UsageError(f"`{name}` is not available here: {remedy}.", param=name)
    prompt = data.get("prompt") or ""
    if not isinstance(prompt, str):
        raise UsageError(f"`prompt` must be a text, got {prompt!r:.40}.", param="prompt")
    said: list[Json] = [{"role": "system", "content": data["system"]}] if data.get("system") else []
    body["messages"] = [*said, _message({"role": "user", "content": prompt, "images": data.get("images")}, _Calls())]
    return body


def loads_only(data: Any) -> bool:
    """True for a request without a message, by which clients load a model before the first question."""
    return isinstance(data, dict) and not data.get("messages") and not data.get("prompt") and not data.get("images")


def loaded(data: Json, field: str) -> Json:
    """The answer to such a request: the model is loaded already."""
    empty: Any = {"role": "assistant", "content": ""} if field == "message" else ""
    at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return {"model": data.get("model"), "created_at": at, field: empty, "done": True, "done_reason": "load"}


def _common(data: Any) -> Json:
    if not isinstance(data, dict):
        raise UsageError(f"the body must be a JSON object, got {type(data).__name__}.")
    options = data.get("options") or {}
    if not isinstance(options, dict):
        raise UsageError(f"`options` must be an object, got {options!r:.40}.", param="options")
    body: Json = {"model": data.get("model"), "stream": data.get("stream", True)}
    body |= {name: data[name] for name in _KEPT if data.get(name) is not None}
    for option, name in _OPTIONS.items():
        value = options.get(option)
        if value is not None and value != _USUAL.get(option, ...) and not (option == "num_predict" and value < 0):
            body[name] = value
    if (form := data.get("format")) is not None and form != "":
        body["response_format"] = _response_format(form)
    if isinstance(think := data.get("think"), bool):
        body["chat_template_kwargs"] = {"enable_thinking": think}
    if body["stream"]:
        body["stream_options"] = {"include_usage": True}
    return body


def _response_format(form: Any) -> Json:
    if form == "json":
        return {"type": "json_object"}
    if isinstance(form, dict):
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": form}}
    raise UsageError(f"`format` must be 'json' or a JSON schema, got {form!r:.40}.", param="format")


class _Calls:
    """Gives tool calls the ids that Ollama's messages lack, in order; results take them in the same order."""

    def __init__(self) -> None:
        self.number = 0
        self.open: list[tuple[str, str]] = []

    def of(self, call: Json) -> Json:
        function = call.get("function") or {}
        name, arguments = str(function.get("name") or ""), function.get("arguments")
        self.number += 1
        known = call.get("id") or f"call_{self.number}"
        self.open.append((known, name))
        text = arguments if isinstance(arguments, str) else orjson.dumps(arguments or {}).decode()
        return {"id": known, "type": "function", "function": {"name": name, "arguments": text}}

    def answered(self, message: Json) -> str:
        """The id of the call whose result a message is: by its id, its tool's name, else the oldest."""
        if isinstance(known := message.get("tool_call_id"), str):
            return known
        wanted = message.get("tool_name") or message.get("name")
        place = next((i for i, (_, name) in enumerate(self.open) if name == wanted), 0)
        return self.open.pop(place)[0] if self.open else "call_0"


def _message(message: Json, calls: _Calls) -> Json:
    content, role = message.get("content"), message.get("role")
    made: Json = {"role": role, "content": content if content is not None else ""}
    if images := message.get("images"):
        urls = [f"data:image/png;base64,{image}" for image in images if isinstance(image, str)]
        parts: list[Json] = [{"type": "text", "text": content}] if content else []
        made["content"] = [*parts, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]
    if thought := message.get("thinking"):
        made["reasoning_content"] = thought
    if role == "tool":
        made["tool_call_id"] = calls.answered(message)
    if isinstance(asked := message.get("tool_calls"), list) and asked:
        made["tool_calls"] = [calls.of(call) for call in asked if isinstance(call, dict)]
    return made


def error_json(error: Json) -> Json:
    """An error in this API's form."""
    return {"error": str(error.get("message", ""))}


def model_card(card: Json) -> Json:
    """One model of `/api/tags`.

    Args:
        card: The model as `/v1/models` lists it.
    """
    at = datetime.fromtimestamp(int(card.get("created") or 0), UTC).isoformat().replace("+00:00", "Z")
    return {"name": card["id"], "model": card["id"], "modified_at": at, "size": 0, "digest": "", "details": DETAILS}


DETAILS: Json = {
    "parent_model": "", "format": "safetensors", "family": "", "families": [], "parameter_size": "",
    "quantization_level": "",
}  # fmt: skip


class OllamaEncoder:
    """Writes one answer as an object, or as lines of objects.

    Args:
        body: The chat request.
        field: "message" for `/api/chat`, "response" for `/api/generate`.
    """

    content_type = NDJSON

    def __init__(self, body: Json, field: str = "message") -> None:
        self._model, self._field = str(body.get("model") or ""), field
        self._started = perf_counter()
        self._first: float | None = None
        self._id = ""
        self._usage: Json = {}
        self._reason = "stop"
        self._order = CallParts()
        self._calls: list[Json] = []

    def whole(self, body: bytes) -> bytes:
        """One object."""
        answer = orjson.loads(body)
        self._note(answer)
        choice = answer["choices"][0]
        self._reason = choice.get("finish_reason") or "stop"
        message = choice.get("message") or {}
        for call in message.get("tool_calls") or ():
            self._call(call)
        return orjson.dumps(
            self._object(text_of_delta(message.get("content")), thought_of(message), self._finished()) | self._end()
        )

    def feed(self, data: bytes) -> bytes:
        """Lines of what came."""
        return b"".join(self._of_chunk(chunk) for chunk in chunks(data))

    def finish(self, data: bytes) -> bytes:
        """The last lines: the calls, which Ollama sends whole, and the end with its counts."""
        last = self.feed(data)
        if calls := self._finished():
            last += _line(self._object("", "", calls))
        return last + _line(self._object("", "", []) | self._end())

    def failure(self, error: AfterwordError) -> bytes:
        """A line with the error."""
        return _line(error_json(error_response(error)[1]["error"]))

    def _of_chunk(self, chunk: Json) -> bytes:
        self._note(chunk)
        delta, reason = first_choice(chunk)
        self._reason = reason or self._reason
        asked = delta.get("tool_calls") or ()
        for part in [asked] if isinstance(asked, dict) else asked:
            self._call(part)
        words, thought = text_of_delta(delta.get("content")), thought_of(delta)
        return _line(self._object(words, thought, [])) if words or thought else b""

    def _note(self, chunk: Json) -> None:
        self._first = self._first or perf_counter()
        self._id = chunk.get("id") or self._id
        self._model = chunk.get("model") or self._model
        self._usage = chunk.get("usage") or self._usage

    def _call(self, part: Json) -> None:
        number, new = self._order.place(part)
        if new:
            self._calls.append({"name": name_of_call(part), "arguments": ""})
        self._calls[number]["arguments"] += arguments_of(part)

    def _finished(self) -> list[Json]:
        return [{"function": {"name": c["name"], "arguments": _arguments(c["arguments"])}} for c in self._calls]

    def _object(self, words: str, thought: str, calls: list[Json]) -> Json:
        at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        head: Json = {"model": self._model, "created_at": at, "id": self._id}
        thinking = {"thinking": thought} if thought else {}
        if self._field == "response":
            return {**head, "response": words, **thinking, "done": False}
        message = {"role": "assistant", "content": words, **thinking, **({"tool_calls": calls} if calls else {})}
        return {**head, "message": message, "done": False}

    def _end(self) -> Json:
        """The fields of the last object; durations are nanoseconds of this gateway's clock."""
        now, first = perf_counter(), self._first or self._started
        return {
            "done": True, "done_reason": "length" if self._reason == "length" else "stop",
            "total_duration": int(1e9 * (now - self._started)), "load_duration": 0,
            "prompt_eval_count": int(self._usage.get("prompt_tokens") or 0),
            "prompt_eval_duration": int(1e9 * (first - self._started)),
            "eval_count": int(self._usage.get("completion_tokens") or 0), "eval_duration": int(1e9 * (now - first)),
        }  # fmt: skip


def _line(body: Json) -> bytes:
    return orjson.dumps(body) + b"\n"


def _arguments(text: str) -> Any:
    """The arguments as an object, as Ollama has them; text that is no object stays under a name of its own."""
    try:
        value = orjson.loads(text) if text else {}
    except orjson.JSONDecodeError:
        return {"arguments": text}
    return value if isinstance(value, dict) else {"arguments": value}
