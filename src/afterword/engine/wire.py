"""Writes answers as OpenAI's JSON with vLLM's additions. Owns the shapes of bodies and chunks; never decides."""

from __future__ import annotations

import time

import orjson

from afterword.model.generation.request import GenerationRequest, TokenOutput
from afterword.model.generation.text import Codec
from afterword.records import Json, new_id


class CompletionResponse:
    """Id, time and model of one response, and the JSON of its outputs."""

    def __init__(self, ask: GenerationRequest, prompt: list[int], codec: Codec) -> None:
        self.ask, self.prompt, self._codec = ask, prompt, codec
        self.id, self.created = new_id("chatcmpl"), int(time.time())
        self._completion = 0

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.ask.model}

    def _usage(self) -> Json:
        prompt = len(self.prompt)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._completion,
            "total_tokens": prompt + self._completion,
        }

    def _logprob(self, token: int, value: float | None) -> Json:
        text, data = self._codec.show(token)
        return {"token": text, "logprob": value, "bytes": data}

    def _logprobs(self, pieces: list[TokenOutput]) -> Json | None:
        if not self.ask.logprobs:
            return None
        content = []
        for piece in pieces:
            if piece.token is not None:
                entry = self._logprob(piece.token, piece.logprob)
                if (piece.sampled_logprob, piece.support) != (piece.logprob, 1.0):
                    entry |= {"sampled_logprob": piece.sampled_logprob, "sampled_support": piece.support}
                entry["top_logprobs"] = [self._logprob(token, value) for token, value in piece.top]
                content.append(entry)
        return {"content": content}

    def whole(self, pieces: list[TokenOutput]) -> Json:
        """Returns the body of an answer without streaming."""
        tokens = [piece.token for piece in pieces if piece.token is not None]
        self._completion = len(tokens)
        choice: Json = {
            "index": 0,
            "message": {"role": "assistant", "content": "".join(piece.text for piece in pieces)},
            "logprobs": self._logprobs(pieces),
            "finish_reason": pieces[-1].finish,
        }
        if pieces[-1].stop_reason is not None:
            choice["stop_reason"] = pieces[-1].stop_reason
        body = {**self._head("chat.completion"), "choices": [choice], "usage": self._usage()}
        if self.ask.return_token_ids:
            choice["token_ids"] = tokens
            body["prompt_token_ids"] = self.prompt
        return body

    def first(self) -> bytes:
        """Returns the first chunk of a stream: the role, and the prompt's ids when requested."""
        chunk = self._chunk({"role": "assistant", "content": ""}, None, None, [])
        if self.ask.return_token_ids:
            chunk["prompt_token_ids"] = self.prompt
        return event(chunk)

    def next(self, piece: TokenOutput) -> bytes:
        """Returns the chunk of one output; empty when it has nothing for the client."""
        tokens = [] if piece.token is None else [piece.token]
        self._completion += len(tokens)
        if not (piece.text or piece.finish or self.ask.logprobs or self.ask.return_token_ids):
            return b""
        delta = {"content": piece.text}
        return event(self._chunk(delta, self._logprobs([piece]), piece.finish, tokens, piece.stop_reason))

    def last(self) -> bytes:
        """Returns the end of a stream: the usage when requested, and the end mark."""
        end = b"data: [DONE]\n\n"
        if not self.ask.include_usage:
            return end
        body = {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()}
        return event(body) + end

    def _chunk(
        self, delta: Json, logprobs: Json | None, finish: str | None, tokens: list[int], reason: str | None = None
    ) -> Json:
        choice: Json = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        if reason is not None:
            choice["stop_reason"] = reason
        if self.ask.return_token_ids:
            choice["token_ids"] = tokens
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice]}
        if self.ask.include_usage:
            chunk["usage"] = None
        return chunk


def event(body: Json) -> bytes:
    """Formats one server-sent event."""
    return b"data: " + orjson.dumps(body) + b"\n\n"
