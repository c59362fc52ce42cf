"""The head of real architectures, packed rows, and the diagnostics that read both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tests.train.tiny_model import example, tiny_folder
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from afterword.chat.render import encode, pieces
from afterword.errors import ModelError, UsageError
from afterword.learn.diagnostics import log_probs, token_advantages
from afterword.learn.parts.contexts import CONTEXTS
from afterword.model import attention_kernel
from afterword.model.head import head_of
from afterword.model.loading import load_model, load_tokenizer
from afterword.model.packing import by_budget, can_pack, hidden_states, packed

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def architectures() -> list[Any]:
    torch.manual_seed(0)
    return [
        LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.3)),
        CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25, initializer_range=0.3)),
        GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0, initializer_range=0.3)),
        Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0, initializer_range=0.3)),
    ]


@pytest.mark.parametrize("number", range(4))
def test_scales_and_caps_are_respected(number: int) -> None:
    model = architectures()[number].eval()
    head, ids = head_of(model), torch.tensor([[3, 9, 27, 31]])
    with torch.no_grad():
        want = model(ids).logits[0]
        hidden = model.base_model(ids).last_hidden_state[0]
    torch.testing.assert_close(head.logits(hidden), want, atol=1e-5, rtol=1e-4)


def test_a_head_that_does_something_unknown_is_refused() -> None:
    model = architectures()[0].eval()
    model.config.logit_scale = 3.0  # Llama does not scale: what we would compute differs from what it does
    with pytest.raises(ModelError, match="cannot be trained yet"):
        head_of(model)


PAIRS = [((1, 2, 3), (4, 5)), ((7,), (8, 9, 10, 11)), ((1, 2, 3, 4, 5, 6), (7,))]


@pytest.mark.parametrize("number", range(4))
def test_each_sequence_of_a_row_is_as_if_alone(number: int) -> None:
    """Also of a model whose attention is capped and has a window (Gemma 2): its rows are padded instead."""
    model = architectures()[number].eval().double()
    assert can_pack(model) == (number < 3)
    with torch.no_grad():
        together = hidden_states(model, packed(PAIRS))
        alone = torch.cat([hidden_states(model, packed([pair])) for pair in PAIRS])
        plain = [model.base_model(torch.tensor([[*p, *c]])).last_hidden_state[0] for p, c in PAIRS]
    torch.testing.assert_close(together, alone)
    served = [states[len(p) - 1 : -1] for states, (p, _) in zip(plain, PAIRS, strict=True)]
    torch.testing.assert_close(together, torch.cat(served))
    assert packed(PAIRS).targets.tolist() == [4, 5, 8, 9, 10, 11, 7]


def test_a_model_whose_layers_leak_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that mixes tokens by itself (a convolution, a state) would carry one sequence into the next."""
    model = architectures()[0].eval()
    layer = model.model.layers[0]
    own = layer.mlp.forward
    monkeypatch.setattr(layer.mlp, "forward", lambda x: own(x) + x.cumsum(1).roll(1, 1))
    assert not can_pack(model)


@pytest.mark.parametrize(("kv_heads", "dtype"), [(2, torch.float64), (1, torch.float32), (2, torch.bfloat16)])
def test_attention_and_its_gradients_are_those_of_torch(kv_heads: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**{**SIZES, "num_key_value_heads": kv_heads, "num_hidden_layers": 2}, initializer_range=0.3)
    model = LlamaForCausalLM(config).eval().to(dtype)
    pairs = [(tuple(torch.randint(1, 50, (n,)).tolist()), (3, 4)) for n in (5, 2 * attention_kernel._BLOCK + 9, 1)]
    weights = torch.randn(6, 16).to(dtype)
    found = []
    served = [torch.tensor([[*p, *c]]) for p, c in pairs]
    for number in range(2):
        model.zero_grad()
        alone = [model.model(ids).last_hidden_state[0, -3:-1] for ids in served]
        out = torch.cat(alone) if number else hidden_states(model, packed(pairs))
        torch.autograd.backward((out * weights).sum())
        found.append([out.detach(), *[p.grad for n, p in model.named_parameters() if "proj" in n]])
    bound = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= bound * other.norm()


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 120))
def test_groups_hold_every_row_once_and_keep_the_budget(sizes: list[int], budget: int) -> None:
    groups = by_budget(sizes, budget)
    assert sorted(i for g in groups for i in g) == list(range(len(sizes)))
    assert all(len(g) == 1 or len(g) * max(sizes[i] for i in g) <= budget for g in groups)


def test_log_probs_are_those_of_the_model() -> None:
    model = architectures()[0].eval()
    pairs = [((1, 2, 3), (4, 5)), ((7,), (8, 9, 10, 11))]
    with torch.no_grad():
        found = log_probs(model, head_of(model), pairs, budget=5)
        for (prompt, completion), scores in zip(pairs, found, strict=True):
            logits = model(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
            want = [logits[len(prompt) - 1 + k, i].item() for k, i in enumerate(completion)]
            assert scores.tolist() == pytest.approx(want, abs=1e-4)


def test_pieces_are_the_text_and_a_character_stands_at_its_last_id(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_folder(tmp_path / "model"))
    text = "Hey 🥚, l'été 👨‍🍳\n\nmañana  ok"
    ids = encode(tokenizer, text)
    parts = pieces(tokenizer, ids)
    assert "".join(parts) == text and len(parts) == len(ids)
    assert "" in parts and not any("\ufffd" in part for part in parts)
    at = parts.index("")
    cut = pieces(tokenizer, ids[: at + 1])  # an answer that was cut within an emoji
    assert len(cut) == at + 1 and cut[-1] and pieces(tokenizer, []) == []


def test_token_advantages_and_their_control(tmp_path: Path) -> None:
    ref = tiny_folder(tmp_path / "model")
    model, tokenizer, turn = load_model(ref, dtype="float32"), load_tokenizer(ref), example(ref, 3).turn
    shown = token_advantages(model, tokenizer, turn, "Shorter, please.", CONTEXTS["appended"])
    assert "".join(t.text for t in shown) == "Answer 3...<|im_end|>"
    assert all(t.advantage == pytest.approx(t.with_hindsight - t.without, abs=1e-5) for t in shown)
    assert any(abs(t.advantage) > 0.01 for t in shown)
    control = token_advantages(model, tokenizer, turn, "Shorter, please.", CONTEXTS["none"])
    assert [t.advantage for t in control] == [0.0] * len(shown)
    logged = example(ref, 3, prompt_ids=None, completion_ids=None).turn
    again = token_advantages(model, tokenizer, logged, "Shorter, please.", CONTEXTS["appended"])
    assert again == shown
    empty = example(ref, 3, prompt_ids=None, completion_ids=None, answer={"role": "assistant", "content": ""}).turn
    with pytest.raises(UsageError, match="empty answer"):
        token_advantages(model, tokenizer, empty, "Shorter.", CONTEXTS["appended"])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:.*tie_word_embeddings")
def test_lora_on_the_head_is_read_with_and_without(tmp_path: Path) -> None:
    """PEFT's own logits with the adapter on and off are those of the head with and without it; it keeps its
    gradient, and reading it leaves the model as it was."""
    model = architectures()[1]
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    peft = get_peft_model(model, config).eval()
    base, ids = peft.get_base_model(), torch.tensor([[3, 9, 27, 31]])
    with pytest.raises(ModelError, match="leave it out of the LoRA targets"):
        head_of(base)
    head = head_of(base, adapter="default")
    assert head.adapter is not None
    assert head.adapter.up.requires_grad
    assert all(p.requires_grad == ("lora_" in name) for name, p in peft.named_parameters())
    with torch.no_grad():
        hidden = base.base_model(ids).last_hidden_state[0]
        torch.testing.assert_close(head.logits(hidden), peft(ids).logits[0], atol=1e-5, rtol=1e-4)
        bare = head.bare.logits(hidden)
        assert (bare - head.logits(hidden)).abs().max() > 1e-3
        layer = base.get_output_embeddings()
        layer.enable_adapters(False)
        torch.testing.assert_close(bare, base(ids).logits[0], atol=1e-5, rtol=1e-4)
    assert head_of(base, adapter="other").adapter is None
