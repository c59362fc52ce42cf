"""Rewrites OpenAI's chat answer for the client, chunk by chunk, and collects the turn from it.

Removes fields that the client did not request; converts a whole body to a stream and back where the server answered in
the other form. Parts that cannot be parsed are forwarded but not stored. Never does I/O.
"""

from __future__ import annotations

import time
from typing import Any

import orjson

from afterword.errors import UpstreamError
from afterword.gateway.wire.deltas import Deltas
from afterword.gateway.wire.request import ChatRequest
from afterword.records import Json
from afterword.sampling.sse import BLANK, MAX_EVENT, Event, EventReader
from afterword.sampling.stream import error_object, read_logprobs, read_sampled_logprobs

DONE = b"data: [DONE]\n\n"
_ODD = (LookupError, TypeError, ValueError, AttributeError)
"""What reading a part raises that has another shape than it should."""


class UpstreamAnswer:
    """One answer, collected while it is rewritten for the client.

    For a stream call `feed` with the bytes as they arrive, `close` at their end, and `finish` when the turn is stored;
    otherwise `whole` once. `error` is then the error that the server reported instead of an answer.

    Args:
        turn: Turn id; replaces the answer's id.
        chat: The request.
    """

    def __init__(self, turn: str, chat: ChatRequest) -> None:
        body = chat.body
        self.turn = turn
        self.prompt_ids: list[int] | None = None
        self.ids: list[int] | None = None
        self.logprobs: list[float | None] = []
        self._sampled: list[float | None] = []
        """The same under the distribution that was sampled from."""
        self._plainly = True
        """No token is known to come from another distribution than the plain softmax."""
        self.finish_reason: str | None = None
        self.stop_reason: Any = None
        """What ended the answer, where the server says more than its finish reason (vLLM's field)."""
        self.usage: Json = {}
        self.model = ""
        """Who answered, as the upstream calls it."""
        self.shown: dict[str, str] = {}
        """Names that the client sees in place of the upstream's."""
        self.error: str | None = None
        """What the server reported in place of an answer, or of the rest of it."""
        self.error_object: Json = {}
        self.fault: UpstreamError | None = None
        """The part of the stream that cannot be read."""
        self.odd: str | None = None
        """Why the answer cannot be kept: a part of it has another shape than it should."""
        self.unread = ""
        """The newest part of the answer that could not be read, shortened."""
        self.done = False
        """Nothing more is read: the end mark came, or an error."""
        self._message: Json | None = None
        """The message of an answer that came whole."""
        self._deltas: dict[Any, Deltas] = {}
        """Choice -> its message so far."""
        self._ended: dict[Any, str] = {}
        """Choice -> its finish reason."""
        self._keep_ids = bool(body.get("return_token_ids"))
        self._keep_logprobs = bool(body.get("logprobs"))
        self._keep_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self._choices = n if isinstance(n := body.get("n"), int) and n > 0 else 1
        self._reader = EventReader()
        self._head: bytes | None = b""
        """The blank bytes so far; None once it is clear what the answer is."""
        self._body: list[bytes] | None = None
        """The pieces of a body that is no stream of events though one was asked for."""
        self._size = 0
        self._held: list[bytes] = []

    @property
    def started(self) -> bool:
        """True when any part of an answer arrived."""
        message = self._message or {}
        return bool(any(self._deltas.values()) or self.ids or self._ended or message.get("content"))

    @property
    def complete(self) -> bool:
        """True when the upstream sent the whole answer without an error."""
        return self.done and self.error is None and self.fault is None

    @property
    def ended(self) -> bool:
        """True when every choice has its finish reason."""
        return len(self._ended) >= self._choices

    # ---- streamed

    def feed(self, data: bytes) -> bytes:
        """Processes bytes of the upstream.

        Returns:
            Bytes to forward now; from the chunk that ends the answer on, bytes are kept until `finish`.

        Raises:
            UpstreamError: If a whole body exceeds MAX_EVENT bytes.
        """
        if self._head is not None:
            data = self._head + data
            start = data.lstrip(BLANK)
            self._head = None if start else data
            if start[:1] in (b"{", b"[", b"<"):
                self._body = []
            if not start:
                return b""
        if self._body is None:
            return self._forward(self._reader.feed(data))
        self._body.append(data)
        self._size += len(data)
        if self._size > MAX_EVENT:
            raise UpstreamError(f"the model server sent more than {MAX_EVENT >> 20} MiB at once.", code="too_large")
        return b""

    def close(self) -> bytes:
        """Returns the bytes to forward at the end of the upstream's data: a last line without its end, or one whole
        body.
        """
        if self._body is None:
            return self._forward(self._reader.close())
        data, self._body = b"".join(self._body), None
        chunks = [chunk for body in _bodies(data) for chunk in _as_chunks(body)]
        if not chunks:
            self._ignore(data)
        return b"".join(self._chunk(chunk, data) for chunk in chunks)

    def finish(self) -> bytes:
        """Returns the kept bytes and the end mark."""
        self._held.append(DONE)
        tail = b"".join(self._held)
        self._held.clear()
        return tail

    def _forward(self, events: list[Event]) -> bytes:
        out: list[bytes] = []
        for event in events:
            if self.done:
                break
            try:
                out.append(self._of_event(event))
            except UpstreamError as error:  # what came before it is still for the client
                self.fault, self.done = error, True
        return b"".join(out)

    def _of_event(self, event: Event) -> bytes:
        if event.kind == "comment":
            return event.data.strip() + b"\n\n"
        if event.done:
            self.done = True
        elif event.kind == "error":
            self._fail(event.value if isinstance(event.value, dict) else {"error": _shown(event.data)})
        elif event.broken:
            self._broken(event.data)
        else:
            return self._chunk(event.value, event.data)
        return b""

    def _chunk(self, chunk: Any, payload: bytes) -> bytes:
        """The bytes of one parsed chunk; none for what is not for the client or no chunk."""
        if _is_error(chunk):
            self._fail(chunk)
            return b""
        if not isinstance(chunk, dict) or not ("choices" in chunk or chunk.get("usage")):
            self._ignore(payload)  # a keep-alive, or an event of another kind
            return b""
        try:
            if not self._read_chunk(chunk):
                return b""
            data = b"data: " + orjson.dumps(chunk) + b"\n\n"
        except _ODD as error:
            raise UpstreamError(
                f"the model server sent an invalid chat.completion.chunk ({error!r}): {payload[:200]!r}.",
                code="not_json",
            ) from error
        if not self.ended:
            return data
        before: list[bytes] = []
        if self._held and any(_says(choice) for choice in chunk["choices"]):
            before, self._held = self._held, []  # that was not the end: some write a finish reason into every chunk
        self._held.append(data)
        return b"".join(before)

    def _broken(self, payload: bytes) -> None:
        """Words between the chunks are as good as a comment; a piece of JSON is a chunk that was lost."""
        if payload.lstrip()[:1] in (b"{", b"["):
            raise UpstreamError(f"the model server sent a chunk of invalid JSON: {payload[:200]!r}.", code="not_json")
        self._ignore(payload)

    def _ignore(self, payload: bytes) -> None:
        self.unread = _shown(payload)

    def _fail(self, reported: Json) -> None:
        self.error_object = error_object(reported)
        self.error = str(self.error_object["message"])
        self.done = True

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
        choices = chunk["choices"] = [choice for choice in chunk.get("choices") or () if choice is not None]
        for choice in choices:
            if "delta" not in choice and "message" in choice:
                self._from_message(choice)
            if choice.get("delta") is None:
                choice["delta"] = {}
            if choice.get("finish_reason") == "":
                choice["finish_reason"] = None
            self._read_choice(choice)
        usage = chunk.get("usage") if self._keep_usage else chunk.pop("usage", None)
        if usage:
            self.usage = usage
            return self._keep_usage or bool(choices)
        return True

    def _from_message(self, choice: Json) -> None:
        """A whole message in place of a delta, unless it only says again what came before."""
        message = choice.pop("message") or {}
        known = self._deltas.get(choice.get("index") or 0)
        choice["delta"] = {} if known and known.says(message.get("content")) else message

    def _read_choice(self, choice: Json) -> None:
        """What a choice of either kind says; only the end of it matters to the client."""
        ids = choice.get("token_ids") if self._keep_ids else choice.pop("token_ids", None)
        logprobs = choice.get("logprobs")
        if logprobs is not None and not self._keep_logprobs:
            choice["logprobs"] = None
        index = choice.get("index") or 0
        reason = choice.get("finish_reason")
        if reason is not None:
            self._ended[index] = reason
        try:
            if delta := choice.get("delta"):
                self._deltas.setdefault(index, Deltas()).add(delta)
            if index == 0:
                self._read_first(choice, ids, logprobs)
        except _ODD as error:
            self.odd = repr(error)

    def _read_first(self, choice: Json, ids: Any, logprobs: Any) -> None:
        """What is kept of the first choice alone."""
        self.finish_reason = self._ended.get(0)
        self.stop_reason = choice.get("stop_reason", self.stop_reason)
        if ids is not None:
            self.ids = ids if self.ids is None else self.ids + ids
        if logprobs is not None:
            plain, sampled = read_logprobs(logprobs), read_sampled_logprobs(logprobs)
            self.logprobs += plain
            self._sampled += plain if sampled is None else sampled
            self._plainly &= sampled is None

    # ---- whole

    def whole(self, data: bytes) -> bytes:
        """Converts the upstream's body to the client's.

        Returns:
            The body; b"" with `error` set when the upstream reported an error with status 200.

        Raises:
            UpstreamError: If the body is not a chat completion.
        """
        start = data.lstrip(BLANK)
        try:
            body = self._from_stream(data) if _is_stream(start) else orjson.loads(start)
            if isinstance(body, list) and len(body) == 1:
                body = body[0]
            if _is_error(body):
                self._fail(body)
            if self.error is not None:
                return b""
            self._read_whole(body)
            self.done = True
            return orjson.dumps(body)
        except _ODD as error:
            raise UpstreamError(
                f"the model server's answer is not a chat completion ({error!r}): {data[:200]!r}.", code="not_json"
            ) from error

    def _read_whole(self, body: Json) -> None:
        body["id"] = self.turn
        self.model = body.get("model") or ""
        if self.shown:
            body["model"] = self.shown.get(self.model, self.model)
        prompt = body.get("prompt_token_ids") if self._keep_ids else body.pop("prompt_token_ids", None)
        self.prompt_ids = prompt if prompt is not None else self.prompt_ids
        self.usage = body.get("usage") or {}
        self._ended.clear()
        for choice in body["choices"]:
            if choice.get("finish_reason") == "":
                choice["finish_reason"] = None
            self._read_choice(choice)
        message = body["choices"][0].get("message")
        if isinstance(message, dict):
            self._message = message
        else:
            self.odd = f"its message is {message!r:.80}"

    def _from_stream(self, data: bytes) -> Json:
        """The whole body that a stream of chunks spells; the server sent one though none was asked for."""
        self._forward([*self._reader.feed(data), *self._reader.close()])
        choices: list[Json] = [
            {"index": index, "message": deltas.message(), "finish_reason": self._ended.get(index)}
            for index, deltas in self._deltas.items()
        ]
        if self.fault is not None:
            raise self.fault
        if self.error is None and not (choices and (self.done or self.ended)):
            raise ValueError("a stream that ends before the answer is complete")
        body: Json = {"object": "chat.completion", "created": int(time.time()), "model": self.model, "choices": choices}
        if self.usage:
            body["usage"] = self.usage
        if self._keep_ids and choices:
            choices[0]["token_ids"], self.ids = self.ids, None  # read once more from the body
            body["prompt_token_ids"] = self.prompt_ids
        return body

    # ---- for the turn

    def answer(self) -> Json:
        """Returns the served assistant message; of audio its transcript only."""
        message = dict(self._message) if self._message is not None else self._deltas.get(0, Deltas()).message()
        if isinstance(audio := message.get("audio"), dict):
            message["audio"] = {name: value for name, value in audio.items() if name != "data"}
        if message.get("content") is None and (self._message is not None or not _calls(message)):
            message["content"] = ""
        return message

    def aligned_logprobs(self) -> tuple[float | None, ...] | None:
        """Returns one log-probability (nats) for each token id; None when their numbers differ."""
        return tuple(self.logprobs) if self.ids and len(self.logprobs) == len(self.ids) else None

    def sampled_logprobs(self) -> tuple[float | None, ...] | None:
        """Returns the same under the distribution that was sampled from, for `Turn.sampled_logprobs`."""
        known = self.ids and not self._plainly and len(self._sampled) == len(self.ids)
        return tuple(self._sampled) if known else None


def _is_error(value: Any) -> bool:
    """Is it an error in place of an answer? An `error` that is null or empty is none."""
    if not isinstance(value, dict):
        return False
    if value.get("error") or value.get("object") == "error" or value.get("type") == "error":
        return True
    answers = "choices" in value or value.get("usage")
    return not answers and any(name in value for name in ("detail", "error_code", "errors"))


def _is_stream(start: bytes) -> bool:
    return start.startswith((b"data:", b"event:", b":", b"id:", b"retry:"))


def _calls(message: Json) -> bool:
    return bool(message.get("tool_calls") or message.get("function_call"))


def _says(choice: Json) -> bool:
    """Does a chunk's choice carry a part of the answer?"""
    delta = choice.get("delta")
    return isinstance(delta, dict) and any(value for name, value in delta.items() if name != "role")


def _shown(payload: bytes) -> str:
    return payload[:200].decode("utf-8", "replace")


def _object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _bodies(data: bytes) -> list[Any]:
    """The JSON of a body, or of each of its lines; nothing when it is neither."""
    data = data.lstrip(BLANK)
    for parts in ([data], data.splitlines()):
        try:
            return [orjson.loads(part) for part in parts if part.strip()]
        except orjson.JSONDecodeError:
            continue
    return []


def _as_chunks(body: Any) -> list[Any]:
    """The chunks of a stream that say what a whole answer says: the messages, their ends, the usage."""
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    choices = body.get("choices") if isinstance(body, dict) and not _is_error(body) else None
    if choices == [] and not body.get("usage"):
        return []
    if not isinstance(choices, list) or not all(isinstance(c, dict) and "message" in c for c in choices):
        return [body]
    if not all(isinstance(choice["message"], dict) for choice in choices):
        return []
    head = {k: v for k, v in body.items() if k not in ("choices", "usage", "prompt_token_ids")}
    head["object"] = "chat.completion.chunk"
    said: list[Json] = []
    ends: list[Json] = []
    for choice in choices:
        index, message = choice.get("index") or 0, choice["message"]
        if isinstance(calls := message.get("tool_calls"), list):
            message = {**message, "tool_calls": [{"index": i, **_object(call)} for i, call in enumerate(calls)]}
        rest = {k: v for k, v in choice.items() if k not in ("message", "finish_reason")}
        said.append({**rest, "delta": message, "finish_reason": None})
        ends.append({"index": index, "delta": {}, "finish_reason": choice.get("finish_reason") or "stop"})
    prompt = {"prompt_token_ids": body["prompt_token_ids"]} if body.get("prompt_token_ids") else {}
    chunks = [{**head, **prompt, "choices": said}, {**head, "choices": ends}]
    return [*chunks, {**head, "choices": [], "usage": body["usage"]}] if body.get("usage") else chunks
