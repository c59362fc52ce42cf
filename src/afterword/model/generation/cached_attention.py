"""Computes attention over the engine's cache, registered with transformers under the name "afterword".

Owns the layout of a step's tokens and their attention mask. The model runs once over one flat row of
tokens [1, tokens]: first one token of each decoding request, then the chunks of prompts being read. The
model's own code computes queries, keys and values; `attend` stores keys and values in the request's row
and lets each token look at its own row only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from afterword.errors import ModelError
from afterword.model.generation.kv_cache import KeyValues

NAME = "afterword"
_LANES = 16
"""Keys that a decoding row reads are a multiple of this: the widest vectors hold so many float32 numbers."""
_BLOCK = 128
"""On a CPU, all queries of a block of so many tokens of a prompt see the same number of keys: those up to the block's
end, later ones masked. The bits of a token's attention then depend neither on where a chunk begins nor on where it
ends."""
_TILE = 32
"""Queries that torch's attention computes together on a CPU."""
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
        self.runs = _runs(decoding, cache.length) if device.type == "cpu" else self._together(decoding)
        """(first row, row behind the last, keys): rows that stand together and read the same number of keys."""
        self.interrupted: Callable[[], bool] = lambda: False
        """Asked at each layer."""
        self._index: dict[int, torch.Tensor] = {}
        self._masks: dict[tuple[int, int, int, int | None], torch.Tensor | None] = {}
        self._parts: dict[tuple[int, int, int, int | None], torch.Tensor] = {}

    def index(self, heads: int) -> torch.Tensor:
        """Places of this step's keys in a layer seen as [rows * heads * length, width]: [tokens * heads]."""
        if heads not in self._index:
            head = torch.arange(heads, device=self.rows.device)
            place = (self.rows[:, None] * heads + head) * self.cache.length + self.positions[:, None]
            self._index[heads] = place.reshape(-1)
        return self._index[heads]

    def _together(self, decoding: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
        """All rows at once, with the keys of the longest: the kernels of a GPU are faster so."""
        if not decoding:
            return []
        longest = max(position for _, position in decoding) + 1
        keys = longest if self.span == 1 else min(-(-longest // _LANES) * _LANES, self.cache.length)
        return [(0, self.span, keys)]

    def run_mask(self, run: tuple[int, int, int], window: int | None) -> torch.Tensor | None:
        """Additive mask [rows of the run, 1, 1, keys]; rows that do not decode now see their first token only. None for
        one row on a GPU, which takes the faster kernel without one."""
        low, high, keys = run
        key = (*run, window)
        if key not in self._masks:
            if self.span == 1 and self.cache.device.type != "cpu" and (window is None or keys <= window):
                self._masks[key] = None
            else:
                at = torch.zeros(self.span, dtype=torch.long, device=self.rows.device)
                at[self.rows[: self.decoding]] = self.positions[: self.decoding]
                self._masks[key] = self._visible(at[low:high], keys, window)[:, None, None]
        return self._masks[key]

    def parts(self, number: int) -> list[tuple[int, int, int]]:
        """(begin, end, keys) of a prompt's chunk: its tokens by blocks, and the keys that each block sees."""
        _, _, begin, end = self.chunks[number]
        if self.cache.device.type != "cpu":
            return [(begin, end, end)]
        edges = [begin, *range((begin // _BLOCK + 1) * _BLOCK, end, _BLOCK), end]
        return [(low, high, min(-(-high // _BLOCK) * _BLOCK, self.cache.length)) for low, high in pairwise(edges)]

    def part_mask(self, part: tuple[int, int, int], window: int | None) -> torch.Tensor | None:
        """Additive mask [end - begin, keys]; None when plain causal attention does."""
        begin, end, keys = part
        if begin == 0 and end == keys and (window is None or end <= window):
            return None
        if (begin, end, keys, window) not in self._parts:
            at = torch.arange(begin, end, device=self.positions.device)
            self._parts[begin, end, keys, window] = self._visible(at, keys, window)
        return self._parts[begin, end, keys, window]

    def _visible(self, at: torch.Tensor, length: int, window: int | None) -> torch.Tensor:
        key = torch.arange(length, device=at.device)
        seen = key <= at[:, None]
        if window is not None:
            seen &= key > at[:, None] - window
        mask = torch.zeros(seen.shape, dtype=self.cache.dtype, device=at.device)
        return mask.masked_fill_(~seen, float("-inf"))


def _runs(decoding: list[tuple[int, int]], length: int) -> list[tuple[int, int, int]]:
    """Neighbouring rows that read the same number of keys, their own length up to the end of its block: the number
    never depends on the rows beside, and so neither do the bits (the sum over the values of 208 keys in bfloat16 is
    another one when masked keys follow; torch 2.13, x86)."""
    runs: list[tuple[int, int, int]] = []
    for row, position in sorted(decoding):
        keys = min(-(-(position + 1) // _BLOCK) * _BLOCK, length)
        if runs and runs[-1][1:] == (row, keys):
            runs[-1] = (runs[-1][0], row + 1, keys)
        else:
            runs.append((row, row + 1, keys))
    return runs


@dataclass(frozen=True, slots=True)
class Extras:
    """Additions of some model families to attention."""

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
    fresh = query[0, :, :n].transpose(0, 1)
    if not plan.dense:
        full = fresh.new_zeros(plan.span, *fresh.shape[1:])
        full[plan.rows[:n]] = fresh
        fresh = full
    mixed = fresh.new_zeros(plan.span, query.shape[1], cache.shapes[layer][2])
    for run in plan.runs:
        low, high, seen = run
        keys, values = cache.keys[layer][low:high, :, :seen], cache.values[layer][low:high, :, :seen]
        mixed[low:high] = _decode_run(fresh[low:high], keys, values, plan.run_mask(run, window), scaling, extras)
    return mixed if plan.dense else mixed[plan.rows[:n]]


def _decode_run(
    fresh: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    extras: Extras,
) -> torch.Tensor:
    """One query a row [rows, heads, width] over keys and values [rows, key heads, n, ..]: [rows, heads, ..]."""
    if not extras.none:
        some = keys.new_zeros(1) if mask is None else mask
        return mix(fresh[:, :, None], keys, values, some, scaling, extras)[:, :, 0]
    grouped = fresh.reshape(len(fresh), keys.shape[1], -1, fresh.shape[-1])
    group = grouped.shape[2]
    if group < _QUERIES and grouped.device.type == "cpu":
        grouped = F.pad(grouped, (0, 0, 0, _QUERIES - group))
    mixed = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scaling)[:, :, :group]
    return mixed.reshape(len(fresh), fresh.shape[1], -1)


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
    start, row, begin, _ = plan.chunks[number]
    if not extras.none:
        plan.cache.reusable = False  # its products of few rows have other bits than those of many
    mixed = []
    for part in plan.parts(number):
        low, high, seen = part
        mixed.append(
            _attend_rows(
                query[:, :, start + low - begin : start + high - begin],
                plan.cache.keys[layer][row : row + 1, :, :seen],
                plan.cache.values[layer][row : row + 1, :, :seen],
                plan.part_mask(part, window),
                scaling,
                extras,
            )
        )
    return (mixed[0] if len(mixed) == 1 else torch.cat(mixed, 2))[0].transpose(0, 1)


def _attend_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    extras: Extras,
) -> torch.Tensor:
    """`mix`; on a CPU the last tile of one to three queries is filled up, because its products take another kernel."""
    count = query.shape[2]
    missing = _QUERIES - count % _TILE if 0 < count % _TILE < _QUERIES and query.device.type == "cpu" else 0
    if not missing or mask is None or not extras.none:
        return mix(query, key, value, mask, scaling, extras)
    filled = F.pad(query, (0, 0, 0, missing))
    return mix(filled, key, value, torch.cat([mask, mask[-1:].expand(missing, -1)]), scaling, extras)[:, :, :count]


def rows_agree(heads: int, key_heads: int, width: int, value_width: int, dtype: torch.dtype) -> bool:
    """Has attention of some tokens of a block the same bits as that of the whole block, with this torch on this CPU?
    Tried on random numbers, some milliseconds."""
    draw, keys = torch.Generator().manual_seed(0), 2 * _BLOCK
    query = torch.randn(1, heads, keys, width, generator=draw).to(dtype)
    key = torch.randn(1, key_heads, keys, width, generator=draw).to(dtype)
    value = torch.randn(1, key_heads, keys, value_width, generator=draw).to(dtype)
    hidden = torch.ones(keys, keys, dtype=torch.bool).triu(1)
    mask = torch.zeros(keys, keys, dtype=dtype).masked_fill_(hidden, float("-inf"))

    def attended(begin: int, end: int, seen: int) -> torch.Tensor:
        return _attend_rows(
            query[:, :, begin:end], key[:, :, :seen], value[:, :, :seen], mask[begin:end, :seen], None, Extras()
        )

    for seen in (_BLOCK, keys):
        first = seen - _BLOCK
        whole = attended(first, seen, seen)
        causal = seen > _BLOCK or torch.equal(
            whole, mix(query[:, :, :seen], key[:, :, :seen], value[:, :, :seen], None, None, Extras())
        )
        parts = [(32, 128), (32, 37), (64, 99), (0, 66), (0, 4), (96, 127), (5, 128), (0, 33)]
        if not causal or not all(
            torch.equal(attended(first + low, first + high, seen), whole[:, :, low:high]) for low, high in parts
        ):
            return False
    return True


AttentionInterface.register(NAME, attend)
