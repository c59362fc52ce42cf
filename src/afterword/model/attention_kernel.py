"""Computes causal attention within the sequences of a packed row, forward and backward, on a CPU.

Sequences are padded to one length and scored in blocks of queries. The products are separate calls: torch's own bf16
attention takes three times as long as the products it consists of. `attention` knows which row a model reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from afterword.model.matmul import matmul
from afterword.sharing import BACKGROUND

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
"""Layer number -> (keys, values), each [S, K, L, D]: S padded sequences, K key heads, L tokens, head width D. A row
with shared prefixes is one sequence of all its tokens."""
Ranges = tuple[tuple[int, int], ...]
"""Tokens of a row, in order: (first, one after the last) of each range."""


def count(ranges: Ranges) -> int:
    """Tokens in these ranges."""
    return sum(end - start for start, end in ranges)


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Keys and values of prefixes that another row has computed already."""

    kept: KeyValues
    paths: tuple[tuple[int, Ranges], ...]
    """For each segment, the sequence of its prefix in `kept` and the tokens of that."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each prefix."""
        return tuple(count(ranges) for _, ranges in self.paths)


class AttentionLayout:
    """How attention reads a packed row: its segments, the scale, and the rotary embedding.

    A segment is a sequence, or continues tokens of the same row (`prefixes`) or of another (`after`).
    `rotary` holds the cosines and sines [T, D] of the positions, as transformers computes them.

    Padding needs no mask: it comes last, where no query attends.
    """

    def __init__(
        self,
        sizes: tuple[int, ...],
        scale: float,
        rotary: tuple[Tensor, Tensor] | None,
        keep: KeyValues | None = None,
        after: SharedPrefix | None = None,
        prefixes: tuple[Ranges, ...] = (),
    ) -> None:
        self.sizes, self.scale, self.longest, self.keep, self.after = sizes, scale, max(sizes), keep, after
        self.shared = after is not None or any(prefixes)
        """True when a segment goes on after a prefix."""
        self.unpadded = len(set(sizes)) == 1
        """True when all segments have one length, so that there is no padding."""
        self.groups: list[_Group] = []
        if self.shared:
            self.groups = _groups(sizes, prefixes or ((),) * len(sizes), after)
            self.rotary = None if rotary is None else _signed(*(t[None, None] for t in rotary))
            return
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
    BACKGROUND.pause_point()
    if layout.shared:
        return _forward_shared(q, k, v, layout, layer)
    rows, heads = len(layout.sizes), q.shape[1]
    wide_q, wide_k = (
        _apply_rope(layout.pad(q), layout.rotary).mul_(layout.scale),
        _apply_rope(layout.pad(k), layout.rotary),
    )
    values = layout.pad(v).transpose(1, 2).contiguous()
    kept_k = wide_k.to(k.dtype)
    if layout.keep is not None and layer is not None:
        layout.keep[layer] = kept_k, values
    values = values.view(-1, *values.shape[2:])
    out = q.new_empty(rows, layout.longest, heads, v.shape[-1])
    kept: list[Tensor | None] = []
    for block in _blocks(layout.longest):
        weights = block.weights(wide_q, wide_k, v.dtype)
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
    BACKGROUND.pause_point()
    if layout.shared:
        return _backward_shared(d_out, saved, layout)
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
class _Segment:
    """Tokens `start` to `start + size` of a row, after `outside` of another row and `inside` of this one."""

    start: int
    size: int
    inside: Ranges
    row: int = 0
    outside: Ranges = ()

    @property
    def ahead(self) -> int:
        """Tokens before the segment."""
        return count(self.inside) + count(self.outside)


@dataclass(slots=True)
class _Group:
    """S segments that are computed together: queries padded to `longest` behind, prefixes to `ahead` in front."""

    segments: list[_Segment]
    longest: int
    ahead: int
    area: int
    """Scores that are needed."""
    early: Tensor | None = field(default=None)
    """[S, 1, 1, ahead] to add to scores: -inf before a shorter prefix begins; None for equal prefixes."""

    def queries(self, x: Tensor) -> Tensor:
        """[h, T, D] to [S, h, longest, D], zero at padding."""
        out = x.new_zeros(len(self.segments), x.shape[0], self.longest, x.shape[-1])
        for own, one in zip(out, self.segments, strict=True):
            own[:, : one.size] = x[:, one.start : one.start + one.size]
        return out

    def put(self, found: Tensor, x: Tensor) -> None:
        """Inverse of `queries`: found [S, h, longest, D] into x [h, T, D]."""
        for own, one in zip(found, self.segments, strict=True):
            x[:, one.start : one.start + one.size] = own[:, : one.size]

    def keys(self, x: Tensor, before: Tensor | None) -> Tensor:
        """x [K, T, D] of this row and `before` [S', K, L', D] of another to [S, K, ahead + longest, D]: prefixes
        right-aligned, then the segments."""
        out = x.new_zeros(len(self.segments), x.shape[0], self.ahead + self.longest, x.shape[-1])
        for own, one in zip(out, self.segments, strict=True):
            at = self.ahead - one.ahead
            for start, end in one.outside:
                assert before is not None
                own[:, at : at + end - start] = before[one.row, :, start:end]
                at += end - start
            for start, end in (*one.inside, (one.start, one.start + one.size)):
                own[:, at : at + end - start] = x[:, start:end]
                at += end - start
        return out

    def add_keys(self, found: Tensor, x: Tensor) -> None:
        """Add the gradient of `keys` [S, K, ahead + longest, D] to x [K, T, D], segment by segment, in their order."""
        for own, one in zip(found, self.segments, strict=True):
            at = self.ahead - count(one.inside)
            for start, end in (*one.inside, (one.start, one.start + one.size)):
                x[:, start:end] += own[:, at : at + end - start]
                at += end - start


_PADDING = 1.25
"""Most scores of a group, as a multiple of those that are needed."""


def _groups(sizes: Sequence[int], prefixes: Sequence[Ranges], after: SharedPrefix | None) -> list[_Group]:
    """Segments of like shape together, so that few scores are of padding."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    outside = [(0, ())] * len(sizes) if after is None else after.paths
    segments = [
        _Segment(start, size, inside, *other)
        for start, size, inside, other in zip(starts, sizes, prefixes, outside, strict=True)
    ]
    groups: list[_Group] = []
    for one in sorted(segments, key=lambda s: (-s.ahead, -s.size, s.start)):
        area = one.size * (one.ahead + one.size)
        if groups:
            last = groups[-1]
            longest, ahead = max(last.longest, one.size), max(last.ahead, one.ahead)
            if (len(last.segments) + 1) * longest * (ahead + longest) <= _PADDING * (last.area + area):
                last.segments.append(one)
                last.longest, last.ahead, last.area = longest, ahead, last.area + area
                continue
        groups.append(_Group([one], one.size, one.ahead, area))
    for group in groups:
        lengths = torch.tensor([one.ahead for one in group.segments])
        if bool((lengths != group.ahead).any()):
            before = torch.arange(group.ahead) < (group.ahead - lengths)[:, None]
            group.early = torch.zeros(before.shape).masked_fill_(before, -torch.inf)[:, None, None]
    return groups


def _forward_shared(
    q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout, layer: int | None
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """`forward` for a row whose segments go on after prefixes. Saved are q and k of all tokens, and v, unpadded."""
    wide_q = _apply_rope(q[None], layout.rotary).mul_(layout.scale)
    wide_k = _apply_rope(k[None], layout.rotary)
    values = v.transpose(0, 1).contiguous()
    old_k, old_v = None, None
    if layout.after is not None:
        if layer is None:
            raise Unsupported("a prefix of another row needs fused layers")
        old_k, old_v = layout.after.kept[layer]
    kept_k = wide_k.to(k.dtype)
    if layout.keep is not None and layer is not None:
        layout.keep[layer] = kept_k, values[None]
    out = q.new_empty(q.shape[1], len(q), v.shape[-1])
    kept: list[Tensor | None] = []
    for group in layout.groups:
        group_q, group_k = group.queries(wide_q[0]), group.keys(wide_k[0], old_k)
        group_v = group.keys(values, old_v).flatten(0, 1)
        found = q.new_empty(*group_q.shape[:3], v.shape[-1])
        for block in _blocks(group.longest, group.ahead):
            weights = block.weights(group_q, group_k, v.dtype, group.early)
            got = torch.bmm(weights, group_v[:, block.keys])
            found[:, :, block.queries] = got.view(*group_q.shape[:2], -1, v.shape[-1])
            kept.append(weights if weights.shape[-1] <= _KEPT else None)
        group.put(found, out)
    return out.transpose(0, 1).contiguous(), (wide_q[0].to(q.dtype), kept_k[0], values, *kept)


def _backward_shared(
    d_out: Tensor, saved: Sequence[Tensor | None], layout: AttentionLayout
) -> tuple[Tensor, Tensor, Tensor]:
    """`backward` for a row whose segments go on after prefixes of the same row: their keys gather the gradients of all
    segments, in a fixed order."""
    q, k, v, *kept = saved
    assert q is not None and k is not None and v is not None
    wide = torch.promote_types(q.dtype, torch.float32)
    d_q = q.new_zeros(q.shape, dtype=wide)
    d_k, d_v = k.new_zeros(k.shape, dtype=wide), v.new_zeros(v.shape, dtype=wide)
    d_rows, found = d_out.transpose(0, 1), iter(kept)
    for group in layout.groups:
        rows, keys, values = group.queries(q), group.keys(k, None), group.keys(v, None)
        d_group, shape = group.queries(d_rows), keys.shape
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        group_q = rows.new_empty(rows.shape, dtype=wide)
        group_k, group_v = (one.new_zeros(one.shape, dtype=wide) for one in (keys, values))
        for block in _blocks(group.longest, group.ahead):
            weights = next(found)
            if weights is None:
                weights = block.weights(rows.to(wide), keys.view(shape).to(wide), v.dtype, group.early)
            d_o = d_group[:, :, block.queries].reshape(len(keys), -1, v.shape[-1])
            group_v[:, block.keys] += torch.bmm(weights.transpose(1, 2), d_o)
            d_weights = torch.bmm(d_o, values[:, block.keys].transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, v.dtype)
            group_q[:, :, block.queries] = torch.bmm(d_scores, keys[:, block.keys]).view(
                *rows.shape[:2], -1, rows.shape[-1]
            )
            group_k[:, block.keys] += torch.bmm(d_scores.transpose(1, 2), _shared(rows[:, :, block.queries], len(keys)))
        group.put(group_q, d_q)
        group.add_keys(group_k.view(shape), d_k)
        group.add_keys(group_v.view(*shape[:3], -1), d_v)
    return (
        _apply_rope_backward(d_q[None].mul_(layout.scale), layout.rotary, q.dtype)[0],
        _apply_rope_backward(d_k[None], layout.rotary, k.dtype)[0],
        d_v.transpose(0, 1).to(v.dtype).contiguous(),
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
