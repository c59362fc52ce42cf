"""Rotary factors that depend on the length (longrope) hold for each sequence, whatever stands beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from afterword.model.packing import (
    Parts,
    ReadBatch,
    as_read,
    cut_at_switch,
    hidden_states,
    hidden_states_after,
    packed,
)
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
    """What transformers says behind each part of one sequence that stands before a scored id, alone."""
    ids = [*prompt, *completion]
    passes = [phi.base_model(input_ids=torch.tensor([ids[:n]]), use_cache=False) for n in range(len(prompt), len(ids))]
    return torch.stack([one.last_hidden_state[0, -1] for one in passes])


@torch.no_grad()
def test_every_sequence_of_a_row_has_the_factors_of_its_own_length(phi: Any) -> None:
    assert switch_length(phi) == SWITCH
    pairs = [pair(3, 8, 6), pair(5, 30, 10), pair(9, 20, 5), pair(2, 20, 12)]  # the third is just short
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


def test_a_sequence_is_cut_where_the_factors_switch() -> None:
    ids = list(range(40))
    assert cut_at_switch((ids[:8], ids[8:25]), SWITCH) == [(ids[:8], ids[8:25])]
    assert cut_at_switch((ids[:8], ids[8:26]), None) == [(ids[:8], ids[8:26])]
    assert cut_at_switch((ids[:8], ids[8:30]), SWITCH) == [[ids[:8], ids[8:25]], (ids[:25], ids[25:30])]
    assert cut_at_switch((ids[:26], ids[26:30]), SWITCH) == [(ids[:26], ids[26:30])]
    spans = (ids[:4], ids[4:9], ids[9:30], ids[30:34])
    assert cut_at_switch(spans, SWITCH) == [[ids[:4], ids[4:9]], (ids[:30], ids[30:34])]
    for scored in range(1, 40):
        cut = cut_at_switch((ids[:scored], ids[scored:]), SWITCH)
        assert [i for parts in cut for part in parts[1::2] for i in part] == ids[scored:]
        assert [again for parts in cut for again in cut_at_switch(parts, SWITCH)] == cut


@torch.no_grad()
def test_answers_that_grew_over_the_switch_share_prefixes_and_are_read_after_others(phi: Any) -> None:
    prompt, other = pair(3, 18, 0)[0], pair(3, 18, 0)[0][:-4] + pair(7, 9, 0)[0]
    answers = [pair(start, 0, 14)[1] for start in (5, 40)]
    sequences: list[Parts] = [(prompt, one) for one in answers]
    kept: Any = {}
    batch = packed(sequences, share=True)
    states = hidden_states(phi, as_read(phi, batch), kept)
    want = torch.cat([own(phi, prompt, one) for one in answers])
    torch.testing.assert_close(states, want, atol=1e-4, rtol=1e-4)
    hinted: list[Parts] = [(other, one) for one in answers]
    got = hidden_states_after(phi, hinted, ReadBatch(sequences, states, kept))
    torch.testing.assert_close(got, torch.cat([own(phi, other, one) for one in answers]), atol=1e-4, rtol=1e-4)


def test_other_models_have_no_switch() -> None:
    config = transformers.LlamaConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert switch_length(model) is None
    with sequence_lengths(model, torch.ones(1)):
        pass
