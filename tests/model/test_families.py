"""Model families, tiny and random: the engine computes what transformers computes, bare and under an adapter that PEFT
wrote, for prompts longer than a sliding window, read in chunks beside another request and answered token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as t

from afterword.model.generation.adapters import Adapter, AdapterBank, read_adapter
from afterword.model.generation.cached_attention import Plan
from afterword.model.generation.runner import Runner
from afterword.model.loading import base_hash, load_model
from afterword.model.packing import hidden_states, packed
from afterword.model.rotary import switch_length

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*target_parameters:UserWarning"),
]
SIZES: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2, "bos_token_id": None,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama 3": lambda: t.LlamaConfig(**SIZES, rope_parameters={
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}),
    "llama, dynamic scaling": lambda: t.LlamaConfig(**{**SIZES, "max_position_embeddings": 64}, rope_parameters={
        "rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}),
    "qwen 2": lambda: t.Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen 3": lambda: t.Qwen3Config(**SIZES, head_dim=16),
    "mistral, a window": lambda: t.MistralConfig(**SIZES, sliding_window=16),
    "gemma 2, soft caps": lambda: t.Gemma2Config(
        **SIZES, head_dim=8, sliding_window=16, query_pre_attn_scalar=8, attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0),
    "gemma 3, windows": lambda: t.Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=16, layer_types=WINDOWS),
    "phi 3, fused": lambda: t.Phi3Config(**SIZES),
    "phi 4 mini, longrope": lambda: t.Phi3Config(
        **SIZES, original_max_position_embeddings=48, partial_rotary_factor=0.75,
        rope_scaling={"type": "longrope", "short_factor": [1.0, 1.1, 1.2], "long_factor": [4.0, 7.0, 9.0]}),
    "olmo 2": lambda: t.Olmo2Config(**SIZES),
    "olmoe": lambda: t.OlmoeConfig(**SIZES, **EXPERTS, num_experts=4),
    "qwen 3 moe": lambda: t.Qwen3MoeConfig(**SIZES, **EXPERTS, head_dim=8, num_experts=4, moe_intermediate_size=32),
    "mixtral": lambda: t.MixtralConfig(**SIZES, **EXPERTS, num_local_experts=4),
}  # fmt: skip
GENERATOR = torch.Generator().manual_seed(0)
IDS: list[int] = torch.randint(3, 99, (56,), generator=GENERATOR).tolist()
READ = 44


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("family")
    t.AutoModelForCausalLM.from_config(FAMILIES[request.param]()).save_pretrained(folder)
    return folder


def one_by_one(runner: Runner, adapter: Adapter | None, bank: AdapterBank) -> torch.Tensor:
    """Log-probabilities behind the last `len(IDS) - READ` tokens: the prompt in two chunks beside another request, then
    one token at a time. What grows over the model's switch of rotary factors is read again, as the engine does."""
    runner.cache.reserve(2, len(IDS))
    switch = runner.switch

    def step(reading: list[tuple[int, int, int]], decoding: list[tuple[int, int]], known: int) -> torch.Tensor:
        ids = [IDS[place] for _, place in decoding] + [i for _, a, b in reading for i in IDS[a:b]]
        bank.select([(adapter, 1) for _ in decoding] + [(adapter, b - a) for _, a, b in reading])
        first = reading[0][2] - reading[0][1] - 1 if reading else 0
        return runner.forward(ids, Plan(runner.cache, decoding, reading), [first], [known] * len(ids))[0]

    step([(0, 0, 20), (1, 0, 20)], [], READ)
    found = [step([(0, 20, READ)], [], READ)]
    for place in range(READ, len(IDS)):
        crossed = switch is not None and place + 1 == switch + 1
        found.append(step([(0, 0, place + 1)], [], place + 1) if crossed else step([], [(0, place)], place + 1))
    return torch.stack(found[:-1]).log_softmax(-1)


def by_transformers(model: Any) -> torch.Tensor:
    """The same, each from a fresh pass over what was known then."""
    with torch.no_grad():
        rows = [model(input_ids=torch.tensor([IDS[:n]]), use_cache=False).logits[0, -1] for n in range(READ, len(IDS))]
    return torch.stack(rows).float().log_softmax(-1)


def test_a_family_computes_in_the_engine_and_in_training_as_in_transformers(family: Path, tmp_path: Path) -> None:
    base = load_model(str(family), dtype="float32")
    runner = Runner(load_model(str(family), dtype="float32"), ends=frozenset([2]))
    bank = AdapterBank(runner.lines, runner.mask, runner.device)
    torch.testing.assert_close(one_by_one(runner, None, bank), by_transformers(base), atol=1e-4, rtol=0)

    switch = switch_length(base)
    pairs = [(IDS[:10], IDS[10:30]), (IDS[:READ], IDS[READ:]), (IDS[20:25], IDS[25:33])]
    with torch.no_grad():
        states = hidden_states(base, packed(pairs))
        plain = load_model(str(family), dtype="float32")
        alone = [before_each(plain, p, c, apart=switch is not None) for p, c in pairs]
    torch.testing.assert_close(states, torch.cat(alone), atol=1e-4, rtol=1e-4)
    assert (switch is not None) == ("longrope" in str(base.config.rope_parameters))

    torch.manual_seed(1)
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=linear_layers(base), task_type="CAUSAL_LM")
    made = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    made.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    adapter = read_adapter("a", tmp_path / "adapter", runner.lines, base_hash(family), 0)
    bank.add(adapter)
    want = by_transformers(made.eval())
    torch.testing.assert_close(one_by_one(runner, adapter, bank), want, atol=1e-4, rtol=0)
    assert (want - by_transformers(plain)).abs().max() > 1e-2


def before_each(model: Any, prompt: list[int], completion: list[int], *, apart: bool) -> torch.Tensor:
    """Hidden states that predict each id of the completion; `apart`: each from a pass of its own over what stood before
    it, as it is drawn."""
    ids = [*prompt, *completion]
    if not apart:
        out = model.base_model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state
        return out[0, len(prompt) - 1 : -1]  # type: ignore[no-any-return]
    ends = range(len(prompt), len(ids))
    passes = [model.base_model(input_ids=torch.tensor([ids[:n]]), use_cache=False) for n in ends]
    return torch.stack([one.last_hidden_state[0, -1] for one in passes])


def linear_layers(model: Any) -> list[str]:
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if type(module) is torch.nn.Linear and module is not head]
