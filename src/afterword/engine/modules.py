"""Faster parts for a transformers model, put in place of its own: linear layers that can be packed for the
CPU and carry adapters, and root-mean-square norms in one operation. Owns nothing but these parts; the model's
own forward code stays as it is."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

_BATCH_HINT = 16


class AdapterMask:
    """Which adapter columns each token of the step uses, shared by all Lines. None: no token uses any."""

    def __init__(self) -> None:
        self.columns: torch.Tensor | None = None


class Line(torch.nn.Module):
    """A linear layer with the low-rank columns of all loaded adapters beside it.

    y = x W^T + b + ((x down) * mask) up, where down [in, columns] and up [columns, out] hold all adapters one
    behind the other and mask [tokens, columns] leaves to each token its own: two small products a layer
    whatever the number of adapters (the idea of batched LoRA serving, Punica, arXiv 2310.18547). They are
    float32 throughout, as the adapters were trained; on a CPU such small products are twice as fast so as
    in bf16, whose set-up costs more than the product.
    """

    def __init__(self, linear: torch.nn.Linear, mask: AdapterMask) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.weight: torch.Tensor | None = None
        self.packed: torch.Tensor | None = None
        self.down: torch.Tensor | None = None
        self.up: torch.Tensor | None = None
        self._mask = mask
        weight = linear.weight.detach()
        if weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and _packs():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, _BATCH_HINT)
        else:
            self.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out]."""
        if self.packed is not None:
            y = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        else:
            y = F.linear(x, self.weight, self.bias)  # type: ignore[arg-type]
        columns = self._mask.columns
        if columns is None or self.down is None or self.up is None:
            return y  # type: ignore[no-any-return]
        low = torch.mm(x.reshape(-1, self.in_features).float(), self.down).mul_(columns)
        y.view(-1, self.out_features).add_(torch.mm(low, self.up))
        return y  # type: ignore[no-any-return]


def _packs() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # type: ignore[no-untyped-call]


def replace_parts(model: torch.nn.Module) -> tuple[dict[str, Line], AdapterMask]:
    """Put the faster parts in place; returns the linear layers by their module path."""
    mask, lines = AdapterMask(), {}
    for path, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear:
            lines[path] = Line(module, mask)
            model.set_submodule(path, lines[path])
        elif type(module).__name__.endswith("RMSNorm"):
            _speed_norm(module)
    return lines, mask


def _speed_norm(norm: Any) -> None:
    """One operation instead of six, if it gives what the module itself gives."""
    epsilon = getattr(norm, "variance_epsilon", None)
    weight = getattr(norm, "weight", None)
    if epsilon is None or weight is None:
        return
    x = torch.linspace(-3, 3, 4 * weight.numel(), device=weight.device).reshape(4, -1).to(weight.dtype)

    def forward(x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, epsilon)

    own, ours = norm(x), forward(x)
    tolerance = 1e-5 if weight.dtype == torch.float32 else 2e-2
    if own.dtype == ours.dtype and torch.allclose(own, ours, rtol=tolerance, atol=tolerance):
        norm.forward = forward
