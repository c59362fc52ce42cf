"""What a model's folder says about its sizes, read without loading the weights."""

from __future__ import annotations

from pathlib import Path

import transformers

from afterword.errors import ModelError


def model_sizes(folder: Path) -> tuple[int, int]:
    """(longest context in tokens, vocabulary size), by the names that the architecture has for them (GPT-2 says
    `n_positions`). ModelError when config.json does not name them."""
    try:
        config = transformers.AutoConfig.from_pretrained(folder).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{str(folder / 'config.json')!r} cannot be read: {str(error)[:300]}") from error
    limit, vocabulary = getattr(config, "max_position_embeddings", None), getattr(config, "vocab_size", None)
    if not isinstance(limit, int) or not isinstance(vocabulary, int):
        raise ModelError(
            f"{str(folder / 'config.json')!r} names max_position_embeddings={limit!r} and "
            f"vocab_size={vocabulary!r}: both are needed to train this model"
        )
    return limit, vocabulary
