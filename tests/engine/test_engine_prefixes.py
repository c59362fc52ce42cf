"""Turns of a conversation reuse the keys of its beginning, and answer with the same bits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tests.engine.conftest import Client, serve_tiny, write_adapter, write_tiny

from afterword.model.embedded import embedded_model
from afterword.model.generation.cached_attention import rows_agree
from afterword.model.generation.kv_cache import KeyValues
from afterword.model.generation.prefix_cache import PAGE, PrefixCache

BYTES = 64 << 20
ASKED: dict[str, Any] = {"temperature": 0.9, "seed": 4, "max_tokens": 8, "ignore_eos": True, "logprobs": True}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 16 numbers; torch's float32 attention of 8 has bits that depend on the number of queries."""
    return write_tiny(tmp_path_factory.mktemp("wide"), hidden=64)


@pytest.fixture(scope="module")
def loras(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("loras")
    return {name: write_adapter(wide, root / name, seed) for seed, name in enumerate(("one", "two"), 1)}


@pytest.fixture
async def client(wide: Path) -> AsyncIterator[Client]:
    async with serve_tiny(wide) as it:
        yield it


@pytest.fixture
async def reusing(wide: Path) -> AsyncIterator[Client]:
    async with serve_tiny(wide, prefix_bytes=BYTES) as it:
        yield it


async def conversation(client: Client, model: str = "tiny", turns: int = 6) -> list[Any]:
    """What each turn of a conversation says, with its ids and log-probabilities."""
    messages: list[dict[str, str]] = [{"role": "system", "content": "x" * 70}]
    said = []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"observation {turn} " + "abc " * (turn + 3)})
        body = {"model": model, "messages": messages, "return_token_ids": True, **ASKED}
        answer = await (await client.http.post("/v1/chat/completions", json=body)).json()
        choice = answer["choices"][0]
        said.append((choice["token_ids"], [one["logprob"] for one in choice["logprobs"]["content"]]))
        messages.append({"role": "assistant", "content": "ok"})
    return said


async def test_turns_read_only_what_is_new_and_say_the_same(client: Client, reusing: Client) -> None:
    without, with_reuse = await conversation(client), await conversation(reusing)
    assert with_reuse == without, "ids and log-probabilities, bit for bit"
    read, reused = (client.engine.read, client.engine.reused), (reusing.engine.read, reusing.engine.reused)
    assert reused[0] + reused[1] == read[0] and read[1] == 0
    assert reused[0] < 0.45 * read[0], "a prompt of six turns is read once, not six times"


async def test_conversations_at_once_and_of_adapters_share_nothing_wrong(
    client: Client, reusing: Client, loras: dict[str, Path]
) -> None:
    for one in (client, reusing):
        for name, path in loras.items():
            assert (await one.load(name, path))[0] == 200
    names = ["tiny", "one", "two", "one"]
    want = [await conversation(client, name, 3) for name in names]
    assert want[0] != want[1] != want[2]
    for _ in range(2):
        assert [await conversation(reusing, name, 3) for name in names] == want
    got = await asyncio.gather(*(conversation(reusing, name, 3) for name in names))
    for ours, theirs in zip(got, want, strict=True):  # float32 products of a tiny model depend on the batch
        assert [ids for ids, _ in ours] == [ids for ids, _ in theirs]
        assert [values for _, values in ours] == [pytest.approx(values, abs=1e-4) for _, values in theirs]
    pages = len(reusing.engine.prefixes or ())
    assert (await reusing.unload("one"))[0] == 200
    for _ in range(500):  # between two steps
        if len(reusing.engine.prefixes or ()) < pages:
            break
        await asyncio.sleep(0.01)
    assert 0 < len(reusing.engine.prefixes or ()) < pages, "an adapter that is unloaded takes its pages along"
    assert await conversation(reusing, "tiny", 3) == want[0]


async def test_an_old_turn_that_is_asked_again_and_an_edited_one(client: Client, reusing: Client) -> None:
    for text in ("y" * 200, "y" * 100 + "z" * 100, "y" * 200, "y" * 64, "y" * 300):
        assert await reusing.ask(text, **ASKED) | {"id": 0, "created": 0} == await client.ask(text, **ASKED) | {
            "id": 0, "created": 0
        }  # fmt: skip
    assert reusing.engine.reused > 3 * PAGE


async def test_memory_is_bounded(wide: Path, client: Client) -> None:
    per_page = 2 * 2 * 2 * 16 * 4 * PAGE
    async with serve_tiny(wide, prefix_bytes=7 * per_page) as few:
        assert await conversation(few) == await conversation(client)
        assert len(few.engine.prefixes or ()) == 7


async def test_no_keys_are_kept_unless_asked_for(client: Client) -> None:
    await conversation(client, turns=2)
    assert client.engine.prefixes is None


def test_the_page_used_longest_ago_goes_first_and_never_one_that_others_follow() -> None:
    rows = KeyValues([(1, 2, 2)], torch.float32, torch.device("cpu"), 4096)
    rows.reserve(1, 512)
    cache = PrefixCache(rows, 4 * PAGE * 4 * 4)
    shared, left, right = list(range(PAGE)), [1] * PAGE, [2] * PAGE
    cache.keep(None, shared + left + left, 0)
    cache.keep(None, shared + right, 0)
    assert (len(cache), cache.fetch(None, shared + left + left, 0)) == (4, 3 * PAGE)
    cache.keep(None, shared + right + right, 0)
    assert len(cache) == 4
    assert cache.fetch(None, shared + left + left, 0) == 2 * PAGE, "the last page of the older one is gone"
    assert cache.fetch(None, shared + right + right, 0) == 3 * PAGE
    cache.keep("other", shared, 0)
    assert cache.fetch(object(), shared, 0) == 0
    cache.drop(None)
    assert (len(cache), cache.fetch(None, shared, 0)) == (1, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_attention_of_a_part_of_a_block_has_the_bits_of_the_whole(dtype: torch.dtype) -> None:
    """The built-in model's shapes. A torch or CPU for which this is false reuses nothing, which costs time alone."""
    assert rows_agree(9, 3, 64, 64, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
async def test_the_built_in_model_says_the_same_bits_in_eight_turns(
    dtype: Literal["bfloat16", "float32"],
) -> None:
    """One after another."""

    async def talk(client: Client, number: int) -> list[Any]:
        messages = [{"role": "system", "content": f"You are agent {number}. " + "Answer in one word. " * 9}]
        said = []
        for turn in range(8):
            messages.append(
                {"role": "user", "content": f"Tool {turn} printed: " + "line of output, " * (5 * number + turn)}
            )
            body = {"model": "tiny", "messages": messages, "return_token_ids": True, **ASKED}
            answer = await (await client.http.post("/v1/chat/completions", json=body)).json()
            choice = answer["choices"][0]
            said.append((choice["token_ids"], [one["logprob"] for one in choice["logprobs"]["content"]]))
            messages.append({"role": "assistant", "content": choice["message"]["content"]})
        return said

    async with serve_tiny(embedded_model(), dtype=dtype) as plain:
        want = [await talk(plain, number) for number in (1, 2)]
    async with serve_tiny(embedded_model(), dtype=dtype, prefix_bytes=BYTES) as reusing:
        assert [await talk(reusing, number) for number in (1, 2)] == want
        assert reusing.engine.reused > 2 * reusing.engine.read
