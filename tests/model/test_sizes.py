"""Context length and vocabulary size under the names of every architecture, the same for training and evaluation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers

from afterword.config import EvaluateConfig
from afterword.errors import ModelError
from afterword.evaluate.comparison.answers import Arm
from afterword.evaluate.comparison.comparison import Comparison, Resources
from afterword.model.loading import longest_context, model_sizes

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
