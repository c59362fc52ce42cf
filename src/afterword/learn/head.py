"""The output head that student and teacher of self-distillation share: hidden states to logits and back.

Owns the projection with its bias, scale and soft cap, and their gradient. It never sees more rows than the
loss stage hands it, and the head itself is never trained here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from afterword.errors import ModelError


@dataclass(frozen=True, slots=True)
class Head:
    """logits = cap * tanh(scale * (h W' + b) / cap), the cap left out when it is None."""

    weight: Tensor
    """[V, H]. On a CPU float32 or wider (there is no bf16 product with a float32 result); on CUDA as loaded."""
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, H] to [n, V] in float32 (float64 for a float64 head)."""
        out = _product(hidden.to(self.weight.dtype), self.weight.T)
        if self.bias is not None:
            out += self.bias
        if self.scale != 1.0:
            out *= self.scale
        if self.cap is not None:
            out = torch.tanh_(out.div_(self.cap)).mul_(self.cap)
        return out

    def pull_back(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """d loss / d logits [n, V] (overwritten) to d loss / d hidden [n, H]."""
        if self.cap is not None:
            gradient *= 1 - (logits / self.cap).square()
        if self.scale != 1.0:
            gradient *= self.scale
        return _product(gradient.to(self.weight.dtype), self.weight)


def _product(left: Tensor, right: Tensor) -> Tensor:
    if left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left, right, out_dtype=torch.float32)
    return left @ right


def head_of(model: Any) -> Head:
    """The head of a transformers causal model, checked against the model's own logits on a few ids.

    Raises ModelError when the head is trained or adapted, or when the model does something else between its
    last hidden states and its logits.
    """
    layer = model.get_output_embeddings()
    weight = getattr(layer, "weight", None)
    adapted = hasattr(layer, "base_layer") or hasattr(layer, "modules_to_save")
    if not isinstance(weight, Tensor) or adapted:
        raise ModelError(
            f"the output head ({type(layer).__name__}) is trained or adapted: leave it out of the LoRA targets"
        )
    wide = weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float16)
    bias = getattr(layer, "bias", None)
    head = Head(
        weight=weight.detach().float() if wide else weight.detach(),
        bias=None if bias is None else bias.detach().float(),
        scale=_scale(model.config),
        cap=getattr(model.config, "final_logit_softcapping", None),
    )
    _check(model, head)
    return head


def _scale(config: Any) -> float:
    if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite divides
        return 1.0 / float(divisor)
    if (factor := getattr(config, "logit_scale", None)) is not None:  # Cohere multiplies
        return float(factor)
    return 1.0


@torch.no_grad()
def _check(model: Any, head: Head) -> None:
    ids = torch.arange(1, 5, device=head.weight.device).remainder(head.weight.shape[0])[None]
    want = model(input_ids=ids).logits[0].float()
    got = head.logits(model.base_model(input_ids=ids).last_hidden_state[0]).float()
    worst = float((want - got).abs().max() / want.abs().max().clamp(min=1e-6))
    if not worst < 0.02:
        raise ModelError(
            f"{type(model).__name__} computes its logits in a way that Afterword does not know (relative "
            f"difference {worst:.3f} on a probe): this model cannot be trained yet"
        )
