"""LoRA linear layers with little memory: one autograd function instead of PEFT's chain of float32 temporaries.

Owns the product of a frozen linear layer with its adapter, forward and backward. PEFT keeps the parameters, their
names and files; `lean` only replaces how its layers compute. It never changes a weight.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn


class _LoraProduct(torch.autograd.Function):
    """y = x W' + b + scale (x A') B', W and b frozen. Kept for backward: x as it came, and x A' [.., r].

    PEFT keeps a float32 copy of x for each of the layers that read it, and adds in float32. Here the products run
    in x's dtype with the accumulation of the matrix library; the gradients of A and B are returned in theirs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        down = flat @ a.to(x.dtype).T
        out = torch.addmm(bias, flat, weight.T) if bias is not None else flat @ weight.T
        out.addmm_(down, b.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(x, down, weight, a, b)
        ctx.scale = scale
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, down, weight, a, b = ctx.saved_tensors
        flat, gradient = x.reshape(-1, x.shape[-1]), d_out.reshape(-1, d_out.shape[-1])
        d_down = (gradient @ b.to(gradient.dtype)).mul_(ctx.scale)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = gradient @ weight
            d_x.addmm_(d_down, a.to(gradient.dtype))
            d_x = d_x.view(x.shape)
        d_a = (d_down.T @ flat).to(a.dtype)
        d_b = (gradient.T @ down).mul_(ctx.scale).to(b.dtype)
        return d_x, None, None, d_a, d_b, None


def lean(model: nn.Module) -> None:
    """Let every plain LoRA layer of a PEFT model over an `nn.Linear` compute through `_LoraProduct`.

    Layers with dropout, DoRA, a LoRA bias or several active adapters go PEFT's way, as do merged ones.
    """
    for module in model.modules():
        if isinstance(module, LoraLinear) and type(module.get_base_layer()) is nn.Linear:
            module.forward = types.MethodType(_forward, module)


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    names = [name for name in self.active_adapters if name in self.lora_A]
    plain = not (self.disable_adapters or self.merged or args or kwargs) and len(names) == 1
    if not plain or not _plain_adapter(self, names[0]):
        return LoraLinear.forward(self, x, *args, **kwargs)  # type: ignore[no-any-return]
    name, base = names[0], self.get_base_layer()
    product = _LoraProduct.apply(  # type: ignore[no-untyped-call]
        x, base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, float(self.scaling[name])
    )
    return product  # type: ignore[no-any-return]


def _plain_adapter(layer: Any, name: str) -> bool:
    quiet = isinstance(layer.lora_dropout[name], nn.Identity)
    return quiet and name not in layer.lora_variant and layer.lora_B[name].bias is None
