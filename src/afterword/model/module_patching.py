"""Replaces the forward of norms, SwiGLU, attention and decoder layers on a CPU by faster ones that save less memory.

A trial pass compares each module with its replacement; one that differs by more than rounding keeps its own forward.
Models on CUDA are not patched. Linear layers belong to PEFT and `lora`.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afterword.model.attention import attend, attention_layout
from afterword.model.fused_layer import fused_layer_of, rms_norm, rms_norm_backward, run_layer, swiglu
from afterword.model.packing import can_pack, packed, packed_states

_NEAR = {torch.bfloat16: 0.02, torch.float16: 0.01}
"""Largest relative difference that counts as rounding; 1e-4 in other dtypes."""
_LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}


def patch_modules(causal: Any) -> list[str]:
    """Patch the modules of a causal language model.

    Args:
        causal: A transformers model, not wrapped by PEFT.

    Returns:
        Names of the patched modules; none on CUDA and for models whose sequences cannot be packed.
    """
    if next(causal.parameters()).device.type != "cpu" or not can_pack(causal):
        return []
    tried = {module: forward for module in causal.base_model.modules() if (forward := _known(module)) is not None}
    failed = _failed(causal, tried)
    for module, forward in tried.items():
        if module not in failed:
            module.forward = types.MethodType(forward, module)
    return [name for name, module in causal.base_model.named_modules() if module in tried and module not in failed]


def _known(module: nn.Module) -> Callable[..., Any] | None:
    """The replacement of a module's forward, by the names of its children; None for an unknown module."""
    if "forward" in module.__dict__:
        return None
    parts = set(dict(module.named_children()))
    if parts == _LAYER and all(_known(part) for part in module.children()):
        return None if hasattr(module.get_submodule("self_attn"), "q_norm") else _layer_forward
    if not parts and type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
        return _norm_forward
    if parts == {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return _gated_forward
    if parts - {"q_norm", "k_norm"} == {"q_proj", "k_proj", "v_proj", "o_proj"}:
        return _attention_forward
    return None


@torch.no_grad()
def _failed(causal: Any, tried: dict[nn.Module, Callable[..., Any]]) -> set[nn.Module]:
    """Modules whose replacement differs from the model's own output while it reads a few ids."""
    failed = set(tried)

    def compare(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        try:
            if tried[module] is _layer_forward and fused_layer_of(module, kwargs["position_embeddings"]) is None:
                return  # it would call the model's own forward here, unlike later
            got = tried[module](module, *args, **kwargs)
        except (
            AttributeError,
            IndexError,
            KeyError,
            RuntimeError,
            TypeError,
            ValueError,
        ):  # its attributes are not those of the known module
            return
        want, got = (one[0] if isinstance(one, tuple) else one for one in (out, got))
        if want.shape == got.shape and (want - got).norm() <= _NEAR.get(want.dtype, 1e-4) * want.norm():
            failed.discard(module)

    hooks = [module.register_forward_hook(compare, with_kwargs=True) for module in tried]
    try:
        ids = [3 * n + 1 for n in range(11)]
        most = causal.get_input_embeddings().weight.shape[0]
        batch = packed([([i % most for i in ids[:4]], ids[:0]), ([i % most for i in ids[4:]], ids[:0])])
        packed_states(causal, batch.ids, batch.sizes)
    finally:
        for hook in hooks:
            hook.remove()
    return failed


class _Norm(torch.autograd.Function):
    """`rms_norm` with a frozen weight for autograd. Saves x and 1/rms [.., 1]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        out, inverse = rms_norm(x, weight, epsilon)
        ctx.save_for_backward(x, inverse, weight)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        return rms_norm_backward(d_out, *ctx.saved_tensors), None, None


class _Gated(torch.autograd.Function):
    """`swiglu` for autograd. Saves gate and up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return swiglu(gate, up)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(d_out * up, gate), F.silu(gate).mul_(d_out)


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    if self.weight.requires_grad and torch.is_grad_enabled():
        return type(self).forward(self, hidden_states)  # type: ignore[no-any-return]
    return _Norm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call,no-any-return]


def _gated_forward(self: Any, x: Tensor) -> Tensor:
    inner = _Gated.apply(self.gate_proj(x), self.up_proj(x))  # type: ignore[no-untyped-call]
    return self.down_proj(inner)  # type: ignore[no-any-return]


def _attention_forward(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    layout = None if position_embeddings is None else attention_layout(self.scaling, position_embeddings)
    if layout is None or past_key_values is not None:
        out = type(self).forward(
            self, hidden_states, position_embeddings, attention_mask, past_key_values=past_key_values, **kwargs
        )
        return out  # type: ignore[no-any-return]
    places = hidden_states.shape[1], -1, self.head_dim
    q, k, v = (project(hidden_states).view(places) for project in (self.q_proj, self.k_proj, self.v_proj))
    if hasattr(self, "q_norm"):
        q, k = self.q_norm(q), self.k_norm(k)
    out = attend(q, k, v, layout)
    return self.o_proj(out.view(1, len(out), -1)), None


def _layer_forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    rotary, past = kwargs.get("position_embeddings"), kwargs.get("past_key_values")
    layer = None if rotary is None or past is not None or args else fused_layer_of(self, rotary)
    if layer is None:
        return type(self).forward(self, hidden_states, *args, **kwargs)  # type: ignore[no-any-return]
    return run_layer(layer, hidden_states)
