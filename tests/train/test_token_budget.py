"""Tokens of a forward pass by device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from afterword.learn.recipes import sft
from afterword.train.runtime import token_budget

SMOL = SimpleNamespace(hidden_size=576, num_hidden_layers=30, intermediate_size=1536)
EIGHT = SimpleNamespace(hidden_size=4096, num_hidden_layers=32, intermediate_size=14336)
GIB = 1 << 30


@pytest.mark.parametrize(
    ("memory", "weights", "config", "checkpointing", "least", "most"),
    [
        (24 * GIB, GIB // 4, SMOL, False, 10_000, 16_384),
        (80 * GIB, 16 * GIB, EIGHT, False, 3_000, 6_000),
        (24 * GIB, 16 * GIB, EIGHT, False, 512, 768),
        (24 * GIB, 16 * GIB, EIGHT, True, 4_000, 16_384),
        (8 * GIB, 16 * GIB, EIGHT, False, 512, 512),
    ],
)
def test_a_gpu_takes_what_its_memory_holds(
    memory: int, weights: int, config: Any, checkpointing: bool, least: int, most: int
) -> None:
    found = token_budget.tokens_in(memory, weights, config, sft(dtype="bfloat16", checkpointing=checkpointing))
    assert least <= found <= most and found % 256 == 0


def test_a_number_of_the_recipe_holds_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(config=SMOL, parameters=lambda: [torch.zeros(10)])
    cpu, gpu = (SimpleNamespace(device=torch.device(kind), model=model) for kind in ("cpu", "cuda"))
    properties = SimpleNamespace(total_memory=24 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    budget: Any = token_budget.token_budget
    assert budget(sft(micro_tokens=100), cpu) == budget(sft(micro_tokens=100), gpu) == 100
    assert budget(sft(), cpu) == 512 and budget(sft(), gpu) > 10_000
