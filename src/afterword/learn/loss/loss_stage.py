"""Computes per-token losses and their gradient from hidden states, without a [tokens, vocabulary] tensor.

Tokens pass through the heads in tiles of a fixed number of bytes. Within a tile, strips that fit the processor's cache
pass through the distance, whose gradient overwrites the student's logits. Saved for backward: [N, H]. `terms` weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


def observe(tile: Tile, loss: Tensor, mass: Tensor | None) -> Tensor:
    """Monitors of each token from tensors that the pass has anyway (overlap: arXiv 2604.13016).

    Args:
        tile: Plain softmax of both sides.
        loss: [n]
        mass: [n] the student's probability of the support, None for the whole vocabulary.

    Returns:
        [len(COLUMNS), n]
    """
    alone = tile.t is tile.s
    ours = top_k(tile.s, TOP)
    entropy = -dot(tile.S, tile.s)
    one, none = torch.ones_like(loss), torch.zeros_like(loss)
    overlap, advantage = (one, none) if alone else _overlap(tile, ours)
    return torch.stack(
        [
            loss,
            tile.s_y,
            tile.t_y,
            entropy,
            entropy if alone else -dot(tile.T, tile.t),
            overlap,
            advantage,
            tile.S.gather(1, ours).sum(-1) if mass is None else mass,
        ]
    )


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


@dataclass(frozen=True, slots=True)
class _Job:
    """Inputs of a pass besides the student, without gradients."""

    head: Head
    ids: Tensor
    distance: Distance
    teacher: tuple[Tensor, Head] | None
    reference: tuple[Tensor, Head] | None
    tile: int
    strip: int


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
    distance = Distance(estimator, target, support)
    _refuse(distance, teacher, reference)
    vocabulary, size = head.weight.shape[0], head.dtype.itemsize
    kind = "cpu" if student.device.type == "cpu" else "cuda"
    most = max(1, min(TILE if kind == "cpu" else 2048, _TILE_BYTES[kind] // (vocabulary * size)))
    job = _Job(
        head=head,
        ids=ids,
        distance=distance,
        teacher=None if teacher is None else (teacher.detach(), teacher_head or head),
        reference=None if reference is None else (reference.detach(), reference_head or head),
        tile=most if tile is None else min(most, tile),
        strip=max(1, _STRIP_BYTES[kind] // (vocabulary * size)),
    )
    down, up = (None, None) if head.adapter is None else (head.adapter.down, head.adapter.up)
    return Scores(*_TokenLosses.apply(student, down, up, job))  # type: ignore[no-untyped-call]


def _refuse(distance: Distance, teacher: Tensor | None, reference: Tensor | None) -> None:
    found = [*(fault.message for fault in faults(distance)), *distance.faults()]
    if teacher is None and distance.estimator.needs_teacher:
        found.append(f"{type(distance.estimator).__name__} compares with a teacher: give its hidden states")
    if reference is None and distance.target.needs_reference:
        found.append(f"{type(distance.target).__name__} reads a reference: give its hidden states")
    if found:
        raise ConfigError("; ".join(found))


class _TokenLosses(torch.autograd.Function):
    """Computes the gradient of the hidden states in the forward pass, from the logits of each tile. The gradient of a
    head adapter sums over tokens, whose weights are known only in backward: the logits are then computed again."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, down: Tensor | None, up: Tensor | None, job: _Job) -> tuple[Tensor, ...]:
        ctx.job, ctx.again = job, any(ctx.needs_input_grad[1:3])
        early = ctx.needs_input_grad[0] and not ctx.again
        columns = student.new_empty((len(COLUMNS), student.shape[0]), dtype=job.head.dtype)
        gradient = torch.empty_like(student, dtype=job.head.dtype) if early else None

        def pull(part: slice, d_logits: Tensor) -> None:
            assert gradient is not None
            gradient[part] = job.head.backward(d_logits)

        _passes(student, job, columns, pull if early else None)
        ctx.dtype = student.dtype
        ctx.save_for_backward(student if ctx.again else gradient)
        outputs = columns.unbind(0)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (saved,) = ctx.saved_tensors
        if not ctx.again:
            return None if saved is None else _scaled(saved, d_loss).to(ctx.dtype), None, None, None
        job, adapter = ctx.job, ctx.job.head.adapter
        gradient = torch.empty_like(saved, dtype=job.head.dtype)
        down, up = torch.zeros_like(adapter.down), torch.zeros_like(adapter.up)

        def pull(part: slice, d_logits: Tensor) -> None:
            weight = d_loss[part]
            d_logits = _scaled(d_logits, weight)
            gradient[part] = job.head.backward(d_logits)
            d_down, d_up = adapter.gradients(saved[part].masked_fill((weight == 0)[:, None], 0.0), d_logits)
            down.add_(d_down)
            up.add_(d_up)

        _passes(saved, job, None, pull)
        return gradient.to(ctx.dtype), down, up, None


def _scaled(rows: Tensor, weight: Tensor) -> Tensor:
    """[n, .] times [n], a new tensor; exactly 0 where the weight is, also for rows that are not finite."""
    weight = weight[:, None]
    return (rows * weight).masked_fill_(weight == 0, 0.0)


def _passes(student: Tensor, job: _Job, columns: Tensor | None, pull: Callable[[slice, Tensor], None] | None) -> None:
    """Tile by tile, fill `columns` and call `pull` with its tokens and the gradient [n, V] of its product."""
    tiles = max(1, -(-len(student) // job.tile))
    size = max(1, -(-len(student) // tiles))  # all of like size: the products of one token take a third of a tile's
    for start in range(0, len(student), size):
        part = slice(start, start + size)
        logits = job.head.logits(student[part])
        others = [None if side is None else side[1].logits(side[0][part]) for side in (job.teacher, job.reference)]
        ids = job.ids[part]
        for low in range(0, len(ids), job.strip):
            rows = slice(low, low + job.strip)
            z, *more = logits[rows], *(None if other is None else other[rows] for other in others)
            tile = tile_of(z, more[0], ids[rows])
            loss, d_logits, mass = job.distance(tile, z, *more)
            if columns is not None:
                columns[:, part][:, rows] = observe(tile, loss, mass)
            if pull is not None:
                z.copy_(job.head.unscaled(d_logits, z))
        del others, more  # frees memory for the backward product, and `del logits` for the next tile
        if pull is not None:
            pull(part, logits)
        del logits, z
