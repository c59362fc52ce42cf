"""Model families, tiny and random: each is trained, and its adapter loads and computes in PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as t

from afterword.errors import ConfigError
from afterword.learn.recipes import Lora, follow_ups
from afterword.model.loading import load_model
from afterword.train.loop import train_candidate
from tests.train.tiny_model import example, tiny_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*target_parameters:UserWarning"),
]
SIZES: dict[str, Any] = {
    "vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip
LAYERS = ["sliding_attention", "full_attention"]
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2}
FAMILIES: dict[str, Any] = {
    "gemma2": lambda: t.Gemma2Config(**SIZES, head_dim=8, sliding_window=16),
    "gpt-oss": lambda: t.GptOssConfig(
        **SIZES, **EXPERTS, head_dim=8, num_local_experts=4, sliding_window=16, layer_types=LAYERS
    ),
    "gpt2": lambda: t.GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4, n_positions=512),
    "mixtral": lambda: t.MixtralConfig(**SIZES, **EXPERTS, num_local_experts=4),
    "qwen3-moe": lambda: t.Qwen3MoeConfig(**SIZES, **EXPERTS, head_dim=8, num_experts=4, moe_intermediate_size=32),
}


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    folder = tiny_folder(tmp_path / "model")  # its tokenizer
    config = FAMILIES[request.param]()
    config.bos_token_id, config.eos_token_id, config.pad_token_id = None, 2, 2
    torch.manual_seed(0)
    for file in Path(folder).glob("*.safetensors"):
        file.unlink()
    t.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_a_family_is_trained_and_its_adapter_computes_as_in_peft(family: str, tmp_path: Path) -> None:
    recipe = follow_ups(dtype="float32", epochs=2, fresh=1, max_fresh=8, batch=2, lr=1e-2, lora=Lora(rank=4))
    given = [example(family, i) for i in range(4)]
    done = train_candidate(given, model=family, out=tmp_path / "out", run_dir=tmp_path / "run", recipe=recipe)
    assert done.metrics["loss_first"] > 0
    base = load_model(family, dtype="float32")
    turn = given[0].turn
    ids = torch.tensor([[*(turn.prompt_ids or ()), *(turn.completion_ids or ())]])
    with torch.no_grad():
        before = base(input_ids=ids).logits
        after = peft.PeftModel.from_pretrained(base, str(done.path)).eval()(input_ids=ids).logits
    assert torch.isfinite(after).all() and (after - before).abs().mean() > 1e-4


@pytest.mark.parametrize("family", ["qwen3-moe"], indirect=True)
def test_experts_are_no_targets_of_an_adapter(family: str, tmp_path: Path) -> None:
    recipe = follow_ups(dtype="float32", epochs=1, fresh=0, lora=Lora(rank=4, targets=("q_proj", "gate")))
    with pytest.raises(ConfigError, match=r"experts or their router.*name linear layers"):
        train_candidate(
            [example(family, 0)], model=family, out=tmp_path / "out", run_dir=tmp_path / "run", recipe=recipe
        )
