"""Replaces parts of a transformers model by faster ones: linear layers that are fused where they read the same tensor,
packed for the CPU, and carry adapters; and root-mean-square norms in one operation. Owns nothing but
these parts; the model's own forward code stays unchanged."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from transformers.pytorch_utils import Conv1D

from afterword.model.matmul import matmul
from afterword.sharing import BACKGROUND

_BATCH_HINT = 16
_LEAST_ROWS = 4
"""Products of fewer rows take other kernels, which add in another order: they are filled up with zeros, so that a row's
result does not depend on the rows beside it. Measured with torch 2.13 on x86 (AVX512): packed products of one row over
1,536 columns differ, plain float32 ones of one to three rows. A single stream takes at most 3 % more."""
_WRITTEN_TILE, _READ_TILE, _READ_LEAST = 32, 128, 48
"""Packed bf16 products on processors with AMX add in one order up to 32 rows, in another from 37 to 255, and in others
again here and there (torch 2.13, 1 and 2 threads, the built-in model's layers). Tokens that are written are therefore
multiplied in tiles of at most 32 rows, parts of prompts in tiles of at most 128, filled up to 48. Without AMX, reading
would take ten times as long."""
_LINEAR = (torch.nn.Linear, Conv1D)
"""Conv1D is GPT-2's linear layer, with its weight transposed."""


def _weight(linear: torch.nn.Module) -> torch.Tensor:
    """[out, in]"""
    weight = cast(torch.Tensor, linear.weight).detach()
    return weight.t().contiguous() if isinstance(linear, Conv1D) else weight


class AdapterMask:
    """Which adapter columns each token of the step uses, shared by all blocks."""

    def __init__(self) -> None:
        self._columns: torch.Tensor | None = None
        self._ends: torch.Tensor | None = None
        self.written: int | None = None
        """Tokens of the step that stand first and are written, one a request; parts of prompts follow. None is all."""
        self._repeated: dict[int, torch.Tensor] = {}

    def set(self, columns: torch.Tensor | None) -> None:
        """[tokens, columns] of ones and zeros; None: no token uses any."""
        self._columns = columns
        self._repeated.clear()

    def read_at(self, ends: torch.Tensor, written: int) -> None:
        """The tokens [m] of the step whose logits are computed: the output head sees no others; and how many tokens of
        the step are written."""
        self._ends, self.written = ends, written

    def times(self, lines: int, *, head: bool = False) -> torch.Tensor | None:
        """The same for a block of that many lines: [tokens, lines * columns]; for the output head at its tokens."""
        if self._columns is None:
            return None
        if head and self._ends is not None:
            return self._columns[self._ends]
        if lines not in self._repeated:
            self._repeated[lines] = self._columns.repeat(1, lines)
        return self._repeated[lines]


class FusedLinear:
    """Linear layers that read the same tensor, as one, with the low-rank columns of all loaded adapters beside it.

    y = x W^T + b + ((x down) * mask) up, where down [in, lines * columns] and each line's up [columns, out] hold all
    adapters one behind the other and mask leaves to each token its own: one small product a block and one a line
    whatever the number of adapters (the idea of batched LoRA serving, Punica, arXiv 2310.18547). They are
    float32 throughout, as the adapters were trained; on a CPU such small products are twice as fast so as
    in bf16, whose set-up costs more than the product.
    """

    def __init__(
        self, linears: list[torch.nn.Module], mask: AdapterMask, *, head: bool = False, wide: bool = False
    ) -> None:
        self._head = head
        weights = [_weight(linear) for linear in linears]
        self.in_features = weights[0].shape[1]
        self.sizes = [weight.shape[0] for weight in weights]
        biases = [bias.detach() for linear in linears if (bias := cast(torch.Tensor | None, linear.bias)) is not None]
        self.bias = torch.cat(biases) if biases else None
        self.weight: torch.Tensor | None = None
        self.packed: torch.Tensor | None = None
        self.down: torch.Tensor | None = None
        self.up: list[torch.Tensor] = []
        self._mask = mask
        self._seen: torch.Tensor | None = None
        self._made: tuple[torch.Tensor, ...] = ()
        self._read = 0
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        self._wide = wide and weight.dtype in (torch.bfloat16, torch.float16)
        if self._wide and weight.device.type == "cpu":
            weight = weight.float()
        if weight.device.type == "cpu" and _packs(weight.dtype):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, _BATCH_HINT)
        else:
            self.weight = weight
        self._tiled = self.packed is not None and weight.dtype == torch.bfloat16 and _has_amx()

    def output(self, x: torch.Tensor, line: int) -> torch.Tensor:
        """x [..., in] -> [..., out] of one line. The first call computes all parts; the last frees the result."""
        if len(self.sizes) == 1:
            return self._compute(x)
        if x is not self._seen:
            self._seen, self._made, self._read = x, torch.split(self._compute(x), self.sizes, -1), 0
        made = self._made[line]
        self._read += 1
        if self._read == len(self.sizes):
            self._seen, self._made = None, ()
        return made

    def _compute(self, x: torch.Tensor) -> torch.Tensor:
        BACKGROUND.pause_point()
        flat = x.reshape(-1, self.in_features)
        rows, cpu = len(flat), x.device.type == "cpu"
        y = self._in_tiles(flat) if self._tiled else self._product(_filled(flat, _LEAST_ROWS if cpu else rows))[:rows]
        columns = self._mask.times(len(self.sizes), head=self._head)
        if columns is not None and self.down is not None:
            # Threads share plain products by rows, so that each has to have enough of them.
            least = _LEAST_ROWS * torch.get_num_threads() if cpu else rows
            low = torch.mm(_filled(flat.float(), least), self.down)
            low = low.mul_(_filled(columns, len(low)))
            parts = torch.split(y, self.sizes, -1)
            for part, mine, up in zip(parts, low.chunk(len(self.sizes), -1), self.up, strict=True):
                part.add_(torch.mm(mine, up)[:rows])
        return y.view(*x.shape[:-1], -1)

    def _in_tiles(self, x: torch.Tensor) -> torch.Tensor:
        """The product of x [rows, in] by parts whose rows have the same bits in every step."""
        written = len(x) if self._head or self._mask.written is None else min(len(x), self._mask.written)
        if written == len(x) <= _WRITTEN_TILE:
            return self._product(_filled(x, _LEAST_ROWS))[:written]
        tiles = [(tile, _LEAST_ROWS) for tile in torch.split(x[:written], _WRITTEN_TILE) if len(tile)]
        if read := len(x) - written:
            tiles += [(tile, _READ_LEAST) for tile in x[written:].tensor_split(-(-read // _READ_TILE))]
        made = [self._product(_filled(tile, least))[: len(tile)] for tile, least in tiles]
        return made[0] if len(made) == 1 else torch.cat(made)

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        """x [rows, in] -> [rows, out], without adapters."""
        if self._wide:
            return self._logits(x)
        if self.packed is not None:
            y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
            return y
        return F.linear(x, self.weight, self.bias)  # type: ignore[arg-type]

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        """A half-precision head's logits in float32, as training computes them. In bf16 two logits near 20 differ by
        0.125 or not at all, so what is sampled would not be what is scored."""
        flat = x.reshape(-1, self.in_features)
        if self.packed is not None:
            y = torch.ops.mkldnn._linear_pointwise(flat.float(), self.packed, None, "none", [], "")
        else:
            assert self.weight is not None
            y = matmul(flat.to(self.weight.dtype), self.weight)
        if self.bias is not None:
            y = y + self.bias.float()
        return cast(torch.Tensor, y).view(*x.shape[:-1], -1)


class FusedSlice(torch.nn.Module):
    """One linear layer of the model: its part of a block."""

    def __init__(self, block: FusedLinear, place: int) -> None:
        super().__init__()
        self.in_features, self.out_features = block.in_features, block.sizes[place]
        self.place = place
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out]."""
        return self.block.output(x, self.place)


def _filled(x: torch.Tensor, rows: int) -> torch.Tensor:
    """x [n, width] with zeros behind it, at least `rows` rows."""
    return x if len(x) >= rows else F.pad(x, (0, 0, 0, rows - len(x)))


def _packs(dtype: torch.dtype) -> bool:
    """Is a packed product of this type at least as fast as a plain one here? In float32 with AVX2 alone the products of
    4 to 32 rows took 75 to 85 % of the time, of one or 512 as long; not measured but on x86."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 and platform.machine() in ("x86_64", "AMD64")


def _has_amx() -> bool:
    """Does this processor multiply bf16 in tiles (Intel's AMX)?"""
    known = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return known is not None and bool(known())


@contextmanager
def note_inputs(model: torch.nn.Module) -> Iterator[list[list[str]]]:
    """While the model runs once inside, fill a list with groups of linear layers (module paths): those of one parent
    that read the same tensor one after the other, such as queries, keys and values."""
    groups: list[list[str]] = []
    last: list[Any] = [None, None, None]  # parent, input, has a bias

    def note(path: str, linear: torch.nn.Module, x: torch.Tensor) -> None:
        where = [path.rpartition(".")[0], x, getattr(linear, "bias", None) is None]
        if where[0] == last[0] and where[1] is last[1] and where[2] == last[2]:
            groups[-1].append(path)
        else:
            groups.append([path])
        last[:] = where

    hooks = [
        module.register_forward_pre_hook(lambda linear, args, path=path: note(path, linear, args[0]))
        for path, module in model.named_modules()
        if type(module) in _LINEAR
    ]
    try:
        yield groups
    finally:
        for hook in hooks:
            hook.remove()
        last[:] = [None, None, None]


def replace_parts(
    model: torch.nn.Module, groups: list[list[str]], *, wide_head: bool = False
) -> tuple[dict[str, FusedSlice], AdapterMask]:
    """Put the faster parts in place; returns the linear layers by their module path. `groups` from `note_inputs`;
    a layer that stands in several groups or in none is left by itself. `wide_head`: the output head gives float32."""
    mask, lines = AdapterMask(), {}
    output = getattr(model, "get_output_embeddings", lambda: None)()
    linears = {path: m for path, m in model.named_modules() if type(m) in _LINEAR}
    times: dict[str, int] = {}
    for path in (path for group in groups for path in group):
        times[path] = times.get(path, 0) + 1
    whole = [group for group in groups if all(times[path] == 1 for path in group)]
    alone = [[path] for path in linears if not any(path in group for group in whole)]
    for group in whole + alone:
        head = linears[group[0]] is output
        block = FusedLinear([linears[path] for path in group], mask, head=head, wide=head and wide_head)
        for place, path in enumerate(group):
            lines[path] = FusedSlice(block, place)
            model.set_submodule(path, lines[path])
            del linears[path]
    for module in list(model.modules()):
        if type(module).__name__.endswith("RMSNorm"):
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
