"""Computes causal attention within the sequences of a packed row, forward and backward, on a CPU.

Sequences are padded to one length and scored in blocks of queries. The products are separate calls: torch's own bf16
attention takes three times as long as the products it consists of. `attention` knows which row a model reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from afterword.model.matmul import matmul

_BLOCK = 128
"""Queries in a block: small, so that few masked scores are computed."""
_KEPT = 256
"""Most keys of a block whose weights are saved for backward, so that memory does not grow with length squared."""


_MATMUL: Any = getattr(torch.backends.mkldnn, "matmul", None)
"""Setting that allows bf16 in float32 products of a bf16 model. oneDNN then computes them: on a processor without bf16
tiles still in float32, in half the time of the default library."""


class Unsupported(Exception):
    """The model needs attention that is not implemented here: a sliding window, a soft cap, sinks."""


KeyValues = dict[int, tuple[Tensor, Tensor]]
"""Layer number -> (keys, values), each [S, K, L, D]: S padded sequences, K key heads, L tokens, head width D."""


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Keys and values of prefixes that another row has computed already."""

    kept: KeyValues
    rows: tuple[int, ...]
    """For each sequence, the index of its prefix in `kept`."""
    lengths: tuple[int, ...]
    """Tokens of each prefix."""


class AttentionLayout:
    """How attention reads a packed row: its sequences padded to one length, the scale, and the rotary embedding.

    `rotary` holds the cosines and sines [T, D] of the positions, as transformers computes them.

    Padding never needs a mask of its own: it comes last, where no query looks.
    """

    def __init__(
        self,
        sizes: tuple[int, ...],
        scale: float,
        rotary: tuple[Tensor, Tensor] | None,
        keep: KeyValues | None = None,
        after: SharedPrefix | None = None,
    ) -> None:
        self.sizes, self.scale, self.longest, self.keep, self.after = sizes, scale, max(sizes), keep, after
        self.prefix_length = 0 if after is None else max(after.lengths)
        self.unpadded = len(set(sizes)) == 1
        """True when all sequences have one length, so that there is no padding."""
        self._places = torch.cat([torch.arange(n) + i * self.longest for i, n in enumerate(sizes)])
        self.rotary = None if rotary is None else _signed(*(self.pad(t[:, None]).transpose(1, 2) for t in rotary))

    def pad(self, x: Tensor) -> Tensor:
        """[T, h, D] to [S, longest, h, D], zero at padding."""
        if not self.unpadded:
            x = x.new_zeros(len(self.sizes) * self.longest, *x.shape[1:]).index_copy_(0, self._places, x)
        return x.view(len(self.sizes), self.longest, *x.shape[1:])

    def unpad(self, x: Tensor) -> Tensor:
        """Inverse of `pad`."""
        x = x.reshape(len(self.sizes) * self.longest, *x.shape[2:])
        return x if self.unpadded else x.index_select(0, self._places)

    def with_prefix(self, old: Tensor, new: Tensor) -> Tensor:
        """[S, K, prefix_length + longest, D]: prefixes `old`, right-aligned, before `new` [S, K, longest, D]."""
        assert self.after is not None
        out = new.new_zeros(*new.shape[:2], self.prefix_length + self.longest, new.shape[-1])
        out[:, :, self.prefix_length :] = new
        for i, (row, length) in enumerate(zip(self.after.rows, self.after.lengths, strict=True)):
            out[i, :, self.prefix_length - length : self.prefix_length] = old[row, :, :length]
        return out

    @cached_property
    def prefix_mask(self) -> Tensor | None:
        """[S, 1, 1, prefix_length] to add to scores: -inf before a shorter prefix begins; None for equal prefixes."""
        if self.after is None or len(set(self.after.lengths)) == 1:
            return None
        first = self.prefix_length - torch.tensor(self.after.lengths)
        before = torch.arange(self.prefix_length) < first[:, None]
        return torch.zeros(before.shape).masked_fill_(before, -torch.inf)[:, None, None]


def forward(
    q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout, layer: int | None = None
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Compute softmax(scale q k') v, causal, with rotary embedding and grouped keys.

    Scores and weights are float32; bf16 models multiply values by bf16 weights, as torch's own attention does.

    Args:
        q: [T, heads, D] queries of all tokens of the row.
        k: [T, key heads, D]
        v: [T, key heads, D]
        layout: Layout of the row.
        layer: Number under which keys and values are stored in `layout.keep` or found in `layout.after`.

    Returns:
        The output [T, heads, D], and the tensors that `backward` needs: rotated q and k, v, and the weights of blocks
        with few keys (other weights are computed again).

    Raises:
        Unsupported: `layout` goes on after a prefix and `layer` is None.
    """
    rows, heads = len(layout.sizes), q.shape[1]
    wide_q, wide_k = (
        _apply_rope(layout.pad(q), layout.rotary).mul_(layout.scale),
        _apply_rope(layout.pad(k), layout.rotary),
    )
    values = layout.pad(v).transpose(1, 2).contiguous()
    if layout.after is not None:
        if layer is None:
            raise Unsupported("a shared prefix needs fused layers")
        wide_k, values = (
            layout.with_prefix(*pair) for pair in zip(layout.after.kept[layer], (wide_k, values), strict=True)
        )
    kept_k = wide_k.to(k.dtype)
    if layout.keep is not None and layer is not None:
        layout.keep[layer] = kept_k, values
    values = values.view(-1, *values.shape[2:])
    out = q.new_empty(rows, layout.longest, heads, v.shape[-1])
    kept: list[Tensor | None] = []
    for block in _blocks(layout.longest, layout.prefix_length):
        weights = block.weights(wide_q, wide_k, v.dtype, layout.prefix_mask)
        got = torch.bmm(weights, values[:, block.keys])
        out[:, block.queries] = got.view(rows, heads, -1, v.shape[-1]).transpose(1, 2)
        kept.append(weights if weights.shape[-1] <= _KEPT else None)
    return layout.unpad(out), (wide_q.to(q.dtype), kept_k, values, *kept)


def backward(d_out: Tensor, saved: Sequence[Tensor | None], layout: AttentionLayout) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of `forward`.

    Args:
        d_out: [T, heads, D] gradient of the output.
        saved: Tensors that `forward` returned for this call.
        layout: The same layout.

    Returns:
        Gradients of q, k and v, in their shapes and dtypes.
    """
    q, k, v, *kept = saved
    assert q is not None and k is not None and v is not None
    wide = torch.promote_types(q.dtype, torch.float32)
    d_q = q.new_empty(q.shape, dtype=wide)
    d_k, d_v = (v.new_zeros(*v.shape[:2], part.shape[-1], dtype=wide) for part in (k, v))
    d_rows = layout.pad(d_out)
    keys = k.view(-1, *k.shape[2:])
    for block, weights in zip(_blocks(layout.longest), kept, strict=True):
        if weights is None:
            weights = block.weights(q.to(wide), k.to(wide), v.dtype)
        d_o = d_rows[:, block.queries].transpose(1, 2).reshape(len(keys), -1, v.shape[-1])
        d_v[:, block.keys] += torch.bmm(weights.transpose(1, 2), d_o)
        d_weights = torch.bmm(d_o, v[:, block.keys].transpose(1, 2))
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, v.dtype)
        d_q[:, :, block.queries] = torch.bmm(d_scores, keys[:, block.keys]).view(*q.shape[:2], -1, q.shape[-1])
        d_k[:, block.keys] += torch.bmm(d_scores.transpose(1, 2), _shared(q[:, :, block.queries], len(keys)))
    d_k, d_v = d_k.view(k.shape), d_v.view(*k.shape[:3], -1)
    return (
        layout.unpad(_apply_rope_backward(d_q.mul_(layout.scale), layout.rotary, q.dtype)),
        layout.unpad(_apply_rope_backward(d_k, layout.rotary, k.dtype)),
        layout.unpad(d_v.transpose(1, 2)).to(v.dtype),
    )


@dataclass(frozen=True, slots=True)
class _Block:
    """A range of query positions in every sequence, and the keys up to the last of them."""

    queries: slice
    keys: slice

    def weights(self, q: Tensor, k: Tensor, dtype: torch.dtype, early: Tensor | None = None) -> Tensor:
        """Attention weights [S*K, G*n, m] in `dtype`, for queries [S, K*G, ., D] with G heads to each of K key heads
        [S, K, ., D]."""
        keys = k.view(-1, *k.shape[2:])
        scores = _scores(_shared(q[:, :, self.queries], len(keys)), keys[:, self.keys], dtype)
        n = self.queries.stop - self.queries.start
        late = torch.full((n, n), -torch.inf, dtype=scores.dtype).triu_(1)
        scores.view(len(scores), -1, n, scores.shape[-1])[..., -n:].add_(late)
        if early is not None:
            scores.view(len(k), -1, *scores.shape[1:])[..., : early.shape[-1]].add_(early)
        return scores.softmax(-1).to(dtype)


def _blocks(longest: int, ahead: int = 0) -> Iterator[_Block]:
    for low in range(0, longest, _BLOCK):
        high = min(low + _BLOCK, longest)
        yield _Block(slice(low, high), slice(0, ahead + high))


def _shared(heads: Tensor, keys: int) -> Tensor:
    """[S, heads, n, D] to [keys, S*heads/keys * n, D], contiguous: oneDNN is slow on strided input."""
    return heads.reshape(keys, -1, heads.shape[-1]).contiguous()


def _scores(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """left [K, a, d] times right' [K, b, d] for a model in `dtype`: [K, a, b] in the tensors' dtype."""
    if left.dtype != torch.float32:
        return torch.bmm(left, right.transpose(1, 2))
    if _MATMUL is None or dtype == torch.float32:
        return torch.stack([matmul(one, other.contiguous()) for one, other in zip(left, right, strict=True)])
    before = _MATMUL.fp32_precision
    _MATMUL.fp32_precision = "bf16"
    try:
        return torch.bmm(left, right.transpose(1, 2))
    finally:
        _MATMUL.fp32_precision = before


def _signed(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines, and sines with the sign of the rotation: rotated x = x cos + roll(x, D/2) sin."""
    wide, half = torch.promote_types(cos.dtype, torch.float32), sin.shape[-1] // 2
    return cos.to(wide), torch.cat((-sin[..., :half], sin[..., half:]), -1).to(wide)


def _apply_rope(x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) of x [S, n, heads, D], as a new [S, heads, n, D] in float32 or wider."""
    heads = x.new_empty(
        x.shape[0], x.shape[2], x.shape[1], x.shape[3], dtype=torch.promote_types(x.dtype, torch.float32)
    )
    heads.copy_(x.transpose(1, 2))
    if rotary is None:
        return heads
    other = heads.roll(x.shape[-1] // 2, -1).mul_(rotary[1])
    return heads.mul_(rotary[0]).add_(other)


def _apply_rope_backward(gradient: Tensor, rotary: tuple[Tensor, Tensor] | None, dtype: torch.dtype) -> Tensor:
    """The gradient of `_apply_rope`: [S, heads, n, D], overwritten, to new [S, n, heads, D]."""
    if rotary is not None:
        other = (gradient * rotary[1]).roll(gradient.shape[-1] // 2, -1)
        gradient = gradient.mul_(rotary[0]).add_(other)
    shape = gradient.shape
    back = gradient.new_empty(shape[0], shape[2], shape[1], shape[3], dtype=dtype)
    return back.copy_(gradient.transpose(1, 2))
