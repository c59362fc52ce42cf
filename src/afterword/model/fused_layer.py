"""Computes a decoder layer in one autograd function: RMS norm, attention, RMS norm, SwiGLU, with LoRA on any product.

On a CPU a pass over the activations costs as much as a small product. Residuals are added within a product, layers that
read one tensor share the product with their A matrices, and backward recomputes the norms and the gated product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from afterword.model import attention_kernel
from afterword.model.attention import attention_layout
from afterword.model.lora import LoraLinearWeights, linear_weights, lora_linear, lora_linear_backward


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """RMS norm (arXiv 1910.07467): weight x / sqrt(mean(x^2) + epsilon) over the last dimension.

    Args:
        x: [.., H]
        weight: [H]
        epsilon: Added to the mean square.

    Returns:
        The norm [.., H] in x's dtype, and 1/rms [.., 1] in float32 or wider, for the backward pass.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    inverse = size.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
    return (x * inverse).to(x.dtype).mul_(weight), inverse


def rms_norm_backward(d_out: Tensor, x: Tensor, inverse: Tensor, weight: Tensor, add: Tensor | None = None) -> Tensor:
    """Gradient of `rms_norm` with respect to x, for a frozen weight.

    Args:
        d_out: [.., H] gradient of the norm.
        x: [.., H] its input.
        inverse: [.., 1] 1/rms, as `rms_norm` returned it.
        weight: [H]
        add: [.., H] added to the result: the gradient that reaches x on the residual path.

    Returns:
        [.., H] in x's dtype.
    """
    even, gradient = x * inverse, d_out * weight.to(inverse.dtype)
    along = (gradient * even).mean(-1, keepdim=True)
    gradient.sub_(even.mul_(along)).mul_(inverse)
    return (gradient if add is None else gradient.add_(add)).to(x.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """SwiGLU (arXiv 2002.05202): silu(gate) * up, both [.., F]."""
    return F.silu(gate).mul_(up)


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """A decoder layer in its present state: frozen weights, norms (weight, epsilon), active adapters, packed row."""

    first: tuple[Tensor, float]
    second: tuple[Tensor, float]
    readers: Sequence[LoraLinearWeights]
    """The projections q, k, v."""
    o: LoraLinearWeights
    gates: Sequence[LoraLinearWeights]
    """The projections gate and up."""
    down: LoraLinearWeights
    width: int
    """Of an attention head."""
    layout: attention_kernel.AttentionLayout
    number: int

    @property
    def adapters(self) -> list[Tensor | None]:
        """A and B of every projection, in the order of the gradients that `backward` returns."""
        return [t for p in (*self.readers, self.o, *self.gates, self.down) for t in (p.down, p.up)]

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Output [T, H] for input [T, H], and the tensors that `backward` needs."""
        inside, inverse = rms_norm(x, *self.first)
        qkv, to_qkv = lora_linear(inside, self.readers)
        del inside
        q, k, v = (t.view(len(x), -1, self.width) for t in qkv)
        attended, kept = attention_kernel.forward(q, k, v, self.layout, self.number)
        attended = attended.view(len(x), -1)
        del qkv, q, k, v
        (middle,), to_o = lora_linear(attended, [self.o], add=x)
        inside, second = rms_norm(middle, *self.second)
        (gate, up), to_gates = lora_linear(inside, self.gates)
        del inside
        (out,), to_down = lora_linear(swiglu(gate, up), [self.down], add=middle)
        return out, [x, inverse, attended, middle, second, gate, up, to_qkv, to_o, to_gates, to_down, *kept]

    def backward(self, d_out: Tensor, saved: Sequence[Tensor | None], to_x: bool) -> tuple[Tensor | None, ...]:
        """Gradients of x (None unless `to_x`) and of `adapters`."""
        x, inverse, attended, middle, second, gate, up, to_qkv, to_o, to_gates, to_down, *kept = saved
        assert x is not None and inverse is not None and middle is not None and second is not None
        assert gate is not None and up is not None and attended is not None
        d_middle, after = self._gated_back(d_out, (middle, second, gate, up), to_gates, to_down)
        d_attended, of_o = lora_linear_backward([d_middle], attended, to_o, [self.o])
        assert d_attended is not None
        d_qkv = attention_kernel.backward(d_attended.reshape(len(x), -1, self.width), kept, self.layout)
        inside = (x * inverse).to(x.dtype).mul_(self.first[0])
        d_inside, of_qkv = lora_linear_backward(
            [d.reshape(len(x), -1) for d in d_qkv], inside, to_qkv, self.readers, to_x
        )
        d_x = None if d_inside is None else rms_norm_backward(d_inside, x, inverse, self.first[0], add=d_middle)
        return d_x, *of_qkv, *of_o, *after

    def _gated_back(
        self, d_out: Tensor, saved: tuple[Tensor, ...], to_gates: Tensor | None, to_down: Tensor | None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The gradient towards the middle of the layer, and those of the adapters after it."""
        middle, second, gate, up = saved
        active = F.silu(gate)
        d_inner, of_down = lora_linear_backward([d_out], None if to_down is None else active * up, to_down, [self.down])
        assert d_inner is not None
        d_up = active.mul_(d_inner)
        d_gate = torch.ops.aten.silu_backward(d_inner.mul_(up), gate)
        inside = (middle * second).to(middle.dtype).mul_(self.second[0])
        d_inside, of_gates = lora_linear_backward([d_gate, d_up], inside, to_gates, self.gates)
        assert d_inside is not None
        return rms_norm_backward(d_inside, middle, second, self.second[0], add=d_out), [*of_gates, *of_down]


class _Layer(torch.autograd.Function):
    """A layer for autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FusedLayer, *adapters: Tensor | None) -> Tensor:
        out, saved = layer.forward(x)
        ctx.layer = layer
        ctx.save_for_backward(*saved)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        d_x, *others = ctx.layer.backward(d_out, ctx.saved_tensors, ctx.needs_input_grad[0])
        return d_x, None, *others


def fused_layer_of(module: Any, rotary: tuple[Tensor, Tensor]) -> FusedLayer | None:
    """Read the present state of a decoder layer of transformers.

    Args:
        module: A layer with `self_attn`, `mlp` and two norms.
        rotary: Cosines and sines [1, T, D] of the positions.

    Returns:
        None when a frozen weight is in training, a projection is of an unknown kind, or no packed row is being read.
    """
    block, mlp = module.self_attn, module.mlp
    norms = module.input_layernorm, module.post_attention_layernorm
    places = block.q_proj, block.k_proj, block.v_proj, block.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj
    layout = attention_layout(block.scaling, rotary)
    q, k, v, o, gate, up, down = (linear_weights(place) for place in places)
    known = q is not None and k is not None and v is not None and o is not None
    if layout is None or not known or gate is None or up is None or down is None:
        return None
    if any(norm.weight.requires_grad for norm in norms):
        return None
    first, second = ((norm.weight, norm.variance_epsilon) for norm in norms)
    return FusedLayer(first, second, (q, k, v), o, (gate, up), down, block.head_dim, layout, block.layer_idx)  # type: ignore[arg-type]


def run_layer(layer: FusedLayer, x: Tensor) -> Tensor:
    """Output [1, T, H] of the layer for x [1, T, H], with gradients for x and the adapters."""
    if not torch.is_grad_enabled():
        return layer.forward(x[0])[0][None]
    out: Tensor = _Layer.apply(x[0], layer, *layer.adapters)  # type: ignore[no-untyped-call]
    return out[None]
