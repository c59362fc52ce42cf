"""Trains one adapter in several processes: each takes a share of every step, sums and counts are global.

Uses gloo (CPU) and NCCL (GPU), started by `torchrun --nproc-per-node N -m afterword train`. One process alone
never touches torch.distributed.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Distributed:
    """The process group: this process is number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """True in the process that writes files."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> list[T]:
        """This process's items of a list sorted by size; shards differ by at most one item."""
        return list(items[self.rank :: self.size])

    def all_reduce(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all processes, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum gradients over all processes in one message; a process without rows contributes zeros.

        Losses are divided by global counts, so the sum is the gradient of the whole step.
        """
        if self.size == 1:
            return
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        for grad, piece in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
            grad.copy_(piece.view_as(grad))

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Overwrite `tensor` with the one of process `source`."""
        if self.size > 1:
            dist.broadcast(tensor.view(torch.uint8), source)

    def broadcast_object(self, value: T) -> T:
        """The first process's `value`, in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def barrier(self) -> None:
        """Wait until all processes arrive."""
        if self.size > 1:
            dist.barrier()


SINGLE = Distributed()


def init_distributed() -> Distributed:
    """Join the process group that torchrun started; without torchrun a group of one."""
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return SINGLE
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")  # sums of a step lie on the CPU
        atexit.register(dist.destroy_process_group)
    return Distributed(dist.get_rank(), dist.get_world_size())


def local_device(device: str) -> str:
    """`device`, with "auto" replaced by this process's GPU under torchrun."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if device == "auto" and local is not None and torch.cuda.is_available() else device
