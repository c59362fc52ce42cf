"""Several processes that train one adapter: each takes a share of every step, sums and counts are global.

Owns the process group (gloo for tensors on the CPU, NCCL for those on GPUs). Started by `torchrun --nproc-per-node N
-m afterword train`; a lone process is a world of one and never touches torch.distributed.
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
    """This process among `size`."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """The one that writes files."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> list[T]:
        """This process's part of what is sorted by size: parts differ by no more than one item."""
        return list(items[self.rank :: self.size])

    def all_reduce(self, *tensors: Tensor) -> None:
        """Replace each by its sum over all processes."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum gradients in one message; a process without rows gives zeros. Losses are divided by global counts, so
        the sum is the gradient of the whole step."""
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
        """Fill `tensor` with what the process `source` has in it."""
        if self.size > 1:
            dist.broadcast(tensor.view(torch.uint8), source)

    def broadcast_object(self, value: T) -> T:
        """What the first process has."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def barrier(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()


SINGLE = Distributed()


def init_distributed() -> Distributed:
    """The world that torchrun made, or a world of one."""
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
    """ "auto" on a machine with several GPUs: the one of this process."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if device == "auto" and local is not None and torch.cuda.is_available() else device
