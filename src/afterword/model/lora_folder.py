"""Reads LoRA folders in PEFT's format, and rejects adapters that would not be served as PEFT computes them.

Engine, training and evaluation read adapters here alone. Loads no PEFT, and never writes a folder.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from afterword.errors import AdapterError
from afterword.records import Json

PREFIX = "base_model.model."
"""Of PEFT's names; vLLM and some converters leave it out."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"(?:base_model\.model\.)?(?P<path>.+)\.(?P<half>lora_A|lora_B)(?:\.(?P<name>[^.]+))?\.weight")
"""A factor of a linear layer; training checkpoints also name the adapter (`lora_A.default.weight`)."""
_MERGE = "merge it into its base model (PEFT's `merge_and_unload`) and serve the merged model, or train a plain LoRA"
_OPTIONS = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules beside its LoRA weights",
    "lora_bias": "a bias in its LoRA layers",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "LoRA on parameters that are no linear layers, such as experts",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "megatron_config": "layers of Megatron",
    "ensure_weight_tying": "adapters tied between embeddings and output head",
}
"""Options of PEFT's LoraConfig that change the arithmetic and are not served, with their names in words."""
_HARMLESS = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora",
    "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_core",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config", "qalora_group_size",
    "runtime_config",
}  # fmt: skip
"""Options that are read here, or that change only how an adapter is trained."""
_CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga")
"""Initialisations that subtract their first factors from the base: the adapter belongs to that residual."""
_KEEPS_BASE = ("gaussian", "eva", "orthogonal", "mica")
_PARTS = (
    (r"lora_magnitude_vector", "a magnitude of DoRA"),
    (r"lora_embedding_[AB]", "LoRA on an embedding"),
    (r"lora_B(\.\w+)?\.bias", "a bias of LoRA"),
    (r"token_adapter|trainable_tokens", "trained token embeddings"),
    (
        r"(embed_tokens|wte|embed_in|lm_head|modules_to_save)\b.*\.weight",
        "a whole weight of a module",
    ),
    (r"bias", "a trained bias"),
)
"""Tensors beside the factors, by pattern, in words."""


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """The update of one linear layer in float32: scale x up down."""

    down: torch.Tensor
    """A [r, in]"""
    up: torch.Tensor
    """B [out, r]"""
    scale: float


@dataclass(frozen=True, slots=True)
class LoraFolder:
    """A checked adapter folder."""

    layers: dict[str, LoraWeights]
    """By module path in the base model."""
    renamed: bool
    """Its file has other names than PEFT's, which PEFT would ignore without an error."""

    def peft_state(self) -> dict[str, torch.Tensor]:
        """The factors by PEFT's names."""
        halves = ((path, half, getattr(w, side)) for path, w in self.layers.items() for half, side in _HALVES)
        return {f"{PREFIX}{path}.{half}.weight": tensor.contiguous() for path, half, tensor in halves}


_HALVES = (("lora_A", "down"), ("lora_B", "up"))


def read_lora_folder(folder: Path, device: str = "cpu") -> LoraFolder:
    """Read an adapter folder whose arithmetic is that of a plain LoRA.

    Ranks and scales may differ by layer (`rank_pattern`, `alpha_pattern`, rsLoRA). Biases, DoRA, whole modules, LoRA on
    embeddings or experts, and initialisations that change the base are rejected.

    Args:
        folder: The folder.
        device: Where the tensors go.

    Raises:
        AdapterError: With the part, the reason and a remedy.
    """
    config = _read_json(folder / CONFIG, folder)
    _check_options(config, folder)
    tensors = _tensors(folder, device)
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    names: set[str | None] = set()
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise AdapterError(_odd_tensor(key, folder))
        names.add(match["name"])
        pairs.setdefault(match["path"], {})[match["half"]] = tensor
    if len(names) > 1:
        found = ", ".join(sorted(str(name) for name in names))
        raise AdapterError(f"{str(folder / WEIGHTS)!r} holds several adapters ({found}): save each in its own folder")
    if not pairs:
        raise AdapterError(f"{str(folder / WEIGHTS)!r} holds no LoRA weights: save the adapter again")
    for path in pairs:
        if not _targeted(config, path):
            raise AdapterError(
                f"the adapter {str(folder)!r} has weights of {path!r}, which its own target_modules, exclude_modules "
                "or layers_to_transform leave out, so that PEFT ignores them: correct adapter_config.json"
            )
    layers = {path: _layer(path, pair, config, folder) for path, pair in pairs.items()}
    renamed = names != {None} or not all(key.startswith(PREFIX) for key in tensors)
    return LoraFolder(layers, renamed)


def check_base_hash(folder: Path, base: str, model: str) -> None:
    """Compare the base that a folder of Afterword names with the present one.

    Args:
        folder: An adapter folder. A plain PEFT folder has no manifest: its shapes decide.
        base: Hash of the base's weights.
        model: The base in words.

    Raises:
        AdapterError: The manifest is invalid or names another base.
    """
    if not (folder / "afterword.json").is_file():
        return
    named = _read_json(folder / "afterword.json", folder).get("base_hash")
    if named is not None and named != base:
        raise AdapterError(
            f"the adapter {str(folder)!r} was made for a base model with weights {named!r}, not for {model} ({base}): "
            "use the base that its afterword.json names"
        )


def missing_layer(path: str, served: Iterable[str], folder: Path) -> AdapterError:
    """The error for a layer that the model does not have, with those that it has in that place."""
    parent, _, _ = path.rpartition(".")
    there: list[str] = []
    while parent and not there:
        there = sorted({one.removeprefix(f"{parent}.").split(".")[0] for one in served if one.startswith(f"{parent}.")})
        if not there:
            parent, _, _ = parent.rpartition(".")
    known = f"{parent!r} has the linear layers {', '.join(there[:8])}" if there else "none of its modules is in it"
    return AdapterError(
        f"the adapter {str(folder)!r} changes {path!r}, which the served model does not have as a linear layer "
        f"({known}; experts and fused projections are adapted as the model computes them): use the base model that it "
        f"was trained on, or {_MERGE}"
    )


def _read_json(path: Path, folder: Path) -> Json:
    if not folder.is_dir():
        raise AdapterError(f"there is no adapter folder {str(folder)!r} on this machine")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"adapter file {str(path)!r} is damaged or cannot be read: {error}; save or copy the adapter again"
        ) from error
    if not isinstance(data, dict):
        raise AdapterError(f"{str(path)!r} is not a JSON object: save or copy the adapter again")
    return data


def _tensors(folder: Path, device: str) -> dict[str, torch.Tensor]:
    file = folder / WEIGHTS
    if not file.is_file():
        raise AdapterError(
            f"adapter folder {str(folder)!r} holds no {WEIGHTS}: copy it whole, or save it with safetensors"
        )
    try:
        found: dict[str, torch.Tensor] = load_file(file, device=device)
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"adapter file {str(file)!r} is damaged or cannot be read: {error}; copy or train it again"
        ) from error
    return found


def _check_options(config: Json, folder: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise AdapterError(
            f"the adapter {str(folder)!r} is of type {config.get('peft_type')!r}; only LORA is served: {_MERGE}"
        )
    for option, value in config.items():
        if option in _OPTIONS and value:
            raise AdapterError(
                f"the adapter {str(folder)!r} has {_OPTIONS[option]} ({option}={str(value)[:80]}), which is not "
                f"served: {_MERGE}"
            )
        if value and option not in _HARMLESS:
            raise AdapterError(
                f"the adapter {str(folder)!r} sets the unknown option {option}={str(value)[:80]}: {_MERGE}; remove the "
                "option from adapter_config.json if it changes nothing in what the adapter computes"
            )
    if config.get("bias", "none") != "none":
        raise AdapterError(
            f"the adapter {str(folder)!r} has trained biases (bias={config['bias']!r}), which are not served: {_MERGE}"
        )
    _check_initialisation(config.get("init_lora_weights", True), folder)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not _rank(rank) or not _alpha(alpha):
        raise AdapterError(f"the adapter {str(folder)!r} has r={rank!r}, lora_alpha={alpha!r}: not a LoRA adapter")
    for option, fits in (("rank_pattern", _rank), ("alpha_pattern", _alpha)):
        pattern = config.get(option) or {}
        if not isinstance(pattern, dict) or not all(map(fits, pattern.values())) or not all(map(_compiles, pattern)):
            raise AdapterError(f"the adapter {str(folder)!r} has an invalid {option}: {str(pattern)[:120]}; correct it")
    for option in ("target_modules", "exclude_modules", "layers_pattern"):
        value = config.get(option)
        listed = isinstance(value, list) and all(isinstance(one, str) for one in value)
        if value is not None and not listed and not (isinstance(value, str) and _compiles(value)):
            raise AdapterError(f"the adapter {str(folder)!r} has an invalid {option}: {str(value)[:120]}; correct it")


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _alpha(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_initialisation(how: Any, folder: Path) -> None:
    name = how.lower() if isinstance(how, str) else how
    if name is None or isinstance(name, bool) or name in _KEEPS_BASE:
        return
    if isinstance(name, str) and name.startswith(_CHANGES_BASE):
        raise AdapterError(
            f"the adapter {str(folder)!r} belongs to a base that its initialisation changed "
            f"(init_lora_weights={how!r}), not to the served weights: save it again as a plain LoRA with PEFT's "
            "`save_pretrained(folder, path_initial_model_for_weight_conversion=INITIAL_ADAPTER)`"
        )
    why = "which replaces the base by a quantised one" if name == "loftq" else "which is unknown"
    raise AdapterError(
        f"the adapter {str(folder)!r} was initialised with init_lora_weights={how!r}, {why}: {_MERGE}; for an adapter "
        "that was trained over the unchanged base, write init_lora_weights=true in adapter_config.json"
    )


def _odd_tensor(key: str, folder: Path) -> str:
    if key.endswith(".base_layer.weight"):
        return (
            f"the adapter {str(folder)!r} holds {key!r}, the base's own weight, which PEFT saves beside LoRA on the "
            "vocabulary: save it again with `save_pretrained(folder, save_embedding_layers=False)`"
        )
    what = next((words for pattern, words in _PARTS if re.search(rf"(^|\.){pattern}", key)), "an unknown tensor")
    return f"the adapter {str(folder)!r} holds {key!r}, {what} and no LoRA weight of a linear layer: {_MERGE}"


def _targeted(config: Json, path: str) -> bool:
    """Does PEFT adapt a linear layer of this path? As its `check_target_module_exists`; True where the base's
    architecture decides."""
    out, targets = config.get("exclude_modules"), config.get("target_modules")
    if out and _matches(out, path):
        return False
    if targets is None or targets == "all-linear":
        return True
    if not _matches(targets, path):
        return False
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or [r"[^.]*"]
    if isinstance(targets, str) or layers is None or layers == []:
        return True
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if match := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", path):
            return int(match[1]) in ([layers] if isinstance(layers, int) else layers)
    return False


def _matches(names: Any, path: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)


def _by_pattern(pattern: dict[str, Any] | None, path: str, default: Any) -> Any:
    """The value of the first pattern that the path ends with, as PEFT's `get_pattern_key` finds it."""
    return next((value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", path)), default)


def _layer(path: str, pair: dict[str, torch.Tensor], config: Json, folder: Path) -> LoraWeights:
    rank = _by_pattern(config.get("rank_pattern"), path, config["r"])
    alpha = float(_by_pattern(config.get("alpha_pattern"), path, config["lora_alpha"]))
    shapes = {half: tuple(tensor.shape) for half, tensor in pair.items()}
    flat = all(len(shape) == 2 for shape in shapes.values())
    if set(shapes) != {"lora_A", "lora_B"} or not flat or not shapes["lora_A"][0] == shapes["lora_B"][1] == rank:
        raise AdapterError(
            f"the adapter {str(folder)!r} has shapes {shapes} at {path!r}, where its configuration says rank {rank}: "
            "save it again with both factors"
        )
    down, up = pair["lora_A"].float(), pair["lora_B"].float()
    if not (down.isfinite().all() and up.isfinite().all()):
        raise AdapterError(
            f"the adapter {str(folder)!r} holds infinite or undefined numbers at {path!r}: train it again"
        )
    return LoraWeights(down, up, alpha / (rank**0.5 if config.get("use_rslora") else rank))
