"""Lays LoRA adapters into the linear layers while the engine serves. Owns the columns of the adapters; `lora_folder`
reads their files. Never trains, merges or writes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from afterword.errors import AdapterError
from afterword.model.generation.fused_linear import AdapterMask, FusedLinear, FusedSlice
from afterword.model.lora_folder import LoraWeights, check_base_hash, missing_layer, read_lora_folder


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A checked adapter. `parts`: module path -> (A^T [in, rank], B^T [rank, out] times its scale)."""

    name: str
    path: str
    created: int
    rank: int
    parts: dict[str, tuple[torch.Tensor, torch.Tensor]]


def read_adapter(name: str, folder: Path, lines: dict[str, FusedSlice], base: str, created: int) -> Adapter:
    """Read a PEFT folder for a model with these linear layers. Raises AdapterError that names the fault.

    `base` is the hash of the served weights: a folder whose `afterword.json` names another is rejected.
    """
    read = read_lora_folder(folder)
    check_base_hash(folder, base, "the served one")
    for path, weights in read.layers.items():
        if path not in lines:
            raise missing_layer(path, lines, folder)
        _check_shape(path, weights, lines[path], folder)
    return lay_out(name, str(folder), read.layers, created)


def lay_out(name: str, path: str, layers: Mapping[str, LoraWeights], created: int = 0) -> Adapter:
    """The updates of layers, by module path, as the engine lays them into its columns.

    A layer of a lower rank than the highest (PEFT's `rank_pattern`) has columns of zeros.
    """
    rank = max(len(weights.down) for weights in layers.values())
    parts = {}
    for layer, weights in layers.items():
        missing = rank - len(weights.down)
        down, up = F.pad(weights.down.float(), (0, 0, 0, missing)), F.pad(weights.up.float(), (0, missing))
        parts[layer] = down.t(), up.t() * weights.scale
    return Adapter(name=name, path=path, created=created, rank=rank, parts=parts)


def _check_shape(path: str, weights: LoraWeights, line: FusedSlice, folder: Path) -> None:
    shape, wanted = (len(weights.up), weights.down.shape[1]), (line.out_features, line.in_features)
    if shape != wanted:
        raise AdapterError(
            f"the adapter {str(folder)!r} changes {path!r} as a layer of shape {shape} where the served model has "
            f"{wanted}: it was trained on another base model; serve that one"
        )


class AdapterBank:
    """The adapters that are laid into the layers, in column order. Used by the model thread only."""

    def __init__(self, lines: dict[str, FusedSlice], mask: AdapterMask, device: torch.device) -> None:
        self._lines, self._mask, self._device = lines, mask, device
        self._adapters: list[Adapter] = []
        self._table: torch.Tensor | None = None

    def add(self, adapter: Adapter) -> None:
        """Lay an adapter's columns behind the others."""
        self._adapters.append(adapter)
        try:
            self._lay()
        except RuntimeError:  # out of memory: the others stay as they were
            self._adapters.remove(adapter)
            self._lay()
            raise

    def remove(self, adapter: Adapter) -> None:
        """Take an adapter's columns out; nothing may be running on it."""
        self._adapters.remove(adapter)
        self._lay()

    def clear(self) -> None:
        """Take all adapters' columns out; nothing may be running."""
        self._adapters.clear()
        self._lay()

    def select(self, users: list[tuple[Adapter | None, int]]) -> None:
        """Set the mask of a step: each adapter with its number of tokens, in the order of the tokens."""
        if self._table is None or all(adapter is None for adapter, _ in users):
            self._mask.set(None)
            return
        place = {id(adapter): index + 1 for index, adapter in enumerate(self._adapters)}
        rows = [place[id(a)] if a is not None else 0 for a, count in users for _ in range(count)]
        self._mask.set(self._table[torch.tensor(rows, device=self._device)])

    def _lay(self) -> None:
        width = sum(adapter.rank for adapter in self._adapters)
        blocks: dict[FusedLinear, list[str]] = {}
        for path, line in self._lines.items():
            blocks.setdefault(line.block, []).append(path)
        for block, paths in blocks.items():
            used = any(path in adapter.parts for adapter in self._adapters for path in paths)
            block.down, block.up = self._columns(block, paths, width) if used else (None, [])
        self._table = torch.zeros(len(self._adapters) + 1, width, device=self._device)
        at = 0
        for index, adapter in enumerate(self._adapters):
            self._table[index + 1, at : at + adapter.rank] = 1
            at += adapter.rank
        if not self._adapters:
            self._table = None

    def _columns(self, block: FusedLinear, paths: list[str], width: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """down [in, lines * width], every line with columns of its own, and each line's up [width, out]."""
        down = torch.zeros(block.in_features, len(paths) * width)
        up = [torch.zeros(width, size) for size in block.sizes]
        for path in paths:
            place, at = self._lines[path].place, 0
            for adapter in self._adapters:
                if path in adapter.parts:
                    low, high = place * width + at, place * width + at + adapter.rank
                    down[:, low:high], up[place][at : at + adapter.rank] = adapter.parts[path]
                at += adapter.rank
        return down.to(self._device), [part.to(self._device) for part in up]
