"""Attention within each sequence of a packed row: several sequences one after the other, nothing padded.

Owns the attention that a transformers model calls while a row is being read, and its backward pass. On a CPU torch's
own bf16 attention takes three times as long forward and backward as the products it consists of, so those are taken
one by one; on CUDA each sequence goes through torch's. It never decides what is packed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from afterword.learn.products import product

_NAME = "afterword_packed"
_BLOCK = 256
"""Queries that are scored at once: what is kept of a layer does not grow with the square of a sequence."""


class Unsupported(Exception):
    """The model wants something of its attention that is not done here: a window, a soft cap, sinks."""


@dataclass(frozen=True, slots=True)
class _Row:
    sizes: tuple[int, ...]
    configs: tuple[Any, ...]


_READ: ContextVar[_Row | None] = ContextVar("afterword_row", default=None)


@contextmanager
def reading(model: Any, sizes: Sequence[int]) -> Iterator[None]:
    """Inside, `model` attends only within the sequences of these lengths that make up its one row."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    with _entered(_Row(tuple(sizes), tuple(configs.values()))):
        yield


def same_row(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` as of now, wherever it is called later: activations that are computed again in a backward pass must
    see the row that they were computed from."""
    row = _READ.get()
    if row is None:
        return forward

    def later(*args: Any, **kwargs: Any) -> Any:
        with _entered(row):
            return forward(*args, **kwargs)

    return later


@contextmanager
def _entered(row: _Row) -> Iterator[None]:
    before = [c._attn_implementation for c in row.configs]
    token = _READ.set(row)
    try:
        for config in row.configs:
            config._attn_implementation = _NAME
        yield
    finally:
        _READ.reset(token)
        for config, name in zip(row.configs, before, strict=True):
            config._attn_implementation = name


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **wanted: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: query [1, heads, T, D], key and value [1, fewer, T, D] -> [1, T, heads, D]."""
    row = _READ.get()
    odd = [k for k in ("sliding_window", "softcap", "s_aux", "position_bias") if wanted.get(k) is not None]
    if row is None or odd or attention_mask is not None or dropout or query.shape[:3:2] != (1, sum(row.sizes)):
        raise Unsupported(f"attention with {odd or 'a mask'} over {tuple(query.shape)}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type == "cpu":
        out = _Attention.apply(query[0], key[0], value[0], scale, row.sizes)  # type: ignore[no-untyped-call]
        return out.transpose(0, 1)[None], None
    groups = query.shape[1] != key.shape[1]
    parts = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=groups)
        for q, k, v in zip(*(torch.split(t, list(row.sizes), 2) for t in (query, key, value)), strict=True)
    ]
    return torch.cat(parts, 2).transpose(1, 2), None


AttentionInterface.register(_NAME, _attend)


class _Attention(torch.autograd.Function):
    """softmax(scale q k') v, causal, in blocks of queries. Keeps q, k and v; the weights are computed again.

    Scores, weights and what flows back to them are float32; in bf16 the products with the weights take them in
    bf16, as torch's own attention does. Heads that share keys are one product.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, sizes: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale, ctx.sizes = scale, sizes
        out = q.new_empty(*q.shape[:2], v.shape[-1])
        for block in _blocks(q, k, sizes):
            got = torch.bmm(block.weights(scale).to(v.dtype), v[:, block.keys])
            out[:, block.queries] = got.view(len(q), -1, v.shape[-1])
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        d_q, wide = torch.empty_like(q), torch.promote_types(q.dtype, torch.float32)
        d_k, d_v = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        for block in _blocks(q, k, ctx.sizes):
            keys, weights = block.keys, block.weights(ctx.scale)
            d_o = d_out[:, block.queries].reshape(len(k), -1, v.shape[-1])
            d_v[:, keys] += torch.bmm(weights.to(v.dtype).transpose(1, 2), d_o)
            d_weights = _scores(d_o, v[:, keys])
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, wide).to(q.dtype)
            d_q[:, block.queries] = torch.bmm(d_scores, k[:, keys]).mul_(ctx.scale).view(len(q), -1, q.shape[-1])
            d_k[:, keys] += torch.bmm(d_scores.transpose(1, 2), block.asked)
        return d_q, d_k.mul_(ctx.scale).to(k.dtype), d_v.to(v.dtype), None, None


@dataclass(frozen=True, slots=True)
class _Block:
    asked: Tensor
    """[K, G*n, D] queries of the G heads that share each of K keys."""
    key: Tensor
    """[K, m, D] of the sequence so far."""
    queries: slice
    keys: slice

    def weights(self, scale: float) -> Tensor:
        """[K, G*n, m]"""
        scores = _scores(self.asked, self.key).mul_(scale)
        n = self.queries.stop - self.queries.start
        late = torch.full((n, n), -torch.inf, dtype=scores.dtype).triu_(1)
        scores.view(len(scores), -1, n, scores.shape[-1])[..., -n:].add_(late)
        return scores.softmax(-1)


def _blocks(q: Tensor, k: Tensor, sizes: tuple[int, ...]) -> Iterator[_Block]:
    for start, end in pairwise(accumulate(sizes, initial=0)):
        for low in range(start, end, _BLOCK):
            queries, keys = slice(low, min(low + _BLOCK, end)), slice(start, min(low + _BLOCK, end))
            asked = q[:, queries].reshape(len(k), -1, q.shape[-1])
            yield _Block(asked, k[:, keys], queries, keys)


def _scores(left: Tensor, right: Tensor) -> Tensor:
    """[K, a, b], float32 or wider: left [K, a, d] times right' [K, b, d]."""
    wide = torch.promote_types(left.dtype, torch.float32)
    pairs = zip(left.contiguous().to(wide), right.contiguous().to(wide), strict=True)  # oneDNN crawls over gaps
    return torch.stack([product(one, other) for one, other in pairs])
