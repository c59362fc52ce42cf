"""Computes the output head, hidden states to logits, and its gradient: bias, LoRA, scale and soft cap included.

The loss stage passes a few rows at a time. The head's own weight is frozen; an adapter on it can be trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from afterword.errors import ModelError
from afterword.model.matmul import matmul
from afterword.sharing import BACKGROUND

if TYPE_CHECKING:  # loading PEFT takes most of a second, and no head needs it
    from afterword.model.lora import Delta


@dataclass(frozen=True, slots=True)
class HeadAdapter:
    """LoRA on the head: logits gain scale * (h down') up'."""

    down: Tensor
    """[r, H], float32 or wider."""
    up: Tensor
    """[V, r]."""
    scale: float

    def gradients(self, hidden: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of `down` [r, H] and `up` [V, r].

        Args:
            hidden: [n, H]
            gradient: [n, V] with respect to the product, before scale and cap.
        """
        wide = hidden.to(self.down.dtype)
        gradient = gradient.to(self.up.dtype)
        return self.scale * (gradient @ self.up).T @ wide, self.scale * gradient.T @ (wide @ self.down.T)


@dataclass(frozen=True, slots=True)
class Head:
    """logits = cap * tanh(scale * (h W' + b) / cap), the cap left out when it is None."""

    weight: Tensor
    """[V, H]. On a CPU float32 or wider (there is no bf16 product with a float32 result); on CUDA as loaded."""
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None
    adapter: HeadAdapter | None = None
    narrow: Tensor | None = None
    """The same weight in bf16, as it was loaded, on a CPU."""

    @property
    def bare(self) -> Head:
        """Without its adapter."""
        return replace(self, adapter=None)

    def first(self, tokens: int) -> Head:
        """Over the first `tokens` ids of the vocabulary alone; itself when it has no more."""
        if tokens >= len(self.weight):
            return self
        adapter = self.adapter
        return replace(
            self,
            weight=self.weight[:tokens],
            bias=None if self.bias is None else self.bias[:tokens],
            narrow=None if self.narrow is None else self.narrow[:tokens],
            adapter=None if adapter is None else replace(adapter, up=adapter.up[:tokens]),
        )

    def with_update(self, update: Delta | None) -> Head:
        """Without its adapter, and with this update of its weight instead."""
        if update is None:
            return self.bare
        if update.dense is None:
            return replace(self, adapter=HeadAdapter(update.down, update.up, update.scale))
        return replace(self, adapter=None, narrow=None, weight=self.weight + update.dense.to(self.weight.dtype))

    @property
    def dtype(self) -> torch.dtype:
        """Of the logits: float32, or float64 for a float64 head."""
        return torch.promote_types(self.weight.dtype, torch.float32)

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, H] to new [n, V] in `dtype`."""
        BACKGROUND.pause_point()
        out = matmul(hidden.to(self.weight.dtype), self.weight)
        if self.adapter is not None:
            down = hidden.to(self.adapter.down.dtype) @ self.adapter.down.T
            out.addmm_(down, self.adapter.up.T, alpha=self.adapter.scale)
        if self.bias is not None:
            out += self.bias
        if self.scale != 1.0:
            out *= self.scale
        if self.cap is not None:
            out = torch.tanh_(out.div_(self.cap)).mul_(self.cap)
        return out

    def unscaled(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Gradient with respect to the product before scale and cap.

        Args:
            gradient: [n, V] with respect to the logits; overwritten.
            logits: [n, V] as `logits` returned them.

        Returns:
            [n, V]
        """
        if self.cap is not None:
            gradient *= 1 - (logits / self.cap).square()
        if self.scale != 1.0:
            gradient *= self.scale
        return gradient

    def backward(self, gradient: Tensor) -> Tensor:
        """Gradient with respect to the hidden states.

        A bf16 head multiplies in bf16, on a CPU too: the layer below rounds the result to bf16 anyway.

        Args:
            gradient: [n, V] with respect to the product before scale and cap.

        Returns:
            [n, H]
        """
        BACKGROUND.pause_point()
        if self.narrow is None:
            back = matmul(gradient.to(self.weight.dtype), self.weight.T)
        else:
            back = (gradient.to(self.narrow.dtype) @ self.narrow).to(self.dtype)
        if self.adapter is not None:
            up = gradient.to(self.adapter.up.dtype) @ self.adapter.up
            back.addmm_(up, self.adapter.down, alpha=self.adapter.scale)
        return back


def head_of(model: Any, *, adapter: str | None = None) -> Head:
    """Read the head of a causal language model and compare it with the model's own logits on a few ids.

    Args:
        model: A transformers or PEFT causal model.
        adapter: PEFT's LoRA adapter on the head that becomes part of it, with its gradient. `Head.bare` is the head of
            a teacher without it.

    Raises:
        ModelError: The head is trained itself, is adapted and `adapter` is None, or has another kind of adapter; or the
            model computes its logits in an unknown way.
    """
    layer = model.get_output_embeddings()
    plain = getattr(layer, "base_layer", layer)
    weight = getattr(plain, "weight", None)
    known = plain is layer or (hasattr(layer, "lora_A") and adapter is not None)
    if not isinstance(weight, Tensor) or not known or hasattr(layer, "modules_to_save"):
        raise ModelError(
            f"the output head ({type(layer).__name__}) is trained or adapted: leave it out of the LoRA targets"
        )
    wide = weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float16)
    bias = getattr(plain, "bias", None)
    head = Head(
        weight=weight.detach().float() if wide else weight.detach(),
        bias=None if bias is None else bias.detach().float(),
        scale=_scale(model.config),
        cap=getattr(model.config, "final_logit_softcapping", None),
        adapter=None if plain is layer or adapter is None else _adapter(layer, adapter),
        narrow=weight.detach() if wide else None,
    )
    with _head_as(layer, None if head.adapter is None else adapter):
        _check(model, head)
    return head


def with_adapter(head: Head, model: Any, name: str | None) -> Head:
    """`head` with the PEFT adapter `name` of `model`; bare where that adapter has no weights on the head."""
    layer = model.get_output_embeddings()
    adapter = _adapter(layer, name) if name is not None and hasattr(layer, "lora_A") else None
    return replace(head, adapter=adapter)


def _adapter(layer: Any, name: str) -> HeadAdapter | None:
    """None for an adapter that does not touch the head."""
    if name not in layer.lora_A:
        return None
    if name in getattr(layer, "lora_variant", {}):
        raise ModelError(f"adapter {name!r} is a variant of LoRA on the output head: leave the head out of its targets")
    return HeadAdapter(layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name]))


@contextmanager
def _head_as(layer: Any, adapter: str | None) -> Iterator[None]:
    """The model's own head with this adapter, or with none, for the probe."""
    if not hasattr(layer, "base_layer"):
        yield
        return
    active, off = list(layer.active_adapters), layer.disable_adapters
    trained = {name: p.requires_grad for name, p in layer.named_parameters()}
    layer.enable_adapters(adapter is not None)
    if adapter is not None:
        layer.set_adapter([adapter])
    try:
        yield
    finally:
        layer.set_adapter(active)
        layer.enable_adapters(not off)
        for name, p in layer.named_parameters():
            p.requires_grad_(trained[name])


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
            f"{type(model).__name__} computes its logits in an unsupported way (relative "
            f"difference {worst:.3f} on a probe): this model cannot be trained yet"
        )
