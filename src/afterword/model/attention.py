"""Restricts a transformers model to attention within each sequence of a packed row, with nothing padded.

On a CPU `attention_kernel` computes it, on CUDA torch's own attention, sequence by sequence. `packing` builds the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from afterword.model.attention_kernel import (
    AttentionLayout,
    KeyValues,
    Ranges,
    SharedPrefix,
    Unsupported,
    backward,
    forward,
)

_NAME = "afterword_packed"


@dataclass(frozen=True, slots=True)
class _Row:
    sizes: tuple[int, ...]
    configs: tuple[Any, ...]
    keep: KeyValues | None
    after: SharedPrefix | None
    prefixes: tuple[Ranges, ...]
    layouts: list[tuple[Any, AttentionLayout]] = field(default_factory=list)
    """(scale, rotary) of the layers so far with their layout: mostly one."""


_READ: ContextVar[_Row | None] = ContextVar("afterword_row", default=None)


@contextmanager
def reading(
    model: Any,
    sizes: Sequence[int],
    keep: KeyValues | None = None,
    after: SharedPrefix | None = None,
    prefixes: tuple[Ranges, ...] = (),
) -> Iterator[None]:
    """Inside, `model` reads one packed row and attends only within its sequences.

    Args:
        model: A transformers model.
        sizes: Tokens of each sequence in the row; with `after`, only the new ones.
        keep: Fused layers store their keys and values here.
        after: Keys and values of prefixes to go on after.
        prefixes: For each segment the tokens of this row that it goes on after; empty where none does.

    Raises:
        Unsupported: `after` is given and a layer is not fused.
    """
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    with _entered(_Row(tuple(sizes), tuple(configs.values()), keep, after, prefixes)):
        yield


def same_row(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Bind `forward` to the row that is being read now: activation checkpointing recomputes it in the backward pass."""
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
    """The attention function for transformers: query [1, heads, T, D], key and value [1, key heads, T, D] give
    [1, T, heads, D]."""
    row = _READ.get()
    odd = [k for k in ("sliding_window", "softcap", "s_aux", "position_bias") if wanted.get(k) is not None]
    if row is None or odd or attention_mask is not None or dropout or query.shape[:3:2] != (1, sum(row.sizes)):
        raise Unsupported(f"attention with {odd or 'a mask'} over {tuple(query.shape)}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type == "cpu":
        q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
        layout = attention_layout(scale, None)
        assert layout is not None
        return attend(q, k, v, layout)[None], None
    if row.after is not None:
        raise Unsupported("a prefix of another row needs fused layers")
    return _by_segment(query, key, value, row, scale).transpose(1, 2), None


def _by_segment(query: Tensor, key: Tensor, value: Tensor, row: _Row, scale: float) -> Tensor:
    """torch's own attention, segment by segment: a segment sees the tokens that it goes on after, and itself."""
    groups, parts, start = query.shape[1] != key.shape[1], [], 0
    for size, prefix in zip(row.sizes, row.prefixes or ((),) * len(row.sizes), strict=True):
        ranges = (*prefix, (start, start + size))
        k, v = (
            x[:, :, start : start + size] if not prefix else torch.cat([x[:, :, a:b] for a, b in ranges], 2)
            for x in (key, value)
        )
        mask = None
        if prefix:  # torch's own causal mask is aligned at the first key, not at the last
            mask = torch.ones(size, k.shape[2], dtype=torch.bool, device=k.device).tril_(k.shape[2] - size)
        parts.append(
            F.scaled_dot_product_attention(
                query[:, :, start : start + size], k, v,
                attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=groups,
            )
        )  # fmt: skip
        start += size
    return torch.cat(parts, 2)


AttentionInterface.register(_NAME, _attend)


def attention_layout(scale: float, rotary: tuple[Tensor, Tensor] | None) -> AttentionLayout | None:
    """The layout of the row that is being read.

    Args:
        scale: Factor on the scores.
        rotary: Cosines and sines [1, T, D], as transformers computes them; None when q and k are rotated already.

    Returns:
        None outside of `reading`.
    """
    row = _READ.get()
    if row is None:
        return None
    for asked, layout in row.layouts:
        if asked[0] == scale and (asked[1] is rotary or (asked[1] and rotary and asked[1][0] is rotary[0])):
            return layout
    layout = AttentionLayout(
        row.sizes, scale, None if rotary is None else (rotary[0][0], rotary[1][0]), row.keep, row.after, row.prefixes
    )
    row.layouts.append(((scale, rotary), layout))
    return layout


def attend(q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout) -> Tensor:
    """Causal attention within each sequence, on a CPU, with a gradient.

    Args:
        q: [T, heads, D]
        k: [T, key heads, D]
        v: [T, key heads, D]
        layout: Layout of the row.

    Returns:
        [T, heads, D]
    """
    out: Tensor = _Attention.apply(q, k, v, layout)  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    """`attention_kernel.forward` and `backward` for autograd."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout) -> Tensor:
        ctx.layout = layout
        out, kept = forward(q, k, v, layout)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*kept)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        return *backward(d_out, ctx.saved_tensors, ctx.layout), None
