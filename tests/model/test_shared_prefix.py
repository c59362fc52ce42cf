"""Prefixes that several sequences have are read once: states and gradients are those of separate rows."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.model.test_fused_layer import MODELS, SIZES, adapted
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, Phi3Config, Phi3ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from afterword.model import attention_kernel
from afterword.model.attention_kernel import count
from afterword.model.lora import patch_lora_layers
from afterword.model.module_patching import patch_modules
from afterword.model.packing import (
    Packed,
    Parts,
    ReadBatch,
    as_read,
    hidden_states,
    hidden_states_after,
    packed,
    why_not_shared,
)
from afterword.model.prefix_tree import shared_groups, tree_of

MODELS["qwen3, norms of heads"] = lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=4))
MODELS["neox, unknown layers"] = lambda: GPTNeoXForCausalLM(
    GPTNeoXConfig(**{k: v for k, v in SIZES.items() if k != "num_key_value_heads"})
)
NAMES = ["llama", "qwen2, with biases", "qwen3, norms of heads", "neox, unknown layers"]


def forest(seed: int, sequences: int = 7) -> list[Parts]:
    """Sequences that go on after random prefixes of earlier ones: answers to one prompt, turns of a conversation,
    equal ones, and some with nothing in common. Each has one or two scored spans."""
    dice = random.Random(seed)
    whole: list[tuple[int, ...]] = []
    for _ in range(sequences):
        kind, old = dice.random(), dice.choice(whole) if whole else ()
        start = old[: dice.randint(1, len(old))] if old and kind < 0.7 else old if kind < 0.85 else ()
        new = tuple(dice.randrange(50) for _ in range(dice.randint(0 if len(start) > 3 else 4, 9)))
        whole.append(start + new)
    made: list[Parts] = []
    for ids in whole:
        if len(ids) > 4 and dice.random() < 0.4:
            a, b, c = sorted(dice.sample(range(1, len(ids)), 3))
            made.append((ids[:a], ids[a:b], ids[b:c], ids[c:]))
        else:
            a = dice.randint(1, len(ids) - 1)
            made.append((ids[:a], ids[a:]))
    return made


def states_and_gradients(model: Any, batch: Packed) -> list[Tensor]:
    states = hidden_states(model, batch)
    weights = torch.linspace(-1, 1, states.numel(), dtype=states.dtype).view(states.shape)
    trained = [p for p in model.parameters() if p.requires_grad]
    return [states.detach(), *torch.autograd.grad((states * weights).sum() / len(states), trained)]


@pytest.mark.parametrize("patched", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_states_and_gradients_are_those_of_separate_rows(
    name: str, patched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 to 1e-6 of the largest, over random trees, in blocks of few queries and of all."""
    targets: Any = ["query_key_value", "dense"] if "neox" in name else "all-linear"
    model = adapted(name, targets, torch.float32)
    patch_lora_layers(model)
    if patched:
        patch_modules(model.get_base_model())
    for seed in range(8):
        monkeypatch.setattr(attention_kernel, "_BLOCK", (2, 128)[seed % 2])
        monkeypatch.setattr(attention_kernel, "_KEPT", (3, 256)[seed // 2 % 2])
        sequences = forest(seed)
        batch = packed(sequences, share=True)
        apart = packed(sequences)
        assert len(batch.ids) <= len(apart.ids) and torch.equal(batch.targets, apart.targets)
        for got, want in zip(states_and_gradients(model, batch), states_and_gradients(model, apart), strict=True):
            assert (got - want).abs().max() <= 2e-6 * want.abs().max().clamp(min=1)
        again = states_and_gradients(model, batch)
        assert all(torch.equal(a, b) for a, b in zip(states_and_gradients(model, batch), again, strict=True))


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_the_tree_holds_every_sequence_and_no_prefix_twice(seed: int) -> None:
    whole = [tuple(i for part in parts for i in part) for parts in forest(seed, 9)]
    tree = tree_of(whole)
    for ids, path in zip(whole, tree.paths, strict=True):
        assert tuple(tree.ids[k] for start, end in path for k in range(start, end)) == ids
    assert len(tree.ids) == len({ids[: n + 1] for ids in whole for n in range(len(ids))})  # nodes of the trie
    assert sum(tree.sizes) == len(tree.ids)


def _needed(sequences: list[Parts]) -> int:
    whole = [tuple(i for part in parts for i in part) for parts in sequences]
    return len({ids[: n + 1] for ids in whole for n in range(len(ids))})


def test_answers_to_one_prompt_and_turns_of_one_conversation_read_what_is_needed() -> None:
    dice = random.Random(0)
    prompt = tuple(dice.randrange(50) for _ in range(200))
    answers: list[Parts] = [(prompt, tuple(dice.randrange(50) for _ in range(128))) for _ in range(8)]
    assert len(packed(answers, share=True).ids) == _needed(answers) <= 200 + 8 * 128
    history: tuple[int, ...] = ()
    turns: list[Parts] = []
    for _ in range(8):
        history += tuple(dice.randrange(50) for _ in range(30))
        answer = tuple(dice.randrange(50) for _ in range(40))
        turns.append((history, answer))
        history += answer
    batch = packed(turns, share=True)
    assert len(batch.ids) == 8 * 70 and len(packed(turns).ids) == sum(70 * n for n in range(1, 9))
    assert [count(path) for path in batch.paths] == [70 * n for n in range(1, 9)]


def test_groups_keep_what_is_shared_together() -> None:
    prompts = [tuple([n] * 20) for n in range(3)]
    rows = [(*prompts[n % 3], *[10 + n] * 10) for n in range(9)] + [(7, 8, 9), (5, 6)]
    groups, alone = shared_groups(rows, [len(r) for r in rows], 30)
    assert sorted(map(tuple, groups)) == [(0, 3, 6), (1, 4, 7), (2, 5, 8)] and alone == [9, 10]
    groups, alone = shared_groups(rows, [len(r) for r in rows], 10)  # 4 x 10 tokens: two answers
    assert sorted(map(len, groups)) == [2, 2, 2] and len(alone) == 5
    assert shared_groups([], [], 10) == ([], [])


@pytest.mark.parametrize("old_shared", [True, False])
def test_another_prompt_goes_on_in_the_tree_that_was_read(old_shared: bool) -> None:
    """The live teacher: hints after a shared prompt are read once for all answers to it."""
    model = adapted("llama", "all-linear")
    patch_modules(model.get_base_model())
    patch_lora_layers(model)
    dice = random.Random(1)
    prompt = tuple(dice.randrange(50) for _ in range(20))
    answers = [tuple(dice.randrange(50) for _ in range(6)) for _ in range(4)]
    old: list[Parts] = [*((prompt, a) for a in answers), ((3, 4), (5, 6))]
    new: list[Parts] = [*(((*prompt[:15], 7, 7, 7, 1), a) for a in answers), ((3, 4), (5, 6))]
    kept: attention_kernel.KeyValues = {}
    with torch.no_grad():
        batch = packed(old, share=old_shared)
        states = hidden_states(model, batch, kept)
        want = hidden_states(model, packed(new))
        read: list[int] = []
        hook = model.get_input_embeddings().register_forward_hook(lambda _, args, __: read.append(args[0].numel()))
        got = hidden_states_after(model, new, ReadBatch(old, states, kept, batch.paths))
        hook.remove()
    torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)
    assert read == [4 + 4 * 6] if old_shared else [4 * (4 + 6)]


def _phi(**more: Any) -> Any:
    torch.manual_seed(0)
    factors = {"rope_type": "longrope", "short_factor": [1.0, 1.1], "long_factor": [2.0, 3.0]}
    rope = {**factors, "original_max_position_embeddings": 12, "rope_theta": 10000.0}
    return Phi3ForCausalLM(Phi3Config(
        **{**SIZES, "vocab_size": 60}, max_position_embeddings=64, original_max_position_embeddings=12,
        pad_token_id=0, rope_parameters=rope, **more,
    )).double().eval()  # fmt: skip


def test_rotary_factors_that_depend_on_length_share_only_where_they_are_equal() -> None:
    model, prompt = _phi(), tuple(range(1, 9))
    for lengths, reason in (((2, 3, 4), False), ((9, 10, 12), False), ((2, 12, 3), True)):
        sequences: list[Parts] = [(prompt, tuple(range(20 + n, 20 + 2 * n))) for n in lengths]
        batch = packed(sequences, share=True)
        assert batch.prefixes and (why_not_shared(model, batch) is not None) == reason
        with torch.no_grad():
            torch.testing.assert_close(hidden_states(model, batch), hidden_states(model, packed(sequences)))


def test_a_model_with_sliding_windows_reads_every_sequence_whole() -> None:
    model = _phi(sliding_window=4)
    sequences: list[Parts] = [((1, 2, 3, 4, 5, 6), (n, n + 1, n + 2)) for n in (7, 20, 30)]
    batch = packed(sequences, share=True)
    assert batch.prefixes and "sliding windows" in (why_not_shared(model, batch) or "")
    assert not as_read(model, batch).prefixes
    with torch.no_grad():
        alone = torch.cat([hidden_states(model, packed([one])) for one in sequences])
        torch.testing.assert_close(hidden_states(model, batch), alone)


def test_torchs_own_attention_reads_the_same_segments() -> None:
    """The path of a GPU, on a CPU: segment by segment, each after the tokens that it goes on after."""
    from afterword.model import attention

    dice, (h, kv, d) = torch.Generator().manual_seed(0), (4, 2, 8)
    sizes, prefixes = (5, 3, 4), ((), ((0, 4),), ((0, 2), (5, 7)))
    q, k, v = (torch.randn(1, n, sum(sizes), d, generator=dice, dtype=torch.float64) for n in (h, kv, kv))
    row = attention._Row(sizes, (), None, None, prefixes)
    got = attention._by_segment(q, k, v, row, 0.3)
    layout = attention_kernel.AttentionLayout(sizes, 0.3, None, prefixes=prefixes)
    flat_q, flat_k, flat_v = (x[0].transpose(0, 1) for x in (q, k, v))
    want, _ = attention_kernel.forward(flat_q, flat_k, flat_v, layout)
    torch.testing.assert_close(got[0].transpose(0, 1), want)
