"""Chooses how many tokens one forward pass takes, by device.

A CPU is as fast with few tokens as with many. A GPU needs thousands to be busy, so there the memory decides.
"""

from __future__ import annotations

from typing import Any

import torch

from afterword.learn.recipes import Recipe
from afterword.train.runtime.policy import Policy

CPU = 512
LEAST, MOST = 512, 16_384
"""Bounds on a GPU, where a pass of more tokens is no faster."""
SHARE = 0.5
"""Share of the memory beside the weights for activations; the rest holds gradients, teachers' states and logits."""


def token_budget(recipe: Recipe, policy: Policy) -> int:
    """Tokens of a forward pass: the recipe's `micro_tokens`, or what suits the device.

    On a GPU it follows from the size of its memory, not from what is free, so a resumed run splits steps alike.
    """
    if recipe.micro_tokens is not None:
        return recipe.micro_tokens
    if policy.device.type != "cuda":
        return CPU
    memory = torch.cuda.get_device_properties(policy.device).total_memory
    weights = sum(p.numel() * p.element_size() for p in policy.model.parameters())
    return tokens_in(memory, weights, policy.model.config, recipe)


def tokens_in(memory: int, weights: int, config: Any, recipe: Recipe) -> int:
    """Tokens whose activations fit beside the weights.

    Args:
        memory: Bytes of the device.
        weights: Bytes of the model.
        config: transformers' configuration of the model.
        recipe: Whose dtype and checkpointing count.

    Returns:
        A multiple of 256 between `LEAST` and `MOST`.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    hidden, layers = int(text.hidden_size), int(text.num_hidden_layers)
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    inner = max(inner) if isinstance(inner, list | tuple) else int(inner)
    width = 4 if recipe.dtype == "float32" else 2
    # Kept of a layer: both norms' inputs in float32, ten tensors of the hidden size, four of the inner one.
    layer = 2 * 4 * hidden + width * (10 * hidden + 4 * inner)
    token = layers * width * hidden + layer if recipe.checkpointing else layers * layer
    tokens = int(SHARE * max(0, memory - weights) / token)
    return min(MOST, max(LEAST, tokens - tokens % 256))
