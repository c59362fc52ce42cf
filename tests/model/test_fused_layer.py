"""Whole layers: LoRA's gradients, and prompts that part from others which were read already."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from afterword.model import attention_kernel
from afterword.model.fused_layer import FusedLayer
from afterword.model.lora import Delta, live_deltas, overlaid, patch_lora_layers
from afterword.model.module_patching import patch_modules
from afterword.model.packing import ReadBatch, hidden_states, hidden_states_after, packed

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen2, with biases": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "llama, biases everywhere": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
}
PAIRS = [((1, 2, 3), (4, 5)), ((7,), (8, 9, 10, 11)), ((1, 2, 3, 4, 5, 6), (7,))]


def adapted(name: str, targets: str | list[str], dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        model: Any = get_peft_model(MODELS[name](), LoraConfig(r=3, lora_alpha=6, target_modules=targets))
    for part, parameter in model.named_parameters():
        if "lora_B" in part or "norm" in part or "bias" in part:
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
    return model.to(dtype).eval()


def states_and_gradients(model: Any) -> list[torch.Tensor]:
    states = hidden_states(model, packed(PAIRS))
    weights = torch.linspace(-1, 1, states.numel(), dtype=states.dtype).view(states.shape)
    trained = [p for p in model.parameters() if p.requires_grad]
    return [states.detach(), *torch.autograd.grad((states * weights).sum(), trained)]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the layers that were computed whole."""
    numbers: list[int] = []
    plain = FusedLayer.forward

    def counting(self: FusedLayer, x: torch.Tensor) -> Any:
        numbers.append(self.number)
        return plain(self, x)

    monkeypatch.setattr(FusedLayer, "forward", counting)
    return numbers


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"], ["k_proj", "o_proj", "up_proj"]])
@pytest.mark.parametrize("name", MODELS)
def test_lora_says_and_learns_what_peft_does(name: str, targets: str | list[str], read: list[int]) -> None:
    model = adapted(name, targets)
    before = states_and_gradients(model)
    patch_modules(model.get_base_model())
    patch_lora_layers(model)
    read.clear()
    for now, then in zip(states_and_gradients(model), before, strict=True):
        torch.testing.assert_close(now, then, atol=1e-5, rtol=1e-4)  # their norms are float32
    assert read == [0, 1]
    with model.disable_adapter(), torch.no_grad():
        plain = MODELS[name]().double().eval()
        plain.load_state_dict({k.replace("base_layer.", ""): v for k, v in model.get_base_model().state_dict().items()
                               if "lora" not in k})  # fmt: skip
        torch.testing.assert_close(
            hidden_states(model, packed(PAIRS)), hidden_states(plain, packed(PAIRS)), atol=1e-5, rtol=1e-4
        )


def test_an_update_laid_over_gives_the_bits_of_training(read: list[int]) -> None:
    """A teacher of the student's weights says the very same; a dense update goes layer by layer."""
    model = adapted("llama", "all-linear", torch.bfloat16)
    patch_modules(model.get_base_model())
    layers = patch_lora_layers(model)
    want = hidden_states(model, packed(PAIRS)).detach()
    deltas = live_deltas(layers, "default")
    read.clear()
    with torch.no_grad(), overlaid(layers, deltas):
        assert torch.equal(hidden_states(model, packed(PAIRS)), want)
    assert read == [0, 1]
    dense = {n: Delta(d.down[:0], d.up[:, :0], dense=d.full()) for n, d in deltas.items()}
    with torch.no_grad(), overlaid(layers, dense):
        near = hidden_states(model, packed(PAIRS))
    assert read == [0, 1]
    assert (near - want).float().norm() < 0.05 * want.float().norm()


@pytest.mark.parametrize("block", [2, 128])
def test_what_was_read_is_not_read_again(monkeypatch: pytest.MonkeyPatch, read: list[int], block: int) -> None:
    """Prompts that part early, late, at once, by length alone, or not at all; only what is new is computed."""
    monkeypatch.setattr(attention_kernel, "_BLOCK", block)
    model = adapted("llama", "all-linear")
    patch_modules(model.get_base_model())
    patch_lora_layers(model)
    old = [
        ((1, 2, 3, 4), (4, 5)),
        ((7,), (8, 9)),
        ((1, 2), (7,)),
        ((9, 8, 7), (1, 2)),
        ((5, 6), (6,)),
        ((1, 2), (3, 4)),
    ]
    new = [((1, 2, 9, 9, 4), (4, 5)), ((7,), (8, 9)), ((3, 2), (7,)), ((9, 8, 7, 6), (1, 2)), ((5,), (6,)), ((1, 2, 3, 4, 3), (3, 4))]  # fmt: skip  # noqa: E501
    kept: attention_kernel.KeyValues = {}
    with torch.no_grad():
        states = hidden_states(model, packed(old), kept)
        want = hidden_states(model, packed(new))
        ids: list[int] = []
        hook = model.get_input_embeddings().register_forward_hook(lambda _, args, __: ids.append(args[0].numel()))
        got = hidden_states_after(model, new, ReadBatch(old, states, kept))
        hook.remove()
    torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)
    assert torch.equal(got[2:4], states[2:4])
    assert ids == [(3 + 2) + (2 + 1) + (1 + 2) + (1 + 1) + (1 + 2)]


@pytest.mark.parametrize("name", ["granite", "gelu", "trained", "llama"])
def test_only_layers_that_compute_just_this_are_taken_whole(name: str) -> None:
    """Their parts may be the same: what a layer makes of them, or what is in training, is not."""
    torch.manual_seed(0)
    makers: dict[str, Callable[[], Any]] = {
        "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, residual_multiplier=0.7)),
        "gelu": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="gelu")),
    }
    model = makers.get(name, MODELS["llama"])().eval().requires_grad_(name == "trained")
    assert ("layers.0" in patch_modules(model)) == (name == "llama")


def test_a_model_of_other_layers_reads_everything_again() -> None:
    model = adapted("llama", "all-linear")  # its layers were never told
    kept: attention_kernel.KeyValues = {}
    with torch.no_grad():
        states = hidden_states(model, packed(PAIRS), kept)
        new = [((5, *prompt), completion) for prompt, completion in PAIRS]
        assert kept == {}
        assert torch.equal(
            hidden_states_after(model, new, ReadBatch(PAIRS, states, kept)), hidden_states(model, packed(new))
        )
