"""Low-rank updates of linear layers: one product with little memory, and other updates laid over the same base.

Owns how a frozen linear layer and an update are multiplied, forward and backward, and the switch between the
update in training and those of teachers. PEFT keeps the parameters in training, their names and their files.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from afterword.learn.deltas import Delta

_OVERLAY = "_afterword_overlay"


class _LoraProduct(torch.autograd.Function):
    """y = x W' + b + scale (x A') B', W and b frozen. Kept for backward: x as it came, and x A' [.., r].

    PEFT keeps a float32 copy of x for each of the layers that read it, and adds in float32. Here the products run
    in x's dtype with the accumulation of the matrix library; the gradients of A and B are returned in theirs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        down = flat @ a.to(x.dtype).T
        out = flat @ weight.T if bias is None else torch.addmm(bias, flat, weight.T)
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
        d_b = (gradient.T @ down).to(b.dtype).mul_(ctx.scale)
        return d_x, None, None, d_a, d_b, None


def lean(model: nn.Module) -> dict[str, Any]:
    """Let every LoRA layer of a PEFT model compute through this module, and return those layers by name.

    Layers with dropout, DoRA, a LoRA bias or several active adapters, merged ones, and those over anything but
    `nn.Linear` go PEFT's way unless an update is laid over them.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer) and len(m.lora_A)}
    for module in layers.values():
        module.forward = types.MethodType(_forward, module)
    return layers


@contextmanager
def overlaid(layers: Mapping[str, Any], deltas: Mapping[str, Delta]) -> Iterator[None]:
    """Inside, the layers compute with `deltas` (by layer name; none where there is none) and not their adapters."""
    try:
        for name, layer in layers.items():
            object.__setattr__(layer, _OVERLAY, (deltas.get(name),))
        yield
    finally:
        for layer in layers.values():
            object.__delattr__(layer, _OVERLAY)


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    base = self.get_base_layer()
    overlay = self.__dict__.get(_OVERLAY)
    if overlay is not None:
        return _overlaid(base, x, overlay[0])
    names = [name for name in self.active_adapters if name in self.lora_A]
    plain = not (self.disable_adapters or self.merged or args or kwargs) and len(names) == 1
    if not (plain and type(base) is nn.Linear and _plain_adapter(self, names[0])):
        return type(self).forward(self, x, *args, **kwargs)  # type: ignore[no-any-return]
    name = names[0]
    product = _LoraProduct.apply(  # type: ignore[no-untyped-call]
        x, base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, float(self.scaling[name])
    )
    return product  # type: ignore[no-any-return]


def _overlaid(base: Any, x: Tensor, delta: Delta | None) -> Tensor:
    if delta is None:
        return base(x)  # type: ignore[no-any-return]
    if delta.dense is not None:
        return base(x).add_(x @ delta.dense.to(x.dtype).T)  # type: ignore[no-any-return]
    if type(base) is nn.Linear:  # the very product of training: the same update gives the same bits
        product = _LoraProduct.apply(x, base.weight, base.bias, delta.down, delta.up, delta.scale)  # type: ignore[no-untyped-call]
        return product  # type: ignore[no-any-return]
    return base(x) + ((x @ delta.down.to(x.dtype).T) @ delta.up.to(x.dtype).T) * delta.scale  # type: ignore[no-any-return]


def _plain_adapter(layer: Any, name: str) -> bool:
    quiet = isinstance(layer.lora_dropout[name], nn.Identity) and layer.lora_B[name].bias is None
    return isinstance(layer, LoraLinear) and quiet and name not in layer.lora_variant


def live_deltas(layers: Mapping[str, Any], adapter: str) -> dict[str, Delta]:
    """The update in training, copied."""
    return {
        name: Delta(
            down=layer.lora_A[adapter].weight.detach().clone(),
            up=layer.lora_B[adapter].weight.detach().clone(),
            scale=float(layer.scaling[adapter]),
        )
        for name, layer in layers.items()
    }
