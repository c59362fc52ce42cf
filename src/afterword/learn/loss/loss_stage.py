"""Computes per-token losses and their gradient from hidden states, without a [tokens, vocabulary] tensor.

Tokens pass through the heads in tiles of a fixed number of bytes. Within a tile, strips that fit the processor's cache
pass through the distance, whose gradient overwrites the student's logits. Saved for backward: [N, H]. `terms` weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from afterword.errors import ConfigError
from afterword.learn.loss.tiles import Tile, dot, tile_of, top_k
from afterword.learn.parts.divergences import Estimator, Follows, ReverseKL
from afterword.learn.parts.fields import faults
from afterword.learn.parts.supports import FULL, Support, TopK
from afterword.learn.parts.targets import IDENTITY, Target, targeted
from afterword.model.head import Head


@dataclass(frozen=True, slots=True)
class Distance:
    """An estimator with its target and support: the loss of one term at a token."""

    estimator: Estimator
    target: Target = IDENTITY
    support: Support = FULL

    def __call__(
        self, tile: Tile, student: Tensor, teacher: Tensor | None, reference: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Apply temperature, target, support and estimator, in this order.

        Args:
            tile: Plain softmax of the logits of student and teacher.
            student: [n, V] logits.
            teacher: [n, V] logits, None for an estimator without a teacher.
            reference: [n, V] logits, None for a target without a reference.

        Returns:
            Loss [n] in nats, gradient with respect to the student's logits [n, V], and the student's probability of the
            support [n] (None for the whole vocabulary).
        """
        heat = self.target.temperature
        if heat != 1.0:
            tile = tile_of(student / heat, None if teacher is None else teacher / heat, tile.ids)
            reference = None if reference is None else reference / heat
        if teacher is not None:
            tile = targeted(tile, self.target, reference)
        loss, gradient, mass = self.support.apply(tile, self.estimator)
        return loss, gradient if heat == 1.0 else gradient.div_(heat), mass

    def faults(self) -> list[str]:
        """Conflicts between these parts, a sentence with its remedy each. Field values: `parts.fields`."""
        return [fault for fault in (self._teaches(), self._support()) if fault]

    def _teaches(self) -> str | None:
        name = type(self.estimator).__name__
        if self.estimator.follows is Follows.NOTHING:
            return f"the gradient of {name} is zero in expectation, so it teaches only noise: use PolicyGradient or K2"
        if self.estimator.follows is Follows.NO_DISTANCE:
            return f"{self.estimator} follows the gradient of no distance: use k1 as the reward"
        if not self.estimator.needs_teacher and self.target != IDENTITY:
            return f"{name} reads no teacher, so there is no target to change: leave out {self.target}"
        return None

    def _support(self) -> str | None:
        if not isinstance(self.support, TopK):
            return None
        if self.support.k < 2 and self.support.remainder == "renormalise":
            return f"{self.support} leaves one token with probability 1 on both sides, so the loss is 0: give k of 2"
        if self.support.remainder == "teacher" and isinstance(self.estimator, ReverseKL):
            return (
                f"{self.support} gives the teacher nothing outside of the support, where KL(S||T) is infinite: use the "
                "remainder 'tail' or 'renormalise', or ForwardKL"
            )
        if self.support.remainder == "teacher" and self.support.of == "both":
            return (
                f"{self.support} has nothing to renormalise the teacher on where the sides share no token: use its own "
                "tokens (of='teacher'), or another remainder"
            )
        if self.estimator.sampled or not self.estimator.needs_teacher:
            return (
                f"{type(self.estimator).__name__} reads only the served token: leave out {self.support}, or use a "
                "divergence"
            )
        return None


TOP = 16
"""Most likely tokens of each side that the overlap compares."""
COLUMNS = (
    "loss",
    "logp_student",
    "logp_teacher",
    "entropy_student",
    "entropy_teacher",
    "overlap",
    "overlap_advantage",
    "top_mass",
)
"""In the order of the fields of `Scores`."""


def _monitors(tile: Tile) -> list[Tensor]:
    """Monitors of each token from tensors that the pass has anyway (overlap: arXiv 2604.13016).

    Returns:
        [n] each: the columns between the loss and the mass, then the student's probability of its top tokens.
    """
    alone = tile.t is tile.s
    ours = top_k(tile.s, TOP)
    entropy = -dot(tile.S, tile.s)
    one, none = torch.ones_like(entropy), torch.zeros_like(entropy)
    overlap, advantage = (one, none) if alone else _overlap(tile, ours)
    other = entropy if alone else -dot(tile.T, tile.t)
    return [tile.s_y, tile.t_y, entropy, other, overlap, advantage, tile.S.gather(1, ours).sum(-1)]


def _overlap(tile: Tile, ours: Tensor) -> tuple[Tensor, Tensor]:
    """[n] share of the teacher's top tokens among the student's, and the mean advantage on the shared ones."""
    shared = (ours[:, :, None] == top_k(tile.t, TOP)[:, None, :]).any(-1)
    count = shared.sum(-1)
    apart = ~shared
    s = tile.s.gather(1, ours).masked_fill_(apart, -torch.inf).log_softmax(-1)
    t = tile.t.gather(1, ours).masked_fill_(apart, -torch.inf).log_softmax(-1)
    gain = (s.exp() * (t - s)).masked_fill_(apart, 0.0).sum(-1).masked_fill_(count == 0, 0.0)
    return count.to(gain.dtype) / ours.shape[1], gain / count.clamp(min=1)


TILE = 128
"""Most tokens of a tile on a CPU, where larger products are no faster."""
_TILE_BYTES = {"cpu": 16 << 20, "cuda": 128 << 20}
"""Most bytes of a tile's logits, per side."""
_STRIP_BYTES = {"cpu": 2 << 20, "cuda": 32 << 20}
"""Most bytes of a strip's logits; about eight tensors of that size exist at a time."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Per token, all [N] float32. Only `loss` carries a gradient (to the student's hidden states and to the
    adapter of its head). Both sides at temperature 1 and before any target."""

    loss: Tensor
    logp_student: Tensor
    """log S(y) of the served ids (nats)."""
    logp_teacher: Tensor
    """log T(y); equal to `logp_student` when there is no teacher."""
    entropy_student: Tensor
    entropy_teacher: Tensor
    overlap: Tensor
    """Share of the teacher's 16 most likely tokens that are among the student's (arXiv 2604.13016)."""
    overlap_advantage: Tensor
    """Mean over those shared tokens of S (log T - log S), both renormalised on them: 0 at agreement, negative
    otherwise; 0 too where no token is shared."""
    top_mass: Tensor
    """The student's probability of the support, or of its 16 most likely tokens when the support is full."""


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """A teacher's or reference's hidden states [N, H'], without a gradient, with the head for them."""

    states: Tensor
    head: Head


@dataclass(frozen=True, slots=True, eq=False)
class LossRequest:
    """One distance over some of N tokens."""

    distance: Distance
    keep: Tensor
    """[N] bool: the tokens to score."""
    teacher: Side | None = None
    """None for an estimator without a teacher."""
    reference: Side | None = None
    """None for a target without a reference."""


def token_losses(
    student: Tensor,
    teacher: Tensor | None,
    head: Head,
    ids: Tensor,
    estimator: Estimator,
    *,
    target: Target = IDENTITY,
    support: Support = FULL,
    reference: Tensor | None = None,
    teacher_head: Head | None = None,
    reference_head: Head | None = None,
    tile: int | None = None,
) -> Scores:
    """Score N served tokens.

    Args:
        student: [N, H] last hidden states, each predicting the id at its position. Receives the gradient.
        teacher: [N, H'] hidden states of the teacher; None for an estimator without a teacher.
        head: The student's output head.
        ids: [N] served token ids.
        estimator: The divergence or estimator.
        target: Transforms the teacher's scores.
        support: Restricts the vocabulary.
        reference: [N, H''] hidden states of the reference; None for a target without one.
        teacher_head: The teacher's head over the same vocabulary; the student's by default.
        reference_head: The reference's head; the student's by default.
        tile: Most tokens of a tile.

    Returns:
        Scores in nats, float32 (float64 for a float64 head).

    Raises:
        ConfigError: Parts conflict, a part has an invalid value, or a side is missing.
    """
    request = LossRequest(
        Distance(estimator, target, support),
        torch.ones(len(ids), dtype=torch.bool, device=ids.device),
        None if teacher is None else Side(teacher, teacher_head or head),
        None if reference is None else Side(reference, reference_head or head),
    )
    return requested_losses(student, head, ids, [request], tile=tile)[0]


def requested_losses(
    student: Tensor, head: Head, ids: Tensor, requests: Sequence[LossRequest], *, tile: int | None = None
) -> list[Scores]:
    """Score N served tokens by several distances in one pass.

    The student's logits of a token are computed once for all requests that keep it, and those of each side once for
    all requests that name the same `Side`. Every request costs a product more in the pass for its own gradient.

    Args:
        student: [N, H] last hidden states. Receives the gradient.
        head: The student's output head.
        ids: [N] served token ids.
        requests: The distances; two that name one `Side` share it.
        tile: Most tokens of a tile.

    Returns:
        Scores [N] for each request, 0 for the tokens that it does not keep.

    Raises:
        ConfigError: Parts conflict, a part has an invalid value, or a side is missing.
    """
    for request in requests:
        _refuse(request.distance, request.teacher, request.reference)
    vocabulary, size = head.weight.shape[0], head.dtype.itemsize
    kind = "cpu" if student.device.type == "cpu" else "cuda"
    most = max(1, min(TILE if kind == "cpu" else 2048, _TILE_BYTES[kind] // (vocabulary * size)))
    strip = max(1, _STRIP_BYTES[kind] // (vocabulary * size))
    job = _job(head, ids, requests, most if tile is None else min(most, tile), strip)
    down, up = (None, None) if head.adapter is None else (head.adapter.down, head.adapter.up)
    flat = _TokenLosses.apply(student if job.at is None else student[job.at], down, up, job)  # type: ignore[no-untyped-call]
    found = [flat[k * len(COLUMNS) : (k + 1) * len(COLUMNS)] for k in range(len(requests))]
    return [Scores(*(_spread(one, job, k, len(ids)) for one in part)) for k, part in enumerate(found)]


def _refuse(distance: Distance, teacher: Side | None, reference: Side | None) -> None:
    found = [*(fault.message for fault in faults(distance)), *distance.faults()]
    if teacher is None and distance.estimator.needs_teacher:
        found.append(f"{type(distance.estimator).__name__} compares with a teacher: give its hidden states")
    if reference is None and distance.target.needs_reference:
        found.append(f"{type(distance.target).__name__} reads a reference: give its hidden states")
    if found:
        raise ConfigError("; ".join(found))


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some of the U tokens of a pass, ascending. Their counts before each edge of a strip are known on the host, so
    that no device is waited for within the pass."""

    at: Tensor | None
    """Their indices; None for all."""
    before: dict[int, int]
    """Edge of a strip -> tokens before it."""

    def within(self, low: int, high: int) -> slice:
        """The tokens from `low` to `high`, as a slice of these rows."""
        return slice(self.before[low], self.before[high])

    def of(self, x: Tensor, low: int, high: int) -> Tensor:
        """The rows of x [high - low, ..], which holds all tokens from `low` to `high`."""
        return x if self.at is None else x[self.at[self.within(low, high)] - low]

    def places(self, other: _Rows, low: int, high: int) -> Tensor | None:
        """Where the rows of `other` from `low` to `high`, all among these, are within these; None for all of these."""
        if other.at is None or (self.at is not None and other.within(low, high) == self.within(low, high)):
            return None  # a subset of the same size is the same
        wanted = other.at[other.within(low, high)]
        return wanted - low if self.at is None else torch.searchsorted(self.at[self.within(low, high)], wanted)


@dataclass(frozen=True, slots=True)
class _Part:
    """A request within a pass."""

    distance: Distance
    rows: _Rows
    teacher: int | None
    """Index of its side."""
    reference: int | None


@dataclass(frozen=True, slots=True)
class _Job:
    """Inputs of a pass over U tokens besides the student, without gradients."""

    head: Head
    ids: Tensor
    at: Tensor | None
    """[U] the tokens that some request keeps; None for all."""
    parts: tuple[_Part, ...]
    sides: tuple[tuple[Tensor, Head, _Rows], ...]
    """States of the rows that some request compares with this side."""
    tiles: tuple[tuple[int, ...], ...]
    """For each tile the edges of its strips."""


def _job(head: Head, ids: Tensor, requests: Sequence[LossRequest], tile: int, strip: int) -> _Job:
    keeps = torch.stack([request.keep for request in requests])
    at = keeps.any(0).nonzero()[:, 0]
    if len(at) == len(ids):
        whole = None
    else:
        whole, ids, keeps = at, ids[at], keeps[:, at]
    tiles = _tiles(len(ids), tile, strip)
    edges = sorted({edge for one in tiles for edge in one})
    sides = {id(s): s for r in requests for s in (r.teacher, r.reference) if s is not None}
    numbers = {key: i for i, key in enumerate(sides)}
    asking = [[k for k, r in enumerate(requests) if side in (r.teacher, r.reference)] for side in sides.values()]
    shared = [_rows(keeps[some].any(0), edges) for some in asking]
    return _Job(
        head=head,
        ids=ids,
        at=whole,
        parts=tuple(
            _Part(
                r.distance,
                _rows(keep, edges),
                None if r.teacher is None else numbers[id(r.teacher)],
                None if r.reference is None else numbers[id(r.reference)],
            )
            for r, keep in zip(requests, keeps, strict=True)
        ),
        sides=tuple(
            (_chosen(_chosen(side.states.detach(), whole), rows.at), side.head, rows)
            for side, rows in zip(sides.values(), shared, strict=True)
        ),
        tiles=tiles,
    )


def _chosen(x: Tensor, at: Tensor | None) -> Tensor:
    return x if at is None else x[at]


def _rows(keep: Tensor, edges: Sequence[int]) -> _Rows:
    at = keep.nonzero()[:, 0]
    if len(at) == len(keep):
        return _Rows(None, {edge: edge for edge in edges})
    before = torch.searchsorted(at, torch.tensor(edges, device=at.device)).tolist()
    return _Rows(at, dict(zip(edges, before, strict=True)))


def _tiles(tokens: int, tile: int, strip: int) -> tuple[tuple[int, ...], ...]:
    """Edges of the strips of each tile."""
    count = max(1, -(-tokens // tile))
    size = max(1, -(-tokens // count))  # all of like size: the products of one token take a third of a tile's
    spans = [(start, min(start + size, tokens)) for start in range(0, tokens, size)]
    return tuple((*range(start, end, strip), end) for start, end in spans)


def _spread(found: Tensor, job: _Job, k: int, tokens: int) -> Tensor:
    """The scores of request `k` as [N], 0 for the tokens that it does not keep."""
    at = job.parts[k].rows.at
    if job.at is not None:
        at = job.at if at is None else job.at[at]
    return found if at is None else found.new_zeros(tokens).index_copy(0, at, found)


class _TokenLosses(torch.autograd.Function):
    """Computes the gradient of the hidden states in the forward pass, from the logits of each tile. The gradient of a
    head adapter sums over tokens, whose weights are known only in backward: the logits are then computed again."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, down: Tensor | None, up: Tensor | None, job: _Job) -> tuple[Tensor, ...]:
        ctx.job, ctx.again = job, any(ctx.needs_input_grad[1:3])
        early = ctx.needs_input_grad[0] and not ctx.again
        sizes = [len(student) if part.rows.at is None else len(part.rows.at) for part in job.parts]
        columns = [student.new_empty((len(COLUMNS), size), dtype=job.head.dtype) for size in sizes]
        wide, width = job.head.dtype, student.shape[1]
        gradients = [student.new_empty((size, width), dtype=wide) for size in sizes] if early else []

        def pull(low: int, high: int, found: Sequence[Tensor]) -> None:
            for part, gradient, d_logits in zip(job.parts, gradients, found, strict=True):
                gradient[part.rows.within(low, high)] = job.head.backward(d_logits)

        _passes(student, job, columns, pull if early else None)
        ctx.dtype, ctx.size = student.dtype, len(student)
        ctx.save_for_backward(*([student] if ctx.again else gradients))
        outputs = [one for part in columns for one in part.unbind(0)]
        ctx.mark_non_differentiable(*(one for i, one in enumerate(outputs) if i % len(COLUMNS)))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor | None, ...]:
        d_losses = d_outputs[:: len(COLUMNS)]
        if not ctx.again:
            return _weighted(ctx, d_losses), None, None, None
        (saved,) = ctx.saved_tensors
        job, adapter = ctx.job, ctx.job.head.adapter
        gradient = torch.empty_like(saved, dtype=job.head.dtype)
        down, up = torch.zeros_like(adapter.down), torch.zeros_like(adapter.up)

        def pull(low: int, high: int, found: Sequence[Tensor]) -> None:
            d_logits: Tensor | None = None
            used: Tensor | None = None
            for part, one, d_loss in zip(job.parts, found, d_losses, strict=True):
                weight = d_loss[part.rows.within(low, high)]
                one, weighs = _scaled(one, weight), weight != 0
                if part.rows.at is not None:
                    at = part.rows.at[part.rows.within(low, high)] - low
                    one = one.new_zeros(high - low, one.shape[1]).index_copy_(0, at, one)
                    weighs = weighs.new_zeros(high - low).index_copy_(0, at, weighs)
                d_logits, used = (
                    (one, weighs) if d_logits is None or used is None else (d_logits.add_(one), used | weighs)
                )
            assert d_logits is not None and used is not None
            gradient[low:high] = job.head.backward(d_logits)
            d_down, d_up = adapter.gradients(saved[low:high].masked_fill(~used[:, None], 0.0), d_logits)
            down.add_(d_down)
            up.add_(d_up)

        _passes(saved, job, None, pull)
        return gradient.to(ctx.dtype), down, up, None


def _weighted(ctx: Any, d_losses: Sequence[Tensor]) -> Tensor | None:
    """[U, H] the gradients of all requests that were saved in the forward pass, times the weights of their losses."""
    total = None
    for part, gradient, d_loss in zip(ctx.job.parts, ctx.saved_tensors, d_losses, strict=False):
        one = _scaled(gradient, d_loss)
        if part.rows.at is not None:
            one = one.new_zeros(ctx.size, one.shape[1]).index_copy_(0, part.rows.at, one)
        total = one if total is None else total.add_(one)
    return None if total is None else total.to(ctx.dtype)


def _scaled(rows: Tensor, weight: Tensor) -> Tensor:
    """[n, .] times [n], a new tensor; exactly 0 where the weight is, also for rows that are not finite."""
    weight = weight[:, None]
    return (rows * weight).masked_fill_(weight == 0, 0.0)


Pull = Callable[[int, int, Sequence[Tensor]], None]
"""Called with a tile's first token, the one after its last, and for each request the gradient [n, V] of the student's
product at the tokens that it keeps there."""


def _passes(student: Tensor, job: _Job, columns: Sequence[Tensor] | None, pull: Pull | None) -> None:
    """Tile by tile, fill the `columns` of every request and `pull` the gradients."""
    # The last request over all tokens may overwrite the student's logits: nobody reads them after it.
    order = sorted(range(len(job.parts)), key=lambda k: job.parts[k].rows.at is None)
    owner = order[-1] if job.parts[order[-1]].rows.at is None else None
    for edges in job.tiles:
        low, high = edges[0], edges[-1]
        logits = job.head.logits(student[low:high])
        others = [head.logits(states[rows.within(low, high)]) for states, head, rows in job.sides]
        found: list[Tensor] = []
        if pull is not None:
            counts = [part.rows.before[high] - part.rows.before[low] for part in job.parts]
            found = [logits if k == owner else logits.new_empty(n, logits.shape[1]) for k, n in enumerate(counts)]
        for start, end in pairwise(edges):
            # In a function: a name that still held a strip here would keep the tile's logits during the next product.
            _score_strip(_Strip(job, start, end, logits[start - low : end - low], others, low), order, columns, found)
        del others  # frees memory for the backward product, and `del logits` for the next tile
        if pull is not None:
            pull(low, high, found)
        del logits, found


def _score_strip(
    strip: _Strip, order: Sequence[int], columns: Sequence[Tensor] | None, found: Sequence[Tensor]
) -> None:
    """Score a strip for every request; fill its part of the `columns`, and of the gradients `found` if wanted."""
    job = strip.job
    for k in order:
        rows = job.parts[k].rows
        own = rows.within(strip.low, strip.high)
        if own.start == own.stop:
            continue
        column, d_logits, z = strip.score(job.parts[k], observed=columns is not None)
        if columns is not None:
            columns[k][:, own] = column
        if found:
            first = rows.before[strip.first]
            found[k][own.start - first : own.stop - first] = job.head.unscaled(d_logits, z)


class _Strip:
    """The logits of a few tokens, and their distributions as far as several requests share them."""

    def __init__(self, job: _Job, low: int, high: int, logits: Tensor, others: Sequence[Tensor], first: int) -> None:
        self.job, self.low, self.high, self.logits, self.first = job, low, high, logits, first
        self.ids = job.ids[low:high]
        self.others = [
            other[rows.before[low] - rows.before[first] : rows.before[high] - rows.before[first]]
            for other, (_, _, rows) in zip(others, job.sides, strict=True)
        ]
        self.known: dict[tuple[int | None, bool], tuple[Tile, list[Tensor]]] = {}
        """(teacher, whether it is of all tokens) -> tile and monitors."""

    def score(self, part: _Part, *, observed: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Columns [len(COLUMNS), n], gradient [n, V] with respect to the logits, and the logits [n, V]."""
        z = part.rows.of(self.logits, self.low, self.high)
        teacher, reference = (
            None if side is None else self._side(side, part.rows) for side in (part.teacher, part.reference)
        )
        key = part.teacher, part.rows.at is None
        known = self.known.get(key)
        if known is None:
            tile = tile_of(z, teacher, part.rows.of(self.ids, self.low, self.high))
            known = tile, _monitors(tile) if observed else []
            if part.rows.at is None and len(self.job.parts) > 1:
                self.known[key] = known
        loss, d_logits, mass = part.distance(known[0], z, teacher, reference)
        if not observed:
            return loss, d_logits, z
        *monitors, top_mass = known[1]
        return torch.stack([loss, *monitors, top_mass if mass is None else mass]), d_logits, z

    def _side(self, number: int, rows: _Rows) -> Tensor:
        places = self.job.sides[number][2].places(rows, self.low, self.high)
        return self.others[number] if places is None else self.others[number][places]
