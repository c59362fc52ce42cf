"""Modules that compute with fewer passes: the same values, exact gradients, and none where a model differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from afterword.model import attention, attention_kernel, module_patching
from afterword.model.packing import hidden_states, packed

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
PER_LAYER = {"input_layernorm", "post_attention_layernorm", "mlp", "self_attn"}
MODELS: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**SIZES)), PER_LAYER),
    "llama, gelu": (lambda: LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="gelu")), PER_LAYER - {"mlp"}),
    "qwen2": (lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)), PER_LAYER),
    "qwen3": (lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=6)), PER_LAYER | {"q_norm", "k_norm"}),
    "granite": (lambda: GraniteForCausalLM(GraniteConfig(**SIZES, attention_multiplier=0.4)), PER_LAYER),
    "cohere": (lambda: CohereForCausalLM(CohereConfig(**SIZES)), {"mlp"}),
}
PAIRS = [((1, 2, 3), (4, 5)), ((7,), (8, 9, 10, 11)), ((1, 2, 3, 4, 5, 6), (7,))]


def states_and_gradients(model: Any) -> list[torch.Tensor]:
    embeddings = model.get_input_embeddings().weight
    embeddings.requires_grad_()
    projections = [p.requires_grad_() for n, p in model.named_parameters() if "proj" in n]
    states = hidden_states(model, packed(PAIRS))
    weights = torch.linspace(-1, 1, states.numel(), dtype=states.dtype).view(states.shape)
    return [states.detach(), *torch.autograd.grad((states * weights).sum(), [embeddings, *projections])]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_says_and_learns_the_same(name: str) -> None:
    """And only what computes just this is taken: a GELU, or a rotary embedding of another kind, stays as it is."""
    torch.manual_seed(0)
    make, known = MODELS[name]
    model = make().eval().double()
    with torch.no_grad():
        for parameter in (p for n, p in model.named_parameters() if "norm" in n):
            parameter.add_(torch.rand_like(parameter))
    model.requires_grad_(False)
    before = states_and_gradients(model)
    taken = {n.rsplit(".", 1)[-1] for n in module_patching.patch_modules(model)}
    assert taken == known | ({"norm"} if "input_layernorm" in known else set())
    for now, then in zip(states_and_gradients(model), before, strict=True):
        torch.testing.assert_close(now, then, atol=1e-5, rtol=1e-4)  # their norms are float32
    assert module_patching.patch_modules(model) == []


def test_a_trained_norm_goes_its_own_way() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    assert "norm" in module_patching.patch_modules(model)
    torch.autograd.backward(hidden_states(model, packed(PAIRS)).sum())
    assert model.model.norm.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outside_a_row_attention_is_the_models_own(dtype: torch.dtype) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval().to(dtype).requires_grad_(False)
    ids = torch.tensor([[3, 9, 27, 31], [3, 9, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    want = model(ids, attention_mask=mask).logits
    assert module_patching.patch_modules(model)
    near = {torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    got = model(ids, attention_mask=mask).logits
    assert (got - want).norm() <= near * want.norm()


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 3, 5)])
def test_gradients_of_norms_and_gated_products(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape[-1], dtype=torch.float64)
    norm: Callable[..., Any] = module_patching._Norm.apply
    assert torch.autograd.gradcheck(lambda x: norm(x, weight, 1e-5), doubles(*shape))
    assert torch.autograd.gradcheck(module_patching._Gated.apply, (doubles(*shape), doubles(*shape)))


@pytest.mark.parametrize(("heads", "keys", "turned"), [(1, 1, True), (4, 2, True), (6, 2, False), (3, 3, True)])
def test_gradients_of_attention(monkeypatch: pytest.MonkeyPatch, heads: int, keys: int, turned: bool) -> None:
    """In blocks smaller than the sequences, some with weights that are kept and some without; any cosines and sines."""
    torch.manual_seed(0)
    monkeypatch.setattr(attention_kernel, "_BLOCK", 3)
    monkeypatch.setattr(attention_kernel, "_KEPT", 4)
    sizes, width = (7, 1, 4), 6
    rotary = (torch.randn(12, width).double(), torch.randn(12, width).double()) if turned else None
    inputs = (doubles(12, heads, width), doubles(12, keys, width), doubles(12, keys, 5))
    layout = attention_kernel.AttentionLayout(sizes, 0.3, rotary)
    assert torch.autograd.gradcheck(lambda q, k, v: attention.attend(q, k, v, layout), inputs)
