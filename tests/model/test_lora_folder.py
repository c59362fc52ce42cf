"""Adapters as others write them: over a tiny random model each computes in the engine's layers as in PEFT, or is
rejected with its reason; so it is where training and evaluation read it."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from afterword.errors import AdapterError
from afterword.evaluate.scoring.adapter_scorer import AdapterScorer
from afterword.learn.recipes import follow_ups
from afterword.model.generation.adapters import AdapterBank, read_adapter
from afterword.model.generation.cached_attention import Plan
from afterword.model.generation.runner import Runner
from afterword.model.loading import base_hash, load_model
from afterword.model.lora_folder import read_lora_folder
from afterword.train.runtime.policy import load_policy

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*target_parameters:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*has no bias:peft.utils.warning.PeftWarning"),
    pytest.mark.filterwarnings("ignore:.*invalid shape:peft.utils.warning.PeftWarning"),
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out:UserWarning"),
]
SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2, "bos_token_id": None,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
BASES: dict[str, Callable[[], Any]] = {
    "llama": lambda: t.LlamaConfig(**SIZES, tie_word_embeddings=False),
    "phi3": lambda: t.Phi3Config(**SIZES),
    "mixtral": lambda: t.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "gpt2": lambda: t.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=128, bos_token_id=None, eos_token_id=2,
        initializer_range=0.2,
    ),
}  # fmt: skip
IDS = [5, 9, 3, 17, 40, 22, 8, 8, 61, 30, 4]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, config in BASES.items():
        found[name] = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        t.AutoModelForCausalLM.from_config(config()).save_pretrained(found[name])
    return found


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write(base: Path, folder: Path, *, convert: bool = False, whole: bool | str = "auto", **options: Any) -> Path:
    """A LoRA of the real PEFT over that base, its factors moved as training would."""
    options = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"], **options}
    torch.manual_seed(1)
    model = peft.get_peft_model(
        load_model(str(base), dtype="float32"), peft.LoraConfig(**options, task_type="CAUSAL_LM")
    )
    if convert:
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(folder.with_name("initial"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name or weight.requires_grad:
                weight += 0.1 * torch.randn_like(weight)
    how = {"path_initial_model_for_weight_conversion": str(folder.with_name("initial"))} if convert else {}
    model.save_pretrained(folder, save_embedding_layers=whole, **how)
    return folder


def in_peft(base: Path, folder: Path) -> torch.Tensor:
    """Log-probabilities [tokens, vocabulary] as PEFT computes them."""
    model = peft.PeftModel.from_pretrained(load_model(str(base), dtype="float32"), str(folder)).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([IDS])).logits[0]
    return logits.log_softmax(-1)


def in_engine(base: Path, folder: Path | None) -> torch.Tensor:
    """The same as the engine computes them."""
    runner = Runner(load_model(str(base), dtype="float32"), ends=frozenset([2]))
    bank = AdapterBank(runner.lines, runner.mask, runner.device)
    adapter = None if folder is None else read_adapter("a", folder, runner.lines, base_hash(base), 0)
    if adapter is not None:
        bank.add(adapter)
    bank.select([(adapter, len(IDS))])
    plan = Plan(runner.cache, [], [(0, 0, len(IDS))])
    return runner.forward(IDS, plan, list(range(len(IDS)))).log_softmax(-1)


SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {}),
    "rslora": ("llama", {"use_rslora": True}),
    "dropout": ("llama", {"lora_dropout": 0.3}),
    "rank and alpha patterns": (
        "llama",
        {
            "rank_pattern": {"q_proj": 8, r"model\.layers\.1\..*\.v_proj": 2},
            "alpha_pattern": {"layers.2.mlp.down_proj": 16},
        },
    ),
    "rank pattern with rslora": ("llama", {"rank_pattern": {"down_proj": 7}, "use_rslora": True}),
    "some layers": ("llama", {"layers_to_transform": [0, 2]}),
    "one layer by its pattern": ("llama", {"layers_to_transform": 1, "layers_pattern": "layers"}),
    "regular expression": ("llama", {"target_modules": r".*\.layers\.[01]\.(self_attn|mlp)\.(k_proj|up_proj)"}),
    "all linear layers": ("llama", {"target_modules": "all-linear"}),
    "excluded modules": ("llama", {"exclude_modules": ["layers.1.mlp.down_proj"]}),
    "excluded by expression": ("llama", {"exclude_modules": r".*layers\.0\..*"}),
    "head": ("llama", {"target_modules": ["lm_head", "o_proj"], "whole": False}),
    "gaussian": ("llama", {"init_lora_weights": "gaussian"}),
    "orthogonal": ("llama", {"init_lora_weights": "orthogonal"}),
    "mica": ("llama", {"init_lora_weights": "mica"}),
    "random": ("llama", {"init_lora_weights": False}),
    "fused projections": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj"]}),
    "turned weights": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "attention of a mixture": ("mixtral", {"target_modules": ["q_proj", "o_proj"]}),
    "converted pissa": ("llama", {"init_lora_weights": "pissa", "convert": True}),
    "converted pissa with ranks": (
        "llama", {"init_lora_weights": "pissa", "rank_pattern": {"q_proj": 2}, "convert": True},
    ),
    "converted olora": ("llama", {"init_lora_weights": "olora", "convert": True}),
}  # fmt: skip


@pytest.mark.parametrize("case", SERVED)
def test_what_the_engine_serves_of_an_adapter_is_what_peft_computes(
    bases: dict[str, Path], tmp_path: Path, case: str
) -> None:
    base, options = SERVED[case]
    folder = write(bases[base], tmp_path / "adapter", **options)
    want, got = in_peft(bases[base], folder), in_engine(bases[base], folder)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    assert (want - in_engine(bases[base], None)).abs().max() > 1e-2, "the adapter changes what the base says"


REJECTED: dict[str, tuple[str, dict[str, Any], str]] = {
    "pissa": ("llama", {"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
    "fast pissa": ("llama", {"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'"),
    "olora": ("llama", {"init_lora_weights": "olora"}, "base that its initialisation changed"),
    "dora": ("llama", {"use_dora": True}, r"has DoRA \(use_dora=True\).*merge_and_unload"),
    "bias of the layers": ("gpt2", {"target_modules": ["c_attn"], "bias": "lora_only"}, "trained biases"),
    "bias of lora": ("llama", {"lora_bias": True}, "a bias in its LoRA layers"),
    "whole modules": ("llama", {"modules_to_save": ["lm_head"]}, "whole modules beside"),
    "tokens": ("llama", {"trainable_token_indices": [3, 4]}, "trained token embeddings"),
    "head with its base": ("llama", {"target_modules": ["lm_head"]}, "save_embedding_layers=False"),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}, "embed_tokens"),
    "experts": (
        "mixtral",
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]},
        "LoRA on parameters that are no linear layers",
    ),
    "activated": ("llama", {"alora_invocation_tokens": [3, 4]}, "activated LoRA"),
}  # fmt: skip


@pytest.mark.parametrize("case", REJECTED)
def test_an_adapter_that_is_more_than_a_plain_lora_is_rejected_with_its_reason(
    bases: dict[str, Path], tmp_path: Path, case: str
) -> None:
    base, options, words = REJECTED[case]
    folder = write(bases[base], tmp_path / "adapter", **options)
    with pytest.raises(AdapterError, match=words):
        in_engine(bases[base], folder)


def test_loftq_and_unknown_options_are_rejected(bases: dict[str, Path], tmp_path: Path) -> None:
    for option, value, words in (
        ("init_lora_weights", "loftq", "quantised"),
        ("init_lora_weights", "later", "unknown"),
        ("use_later", True, "unknown option use_later=True"),
        ("target_modules", ["q_proj"], "target_modules, exclude_modules"),
        ("layers_to_transform", [0], "layers_to_transform"),
        ("exclude_modules", ["v_proj"], "leave out"),
        ("target_modules", "(", "invalid target_modules"),
        ("rank_pattern", {"q_proj": "8"}, "invalid rank_pattern"),
        ("rank_pattern", {"q_proj": 8}, "says rank 8"),
        ("lora_alpha", True, "not a LoRA adapter"),
    ):
        folder = write(bases["llama"], tmp_path / "adapter")
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        (folder / "adapter_config.json").write_text(json.dumps({**config, option: value}), "utf-8")
        with pytest.raises(AdapterError, match=words):
            read_lora_folder(folder)


def renamed(folder: Path, change: Callable[[str], str]) -> Path:
    """The folder with other names in its file."""
    out = folder.with_name("renamed")
    shutil.copytree(folder, out, dirs_exist_ok=True)
    tensors = {change(key): tensor.clone() for key, tensor in load_file(folder / "adapter_model.safetensors").items()}
    save_file(tensors, out / "adapter_model.safetensors")
    return out


NAMES: dict[str, Callable[[str], str]] = {
    "without PEFT's prefix": lambda key: key.removeprefix("base_model.model."),
    "with the adapter's name": lambda key: key.replace(".weight", ".default.weight"),
    "with another name": lambda key: key.replace(".weight", ".mine.weight").removeprefix("base_model.model."),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
def test_other_names_of_the_same_weights_mean_the_same_everywhere(
    bases: dict[str, Path], tmp_path: Path, case: str
) -> None:
    folder = write(bases["llama"], tmp_path / "adapter")
    other, want = renamed(folder, NAMES[case]), in_peft(bases["llama"], folder)
    torch.testing.assert_close(in_engine(bases["llama"], other), want, atol=1e-4, rtol=0)
    scorer = AdapterScorer(load_model(str(bases["llama"]), dtype="float32"))
    scorer.add("a", other)
    got = scorer.log_probs("a", [(IDS[:4], IDS[4:])])[0]
    torch.testing.assert_close(
        torch.tensor(got), want[3:-1].gather(1, torch.tensor(IDS[4:])[:, None])[:, 0], atol=1e-4, rtol=0
    )
    policy = load_policy(str(bases["llama"]), follow_ups(dtype="float32"), parent=other, seed=0, device="cpu")
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(logits.log_softmax(-1), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["pissa", "dora", "whole modules", "tokens", "embedding"])
def test_a_parent_and_a_measured_adapter_pass_the_same_check(bases: dict[str, Path], tmp_path: Path, case: str) -> None:
    base, options, words = REJECTED[case]
    folder = write(bases[base], tmp_path / "adapter", **options)
    with pytest.raises(AdapterError, match=f"parent adapter cannot be trained further: .*{words}"):
        load_policy(str(bases[base]), follow_ups(dtype="float32"), parent=folder, seed=0, device="cpu")
    with pytest.raises(AdapterError, match=words):
        AdapterScorer(load_model(str(bases[base]), dtype="float32")).add("a", folder)


def test_layers_that_the_model_lacks_are_named_beside_those_that_it_has(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = write(bases["llama"], tmp_path / "split", target_modules=["q_proj"])
    with pytest.raises(AdapterError, match=r"layers.0.self_attn.q_proj.*has the linear layers o_proj, qkv_proj"):
        in_engine(bases["phi3"], folder)
    fused = write(bases["phi3"], tmp_path / "fused", target_modules=["qkv_proj"])
    with pytest.raises(AdapterError, match=r"qkv_proj.*has the linear layers k_proj, o_proj, q_proj, v_proj"):
        in_engine(bases["llama"], fused)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(AdapterError, match="qkv_proj"):
            AdapterScorer(load_model(str(bases["llama"]), dtype="float32")).add("a", fused)


def test_two_adapters_in_one_file_are_rejected(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = write(bases["llama"], tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
    more = {key.replace(".weight", ".other.weight"): tensor.clone() for key, tensor in tensors.items()}
    save_file(tensors | more, file)
    with pytest.raises(AdapterError, match="several adapters"):
        read_lora_folder(folder)
