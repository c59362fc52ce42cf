"""The flat layout of scored tokens: which answer each token belongs to, and what is known of that answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """N scored tokens of R answers, in order of the answers. Prompt and padding tokens are not among them."""

    row: Tensor
    """[N] index of the token's answer, 0 .. R-1."""
    position: Tensor
    """[N] place of the token in its answer, 0 for the first."""
    length: Tensor
    """[R] scored tokens of the answer."""
    weight: Tensor
    """[R] strength of the interaction, float32."""
    privileged: Tensor
    """[R] True when the teacher has something to read that the student has not."""


def layout(
    lengths: Sequence[int],
    weights: Sequence[float],
    privileged: Sequence[bool],
    device: torch.device | str = "cpu",
) -> Rows:
    """The layout of answers of these lengths."""
    length = torch.tensor(list(lengths), dtype=torch.long, device=device)
    row = torch.repeat_interleave(torch.arange(len(lengths), device=device), length)
    first = torch.cumsum(length, 0) - length
    position = torch.arange(int(length.sum()), device=device) - first[row]
    return Rows(
        row=row,
        position=position,
        length=length,
        weight=torch.tensor(list(weights), dtype=torch.float32, device=device),
        privileged=torch.tensor(list(privileged), dtype=torch.bool, device=device),
    )
