"""Draws follow their distribution, row by row."""

from __future__ import annotations

import pytest
import torch

from afterword.model.generation import sampler
from afterword.model.generation.sampler import Draw


def spread(logits: list[float], temperature: float, top_p: float, count: int = 2000) -> list[float]:
    """Share of each token when the uniform number walks evenly through [0, 1)."""
    rows = torch.tensor([logits]).expand(count, -1)
    tokens = sampler.sample(rows, [Draw(temperature, top_p, (i + 0.5) / count) for i in range(count)])
    return (torch.bincount(tokens, minlength=len(logits)) / count).tolist()


def test_plain_draws_have_the_softmax_shares() -> None:
    logits = torch.tensor([0.1, 0.6, 0.3]).log().tolist()
    assert spread(logits, 1.0, 1.0) == pytest.approx([0.1, 0.6, 0.3], abs=1e-3)


def test_temperature_sharpens() -> None:
    logits = torch.tensor([0.2, 0.8]).log().tolist()
    assert spread(logits, 0.5, 1.0) == pytest.approx([0.04 / 0.68, 0.64 / 0.68], abs=1e-3)


def test_top_p_keeps_the_smallest_sufficient_set() -> None:
    logits = torch.tensor([0.1, 0.5, 0.3, 0.1]).log().tolist()
    assert spread(logits, 1.0, 0.7) == pytest.approx([0, 0.625, 0.375, 0], abs=1e-3)
    assert spread(logits, 1.0, 0.4) == pytest.approx([0, 1, 0, 0])


def test_a_nucleus_wider_than_the_head_is_sorted_in_full() -> None:
    rows = torch.zeros(4, 4096)
    rows[:, 7] = 0.5
    draws = [Draw(1.0, 0.9, u) for u in (0.0, 0.3, 0.6, 0.999)]
    tokens = sampler.sample(rows, draws).tolist()
    assert tokens[0] == 7 and len(set(tokens)) == 4


def test_kinds_mix_in_one_call() -> None:
    row = torch.tensor([0.1, 0.6, 0.3]).log()
    draws = [Draw(0.0, 1.0, 0.99), Draw(1.0, 1.0, 0.99), Draw(1.0, 0.5, 0.99), Draw(1.0, 1.0, 0.0)]
    assert sampler.sample(row.repeat(4, 1), draws).tolist() == [1, 2, 1, 0]


def test_impossible_tokens_are_never_drawn() -> None:
    rows = torch.tensor([[float("-inf"), 0.0, float("-inf")]] * 3)
    draws = [Draw(1.0, 1.0, u) for u in (0.0, 0.5, 1 - 2**-53)]
    assert sampler.sample(rows, draws).tolist() == [1, 1, 1]


def test_logprobs_are_of_the_raw_softmax() -> None:
    row = torch.tensor([[0.1, 0.6, 0.3]]).log() + 5
    assert sampler.logprobs(row, torch.tensor([2])) == pytest.approx([torch.tensor(0.3).log().item()])
    top = sampler.top_logprobs(row[0], 2)
    assert [token for token, _ in top] == [1, 2]


def test_sampled_logprobs_are_of_what_was_drawn_from() -> None:
    probabilities = torch.tensor([0.1, 0.6, 0.3])
    rows, tokens = probabilities.log().repeat(4, 1), torch.tensor([2, 2, 1, 1])
    draws = [Draw(1.0, 1.0, 0.5), Draw(0.5, 1.0, 0.5), Draw(1.0, 0.7, 0.5), Draw(0.0, 1.0, 0.5)]
    wanted = torch.tensor([0.3, 0.09 / 0.46, 0.6 / 0.9, 1.0]).log()
    found, support = sampler.sampled_logprobs(rows, rows, draws, tokens)
    assert found == pytest.approx(wanted.tolist(), abs=1e-6)
    assert support == pytest.approx([1.0, 1.0, 0.9, 0.6], abs=1e-6)
    masked = torch.tensor([[float("-inf"), 0.0, 0.0]])  # an end token that `min_tokens` forbids
    found, support = sampler.sampled_logprobs(torch.zeros(1, 3), masked, draws[:1], tokens[:1])
    assert found == pytest.approx([torch.tensor(0.5).log().item()]) and support == pytest.approx([2 / 3])
