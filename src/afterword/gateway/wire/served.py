"""OpenAI's chat answer, rewritten for the client chunk by chunk, and what is learned of it on the way.

Owns which fields are taken out again because the client did not ask for them, and how the deltas of a stream add up
to one message. What cannot be understood of an answer is not kept, but it leaves all the same. Never does I/O.
"""

from __future__ import annotations

import orjson

from afterword.errors import UpstreamError
from afterword.gateway.wire.request import ChatRequest
from afterword.records import Json
from afterword.sampling.answer import read_logprobs

DONE = b"data: [DONE]\n\n"
_ODD = (LookupError, TypeError, ValueError, AttributeError)
"""What reading a part raises that has another shape than it should."""


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
        self.odd: str | None = None
        """Why the answer cannot be kept: a part of it has another shape than it should."""
        self.done = False
        """The upstream said that the stream is complete."""
        self._text: dict[str, list[str]] = {}
        self._tools: dict[int, Json] = {}
        self._keep_ids = bool(body.get("return_token_ids"))
        self._keep_logprobs = bool(body.get("logprobs"))
        self._keep_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self._open = n if isinstance(n := body.get("n"), int) and n > 0 else 1
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
            if error := chunk.get("error"):
                self.error = str(error.get("message", error) if isinstance(error, dict) else error)
                self.done = True
                return None
            if self._read_chunk(chunk):
                return b"data: " + orjson.dumps(chunk) + b"\n\n"
            return None
        except _ODD as error:
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
        if choices is None:
            choices = chunk["choices"] = []
        for choice in choices:
            self._read_choice(choice)
        usage = chunk.get("usage") if self._keep_usage else chunk.pop("usage", None)
        if usage:
            self.usage = usage
            return self._keep_usage or bool(choices)
        return True

    def _read_choice(self, choice: Json) -> None:
        """What a choice of either kind says; only the end of it matters to the client."""
        ids = choice.get("token_ids") if self._keep_ids else choice.pop("token_ids", None)
        logprobs = choice.get("logprobs")
        if logprobs is not None and not self._keep_logprobs:
            choice["logprobs"] = None
        reason = choice.get("finish_reason")
        if reason is not None:
            self._open -= 1
        if not choice.get("index"):
            if reason is not None:
                self.finish_reason = reason
            try:
                if ids is not None:
                    self.ids = ids if self.ids is None else self.ids + ids
                if logprobs is not None:
                    self.logprobs += read_logprobs(logprobs)
                if delta := choice.get("delta"):
                    self._add(delta)
            except _ODD as error:
                self.odd = repr(error)

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
            message = body["choices"][0].get("message")
            if isinstance(message, dict):
                self.message = message
            else:
                self.odd = f"its message is {message!r:.80}"
            self.done = True
            return orjson.dumps(body)
        except _ODD as error:
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
        elif message.get("content") is None:
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
