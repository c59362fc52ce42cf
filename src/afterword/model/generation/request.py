"""Defines the requests to the model and the outputs of one step, as plain values that cross a pipe. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from afterword.errors import UsageError


class RequestError(UsageError):
    """A request body that cannot be served."""

    status = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A checked request. `max_tokens` None means up to the end of the context."""

    model: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    template_arguments: dict[str, Any] = field(default_factory=dict)
    continued: bool = False
    """The last message is the beginning of the answer."""
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """Likeliest tokens that are drawn from; 0 is all."""
    min_p: float = 0.0
    """Tokens less likely than this share of the likeliest one's probability are not drawn."""
    repetition_penalty: float = 1.0
    """Divides positive logits of the tokens of prompt and answer, and multiplies negative ones."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time that the answer has it."""
    presence_penalty: float = 0.0
    """Subtracted once from the logits of the answer's tokens."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, what is added to its logit)."""
    allowed_token_ids: tuple[int, ...] = ()
    """No other tokens are drawn; empty allows all."""
    bad_words: tuple[str, ...] = ()
    """Texts that the answer must not contain, as the client wrote them."""
    banned: tuple[tuple[int, ...], ...] = ()
    """The same in tokens, which the server makes."""
    stop_token_ids: tuple[int, ...] = ()
    """End the answer, besides the model's own."""
    stop: tuple[str, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False
    stream: bool = False
    include_usage: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    return_token_ids: bool = False
    stop_repetition: bool = False
    """End an answer that says the same again and again, as if it had reached its bound."""
    background: bool = False
    """Others go first. Only a header of our own commands sets it."""
    min_room: int = 1
    """Tokens that must be left for the answer, unless fewer are asked for; else the prompt is too long."""


@dataclass(slots=True)
class TokenOutput:
    """Output of one step for an answer. `finish` is "stop", "length" or "error" in the last piece."""

    token: int | None = None
    logprob: float | None = None
    """Under the model's plain softmax."""
    sampled_logprob: float | None = None
    """Under the distribution that the token was drawn from: temperature, top-p and masks included."""
    support: float = 1.0
    """Share of the tempered distribution that could be drawn: below 1 under top-p and masks, and for a greedy token."""
    top: list[tuple[int, float]] = field(default_factory=list)
    text: str = ""
    finish: str | None = None
    stop_reason: str | None = None
    """What ended the answer, where `finish` does not say it all: "repetition"."""
