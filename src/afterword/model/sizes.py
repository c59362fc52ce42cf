"""Context length and vocabulary size of a model, by the names that its architecture has for them (GPT-2 says
`n_positions`, models with pictures keep them in a part of their configuration)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from afterword.errors import ModelError


def model_sizes(folder: Path) -> tuple[int, int]:
    """(longest context in tokens, vocabulary size) of a model's folder, without loading the weights. ModelError when
    config.json does not name them."""
    try:
        config = transformers.AutoConfig.from_pretrained(folder).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{str(folder / 'config.json')!r} cannot be read: {str(error)[:300]}") from error
    limit, vocabulary = getattr(config, "max_position_embeddings", None), getattr(config, "vocab_size", None)
    if not isinstance(limit, int) or not isinstance(vocabulary, int):
        raise ModelError(
            f"{str(folder / 'config.json')!r} names max_position_embeddings={limit!r} and "
            f"vocab_size={vocabulary!r}: both are needed to train and to evaluate this model"
        )
    return limit, vocabulary


def longest_context(model: Any) -> int:
    """Tokens that a loaded model reads; practically unbounded where its configuration names no limit."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)
