"""Holds the policy: one base model, its LoRA adapter in training, and the low-rank updates of its teachers.

Loads and saves the adapter and switches between weights. The model stays in eval mode: without dropout, student and
teacher agree exactly. There is no second base in memory.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from afterword.errors import AdapterError, ConfigError
from afterword.learn.recipes import Lora, Recipe
from afterword.model.attention import same_row
from afterword.model.attention_kernel import KeyValues
from afterword.model.head import Head, head_of
from afterword.model.loading import base_hash, load_model, resolve_model
from afterword.model.lora import Delta, live_deltas, load_adapter, overlaid, patch_lora_layers
from afterword.model.lora_folder import check_base_hash
from afterword.model.module_patching import patch_modules
from afterword.model.packing import Packed, Parts, ReadBatch, as_read, hidden_states, hidden_states_after, packed

_LIVE = "default"


class Policy:
    """A base model with a trainable adapter. All scoring goes through `hidden`."""

    def __init__(self, model: Any, head: Head) -> None:
        self.model = model
        self.head = head
        self.device: torch.device = head.weight.device
        self.layers = patch_lora_layers(model)
        output = model.get_base_model().get_output_embeddings()
        self.head_layer = next((name for name, layer in self.layers.items() if layer is output), None)
        """The output head among the layers; None when the recipe leaves it alone."""
        self.deltas: dict[str, dict[str, Delta]] = {}
        """Updates of teachers by the teacher's key, each by layer name."""

    def parameters(self) -> list[nn.Parameter]:
        """The trainable tensors, in a fixed order."""
        return [p for name, p in self.model.named_parameters() if f".{_LIVE}." in name]

    def live(self) -> dict[str, Delta]:
        """A copy of the update in training."""
        return live_deltas(self.layers, _LIVE)

    def hidden(self, batch: Packed, weights: str) -> Tensor:
        """Last hidden states [N, H] of the scored positions.

        Args:
            batch: packed prompts and completions.
            weights: "live" is the adapter in training, the only one with a gradient; "base" the base alone; others are
                keys of `deltas`. "start" is the base unless a parent was given.
        """
        if weights == "live":
            return hidden_states(self.model, batch)
        with self.under(weights):
            return hidden_states(self.model, batch)

    @contextmanager
    def under(self, weights: str) -> Iterator[None]:
        """Compute under other weights, named as in `hidden` ("live" apart), without a gradient."""
        deltas = self.deltas.get(weights, {}) if weights in ("base", "start") else self.deltas[weights]
        with torch.no_grad(), overlaid(self.layers, deltas):
            yield

    def head_of(self, weights: str) -> Head:
        """The output head under these weights, named as in `hidden`."""
        if weights == "live" or self.head_layer is None:
            return self.head
        return self.head.with_update(self.deltas.get(weights, {}).get(self.head_layer))

    def read(self, pairs: Sequence[Parts]) -> ReadBatch:
        """The student's hidden states of sequences with their graph, and the states that `after` resumes from. Prefixes
        that
        several sequences have are read once."""
        kept: KeyValues = {}
        batch = as_read(self.model, packed(pairs, self.device, share=True))
        return ReadBatch(pairs, hidden_states(self.model, batch, kept), kept, batch.paths)

    @torch.no_grad()
    def after(self, pairs: Sequence[Parts], read: ReadBatch) -> Tensor:
        """Hidden states [N, H] of the same scored ids after others that are read, under the same weights."""
        return hidden_states_after(self.model, pairs, read)

    def adapter_state(self) -> dict[str, Tensor]:
        """The adapter's tensors by PEFT's names, on the CPU."""
        state = get_peft_model_state_dict(self.model, adapter_name=_LIVE, save_embedding_layers=False)
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of `adapter_state`."""
        set_peft_model_state_dict(self.model, state, adapter_name=_LIVE)

    def save(self, folder: Path, base: str) -> None:
        """Write adapter_config.json and adapter_model.safetensors; `base` is the base model's name in the config."""
        config = self.model.peft_config[_LIVE]
        config.base_model_name_or_path = base
        self.model.save_pretrained(str(folder), selected_adapters=[_LIVE], save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card says nothing of this adapter


def check_base(folder: Path, model: str) -> None:
    """AdapterError when the folder's manifest names another base. A plain PEFT folder has none: its shapes decide."""
    if (folder / "afterword.json").is_file():
        check_base_hash(folder, base_hash(resolve_model(model)), repr(model))


def load_policy(ref: str, recipe: Recipe, *, parent: Path | None, seed: int, device: str) -> Policy:
    """The model `ref` with a fresh adapter (seeded), or with `parent`'s to go on from.

    Raises ModelError when the model cannot be trained, AdapterError when `parent` does not fit it.
    """
    if parent is not None:
        check_base(parent, ref)
    base = load_model(ref, dtype=recipe.dtype, device=device)
    with torch.random.fork_rng(devices=_cuda(base.device)), warnings.catch_warnings():
        # peft 0.21 reads a property that transformers 5.23 has renamed
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        # merging an adapter on a tied head would change the embeddings: we never do
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*", category=UserWarning)
        torch.manual_seed(seed)
        model = _fresh(base, recipe.lora) if parent is None else _continued(base, parent)
    model.eval()
    patch_modules(model.get_base_model())
    if recipe.checkpointing:
        _checkpointed(model)
    policy = Policy(model, head_of(model.get_base_model(), adapter=_LIVE))
    if parent is not None:
        policy.deltas["start"] = policy.live()
    return policy


def _checkpointed(model: Any) -> None:
    """Recompute the activations of each layer in the backward pass. Not through transformers' own switch, which works
    only in training mode."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.forward = partial(_recomputed, module.forward)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(same_row(forward), *args, use_reentrant=False, **kwargs)


def _fresh(base: Any, lora: Lora) -> Any:
    try:
        model = get_peft_model(base, _config(base, lora))
    except ValueError as error:
        raise ConfigError(
            f"the LoRA targets {lora.targets!r} do not fit this model: {str(error)[:300]}; name linear layers that it "
            "has, or leave the targets out for all of them"
        ) from error
    if odd := _adapted_parameters(model):
        raise ConfigError(
            f"the LoRA targets {lora.targets!r} include {odd[0]!r}, a parameter of experts or their router: adapters "
            "of these are neither trained nor served here; name linear layers, or leave the targets out for all of them"
        )
    return model


def _adapted_parameters(model: Any) -> list[str]:
    """Names of modules whose parameters PEFT adapts directly: experts of a mixture, routers."""
    return [name for name, module in model.named_modules() if isinstance(module, ParamWrapper)]


def _linear_layers(base: Any) -> list[str]:
    """Full names of the linear layers but the output head. PEFT's own "all-linear" also adapts the experts of some
    mixtures and their routers (through `target_parameters`), and those of others not."""
    head = base.get_output_embeddings()
    kinds = (torch.nn.Linear, Conv1D)
    return [name for name, module in base.named_modules() if isinstance(module, kinds) and module is not head]


def _config(base: Any, lora: Lora) -> LoraConfig:
    experts = any(parameter.ndim == 3 for parameter in base.parameters())
    targets: str | list[str] = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    if targets == "all-linear" and experts:
        targets = _linear_layers(base)
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),  # GPT-2 keeps weights turned
    )


def _continued(base: Any, parent: Path) -> Any:
    try:
        model = load_adapter(base, parent, _LIVE, trainable=True)
    except AdapterError as error:
        raise AdapterError(
            f"the parent adapter cannot be trained further: {error.message}. A damaged folder: put it back from a "
            "backup, or go back to an earlier release (`afterword release rollback`)"
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise AdapterError(
            f"the parent adapter {str(parent)!r} does not fit this base model: {' '.join(str(error).split())[:300]}; "
            "train without a parent, or with the base that it was made for"
        ) from error
    if odd := _adapted_parameters(model):
        raise AdapterError(
            f"the parent adapter {str(parent)!r} adapts {odd[0]!r}, a parameter of experts or their router, which is "
            "neither trained nor served here: train without a parent"
        )
    return model


def weights_hash(folder: Path) -> str:
    """Hash of an adapter's weights, 32 hex digits. AdapterError when the folder holds none."""
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise AdapterError(f"{str(folder)!r} holds no adapter_model.safetensors: it is no adapter folder")
    return hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()


def _cuda(device: torch.device) -> list[int]:
    return [device.index or 0] if device.type == "cuda" else []
