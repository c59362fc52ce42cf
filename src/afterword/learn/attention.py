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
_BLOCK = 128
"""Queries that are scored at once, so that little is computed of what no query may see."""
_KEPT = 256
"""Most keys of a block whose weights are kept: what is kept does not grow with the square of a sequence."""


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
        q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
        return attend(q, k, v, scale, row.sizes)[None], None
    groups = query.shape[1] != key.shape[1]
    parts = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=groups)
        for q, k, v in zip(*(torch.split(t, list(row.sizes), 2) for t in (query, key, value)), strict=True)
    ]
    return torch.cat(parts, 2).transpose(1, 2), None


AttentionInterface.register(_NAME, _attend)


def row_sizes() -> tuple[int, ...] | None:
    """Lengths of the sequences of the row that is being read, None outside `reading`."""
    row = _READ.get()
    return None if row is None else row.sizes


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    sizes: tuple[int, ...],
    turns: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """[T, heads, D] of q [T, heads, D], k and v [T, fewer, D] on a CPU, causal within each sequence. `turns`, cosines
    and sines [T, D], turns q and k by their places first, as transformers' rotary embedding does."""
    out: Tensor = _Attention.apply(q, k, v, scale, sizes, turns)  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    """softmax(scale q k') v, causal, in blocks of queries. Heads that share keys are one product.

    Scores and weights are float32; in bf16 the products with the weights take them in bf16, as torch's own attention
    does. Kept are q and k (turned), v, and the weights of blocks with few keys; other weights are computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        sizes: tuple[int, ...],
        turns: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        ctx.scale, ctx.sizes, ctx.turns = scale, sizes, None if turns is None else _signed(*turns)
        wide_q, wide_k = _turned(q, ctx.turns).mul_(scale), _turned(k, ctx.turns)
        values = v.transpose(0, 1).contiguous()
        out = q.new_empty(len(q), len(wide_q), v.shape[-1])
        kept: list[Tensor | None] = []
        for block in _blocks(sizes):
            weights = block.weights(wide_q, wide_k).to(v.dtype)
            got = torch.bmm(weights, values[:, block.keys])
            out[block.queries] = got.view(len(wide_q), -1, v.shape[-1]).transpose(0, 1)
            kept.append(weights if weights.shape[-1] <= _KEPT else None)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(wide_q.to(q.dtype), wide_k.to(k.dtype), values, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        wide = torch.promote_types(q.dtype, torch.float32)
        d_q, d_k, d_v = (
            torch.empty_like(q, dtype=wide),
            torch.zeros_like(k, dtype=wide),
            torch.zeros_like(v, dtype=wide),
        )
        for block, weights in zip(_blocks(ctx.sizes), kept, strict=True):
            if weights is None:
                weights = block.weights(q.to(wide), k.to(wide)).to(v.dtype)
            d_o = _shared(d_out[block.queries].transpose(0, 1), len(k))
            d_v[:, block.keys] += torch.bmm(weights.transpose(1, 2), d_o)
            d_scores = torch._softmax_backward_data(_pairs(d_o, v[:, block.keys]), weights, -1, v.dtype)
            d_q[:, block.queries] = torch.bmm(d_scores, k[:, block.keys]).view(len(q), -1, q.shape[-1])
            d_k[:, block.keys] += torch.bmm(d_scores.transpose(1, 2), _shared(q[:, block.queries], len(k)))
        d_q = _turned_back(d_q.mul_(ctx.scale), ctx.turns, q.dtype)
        return d_q, _turned_back(d_k, ctx.turns, k.dtype), d_v.transpose(0, 1).to(v.dtype), None, None, None


@dataclass(frozen=True, slots=True)
class _Block:
    """Some queries of a sequence, and its keys up to the last of them."""

    queries: slice
    keys: slice

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """[K, G*n, m] for the queries of the G heads that share each of K keys."""
        scores = _pairs(_shared(q[:, self.queries], len(k)), k[:, self.keys])
        n = self.queries.stop - self.queries.start
        late = torch.full((n, n), -torch.inf, dtype=scores.dtype).triu_(1)
        scores.view(len(scores), -1, n, scores.shape[-1])[..., -n:].add_(late)
        return scores.softmax(-1)


def _blocks(sizes: tuple[int, ...]) -> Iterator[_Block]:
    for start, end in pairwise(accumulate(sizes, initial=0)):
        for low in range(start, end, _BLOCK):
            yield _Block(slice(low, min(low + _BLOCK, end)), slice(start, min(low + _BLOCK, end)))


def _shared(heads: Tensor, keys: int) -> Tensor:
    """[heads, n, D] to [keys, heads/keys * n, D], gapless: oneDNN crawls over gaps."""
    return heads.reshape(keys, -1, heads.shape[-1]).contiguous()


def _pairs(left: Tensor, right: Tensor) -> Tensor:
    """[K, a, b] in the tensors' dtype: left [K, a, d] times right' [K, b, d]."""
    if left.dtype != torch.float32:
        return torch.bmm(left, right.transpose(1, 2))
    return torch.stack([product(one, other.contiguous()) for one, other in zip(left, right, strict=True)])


def _signed(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """x turned is x cos + (x with its halves exchanged) sin, with the sign of a rotation in sin."""
    wide, half = torch.promote_types(cos.dtype, torch.float32), sin.shape[-1] // 2
    return cos.to(wide), torch.cat((-sin[:, :half], sin[:, half:]), -1).to(wide)


def _turned(x: Tensor, turns: tuple[Tensor, Tensor] | None) -> Tensor:
    """[T, heads, D] to new [heads, T, D], float32 or wider."""
    heads = x.new_empty(x.shape[1], len(x), x.shape[2], dtype=torch.promote_types(x.dtype, torch.float32))
    heads.copy_(x.transpose(0, 1))
    if turns is None:
        return heads
    other = heads.roll(x.shape[2] // 2, -1).mul_(turns[1])
    return heads.mul_(turns[0]).add_(other)


def _turned_back(gradient: Tensor, turns: tuple[Tensor, Tensor] | None, dtype: torch.dtype) -> Tensor:
    """The gradient of `_turned`: [heads, T, D], overwritten, to new [T, heads, D]."""
    if turns is not None:
        other = (gradient * turns[1]).roll(gradient.shape[2] // 2, -1)
        gradient = gradient.mul_(turns[0]).add_(other)
    back = gradient.new_empty(gradient.shape[1], len(gradient), gradient.shape[2], dtype=dtype)
    return back.copy_(gradient.transpose(0, 1))
