"""Norms, gated products and attention modules of a transformers model with fewer passes and less kept for backward.

Owns their computation on a CPU, where a pass over the activations costs as much as a small product, and the trial by
which a module is known to compute just this: whatever differs by more than rounding keeps its own way. On CUDA every
module does. It never touches a layer's products: those are PEFT's, or `lora`'s.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afterword.learn.attention import attend, row_sizes
from afterword.learn.forward import can_pack, packed, packed_states

_NEAR = {torch.bfloat16: 0.02, torch.float16: 0.01}
"""Relative distance that is rounding; in other dtypes 1e-4."""


def leaner(causal: Any) -> list[str]:
    """Let the modules of a transformers causal model that are known here compute here; returns their names."""
    if next(causal.parameters()).device.type != "cpu" or not can_pack(causal):
        return []
    tried = {module: forward for module in causal.base_model.modules() if (forward := _known(module)) is not None}
    failed = _failed(causal, tried)
    for module, forward in tried.items():
        if module not in failed:
            module.forward = types.MethodType(forward, module)
    return [name for name, module in causal.base_model.named_modules() if module in tried and module not in failed]


def _known(module: nn.Module) -> Callable[..., Any] | None:
    """How the module would compute here, by the names of what it consists of."""
    if "forward" in module.__dict__:
        return None
    parts = set(dict(module.named_children()))
    if not parts and type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
        return _norm_forward
    if parts == {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return _gated_forward
    if parts - {"q_norm", "k_norm"} == {"q_proj", "k_proj", "v_proj", "o_proj"}:
        return _attention_forward
    return None


@torch.no_grad()
def _failed(causal: Any, tried: dict[nn.Module, Callable[..., Any]]) -> set[nn.Module]:
    """Those that say something else than the model's own on what it gives them while it reads a few ids."""
    failed = set(tried)

    def compare(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        try:
            got = tried[module](module, *args, **kwargs)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):  # it wants something else of itself
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
    """weight x / rms(x) over the last dimension, the weight frozen. Keeps x as it came and 1/rms [.., 1]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        inverse = size.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, inverse, weight)
        out: Tensor = (x * inverse).to(x.dtype)
        return out.mul_(weight)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, weight = ctx.saved_tensors
        even, gradient = x * inverse, d_out * weight.to(inverse.dtype)
        along = (gradient * even).mean(-1, keepdim=True)
        return gradient.sub_(even.mul_(along)).mul_(inverse).to(x.dtype), None, None


class _Gated(torch.autograd.Function):
    """silu(gate) up. Keeps gate and up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

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
    sizes = row_sizes()
    if sizes is None or position_embeddings is None or past_key_values is not None:
        out = type(self).forward(
            self, hidden_states, position_embeddings, attention_mask, past_key_values=past_key_values, **kwargs
        )
        return out  # type: ignore[no-any-return]
    places = hidden_states.shape[1], -1, self.head_dim
    q, k, v = (project(hidden_states).view(places) for project in (self.q_proj, self.k_proj, self.v_proj))
    if hasattr(self, "q_norm"):
        q, k = self.q_norm(q), self.k_norm(k)
    cos, sin = position_embeddings
    out = attend(q, k, v, self.scaling, sizes, (cos[0], sin[0]))
    return self.o_proj(out.view(1, len(out), -1)), None
