"""Samples tokens from logits, all rows of a step at once. Owns temperature, min-p, top-k, top-p, the draw and the
log-probabilities that are reported; keeps no state. `logprobs` are of the plain softmax (temperature 1, before
penalties, masks and truncation), as vLLM reports them by default (`logprobs_mode=raw_logprobs`); `sampled_logprobs` of
what the token was drawn from. Truncation is in vLLM's order: min-p, top-k, and top-p of what these leave."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

_BLOCK = 128
_HEAD = 512
"""Most nuclei lie within this many tokens; a wider one is found by a full sort."""
_HARDLY = 20.0
"""Nats below its plain log-probability from which on a token counts as one that is not drawn: a bias of -100 forbids
it, though its probability is above 0."""


@dataclass(slots=True)
class Draw:
    """How one row is to be drawn: `uniform` in [0, 1) comes from the request's own generator."""

    temperature: float
    top_p: float
    uniform: float
    top_k: int = 0
    min_p: float = 0.0

    @property
    def cuts(self) -> bool:
        """Does it leave out tokens before top-p?"""
        return self.temperature > 0.0 and (self.top_k > 0 or self.min_p > 0.0)


def sample(logits: torch.Tensor, draws: list[Draw]) -> torch.Tensor:
    """logits [rows, vocabulary] float32 -> token ids [rows]; temperature 0 takes the largest."""
    if any(d.cuts for d in draws):
        logits = truncate(logits, draws)
    greedy = [i for i, d in enumerate(draws) if d.temperature == 0.0]
    plain = [i for i, d in enumerate(draws) if d.temperature > 0.0 and d.top_p >= 1.0]
    nucleus = [i for i, d in enumerate(draws) if d.temperature > 0.0 and d.top_p < 1.0]
    tokens = torch.empty(len(draws), dtype=torch.long, device=logits.device)
    for rows, draw in ((greedy, None), (plain, _draw_plain), (nucleus, _draw_nucleus)):
        if not rows:
            continue
        some = logits if len(rows) == len(draws) else logits[rows]
        chosen = some.argmax(-1) if draw is None else draw(some, [draws[i] for i in rows])
        if len(rows) == len(draws):
            return chosen
        tokens[rows] = chosen
    return tokens


def truncate(logits: torch.Tensor, draws: list[Draw]) -> torch.Tensor:
    """[rows, vocabulary] with -inf for the tokens that min-p and top-k leave out; each row by itself."""
    found = logits.clone()
    for row, draw in zip(found, draws, strict=True):
        if not draw.cuts:
            continue
        if draw.min_p > 0.0:
            row[row < row.max() + draw.temperature * math.log(draw.min_p)] = float("-inf")
        if 0 < draw.top_k < logits.shape[-1]:
            best = row.topk(draw.top_k)
            row.fill_(float("-inf"))
            row[best.indices] = best.values
    return found


def logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> list[float]:
    """Log-probability (nats) of each row's token under the raw softmax."""
    picked = logits.gather(1, tokens[:, None])[:, 0]
    values: list[float] = (picked - logits.logsumexp(-1)).tolist()
    return values


def sampled_logprobs(
    raw: torch.Tensor, logits: torch.Tensor, draws: list[Draw], tokens: torch.Tensor
) -> tuple[list[float], list[float]]:
    """Log-probability (nats) of each row's token under the distribution that it was drawn from.

    Args:
        raw: [rows, vocabulary] float32 as the model gave them.
        logits: The same with penalties, biases and masks.
        draws: As `sample` was given them.
        tokens: [rows] the drawn tokens.

    Returns:
        The log-probabilities, 0 at temperature 0, which leaves no alternative; and for each row the share of the plain
        distribution at that temperature that could be drawn: 1 without masks and truncation, whatever the penalties.
    """
    heat = torch.tensor([d.temperature or 1.0 for d in draws], device=logits.device)[:, None]
    plain = (raw / heat).log_softmax(-1)
    drawn = (truncate(logits, draws) / heat).log_softmax(-1)
    picked = drawn.gather(1, tokens[:, None])[:, 0]
    possible = plain.exp().masked_fill(drawn < plain - _HARDLY, 0.0)
    support = possible.sum(-1)
    for i, draw in enumerate(draws):
        if draw.temperature == 0.0:
            support[i] = plain[i, tokens[i]].exp()
            picked[i] = 0.0
        elif draw.top_p < 1.0:
            kept, indices = _nucleus(drawn[i].exp()[None], torch.tensor([[draw.top_p]], device=logits.device))
            picked[i] -= kept.sum().log()
            support[i] = possible[i, indices[kept > 0.0]].sum()
    return picked.clamp(max=0.0).tolist(), support.clamp(max=1.0).tolist()


def top_logprobs(logits: torch.Tensor, count: int) -> list[tuple[int, float]]:
    """The `count` likeliest tokens of one row [vocabulary] with their log-probabilities, likeliest first."""
    best = (logits - logits.logsumexp(-1)).topk(min(count, logits.shape[-1]))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def _probabilities(logits: torch.Tensor, draws: list[Draw]) -> torch.Tensor:
    if any(d.temperature != 1.0 for d in draws):
        logits = logits / torch.tensor([d.temperature for d in draws], device=logits.device)[:, None]
    return logits.softmax(-1)


def _uniforms(draws: list[Draw], device: torch.device) -> torch.Tensor:
    return torch.tensor([d.uniform for d in draws], dtype=torch.float64, device=device)[:, None]


def _invert(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Index at which the cumulative sum of each row passes `uniform` of its total: [rows]. First the block of
    tokens, then the token in it: a running sum over a whole vocabulary costs ten times as much."""
    rows, size = probabilities.shape
    if size % _BLOCK:
        probabilities = torch.nn.functional.pad(probabilities, (0, -size % _BLOCK))
    blocks = probabilities.view(rows, -1, _BLOCK)
    block, rest = _pass(blocks.sum(-1), uniforms)
    at, _ = _pass(blocks[torch.arange(rows, device=block.device), block[:, 0]], rest)
    return (block * _BLOCK + at)[:, 0].clamp_(max=size - 1)


def _pass(weights: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The item of each row in which the running sum passes `share` [rows, 1] of the total, and how far into that
    item: both [rows, 1]."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    target = share * cumulative[:, -1:]
    item = torch.searchsorted(cumulative, target, right=True).clamp_(max=weights.shape[-1] - 1)
    weight = weights.gather(1, item).double()
    into = (target - cumulative.gather(1, item) + weight) / weight.clamp(min=1e-300)
    return item, into.clamp_(0.0, 1.0 - 1e-12)


def _draw_plain(logits: torch.Tensor, draws: list[Draw]) -> torch.Tensor:
    return _invert(_probabilities(logits, draws), _uniforms(draws, logits.device))


def _draw_nucleus(logits: torch.Tensor, draws: list[Draw]) -> torch.Tensor:
    """The smallest set of likeliest tokens that holds top_p of the probability, drawn from as it weighs."""
    limit = torch.tensor([d.top_p for d in draws], device=logits.device)[:, None]
    kept, indices = _nucleus(_probabilities(logits, draws), limit)
    at = _invert(kept, _uniforms(draws, logits.device))
    return indices.gather(1, at[:, None])[:, 0]


def _nucleus(probabilities: torch.Tensor, limit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of the likeliest tokens, 0 for those outside of the nucleus `limit` [rows, 1], and their ids: both
    [rows, some]."""
    head = probabilities.topk(min(_HEAD, probabilities.shape[-1]))
    values, indices = head.values, head.indices
    narrow = values.sum(-1) >= limit[:, 0]
    if not bool(narrow.all()):
        # Equal probabilities may come in another order here: a row takes this one only if it needs it itself.
        size = values.shape[-1]
        values, indices = probabilities.sort(-1, descending=True)
        values[narrow, size:] = 0.0
        values[narrow, :size], indices[narrow, :size] = head.values[narrow], head.indices[narrow]
    before = values.cumsum(-1) - values
    return values.masked_fill(before >= limit, 0.0), indices
