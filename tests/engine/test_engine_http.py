"""The engine's HTTP surface: shapes, refusals, adapters under traffic, clients that leave."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.conftest import Client, Peer, serve_tiny


async def chunks(client: Client, **fields: Any) -> list[Any]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": True, **fields}
    async with client.http.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200 and response.content_type == "text/event-stream"
        lines = [line async for line in response.content if line.strip()]
    assert all(line.startswith(b"data: ") for line in lines) and lines[-1] == b"data: [DONE]\n"
    return [json.loads(line[6:]) for line in lines[:-1]]


async def test_a_stream_says_what_the_whole_answer_says(client: Client) -> None:
    fields: dict[str, Any] = {
        "temperature": 1.0,
        "seed": 4,
        "max_tokens": 25,
        "logprobs": True,
        "return_token_ids": True,
    }
    whole = await client.ask(**{k: v for k, v in fields.items() if k != "return_token_ids"})
    parts = await chunks(client, **fields, stream_options={"include_usage": True})
    assert len({part["id"] for part in parts}) == 1
    first, *middle, usage = parts
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert first["prompt_token_ids"] == whole["prompt_token_ids"]
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]
    choices = [part["choices"][0] for part in middle]
    choice = whole["choices"][0]
    assert "".join(c["delta"]["content"] for c in choices) == choice["message"]["content"]
    assert [t for c in choices for t in c["token_ids"]] == choice["token_ids"]
    assert [e for c in choices for e in c["logprobs"]["content"]] == choice["logprobs"]["content"]
    assert [c["finish_reason"] for c in choices] == [None] * (len(choices) - 1) + [choice["finish_reason"]]


async def test_a_plain_stream_has_no_additions(client: Client) -> None:
    parts = await chunks(client, max_tokens=5)
    assert all("prompt_token_ids" not in part and "usage" not in part for part in parts)
    assert all("token_ids" not in part["choices"][0] for part in parts)


REFUSED: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"model": "other"}, 404, "'other' does not exist: use one of tiny", "model"),
    ({"model": 3}, 400, "not 3", "model"),
    ({"messages": []}, 400, "at least one message", "messages"),
    ({"messages": "hello"}, 400, "'hello'", "messages"),
    ({"messages": [{"content": "x"}]}, 400, "messages[0] must be an object with a role", "messages[0]"),
    ({"messages": [{"role": "user"}]}, 400, "messages[0].content must be text", "messages[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "must be a text part",
     "messages[0].content[0]"),
    ({"messages": [{"role": "robot", "content": "x"}]}, 400, "no robots", "messages"),
    ({"messages": [{"role": "user", "content": "x" * 600}]}, 400, "618 tokens long", "messages"),
    ({"n": 2}, 400, "n=2", "n"),
    ({"temperature": -1}, 400, "not -1", "temperature"),
    ({"temperature": "hot"}, 400, "'hot'", "temperature"),
    ({"temperature": True}, 400, "True", "temperature"),
    ({"top_p": 0}, 400, "not 0", "top_p"),
    ({"max_tokens": 0}, 400, "not 0", "max_tokens"),
    ({"max_completion_tokens": 1.5}, 400, "not 1.5", "max_completion_tokens"),
    ({"stop": [""]}, 400, "none empty", "stop"),
    ({"stop": 5}, 400, "not 5", "stop"),
    ({"seed": "x"}, 400, "'x'", "seed"),
    ({"top_logprobs": 21}, 400, "from 0 to 20", "top_logprobs"),
    ({"stream": "yes"}, 400, "'yes'", "stream"),
    ({"stream_options": "yes"}, 400, "'yes'", "stream_options"),
    ({"tools": {}}, 400, "tools must be", "tools"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "status", "words", "param"), REFUSED)
async def test_refusals_name_the_value(
    client: Client, fields: dict[str, Any], status: int, words: str, param: str | None
) -> None:
    got, body = await client.raw(**fields)
    assert got == status and words in body["error"]["message"] and body["error"]["param"] == param
    assert set(body["error"]) == {"message", "type", "param", "code"}


async def test_a_long_prompt_has_openais_code(client: Client) -> None:
    _, body = await client.raw("x" * 600)
    assert body["error"]["code"] == "context_length_exceeded" and "512 tokens" in body["error"]["message"]


@pytest.mark.parametrize("data", [b"{", b"[]", b"", b'"text"'])
async def test_bodies_that_are_no_request(client: Client, data: bytes) -> None:
    response = await client.http.post("/v1/chat/completions", data=data)
    assert response.status == 400 and "body" in (await response.json())["error"]["message"]


async def test_unknown_routes_have_the_one_error_shape(client: Client) -> None:
    response = await client.http.get("/v1/nothing")
    assert response.status == 404 and "GET /v1/nothing" in (await response.json())["error"]["message"]


async def test_unknown_fields_are_ignored_and_parts_are_joined(client: Client) -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    body = await client.ask("Hi", max_tokens=8)
    same = await client.ask(messages=[{"role": "user", "content": parts}], max_tokens=8, whatever=1)
    assert same["choices"] == body["choices"]


async def test_models_and_health(client: Client, tiny: Path, adapters: dict[str, Path]) -> None:
    await client.load("a@v1", adapters["one"])
    listed = await (await client.http.get("/v1/models")).json()
    base, adapter = listed["data"]
    assert (base["id"], base["root"], base["parent"], base["max_model_len"]) == ("tiny", str(tiny), None, 512)
    assert (adapter["id"], adapter["root"], adapter["parent"]) == ("a@v1", str(adapters["one"]), "tiny")
    assert await (await client.http.get("/v1/models/a@v1")).json() == adapter
    assert (await client.http.get("/v1/models/none")).status == 404
    await client.ids("Hi", 5, ignore_eos=True)
    health = await (await client.http.get("/health")).json()
    prompt = len(client.server.codec.render([{"role": "user", "content": "Hi"}], None))
    counts = {"running": 0, "waiting": 0, "tokens_generated": 5, "repetitions": 0}
    counts |= {"prompt_tokens_read": prompt, "prompt_tokens_reused": 0}
    assert health == {"status": "ok", "model": "tiny", **counts}


async def idle(client: Client) -> None:
    """Wait until nothing runs and nothing waits."""
    async with asyncio.timeout(20):
        while any(client.engine.counts()[k] for k in ("running", "waiting")):
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_its_row(client: Client, stream: bool) -> None:
    engine = client.engine
    ask = asyncio.create_task(client.raw(max_tokens=480, ignore_eos=True, stream=stream))
    async with asyncio.timeout(20):
        while engine.generated < 5:
            await asyncio.sleep(0.001)
    ask.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ask
    await idle(client)
    assert engine.generated < 470 and not client.server._queues


async def test_those_in_line_may_leave_too(tiny: Path, peer: Peer) -> None:
    plain = peer.greedy("Hi", 300)
    async with serve_tiny(tiny, max_batch=1) as client:
        first = asyncio.create_task(client.ids("Hi", 300, ignore_eos=True))
        second = asyncio.create_task(client.ids("Ho", 300))
        async with asyncio.timeout(20):
            while client.engine.counts()["waiting"] == 0:
                await asyncio.sleep(0.001)
        second.cancel()
        assert (await first)[: len(plain)] == plain
        await idle(client)
        assert client.engine.generated == 300


async def test_unloading_lets_running_answers_finish(client: Client, tiny: Path, adapters: dict[str, Path]) -> None:
    await client.load("a", adapters["one"])
    running = asyncio.create_task(client.ids("Hi", 300, model="a", ignore_eos=True))
    async with asyncio.timeout(20):
        while client.engine.generated < 3:
            await asyncio.sleep(0.001)
    assert await client.unload("a") == (200, "Success: LoRA adapter 'a' removed successfully.")
    assert (await client.raw(model="a"))[0] == 404
    assert (await client.load("a", adapters["two"]))[0] == 200  # the name is free again at once
    plain = Peer(tiny, adapters["one"]).greedy("Hi", 300)
    assert (await running)[: len(plain)] == plain
    plain = Peer(tiny, adapters["two"]).greedy("Hi", 20)
    assert await client.ids("Hi", 20, model="a") == plain
    assert len(client.engine._bank._adapters) == 1


async def test_loading_under_traffic_changes_no_running_answer(
    client: Client, peer: Peer, adapters: dict[str, Path]
) -> None:
    async def swap() -> int:
        done = 0
        while client.engine.counts()["running"]:
            assert (await client.load("a", adapters["one"]))[0] == 200
            assert (await client.unload("a"))[0] == 200
            done += 1
        return done

    answers = [asyncio.create_task(client.ids(text, 200, ignore_eos=True)) for text in ("Hi", "Ho")]
    async with asyncio.timeout(30):
        while not client.engine.counts()["running"]:
            await asyncio.sleep(0.001)
        assert await swap() > 0
    for answer, text in zip(await asyncio.gather(*answers), ("Hi", "Ho"), strict=True):
        plain = peer.greedy(text, 200)
        assert answer[: len(plain)] == plain


async def test_a_step_that_fails_ends_its_requests_and_not_the_server(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> torch.Tensor:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(client.runner, "forward", broken)
        patch.setattr(client.runner, "check", lambda: None)  # the model itself is well
        status, body = await client.raw()
        assert status == 500 and body["error"]["type"] == "server_error"
        assert (await client.raw(stream=True))[0] == 500
    assert len(await client.ids("Hi", 5, ignore_eos=True)) == 5


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_dead_model_thread_leaves_nobody_waiting(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise IndexError("a fault of ours")

    monkeypatch.setattr(client.engine, "_admit", broken)
    assert [(await client.raw())[0] for _ in range(2)] == [500, 500]
    assert (await client.http.get("/health")).status == 503


async def test_megabytes_of_prompt_are_refused_unread(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("encoded")

    # The core is a Rust object without settable methods: stand in for all of it.
    monkeypatch.setattr(client.server.codec, "_core", type("Core", (), {"encode": never})())
    status, body = await client.raw("word " * 150_000)
    assert status == 400 and body["error"]["code"] == "context_length_exceeded"
    assert "at least" in body["error"]["message"]


async def test_long_tools_are_written_beside_the_others_answers(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[bool] = []
    render = client.server.codec.render

    def told(*given: Any, **more: Any) -> list[int]:
        threads.append(threading.current_thread() is threading.main_thread())
        return render(*given, **more)

    monkeypatch.setattr(client.server.codec, "render", told)
    tools = [{"type": "function", "function": {"name": "f", "description": "x" * 10_000, "parameters": {}}}]
    await client.raw("Hi", max_tokens=1)
    await client.raw("Hi", max_tokens=1, tools=tools)
    assert threads == [True, False]


@pytest.mark.parametrize(
    "field",
    [
        {"response_format": {"type": "json_object"}}, {"typical_p": 0.5}, {"top_a": 0.1}, {"use_beam_search": True},
        {"best_of": 2}, {"xtc_probability": 0.2}, {"dry_multiplier": 0.8}, {"tool_choice": "required"},
        {"guided_json": {"type": "object"}},
    ],
)  # fmt: skip
async def test_what_it_does_not_have_is_refused_by_name(client: Client, field: dict[str, Any]) -> None:
    status, body = await client.raw(max_tokens=2, **field)
    assert status == 400 and body["error"]["param"] == next(iter(field)) and "vLLM" in body["error"]["message"]


async def test_what_asks_for_nothing_is_accepted(client: Client) -> None:
    fields: dict[str, Any] = {
        "response_format": {"type": "text"}, "frequency_penalty": 0.0, "presence_penalty": 0, "top_k": -1,
        "logit_bias": {}, "tool_choice": "none", "min_p": None,
    }  # fmt: skip
    assert (await client.ask(max_tokens=2, ignore_eos=True, **fields))["usage"]["completion_tokens"] == 2


async def test_a_temperature_near_zero_is_greedy(client: Client) -> None:
    zero, tiny, small = [await client.ids("Hi", 12, temperature=t, seed=5) for t in (0.0, 1e-40, 1e-6)]
    assert zero == tiny == small
    assert len(await client.ids("Hi", 12, temperature=1e-4, seed=5, ignore_eos=True)) == 12
