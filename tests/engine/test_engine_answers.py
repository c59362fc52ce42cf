"""What the engine says is what the plain model says, whoever else is in the batch."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.engine.conftest import Client, Peer, serve_tiny, write_tiny

from afterword.errors import ModelError
from afterword.learn.diagnostics import log_probs
from afterword.model.generation.runner import Runner
from afterword.model.head import head_of
from afterword.sharing import Phase, engines, phase_of

TEXTS = ["Hi", "A somewhat longer question about rivers?", "x" * 150, "Tell me.", "Why 12 and not 13?"]


async def test_greedy_answers_of_a_batch_equal_generate(client: Client, peer: Peer) -> None:
    got = await asyncio.gather(*(client.ids(text, 40) for text in TEXTS))
    assert got == [peer.greedy(text, 40) for text in TEXTS]


async def test_requests_that_join_midway_change_nothing(client: Client, peer: Peer) -> None:
    async def later(text: str, tokens: int) -> list[int]:
        while client.engine.generated < tokens:
            await asyncio.sleep(0.001)
        return await client.ids(text, 60)

    got = await asyncio.gather(*(later(text, 7 * i) for i, text in enumerate(TEXTS)))
    assert got == [peer.greedy(text, 60) for text in TEXTS]


async def test_a_long_prompt_does_not_hold_up_a_short_question(tiny: Path, peer: Peer) -> None:
    """Steps that read 16 tokens of prompts: of a long and a short one that come together the short one ends first."""
    ended: list[str] = []

    async def ask(client: Client, name: str, text: str) -> list[int]:
        ids = await client.ids(text, 8, ignore_eos=True)
        ended.append(name)
        return ids

    async with serve_tiny(tiny, chunk=16) as client:
        long, short = await asyncio.gather(ask(client, "long", "x" * 400), ask(client, "short", "Hi"))
    assert ended == ["short", "long"]
    assert long[:1] == peer.greedy("x" * 400, 1) and short[:1] == peer.greedy("Hi", 1)


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param({"chunk": 16}, id="prompts read in chunks"),
        pytest.param({"max_batch": 2}, id="three wait in line"),
        pytest.param({"cache_tokens": 600}, id="cache too small for all"),
    ],
)
async def test_limits_change_nothing(tiny: Path, peer: Peer, limits: dict[str, int]) -> None:
    async with serve_tiny(tiny, **limits) as client:
        got = await asyncio.gather(*(client.ids(text, 120, ignore_eos=True) for text in TEXTS))
        alone = [await client.ids(text, 120, ignore_eos=True) for text in TEXTS]
    assert got == alone
    for ids, text in zip(got, TEXTS, strict=True):
        plain = peer.greedy(text, 120)
        assert ids[: len(plain)] == plain


async def test_adapters_mixed_in_one_batch_equal_peft(client: Client, tiny: Path, adapters: dict[str, Path]) -> None:
    for name, path in adapters.items():
        assert (await client.load(name, path))[0] == 200
    names = ["tiny", *adapters] * 2
    got = await asyncio.gather(
        *(client.ids(text, 30, model=name) for name, text in zip(names, [*TEXTS, "?"], strict=True))
    )
    peers = {name: Peer(tiny, adapters.get(name)) for name in set(names)}
    want = [peers[name].greedy(text, 30) for name, text in zip(names, [*TEXTS, "?"], strict=True)]
    assert got == want
    assert peers["tiny"].greedy("Hi", 30) != peers["one"].greedy("Hi", 30)
    assert peers["tiny"].greedy("Hi", 30) != peers["two"].greedy("Hi", 30)


async def test_logprobs_are_those_of_a_plain_pass(client: Client, peer: Peer) -> None:
    bodies = await asyncio.gather(
        *(client.ask(t, max_tokens=30, temperature=0.7, top_p=0.9, seed=3, logprobs=True) for t in TEXTS)
    )
    for text, body in zip(TEXTS, bodies, strict=True):
        choice = body["choices"][0]
        assert body["prompt_token_ids"] == peer.prompt(text)
        entries = choice["logprobs"]["content"]
        assert len(entries) == len(choice["token_ids"])
        want = peer.logprobs(body["prompt_token_ids"], choice["token_ids"])
        assert [e["logprob"] for e in entries] == pytest.approx(want, abs=2e-4)


async def test_top_logprobs_start_with_the_greedy_token(client: Client) -> None:
    body = await client.ask(max_tokens=5, logprobs=True, top_logprobs=3)
    for entry in body["choices"][0]["logprobs"]["content"]:
        assert len(entry["top_logprobs"]) == 3
        assert entry["top_logprobs"][0]["logprob"] == pytest.approx(entry["logprob"])
        assert entry["bytes"] == list(entry["token"].encode())


async def test_a_seed_repeats_an_answer_and_another_does_not(client: Client) -> None:
    def settings(seed: int) -> dict[str, float]:
        return {"temperature": 1.0, "seed": seed, "ignore_eos": True}

    first, again, other = [await client.ids("Hi", 30, **settings(s)) for s in (5, 5, 6)]
    assert first == again != other
    crowd = await asyncio.gather(*(client.ids("Hi", 30, **settings(s)) for s in (5, 6, 7)))
    assert crowd[:2] == [first, other]


async def test_the_end_token_ends_unless_ignored_or_too_early(client: Client, peer: Peer) -> None:
    async def hot(**fields: object) -> tuple[list[int], str]:
        body = await client.ask("Hi", temperature=2.0, seed=9, max_tokens=400, **fields)
        return body["choices"][0]["token_ids"], body["choices"][0]["finish_reason"]

    ids, finish = await hot()
    assert finish == "stop" and ids[-1] == 1 and 1 not in ids[:-1]
    ids, finish = await hot(ignore_eos=True)
    assert (len(ids), finish) == (400, "length") and 1 in ids
    ids, finish = await hot(min_tokens=399)
    assert 1 not in ids[:399]


async def test_stop_string_cuts_the_text_and_keeps_the_token(client: Client) -> None:
    whole = await client.ask(max_tokens=40)
    text, ids = whole["choices"][0]["message"]["content"], whole["choices"][0]["token_ids"]
    stop = next(letter for letter in text[2:] if letter.isascii() and letter not in text[:2])
    body = await client.ask(max_tokens=40, stop=["never there", stop])
    choice = body["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == text[: text.index(stop)]
    assert choice["token_ids"] == ids[: len(choice["token_ids"])]
    assert stop in client.server.codec.decode(choice["token_ids"])
    assert stop not in client.server.codec.decode(choice["token_ids"][:-1])
    assert body["usage"]["completion_tokens"] == len(choice["token_ids"])


async def test_max_tokens_is_clipped_to_the_context(client: Client) -> None:
    body = await client.ask("x" * 480, max_tokens=5000, ignore_eos=True)
    assert body["usage"]["total_tokens"] == 512
    assert body["choices"][0]["finish_reason"] == "length"


SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        transformers.Gemma2Config(**SMALL, head_dim=8, attn_logit_softcapping=2.0, sliding_window=8),
        transformers.GptOssConfig(**SMALL, head_dim=8, num_local_experts=2, num_experts_per_tok=1),
        transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=256),
        transformers.Qwen2Config(**SMALL),
        transformers.Qwen3Config(**SMALL, head_dim=8),
        transformers.MistralConfig(**SMALL, sliding_window=6),
        transformers.GemmaConfig(**SMALL, head_dim=8),
        transformers.Phi3Config(**SMALL),
    ],
    ids=lambda config: str(config.model_type),
)
def test_other_architectures_pass_the_engines_own_check(config: transformers.PretrainedConfig) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    runner = Runner(model, ends=frozenset([1]))
    assert runner.max_model_len == 256 and runner.lines


def test_an_architecture_that_it_would_run_wrongly_is_refused() -> None:
    config = transformers.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ModelError):
        Runner(model, ends=frozenset([1]))


async def test_a_sequence_that_grows_over_the_switch_of_longrope_equals_a_plain_pass(tmp_path: Path) -> None:
    """Short, long and crossing answers side by side; prompts are read in chunks that end before the switch."""
    folder = write_tiny(tmp_path / "phi")
    factors = [1.0 + 0.1 * i for i in range(4)], [4.0 + 3.0 * i for i in range(4)]
    config = transformers.Phi3Config(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, original_max_position_embeddings=96, initializer_range=0.3,
        rope_scaling={"type": "longrope", "short_factor": factors[0], "long_factor": factors[1]},
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    peer = Peer(folder)
    async with serve_tiny(folder, chunk=32) as client:
        bodies = await asyncio.gather(
            *(client.ask(t, max_tokens=60, temperature=1.0, seed=3, logprobs=True, ignore_eos=True) for t in TEXTS)
        )
    crossed = 0
    for text, body in zip(TEXTS, bodies, strict=True):
        prompt, choice = peer.prompt(text), body["choices"][0]
        crossed += len(prompt) <= 96 < len(prompt) + 60
        given = [entry["logprob"] for entry in choice["logprobs"]["content"]]
        # Each token as it was drawn: by a pass over what stood before it.
        for n, token in enumerate(choice["token_ids"]):
            with torch.no_grad():
                logits = peer.model(input_ids=torch.tensor([[*prompt, *choice["token_ids"][:n]]])).logits[0, -1]
            assert given[n] == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-3)
    assert crossed
    check_scores(peer, bodies)


def check_scores(peer: Peer, bodies: list[dict[str, Any]]) -> None:
    """Training scores each token as it was drawn, all answers in one row."""
    pairs = [(body["prompt_token_ids"], body["choices"][0]["token_ids"]) for body in bodies]
    with torch.no_grad():
        scored = log_probs(peer.model, head_of(peer.model), pairs)
    for body, got in zip(bodies, scored, strict=True):
        given = [entry["logprob"] for entry in body["choices"][0]["logprobs"]["content"]]
        assert got.tolist() == pytest.approx(given, abs=1e-3)


async def test_dynamic_scaling_is_served_as_it_is_trained_up_to_the_context(tmp_path: Path) -> None:
    """transformers changes these factors beyond `max_position_embeddings`; no prompt and no answer goes there."""
    folder = write_tiny(tmp_path / "dynamic")
    config = transformers.LlamaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, initializer_range=0.3, bos_token_id=0, eos_token_id=1,
        pad_token_id=2, rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    peer = Peer(folder)
    with torch.no_grad():
        plain = peer.model(input_ids=torch.tensor([[5] * 60])).logits
        peer.model(input_ids=torch.tensor([[5] * 200]))  # the module keeps these factors
        assert torch.equal(peer.model(input_ids=torch.tensor([[5] * 60])).logits, plain)
    async with serve_tiny(folder, chunk=32) as client:
        bodies = await asyncio.gather(
            *(client.ask(t, max_tokens=90, temperature=1.0, seed=3, logprobs=True, ignore_eos=True)
              for t in ("Hi", "Tell me."))
        )  # fmt: skip
        status, _ = await client.raw("x" * 150)
    assert status == 400 and {body["usage"]["total_tokens"] for body in bodies} == {96}
    check_scores(peer, bodies)


async def test_other_processes_see_when_it_computes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFTERWORD_RUN_DIR", str(tmp_path / "run"))
    seen: list[Phase] = []
    async with serve_tiny(tiny) as client:
        (signal,) = engines()
        working = client.engine._working

        def noted(phase: Phase) -> None:
            working(phase)
            seen.append(phase_of([signal]))

        client.engine._working = noted
        await client.ids("Hi", 4)
        while len(seen) < 5 or seen[-1]:  # the last answer leaves before the step's end is told
            await asyncio.sleep(0.01)
        assert seen[:4] == [Phase.READING] + [Phase.WRITING] * 3
        assert phase_of([signal]) == Phase.IDLE
    assert engines() == [], "the signal ends with the engine"
