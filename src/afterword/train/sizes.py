"""What a model's folder says about its sizes, read without loading the weights."""

from __future__ import annotations

import json
from pathlib import Path

from afterword.errors import ModelError


def model_sizes(folder: Path) -> tuple[int, int]:
    """(longest context in tokens, vocabulary size). ModelError when config.json does not name them."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config", config)
    limit, vocabulary = text.get("max_position_embeddings"), text.get("vocab_size")
    if not isinstance(limit, int) or not isinstance(vocabulary, int):
        raise ModelError(
            f"{str(folder / 'config.json')!r} names max_position_embeddings={limit!r} and "
            f"vocab_size={vocabulary!r}: both are needed to train this model"
        )
    return limit, vocabulary
