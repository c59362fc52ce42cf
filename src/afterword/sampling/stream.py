"""Reads answers of a model server, streamed or whole, and words their errors.

Owns time limits, error messages, and the token ids and log-probabilities in vLLM's JSON. Never opens a connection.
"""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
import orjson

from afterword.errors import UpstreamError
from afterword.records import Json
from afterword.sampling.sse import Event, EventReader

CLOSED = (aiohttp.ClientError, ConnectionError, OSError)
"""What a connection that is no more raises."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Time limits for a model server, in seconds."""

    connect: float = 5.0
    """Until the connection stands."""
    silence: float = 300.0
    """Between two reads: until the first byte of an answer, and from chunk to chunk."""
    control: float = 120.0
    """For a whole control request: loading an adapter, listing models."""


class UpstreamRejected(UpstreamError):
    """The model server answered with an error status. `answered` is the status, `error` its error object."""

    def __init__(self, url: str, answered: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.answered = answered
        self.error = _error_of_body(body)
        self.text = body[:_MOST_SEARCHED].decode("utf-8", "replace")
        """All that was said, to look for the names of fields in it."""
        self.headers = {name: value for name in PASSED_HEADERS if (value := (headers or {}).get(name)) is not None}
        """What tells the client when to try again."""
        super().__init__(f"the model server {url} answered {answered}: {self.error['message']}")

    def with_remedy(self, remedy: str) -> Self:
        """Appends a remedy to the message; returns the same error."""
        said, whole = (
            f"{text.rstrip().removesuffix('.')}. {remedy}" for text in (str(self.error["message"]), self.message)
        )
        self.error, self.message = {**self.error, "message": said}, whole
        return self


PASSED_HEADERS = ("Retry-After", "retry-after-ms", "x-should-retry")
_MOST_SEARCHED = 65536
_MOST_SHOWN = 500
_MOST_OF_A_PAGE = 4096
_TAG = re.compile(r"<(script|style)\b.*?</\1\s*>|<[^>]*>", re.DOTALL | re.IGNORECASE)


def _error_of_body(body: bytes) -> Json:
    """OpenAI's error object from an error body; whatever else it is becomes the message."""
    try:
        return error_object(orjson.loads(body))
    except orjson.JSONDecodeError:
        text = body[:_MOST_SEARCHED].decode("utf-8", "replace")
        if text.lstrip()[:1] == "<":  # a page of a proxy: its words
            text = " ".join(html.unescape(_TAG.sub(" ", text[:_MOST_OF_A_PAGE])).split())
        return {"message": text.strip()[:_MOST_SHOWN] or "(no text)"}


def error_object(data: Any) -> Json:
    """Converts a server's error to OpenAI's object: text `message`; simple `type`, `param` and `code`.

    Args:
        data: OpenAI's shape, its members alone, FastAPI's `detail`, a list of errors, or text; any other value becomes
            the message as JSON.

    Returns:
        The object; always with `message`.
    """
    found = data
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if isinstance(found, dict) and found.get("error"):
        inner = found["error"]
        rest = {name: found[name] for name in ("message", "type", "code", "param") if name in found}
        found = {**rest, **inner} if isinstance(inner, dict) else {**rest, "message": inner}
    if not isinstance(found, dict):
        return {"message": _words(found) or "(no text)"}
    said = next((found[name] for name in _SAID if found.get(name)), None)
    kept = {name: _simple(found.get(name)) for name in ("type", "param", "code")}
    return {"message": _words(found if said is None else said), **{k: v for k, v in kept.items() if v is not None}}


_SAID = ("message", "detail", "errors", "error_message", "msg", "description", "text", "title")
"""Where servers write what is wrong; the first that is there."""


def _words(said: Any) -> str:
    """What is wrong as text: of a list of faults each with its place."""
    if isinstance(said, str):
        return said.strip()[:_MOST_SHOWN]
    if isinstance(said, list) and said and all(isinstance(one, dict) and "msg" in one for one in said):
        faults = (".".join(map(str, loc)) + ": " if isinstance(loc := one.get("loc"), list) else "" for one in said)
        return "; ".join(f"{where}{one['msg']}" for where, one in zip(faults, said, strict=True))[:_MOST_SHOWN]
    if isinstance(said, list) and said and all(isinstance(one, str) for one in said):
        return "; ".join(said)[:_MOST_SHOWN]
    return orjson.dumps(said).decode()[:_MOST_SHOWN]


def _simple(value: Any) -> str | int | None:
    """A text or a number as it is; None for anything else."""
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None


class ChatStream:
    """An answer in flight: raw bytes as they arrive. Closing it makes the server stop."""

    def __init__(self, response: aiohttp.ClientResponse, url: str, timeouts: Timeouts) -> None:
        self._response = response
        self._read = response.content.readany
        self.content_type = response.content_type
        """What the server says that it sends."""
        self._url = url
        self._timeouts = timeouts
        self.asked: Json = {}
        """Fields that were added to the body."""
        self.on_close: Callable[[], None] | None = None
        """Called once when it is closed."""
        self.rejected: set[str] = set()
        """Fields omitted because the server rejected this body with them."""

    async def read(self) -> bytes:
        """Returns the next bytes; b"" at the end.

        Raises:
            UpstreamError: If the stream is interrupted, or silent beyond the time limit.
        """
        try:
            return await self._read()
        except TimeoutError as error:
            raise too_slow(self._url, self._timeouts.silence) from error
        except CLOSED as error:
            raise UpstreamError(
                f"the model server {self._url} cut the stream: {error!r}. Check its log.", code="cut"
            ) from error

    def close(self) -> None:
        """Releases the connection after a complete answer; otherwise drops it, so that the server stops."""
        self._response.close() if not self._response.content.at_eof() else self._response.release()
        closed, self.on_close = self.on_close, None
        if closed is not None:
            closed()

    async def events(self) -> AsyncIterator[Json]:
        """Yields the objects of the stream up to `[DONE]` or the end.

        Raises:
            UpstreamError: If the stream holds an error or is interrupted.
        """
        reader = EventReader()
        while True:
            data = await self.read()
            for event in reader.feed(data) if data else reader.close():
                if event.done:
                    return
                if event.kind == "error" or (isinstance(event.value, dict) and event.value.get("error")):
                    raise UpstreamError(
                        f"the model server {self._url} failed during the answer: {_reported(event)}", code="error"
                    )
                if isinstance(event.value, dict):
                    yield event.value
            if not data:
                return


def _reported(event: Event) -> str:
    found = event.value if event.value is not None else event.data.decode("utf-8", "replace")
    return str(error_object(found)["message"])


def too_slow(url: str, seconds: float) -> UpstreamError:
    """Builds the error for a server that sends nothing.

    Args:
        url: The server.
        seconds: The time limit.
    """
    return UpstreamError(
        f"the model server {url} sent nothing for {seconds:g} s. It may be overloaded or still loading: "
        "raise the time limit or check its log.",
        timed_out=True,
        code="timeout",
    )


# ---- whole answers

LOWEST_LOGPROB = -9999.0
"""vLLM writes minus infinity so, because JSON cannot; it is read as missing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion with the exact tokens that were sampled."""

    text: str
    """The answer's text, "" for a pure tool call."""
    prompt_ids: tuple[int, ...] | None
    """Token ids of the rendered prompt; None when the server does not tell."""
    completion_ids: tuple[int, ...] | None
    """Token ids of the answer, the end token included when it ended by itself; None when the server does not tell."""
    logprobs: tuple[float | None, ...] | None
    """Nats, one for each completion id."""
    finish_reason: str | None
    """"stop", "length", "tool_calls" ..."""
    model: str
    """Adapter or base model that answered, as the server reports it."""
    message: Json
    """The assistant message as it came."""


def read_logprobs(logprobs: Any) -> list[float | None]:
    """Reads log-probabilities of the sampled tokens.

    Args:
        logprobs: A choice's `logprobs` object.

    Returns:
        Nats, one for each token, None where missing; empty without log-probabilities.
    """
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    values = [entry.get("logprob") for entry in content] if content else []
    return [None if v is None or v <= LOWEST_LOGPROB else float(v) for v in values]


SAMPLED, SUPPORT = "sampled_logprob", "sampled_support"
"""Fields of the embedded engine beside `logprob`, where a token was not drawn from the plain softmax."""
_CUT = 1e-3
"""Share of the distribution that may be missing where all of it counts as drawable."""


def read_sampled_logprobs(logprobs: Any) -> list[float | None] | None:
    """Reads log-probabilities under the distribution that the tokens were drawn from.

    Args:
        logprobs: A choice's `logprobs` object.

    Returns:
        Nats, one for each token, None where a part of the distribution could not be drawn, so that no importance ratio
        is defined; None for a server that reports no such values.
    """
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    entries = [one for one in content or () if isinstance(one, dict)]
    return [_sampled(one) for one in entries] if any(SAMPLED in one for one in entries) else None


def _sampled(entry: Json) -> float | None:
    value, support = _number(entry.get(SAMPLED, entry.get("logprob"))), _number(entry.get(SUPPORT, 1.0))
    if value is None or support is None or value <= LOWEST_LOGPROB or support < 1 - _CUT:
        return None
    return value


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def read_answer(body: Json) -> Answer:
    """Reads the first choice of a `chat.completion` body.

    Raises:
        UpstreamError: If the body is not a chat completion.
    """
    try:
        choice = body["choices"][0]
        message = choice["message"]
        ids = choice.get("token_ids")
        logprobs = read_logprobs(choice.get("logprobs"))
        prompt = body.get("prompt_token_ids")
        return Answer(
            text=message.get("content") or "",
            prompt_ids=None if prompt is None else tuple(prompt),
            completion_ids=None if ids is None else tuple(ids),
            logprobs=tuple(logprobs) if ids is not None and len(logprobs) == len(ids) else None,
            finish_reason=choice.get("finish_reason"),
            model=body.get("model", ""),
            message=message,
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UpstreamError(
            f"the model server's answer is not a chat completion ({error!r}): {body!s:.200}. "
            "Check that the URL is that of an OpenAI-compatible server."
        ) from error
