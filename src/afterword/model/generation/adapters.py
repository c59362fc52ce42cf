"""PEFT LoRA folders, read, checked and laid into the linear layers while the engine serves. Owns the
columns of the adapters; never trains, merges or writes one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from afterword.errors import AdapterError
from afterword.model.generation.fused_linear import AdapterMask, FusedLinear, FusedSlice

_REFUSED = (
    "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias", "trainable_token_indices",
    "layer_replication", "exclude_modules", "alora_invocation_tokens", "target_parameters", "use_qalora",
)  # fmt: skip
"""Options of PEFT's LoraConfig that change the arithmetic and that the engine does not do."""


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

    `base` is the hash of the served weights: a folder whose `afterword.json` names another is refused.
    """
    config = _json(folder / "adapter_config.json", folder)
    _check_options(config, folder)
    _check_base(folder, base)
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise AdapterError(f"adapter folder {str(folder)!r} holds no adapter_model.safetensors")
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{str(weights)!r} cannot be read: {error}; copy or train it again") from error
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        path, half = _place(key, folder)
        if path not in lines:
            raise AdapterError(f"adapter {str(folder)!r} changes {path!r}, which the served model does not have")
        halves.setdefault(path, {})[half] = tensor
    if not halves:
        raise AdapterError(f"{str(weights)!r} holds no LoRA weights")
    parts = {path: _part(path, pair, lines[path], rank, scale, folder) for path, pair in halves.items()}
    return Adapter(name=name, path=str(folder), created=created, rank=rank, parts=parts)


def _json(path: Path, folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise AdapterError(f"there is no adapter folder {str(folder)!r} on this machine")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{str(path)!r} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise AdapterError(f"{str(path)!r} is not a JSON object")
    return data


def _check_options(config: dict[str, Any], folder: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"adapter {str(folder)!r} is of type {config.get('peft_type')!r}: only LORA is served")
    for option in _REFUSED:
        if config.get(option):
            raise AdapterError(f"adapter {str(folder)!r} uses {option}={config[option]!r}, which is not served")
    if config.get("bias", "none") != "none":
        raise AdapterError(f"adapter {str(folder)!r} trains biases (bias={config['bias']!r}): not served")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise AdapterError(f"adapter {str(folder)!r} has r={rank!r}, lora_alpha={alpha!r}: not a LoRA adapter")


def _check_base(folder: Path, base: str) -> None:
    if not (folder / "afterword.json").exists():
        return
    wanted = _json(folder / "afterword.json", folder).get("base_hash")
    if wanted is not None and wanted != base:
        raise AdapterError(
            f"adapter {str(folder)!r} was made for a base model with weights {wanted!r}, but {base!r} is served: "
            "start the engine with the model it was trained on"
        )


def _place(key: str, folder: Path) -> tuple[str, str]:
    for half in ("lora_A", "lora_B"):
        ending = f".{half}.weight"
        if key.startswith("base_model.model.") and key.endswith(ending):
            return key.removeprefix("base_model.model.").removesuffix(ending), half
    raise AdapterError(f"adapter {str(folder)!r} holds {key!r}, which is no LoRA weight of a linear layer")


def _part(
    path: str, pair: dict[str, torch.Tensor], line: FusedSlice, rank: int, scale: float, folder: Path
) -> tuple[torch.Tensor, torch.Tensor]:
    shapes = {half: tuple(tensor.shape) for half, tensor in pair.items()}
    wanted = {"lora_A": (rank, line.in_features), "lora_B": (line.out_features, rank)}
    if shapes != wanted:
        raise AdapterError(
            f"adapter {str(folder)!r} has shapes {shapes} at {path!r} where the served model needs {wanted}: "
            "it was trained on another base model"
        )
    down, up = pair["lora_A"].float().t(), pair["lora_B"].float().t() * scale
    if not (down.isfinite().all() and up.isfinite().all()):
        raise AdapterError(f"adapter {str(folder)!r} holds infinite or undefined numbers at {path!r}")
    return down, up


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
