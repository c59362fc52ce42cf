"""`Answer`: one completion with the exact tokens that were sampled, read from vLLM's dialect of OpenAI's JSON.

Owns how token ids and log-probabilities are found in an answer; never makes a request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from afterword.errors import UpstreamError
from afterword.records import Json

LOWEST_LOGPROB = -9999.0
"""vLLM writes minus infinity so, because JSON cannot; it is read as missing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request came back with."""

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
    """Log-probabilities of the sampled tokens from a choice's `logprobs` object; [] when there are none."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    values = [entry.get("logprob") for entry in content] if content else []
    return [None if v is None or v <= LOWEST_LOGPROB else float(v) for v in values]


def read_answer(body: Json) -> Answer:
    """The first choice of a `chat.completion` body. UpstreamError when it is not one."""
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
