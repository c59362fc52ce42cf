"""Rotary factors that depend on the length (longrope) hold for each sequence, whatever stands beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from afterword.model.packing import ReadBatch, hidden_states, hidden_states_after, packed
from afterword.model.rotary import sequence_lengths, switch_length

SWITCH = 24


@pytest.fixture(scope="module")
def phi() -> Any:
    factors = [1.0 + 0.1 * i for i in range(8)], [4.0 + 3.0 * i for i in range(8)]
    config = transformers.Phi3Config(
        vocab_size=97, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, original_max_position_embeddings=SWITCH,
        rope_scaling={"type": "longrope", "short_factor": factors[0], "long_factor": factors[1]},
        initializer_range=0.3, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def pair(start: int, prompt: int, completion: int) -> tuple[list[int], list[int]]:
    ids = [1 + (start + 7 * i) % 96 for i in range(prompt + completion)]
    return ids[:prompt], ids[prompt:]


def own(phi: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """What transformers says of one sequence alone."""
    out = phi.base_model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False)
    return out.last_hidden_state[0, len(prompt) - 1 : -1]  # type: ignore[no-any-return]


@torch.no_grad()
def test_every_sequence_of_a_row_has_the_factors_of_its_own_length(phi: Any) -> None:
    assert switch_length(phi) == SWITCH
    pairs = [pair(3, 8, 6), pair(5, 30, 10), pair(9, 20, 4), pair(2, 20, 5)]  # the third is just short, the fourth long
    states = torch.split(hidden_states(phi, packed(pairs)), [len(c) for _, c in pairs])
    for (prompt, completion), got in zip(pairs, states, strict=True):
        torch.testing.assert_close(got, own(phi, prompt, completion), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_what_goes_on_over_the_switch_is_read_from_its_start(phi: Any) -> None:
    prompt, completion = pair(3, 8, 6)
    longer = [*prompt[:-1], *pair(11, 20, 0)[0], prompt[-1]]
    kept: Any = {}
    read = ReadBatch([(prompt, completion)], hidden_states(phi, packed([(prompt, completion)]), kept), kept)
    got = hidden_states_after(phi, [(longer, completion)], read)
    torch.testing.assert_close(got, own(phi, longer, completion), atol=1e-4, rtol=1e-4)


def test_other_models_have_no_switch() -> None:
    config = transformers.LlamaConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert switch_length(model) is None
    with sequence_lengths(model, torch.ones(1)):
        pass
