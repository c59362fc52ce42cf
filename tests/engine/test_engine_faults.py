"""One request cannot end the service: faults of a step, tokens without an embedding, and text of every kind."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engine.conftest import Client, serve_tiny
from transformers import StableLmConfig, StableLmForCausalLM

from afterword.errors import ModelError
from afterword.model.generation.engine import ModelBroken
from afterword.model.generation.runner import Runner

LONG = {"max_tokens": 60, "ignore_eos": True}


@pytest.fixture(scope="module")
def added(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with two tokens in its tokenizer that it has no embedding for."""
    folder = tmp_path_factory.mktemp("added") / "tiny"
    shutil.copytree(tiny, folder)
    data = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    known = len(data["model"]["vocab"])
    for number, text in enumerate(("<image>", "plain-added")):
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": number == 0}
        data["added_tokens"].append({"id": known + number, "content": text, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(data), "utf-8")
    return folder


@pytest.fixture
async def odd(added: Path) -> AsyncIterator[Client]:
    async with serve_tiny(added) as it:
        yield it


async def test_a_token_without_an_embedding_is_named_at_the_door(odd: Client) -> None:
    alone = await odd.ids("Tell me", 60, ignore_eos=True)
    other = asyncio.create_task(odd.ids("Tell me", 60, ignore_eos=True))
    await asyncio.sleep(0)
    status, body = await odd.raw("What is plain-added here?")
    assert status == 400, body
    error = body["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "messages", "invalid_token")
    assert "'plain-added'" in error["message"] and "embeddings for 259 tokens" in error["message"]
    assert await other == alone
    assert (await odd.raw("Hello"))[0] == 200


async def test_a_request_that_breaks_a_step_ends_alone(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = ["first", "second", "third"]
    alone = [await client.ids(text, 60, ignore_eos=True) for text in prompts]
    poison = client.server.codec.render([{"role": "user", "content": "poison"}], None)
    forward = client.runner.forward

    def failing(ids: list[int], *rest: Any) -> Any:
        text = " ".join(map(str, ids))
        if " ".join(map(str, poison[2:-2])) in text:
            raise IndexError("index out of range in self")
        return forward(ids, *rest)

    monkeypatch.setattr(client.runner, "forward", failing)
    others = [asyncio.create_task(client.ids(text, 60, ignore_eos=True)) for text in prompts]
    bad = [asyncio.create_task(client.raw("poison", **LONG)) for _ in range(2)]
    assert [status for status, _ in await asyncio.gather(*bad)] == [500, 500]
    assert await asyncio.gather(*others) == alone
    assert client.engine.alive and (await client.raw("again"))[0] == 200


async def test_a_batch_that_finds_no_memory_goes_on_one_by_one(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    fields: dict[str, Any] = {"temperature": 1.0, "seed": 5, "ignore_eos": True}
    alone = [await client.ids(text, 30, **fields) for text in ("one", "two", "three")]
    choose, failed = client.engine._choose, []

    def failing(ready: list[Any], logits: Any) -> Any:
        chosen = choose(ready, logits)  # the draws are made; then there is no memory
        if len(ready) > 1:
            failed.append(len(ready))
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return chosen

    monkeypatch.setattr(client.engine, "_choose", failing)
    answers = await asyncio.gather(*(client.ids(text, 30, **fields) for text in ("one", "two", "three")))
    assert answers == alone and failed, "what a repeated step draws is what the first one drew"


async def test_text_that_cannot_be_made_ends_its_request_alone(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = await client.ids("mine", 20, ignore_eos=True)
    advance = client.engine._advance

    def failing(request: Any, piece: Any) -> Any:
        if request.ask.stop == ("x-fails",):
            raise ValueError("no text")
        return advance(request, piece)

    monkeypatch.setattr(client.engine, "_advance", failing)
    mine = asyncio.create_task(client.ids("mine", 20, ignore_eos=True))
    assert (await client.raw("other", stop="x-fails"))[0] == 500
    assert await mine == alone


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_model_that_no_longer_computes_ends_the_engine(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons: list[str] = []
    async with serve_tiny(tiny) as client:

        def broken(*_: Any) -> Any:
            raise RuntimeError("CUDA error: device-side assert triggered")

        monkeypatch.setattr(client.runner, "forward", broken)
        monkeypatch.setattr(client.engine, "_check_model", _noting(client.engine._check_model, reasons))
        assert (await client.raw("Hi"))[0] == 500
        async with asyncio.timeout(20):
            while client.engine.alive:
                await asyncio.sleep(0.01)
        assert (await client.raw("Hi"))[0] == 500
        assert (await client.http.get("/health")).status == 503
    assert "device-side assert" in reasons[0]


def _noting(check: Any, reasons: list[str]) -> Any:
    def noted() -> None:
        try:
            check()
        except ModelBroken as error:
            reasons.append(str(error))
            raise

    return noted


async def test_stop_strings_are_bounded(client: Client) -> None:
    for stop in (["a"] * 65, ["b" * 1001]):
        status, body = await client.raw("Hi", stop=stop)
        assert status == 400 and body["error"]["param"] == "stop"
    assert (await client.raw("Hi", stop=["a"] * 64, max_tokens=2))[0] == 200


SPECIAL = st.sampled_from(
    ["<s>", "<e>", "<pad>", "<image>", "plain-added", "<|im_start|>", "</s>", "\x00", "\ufffd", "\u202e", "\ud800",
     "\udfff\ud800", "\U0010ffff", "\r\n", "{{ 1/0 }}", "{% raw %}"]
)  # fmt: skip
TEXT = st.lists(
    st.one_of(SPECIAL, st.text(max_size=20), st.text(min_size=1, max_size=1).map(lambda c: c * 300)), max_size=6
)


async def test_no_text_stops_the_server_or_changes_what_others_get(odd: Client) -> None:
    alone = await odd.ids("steady", 40, ignore_eos=True)

    async def send(text: str, role: str) -> int:
        body = {"model": "tiny", "messages": [{"role": role, "content": text}], "max_tokens": 4}
        async with odd.http.post(
            "/v1/chat/completions",
            data=io.BytesIO(json.dumps(body).encode()),
            headers={"Content-Type": "application/json"},
        ) as response:
            answer = await response.json()
            assert response.status == 200 or set(answer["error"]) == {"message", "type", "param", "code"}
            return response.status

    drawn: list[tuple[str, str]] = []

    @settings(max_examples=120, database=None, suppress_health_check=list(HealthCheck))
    @given(TEXT, st.sampled_from(["user", "system", "assistant", "tool", "robot"]))
    def draw(parts: list[str], role: str) -> None:
        drawn.append(("".join(parts), role))

    draw()
    drawn.append(("x" * 3_000_000, "user"))
    for start in range(0, len(drawn), 20):
        steady = asyncio.create_task(odd.ids("steady", 40, ignore_eos=True))
        statuses = await asyncio.gather(*(send(*each) for each in drawn[start : start + 20]))
        assert set(statuses) <= {200, 400}, statuses
        assert await steady == alone
    assert odd.engine.alive


def test_blocks_that_torch_keeps_count_as_free_for_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """After training steps torch keeps most of a GPU's memory, and nothing was left for fresh answers."""
    runner = Runner.__new__(Runner)
    runner.device = torch.device("cuda")
    free = [0]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.append(1000))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[-1], 1000))
    assert runner._cache_bytes() == 700


def test_a_model_that_drops_the_engines_plan_is_refused_with_a_remedy() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = StableLmForCausalLM(StableLmConfig(vocab_size=128, num_key_value_heads=2, **sizes)).eval()
    with pytest.raises(ModelError, match=r"StableLmAttention does not pass.*use --upstream"):
        Runner(model, ends=frozenset({0}))
