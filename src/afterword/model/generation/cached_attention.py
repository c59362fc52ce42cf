"""Computes attention over the engine's cache, registered with transformers under the name "afterword".

Owns how a step's tokens are laid out and who may look at whom. The model runs once over one flat row of
tokens [1, tokens]: first one token of each decoding request, then the chunks of prompts being read. The
model's own code computes queries, keys and values; `attend` stores keys and values in the request's row
and lets each token look at its own row only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from afterword.errors import ModelError
from afterword.model.generation.kv_cache import KeyValues

NAME = "afterword"
_LANES = 16
"""Keys that a decoding row reads are a multiple of this: the widest vectors hold so many float32 numbers."""
_QUERIES = 4
"""Fewer queries of a key head are filled up on a CPU: float32 products of fewer rows depend on the number of threads
(torch 2.13, x86)."""


@dataclass(slots=True)
class Probe:
    """Stands in for a Plan in the first run: notes each layer's shapes, attends without a cache."""

    shapes: dict[int, tuple[int, int, int]] = field(default_factory=dict)


class Interrupted(Exception):
    """A step was given up: `Plan.interrupted` said so. It can be done again."""


class Plan:
    """Where the tokens of one step live: `decoding` (row, position) each, then `reading` (row, from, to)."""

    def __init__(self, cache: KeyValues, decoding: list[tuple[int, int]], reading: list[tuple[int, int, int]]) -> None:
        self.cache = cache
        self.decoding = len(decoding)
        self.chunks: list[tuple[int, int, int, int]] = []
        rows, positions = [r for r, _ in decoding], [p for _, p in decoding]
        for row, begin, end in reading:
            self.chunks.append((len(rows), row, begin, end))
            rows += [row] * (end - begin)
            positions += range(begin, end)
        device = cache.device
        self.rows = torch.tensor(rows, device=device)
        self.positions = torch.tensor(positions, device=device)
        self.span = max((r for r, _ in decoding), default=-1) + 1
        self.dense = self.span == self.decoding
        longest = max((p for _, p in decoding), default=0) + 1
        # On a CPU one row has a mask, too: masked keys add zeros, so that a row's attention is bit for bit the same
        # beside longer rows. On CUDA one row without a mask takes the faster kernel.
        self.masked = self.span > 1 or device.type == "cpu"
        self.longest = min(-(-longest // _LANES) * _LANES, cache.length) if self.masked else longest
        self.interrupted: Callable[[], bool] = lambda: False
        """Asked at each layer."""
        self._index: dict[int, torch.Tensor] = {}
        self._masks: dict[tuple[int, int | None], torch.Tensor | None] = {}

    def index(self, heads: int) -> torch.Tensor:
        """Places of this step's keys in a layer seen as [rows * heads * length, width]: [tokens * heads]."""
        if heads not in self._index:
            head = torch.arange(heads, device=self.rows.device)
            place = (self.rows[:, None] * heads + head) * self.cache.length + self.positions[:, None]
            self._index[heads] = place.reshape(-1)
        return self._index[heads]

    def decode_mask(self, window: int | None) -> torch.Tensor | None:
        """Additive mask [span, 1, 1, longest]; rows that do not decode now see their first token only."""
        key = (-1, window)
        if key not in self._masks:
            if not self.masked and (window is None or self.longest <= window):
                self._masks[key] = None
            else:
                at = torch.zeros(self.span, dtype=torch.long, device=self.rows.device)
                at[self.rows[: self.decoding]] = self.positions[: self.decoding]
                self._masks[key] = self._visible(at, self.longest, window)[:, None, None]
        return self._masks[key]

    def chunk_mask(self, number: int, window: int | None) -> torch.Tensor | None:
        """Additive mask [chunk, end] of a prompt's chunk; None when plain causal attention does."""
        key = (number, window)
        if key not in self._masks:
            start, _, begin, end = self.chunks[number]
            if begin == 0 and (window is None or end <= window):
                self._masks[key] = None
            else:
                self._masks[key] = self._visible(self.positions[start : start + end - begin], end, window)
        return self._masks[key]

    def _visible(self, at: torch.Tensor, length: int, window: int | None) -> torch.Tensor:
        key = torch.arange(length, device=at.device)
        seen = key <= at[:, None]
        if window is not None:
            seen &= key > at[:, None] - window
        mask = torch.zeros(seen.shape, dtype=self.cache.dtype, device=at.device)
        return mask.masked_fill_(~seen, float("-inf"))


@dataclass(frozen=True, slots=True)
class Extras:
    """What some families add to attention."""

    softcap: float | None = None
    """Scores become softcap * tanh(score / softcap) (Gemma 2)."""
    sinks: torch.Tensor | None = None
    """[heads] the logit of a token beside the others that takes weight and gives nothing (gpt-oss)."""

    @property
    def none(self) -> bool:
        """Is it plain attention?"""
        return self.softcap is None and self.sinks is None


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    plan: Plan | Probe | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention signature: query [1, heads, tokens, width] -> [1, tokens, heads, width]."""
    if kwargs.get("position_bias") is not None:
        raise ModelError(f"the engine's attention has no position bias, which {type(module).__name__} needs")
    extras = Extras(kwargs.get("softcap"), kwargs.get("s_aux"))
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if isinstance(plan, Probe):
        plan.shapes[layer] = (key.shape[1], key.shape[3], value.shape[3])
        return mix(query, key, value, None, scaling, extras).transpose(1, 2), None
    if plan is None:
        raise ModelError(
            f"{type(module).__name__} does not pass the engine's plan to its attention: the engine cannot serve this "
            "architecture; use --upstream with another server"
        )
    if plan.interrupted():
        raise Interrupted
    _store(plan.cache.keys[layer], key, plan)
    _store(plan.cache.values[layer], value, plan)
    parts = []
    if plan.decoding:
        parts.append(_decode(plan, layer, query, scaling, sliding_window, extras))
    for number in range(len(plan.chunks)):
        parts.append(_read(plan, number, layer, query, scaling, sliding_window, extras))
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[None], None


def _store(store: torch.Tensor, fresh: torch.Tensor, plan: Plan) -> None:
    heads, width = fresh.shape[1], fresh.shape[3]
    store.view(-1, width).index_copy_(0, plan.index(heads), fresh[0].transpose(0, 1).reshape(-1, width))


def mix(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    extras: Extras,
) -> torch.Tensor:
    """Attention of query [rows, heads, m, width] over key and value [rows, key heads, n, ..]: [rows, heads, m, ..].

    Args:
        mask: additive, broadcast to [rows, heads, m, n]; None is causal with m = n.
        scaling: of the scores; None is 1 / sqrt(width).
        extras: what some families add to it; then the scores are written out, as transformers' eager attention does.
    """
    if extras.none:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
        )
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query @ key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if extras.softcap is not None:
        scores = torch.tanh(scores / extras.softcap) * extras.softcap
    if mask is None:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    else:
        scores = scores + mask
    if extras.sinks is not None:
        sink = extras.sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, sink], -1).softmax(-1, dtype=torch.float32)[..., :-1]
    else:
        weights = scores.softmax(-1, dtype=torch.float32)
    return weights.to(value.dtype) @ value


def _decode(
    plan: Plan, layer: int, query: torch.Tensor, scaling: float | None, window: int | None, extras: Extras
) -> torch.Tensor:
    """One query a row against that row: [decoding, heads, width]. The heads that share a key head stand
    where other queries of the same row would, so that keys are read once and never repeated."""
    cache, n = plan.cache, plan.decoding
    heads = cache.shapes[layer][0]
    fresh = query[0, :, :n].transpose(0, 1)
    if not plan.dense:
        full = fresh.new_zeros(plan.span, *fresh.shape[1:])
        full[plan.rows[:n]] = fresh
        fresh = full
    seen = slice(plan.span), slice(None), slice(plan.longest)
    keys, values, mask = cache.keys[layer][seen], cache.values[layer][seen], plan.decode_mask(window)
    if extras.none:
        grouped = fresh.reshape(plan.span, heads, -1, fresh.shape[-1])
        group = grouped.shape[2]
        if group < _QUERIES and grouped.device.type == "cpu":
            grouped = F.pad(grouped, (0, 0, 0, _QUERIES - group))
        mixed = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scaling)[:, :, :group]
    else:
        mixed = mix(fresh[:, :, None], keys, values, keys.new_zeros(1) if mask is None else mask, scaling, extras)
    mixed = mixed.reshape(plan.span, query.shape[1], -1)
    return mixed if plan.dense else mixed[plan.rows[:n]]


def _read(
    plan: Plan,
    number: int,
    layer: int,
    query: torch.Tensor,
    scaling: float | None,
    window: int | None,
    extras: Extras,
) -> torch.Tensor:
    """A chunk of a prompt against what is stored of it: [chunk, heads, width]."""
    start, row, begin, end = plan.chunks[number]
    mask = plan.chunk_mask(number, window)
    mixed = mix(
        query[:, :, start : start + end - begin],
        plan.cache.keys[layer][row : row + 1, :, :end],
        plan.cache.values[layer][row : row + 1, :, :end],
        mask,
        scaling,
        extras,
    )
    return mixed[0].transpose(0, 1)


AttentionInterface.register(NAME, attend)
