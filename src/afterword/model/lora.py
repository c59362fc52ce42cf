"""Computes frozen linear layers with low-rank updates, and exchanges the update in training for those of teachers.

An average of LoRA updates is not the update of averaged factors: over n steps from zero that is scaled by
(1 - (1-r)^n)^2 in place of 1 - (1-r)^n. `mixed` averages the product exactly. PEFT keeps parameters, names and files.
"""

from __future__ import annotations

import math
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from afterword.model.lora_folder import PREFIX, missing_layer, read_lora_folder
from afterword.sharing import BACKGROUND


@dataclass(frozen=True, slots=True)
class Delta:
    """The update of one [out, in] weight in float32: scale x up down, or dense where that is smaller."""

    down: Tensor
    """[k, in]; [0, in] for a dense one."""
    up: Tensor
    """[out, k]"""
    scale: float = 1.0
    dense: Tensor | None = None
    """[out, in]"""

    def full(self) -> Tensor:
        """[out, in]"""
        return self.dense if self.dense is not None else (self.up @ self.down).mul_(self.scale)

    @property
    def numel(self) -> int:
        """Stored numbers."""
        return self.down.numel() + self.up.numel() if self.dense is None else self.dense.numel()


def mixed(old: Delta, new: Delta, rate: float, rank: int | None = None) -> Delta:
    """Average two updates of one weight: (1 - rate) old + rate new.

    Args:
        old: The average so far.
        new: The student's update.
        rate: 0 .. 1.
        rank: None is exact (factors are stacked, then dense). A number keeps the best approximation of that rank, taken
            whenever the stacked factors have twice as many rows, unless the matrix itself is smaller than these.
    """
    if rank is not None and (2 * rank + len(new.down)) * sum(_shape(new)) >= math.prod(_shape(new)):
        rank = None
    if old.dense is not None:
        return _dense(old.dense.mul(1 - rate).addmm_(new.up, new.down, alpha=rate * new.scale))
    up = torch.cat([old.up * ((1 - rate) * old.scale), new.up * (rate * new.scale)], 1)
    down = torch.cat([old.down, new.down])
    stacked = Delta(down, up)
    if rank is not None:
        return _nearest(stacked, rank) if len(down) > 2 * rank + len(new.down) else stacked
    return stacked if stacked.numel < up.shape[0] * down.shape[1] else _dense(stacked.full())


def _shape(delta: Delta) -> tuple[int, int]:
    """(out, in)"""
    return delta.up.shape[0], delta.down.shape[1]


def _dense(matrix: Tensor) -> Delta:
    out, width = matrix.shape
    return Delta(matrix.new_empty(0, width), matrix.new_empty(out, 0), 1.0, matrix)


def _nearest(delta: Delta, rank: int) -> Delta:
    """The best approximation of that rank: singular values of the k x k triangles of QR, not of the out x in matrix."""
    up_q, up_r = torch.linalg.qr(delta.up)
    down_q, down_r = torch.linalg.qr(delta.down.T)
    left, values, right = torch.linalg.svd((up_r @ down_r.T) * delta.scale, full_matrices=False)
    return Delta((down_q @ right[:rank].T).T.contiguous(), up_q @ (left[:, :rank] * values[:rank]))


_OVERLAY: ContextVar[Mapping[Any, Delta | None] | None] = ContextVar("overlay", default=None)
"""Layer -> the update in place of its adapter (None: its frozen weight alone), inside `overlaid`."""


@dataclass(frozen=True, slots=True)
class LoraLinearWeights:
    """A linear layer with LoRA (arXiv 2106.09685): y = x W' + b + scale (x A') B', with W and b frozen."""

    weight: Tensor
    """W [out, in]"""
    bias: Tensor | None
    """b [out]"""
    down: Tensor | None = None
    """A [r, in]; None without an update."""
    up: Tensor | None = None
    """B [out, r]; None without an update."""
    scale: float = 1.0


def lora_linear(
    x: Tensor, layers: Sequence[LoraLinearWeights], add: Tensor | None = None
) -> tuple[list[Tensor], Tensor | None]:
    """Compute layers that read the same x, with one product for all A matrices.

    Products run in x's dtype with the accumulation of the matrix library. PEFT instead keeps a float32 copy of x for
    each layer, and adds in float32.

    Args:
        x: [T, in]
        layers: One or more layers.
        add: [T, out] added to the first output, such as a residual.

    Returns:
        Outputs [T, out] of the layers, and x A' [T, sum of ranks] for `lora_linear_backward` (None without updates).
    """
    BACKGROUND.pause_point()
    downs = _joined(layers, x.dtype)
    inner = None if downs is None else x @ downs.T
    outs, low = [], 0
    for layer in layers:
        start = layer.bias if add is None else add
        out = x @ layer.weight.T if start is None else torch.addmm(start, x, layer.weight.T)
        if add is not None and layer.bias is not None:
            out += layer.bias
        if layer.down is not None and layer.up is not None and inner is not None:
            high = low + len(layer.down)
            out.addmm_(inner[:, low:high], layer.up.to(x.dtype).T, alpha=layer.scale)
            low = high
        outs.append(out)
        add = None
    return outs, inner


def lora_linear_backward(
    d_outs: Sequence[Tensor],
    x: Tensor | None,
    inner: Tensor | None,
    layers: Sequence[LoraLinearWeights],
    to_x: bool = True,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of `lora_linear`.

    Args:
        d_outs: [T, out] gradient of each output.
        x: [T, in] the input; may be None without updates.
        inner: x A', as `lora_linear` returned it.
        layers: The same layers.
        to_x: Whether the gradient of x is needed.

    Returns:
        Gradient of x (None unless `to_x`), and of A and B of each layer in their dtypes (None without an update).
    """
    d_x, d_ups, low = None, [], 0
    d_inner = None if inner is None else torch.empty_like(inner)
    for d_out, layer in zip(d_outs, layers, strict=True):
        BACKGROUND.pause_point()
        if to_x:
            d_x = d_out @ layer.weight if d_x is None else d_x.addmm_(d_out, layer.weight)
        if layer.down is not None and layer.up is not None and inner is not None and d_inner is not None:
            part = slice(low, low + len(layer.down))
            d_inner[:, part] = (d_out @ layer.up.to(d_out.dtype)).mul_(layer.scale)
            d_ups.append((d_out.T @ inner[:, part]).to(layer.up.dtype).mul_(layer.scale))
            low = part.stop
    if d_inner is None or x is None:
        return d_x, [None] * (2 * len(layers))
    downs = _joined(layers, d_inner.dtype)
    assert downs is not None
    if d_x is not None:
        d_x.addmm_(d_inner, downs)
    d_downs, found = d_inner.T @ x, iter(d_ups)
    gradients: list[Tensor | None] = []
    low = 0
    for layer in layers:
        if layer.down is None:
            gradients += [None, None]
            continue
        gradients += [d_downs[low : low + len(layer.down)].to(layer.down.dtype), next(found)]
        low += len(layer.down)
    return d_x, gradients


def _joined(layers: Sequence[LoraLinearWeights], dtype: torch.dtype) -> Tensor | None:
    """[sum of ranks, in] all A matrices stacked; None without updates."""
    downs = [layer.down for layer in layers if layer.down is not None]
    if not downs:
        return None
    return (downs[0] if len(downs) == 1 else torch.cat(downs)).to(dtype)


class _LoraProduct(torch.autograd.Function):
    """One layer's product. Kept for backward: x as it came, and x A' [.., r]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, layer: LoraLinearWeights) -> Tensor:
        (out,), inner = lora_linear(x.reshape(-1, x.shape[-1]), [layer])
        ctx.save_for_backward(x, inner)
        ctx.layer = layer
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, inner = ctx.saved_tensors
        flat, gradient = x.reshape(-1, x.shape[-1]), d_out.reshape(-1, d_out.shape[-1])
        d_x, (d_a, d_b) = lora_linear_backward([gradient], flat, inner, [ctx.layer], ctx.needs_input_grad[0])
        return None if d_x is None else d_x.view(x.shape), d_a, d_b, None


def load_adapter(model: Any, folder: Path, name: str, *, trainable: bool = False) -> Any:
    """Put an adapter folder over a model, as `lora_folder` reads it.

    Args:
        model: A transformers model, or PEFT's model over one.
        folder: The adapter folder.
        name: The adapter's name in PEFT's model.
        trainable: Its factors get gradients.

    Returns:
        PEFT's model.

    Raises:
        AdapterError: The folder is no plain LoRA, or it changes a layer that the model does not have.
        OSError, ValueError, RuntimeError, KeyError: as PEFT raises them for a folder that does not fit.
    """
    read = read_lora_folder(folder)
    with warnings.catch_warnings():
        # peft 0.21 reads a property that transformers 5.23 has renamed
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        # merging an adapter on a tied head would change the embeddings: we never do
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*", category=UserWarning)
        if read.renamed:  # PEFT finds none of its names; the factors are set below
            warnings.filterwarnings("ignore", message=".*missing adapter keys.*", category=UserWarning)
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name, is_trainable=trainable)
        else:
            model = PeftModel.from_pretrained(model, str(folder), adapter_name=name, is_trainable=trainable)
    if read.renamed:
        set_peft_model_state_dict(model, read.peft_state(), adapter_name=name)
    modules = {path.removeprefix(PREFIX): module for path, module in model.named_modules()}
    for path in read.layers:
        if name not in getattr(modules.get(path), "lora_A", ()):
            raise missing_layer(path, [p for p, m in modules.items() if isinstance(m, LoraLayer | nn.Linear)], folder)
    return model


def patch_lora_layers(model: nn.Module) -> dict[str, Any]:
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
    """Inside, the layers compute with `deltas` in place of their adapters.

    Args:
        layers: Layers by name, as `patch_lora_layers` returned them.
        deltas: Updates by layer name; a layer without one computes its frozen weight alone.
    """
    token = _OVERLAY.set({layer: deltas.get(name) for name, layer in layers.items()})
    try:
        yield
    finally:
        _OVERLAY.reset(token)


def linear_weights(layer: Any) -> LoraLinearWeights | None:
    """The present weights of a linear layer, with its active adapter or overlaid update.

    Returns:
        None when the layer trains its own weight, has several active adapters, or is of an unknown kind.
    """
    if not isinstance(layer, LoraLayer):
        plain = type(layer) is nn.Linear and not layer.weight.requires_grad
        return LoraLinearWeights(layer.weight, layer.bias) if plain else None
    base: Any = layer.base_layer
    if type(base) is not nn.Linear:
        return None
    weight, bias = base.weight, base.bias
    if weight.requires_grad:
        return None
    overlay = _OVERLAY.get()
    if overlay is not None and layer in overlay:
        delta = overlay[layer]
        if delta is None:
            return LoraLinearWeights(weight, bias)
        return None if delta.dense is not None else LoraLinearWeights(weight, bias, delta.down, delta.up, delta.scale)
    if layer.merged:
        return None
    adapters: Any = layer.lora_A
    names = [] if layer.disable_adapters else [name for name in layer.active_adapters if name in adapters]
    if not names:
        return LoraLinearWeights(weight, bias)
    if len(names) > 1 or not _plain_adapter(layer, names[0]):
        return None
    return LoraLinearWeights(
        weight, bias, adapters[names[0]].weight, layer.lora_B[names[0]].weight, layer.scaling[names[0]]
    )


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    overlay = _OVERLAY.get()
    product = None if args or kwargs else linear_weights(self)
    if product is not None and product.down is not None:
        return _LoraProduct.apply(x, product.down, product.up, product)  # type: ignore[no-untyped-call,no-any-return]
    if overlay is not None and self in overlay:
        return _overlaid(self.get_base_layer(), x, overlay[self])
    return type(self).forward(self, x, *args, **kwargs)  # type: ignore[no-any-return]


def _overlaid(base: Any, x: Tensor, delta: Delta | None) -> Tensor:
    if delta is None:
        return base(x)  # type: ignore[no-any-return]
    if delta.dense is not None:
        return base(x).add_(x @ delta.dense.to(x.dtype).T)  # type: ignore[no-any-return]
    return base(x) + ((x @ delta.down.to(x.dtype).T) @ delta.up.to(x.dtype).T) * delta.scale  # type: ignore[no-any-return]


def _plain_adapter(layer: Any, name: str) -> bool:
    quiet = isinstance(layer.lora_dropout[name], nn.Identity) and layer.lora_B[name].bias is None
    return isinstance(layer, LoraLinear) and quiet and name not in layer.lora_variant


def live_deltas(layers: Mapping[str, Any], adapter: str) -> dict[str, Delta]:
    """A copy of the update in training, by layer name."""
    return {
        name: Delta(
            down=layer.lora_A[adapter].weight.detach().clone(),
            up=layer.lora_B[adapter].weight.detach().clone(),
            scale=float(layer.scaling[adapter]),
        )
        for name, layer in layers.items()
    }
