"""Multiplies two matrices with the fastest library for their dtype and device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ONEDNN: Any = None
if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
    _ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
"""What torch.compile calls for a linear layer on a CPU. On AMD processors torch's own float32 product goes through a
library that runs at half of what they can do; where the operator is missing, that product is used."""


def matmul(left: Tensor, weight: Tensor) -> Tensor:
    """Multiply left [n, k] by the transpose of weight [m, k].

    Args:
        left: [n, k], float32 or wider; bf16 on CUDA only.
        weight: [m, k] in the same dtype.

    Returns:
        [n, m] in float32 or wider.
    """
    if left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left, weight.T, out_dtype=torch.float32)
    if _ONEDNN is not None and left.device.type == "cpu" and left.dtype == torch.float32 and left.numel():
        out: Tensor = _ONEDNN(left.contiguous(), weight, None, "none", [], "")
        return out
    return left @ weight.T
