"""Changes a row of logits as a request asks: allowed tokens, forbidden words, biases, least lengths and penalties.

Owns the order, which is vLLM's: allowed tokens, forbidden words, bias and `min_tokens`, then the penalties for
repetition, frequency and presence. Temperature, min-p, top-k and top-p come after it, in `sampler`. Each row is changed
by itself, so that an answer does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from afterword.model.generation.request import GenerationRequest

_NEVER = float("-inf")


class Shaping:
    """What one request changes, and the tokens that its penalties count.

    Args:
        ask: The request.
        prompt: Its prompt, which counts for `repetition_penalty` alone, as in vLLM.
        ends: Tokens that end the answer, forbidden before `min_tokens`.
    """

    def __init__(self, ask: GenerationRequest, prompt: Sequence[int], ends: Collection[int]) -> None:
        self._ask, self._prompt, self._ends = ask, list(prompt), sorted(ends)
        self._written: list[int] = []
        self._bias: torch.Tensor | None = None
        self._seen: torch.Tensor | None = None
        """[vocabulary] True for tokens of prompt and answer."""
        self._counts: torch.Tensor | None = None
        """[vocabulary] how often the answer has each token."""

    @staticmethod
    def of(ask: GenerationRequest, prompt: Sequence[int], ends: Collection[int]) -> Shaping | None:
        """A Shaping; None for a request that leaves the logits as they are."""
        asks = (ask.logit_bias, ask.allowed_token_ids, ask.banned, ask.min_tokens, ask.frequency_penalty)
        changed = any(asks) or ask.presence_penalty != 0.0 or ask.repetition_penalty != 1.0
        return Shaping(ask, prompt, ends) if changed else None

    @property
    def active(self) -> bool:
        """False once nothing but a `min_tokens` that is reached was asked for."""
        ask = self._ask
        return len(self._written) < ask.min_tokens or bool(
            ask.logit_bias or ask.allowed_token_ids or ask.banned or self._penalised
        )

    @property
    def _penalised(self) -> bool:
        ask = self._ask
        return ask.frequency_penalty != 0.0 or ask.presence_penalty != 0.0 or ask.repetition_penalty != 1.0

    def push(self, token: int) -> None:
        """Notes a token of the answer."""
        self._written.append(token)
        if self._seen is not None and self._counts is not None:
            self._seen[token] = True
            self._counts[token] += 1.0

    def apply(self, row: torch.Tensor) -> torch.Tensor:
        """The logits [vocabulary] that the next token is drawn from; `row` stays as it is.

        Where nothing would be left to draw, `min_tokens` and forbidden words give way for this token.
        """
        ask = self._ask
        if self._bias is None:
            self._bias = self._fixed(row)
        shaped = row + self._bias
        forbidden = [end for end in self._ends if len(self._written) < ask.min_tokens]
        forbidden += [words[-1] for words in ask.banned if self._tail(len(words) - 1) == words[:-1]]
        if forbidden:
            held = shaped.clone()
            held[forbidden] = _NEVER
            if bool((held > _NEVER).any()):
                shaped = held
        if self._penalised:
            shaped = self._penalise(shaped)
        return shaped

    def _tail(self, size: int) -> tuple[int, ...] | None:
        return tuple(self._written[len(self._written) - size :]) if size <= len(self._written) else None

    def _fixed(self, row: torch.Tensor) -> torch.Tensor:
        """What is added to every row: the bias, and minus infinity outside of the allowed tokens."""
        ask = self._ask
        bias = torch.full_like(row, _NEVER if ask.allowed_token_ids else 0.0)
        if ask.allowed_token_ids:
            bias[list(ask.allowed_token_ids)] = 0.0
        if ask.logit_bias:
            tokens, values = zip(*ask.logit_bias, strict=True)
            bias[list(tokens)] += torch.tensor(values, dtype=row.dtype, device=row.device)
        return bias

    def _penalise(self, row: torch.Tensor) -> torch.Tensor:
        ask = self._ask
        if self._seen is None or self._counts is None:
            self._seen = torch.zeros_like(row, dtype=torch.bool)
            self._counts = torch.zeros_like(row)
            self._seen[[*self._prompt, *self._written]] = True
            for token in self._written:
                self._counts[token] += 1.0
        if ask.repetition_penalty != 1.0:
            by = ask.repetition_penalty
            row = torch.where(self._seen, torch.where(row > 0, row / by, row * by), row)
        if ask.frequency_penalty:
            row = row - ask.frequency_penalty * self._counts
        if ask.presence_penalty:
            row = row - ask.presence_penalty * (self._counts > 0)
        return row
