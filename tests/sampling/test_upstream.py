"""The client of model servers: which tokens, which model, and what went wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.gateway.fake_upstream import Fake, fake_upstream

from afterword.errors import UpstreamError
from afterword.sampling import Answer, Timeouts, Upstream, UpstreamRejected, complete_all
from afterword.sampling.stream import read_answer, read_logprobs

BODY = {"model": "base-model", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def fake() -> Iterator[Fake]:
    with fake_upstream(Fake()) as running:
        yield running


def test_many_answers_in_order_with_their_tokens(fake: Fake) -> None:
    done: list[int] = []
    fake.adapters["a@v1"] = "somewhere"
    requests = [{**BODY, "model": ("base-model", "a@v1")[i % 2]} for i in range(7)]
    answers = complete_all(fake.url + "/v1/", requests, concurrency=3, on_answer=done.append)
    assert [a.model for a in answers] == [r["model"] for r in requests] and sorted(done) == list(range(7))
    assert answers[0] == Answer(
        text="The sky is blue.",
        prompt_ids=(1, 2, 3),
        completion_ids=(100, 101, 102, 103, 104, 2),
        logprobs=(-0.5,) * 6,
        finish_reason="stop",
        model="base-model",
        message={"role": "assistant", "content": "The sky is blue."},
    )


async def test_the_dialect_is_learned(fake: Fake) -> None:
    async with Upstream(fake.url) as upstream:
        known = [upstream.gives_ids]
        await upstream.chat(BODY)
        known.append(upstream.gives_ids)
        assert known == [None, True]
        fake.reject = (400, {"error": {"message": "too long"}})
        with pytest.raises(UpstreamRejected, match="too long"):
            await upstream.chat(BODY)
        assert len(fake.requests) == 3 and not {"return_token_ids", "logprobs"} & fake.requests[-1].keys()
        assert upstream.gives_ids is True, "the refusal was about the body"


async def test_a_plain_server_is_asked_once(fake: Fake) -> None:
    fake.native = False
    async with Upstream(fake.url) as upstream:
        (answer,) = await upstream.complete_many([BODY])
        assert upstream.gives_ids is False
        assert answer.text == "The sky is blue." and answer.prompt_ids is None and answer.logprobs is None
        await upstream.chat(BODY)
        assert len(fake.requests) == 3


async def chunks_of(upstream: Upstream) -> list[dict[str, Any]]:
    """The parsed chunks of one streamed answer."""
    stream = await upstream.open_chat(BODY | {"stream": True})
    try:
        return [event async for event in stream.events()]
    finally:
        stream.close()


async def test_streams_are_parsed(fake: Fake) -> None:
    async with Upstream(fake.url, "sk-x") as upstream:
        chunks = await chunks_of(upstream)
        upstream.saw_ids(chunks[0], "base-model")
        assert upstream.gives_ids and chunks[0]["prompt_token_ids"] == [1, 2, 3]
        assert chunks[-1]["usage"]["completion_tokens"] == 6
    assert fake.authorization == ["Bearer sk-x"]


async def test_a_stream_without_an_end_mark_ends(fake: Fake) -> None:
    fake.end_after = 2
    async with Upstream(fake.url) as upstream:
        assert len(await chunks_of(upstream)) == 2


async def test_what_can_go_wrong(fake: Fake) -> None:
    async with Upstream(fake.url, timeouts=Timeouts(silence=0.2)) as upstream:
        fake.delay = 3.0
        with pytest.raises(UpstreamError, match=r"sent nothing for 0\.2 s") as slow:
            await upstream.chat(BODY)
        assert slow.value.timed_out and slow.value.http_status == 504
        fake.delay = 0.0
        fake.cut_after = 1
        with pytest.raises(UpstreamError, match="cut the stream"):
            await chunks_of(upstream)
        fake.raw = b"<html>"
        with pytest.raises(UpstreamError, match="invalid JSON"):
            await upstream.chat(BODY)
        fake.raw = b"[1]"
        assert await upstream.chat(BODY) == {}
        fake.raw, fake.reject = None, (418, {"detail": "teapot"})
        with pytest.raises(UpstreamRejected, match="418"):
            await upstream.chat(BODY)


async def test_a_server_that_is_not_there() -> None:
    with fake_upstream(Fake()) as gone:
        pass
    async with Upstream(gone.url) as upstream:
        for call in (upstream.chat(BODY), upstream.models(), upstream.health()):
            with pytest.raises(UpstreamError, match="cannot be reached") as caught:
                await call
            assert caught.value.http_status == 502


async def test_a_connection_that_nobody_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stuck(*_: Any, **__: Any) -> None:
        raise aiohttp.ConnectionTimeoutError

    async with Upstream("http://127.0.0.1:9") as upstream:
        monkeypatch.setattr(upstream._open(), "request", stuck)
        with pytest.raises(UpstreamError, match="accepted no connection within 5 s"):
            await upstream.chat(BODY)


async def test_a_connection_that_was_closed_meanwhile_is_replaced(monkeypatch: pytest.MonkeyPatch, fake: Fake) -> None:
    async with Upstream(fake.url) as upstream:
        session = upstream._open()
        real = session.request
        faults: list[Exception] = [aiohttp.ServerDisconnectedError(), aiohttp.ClientOSError("closing")]

        async def once(*given: Any, **more: Any) -> Any:
            if len(faults) % 2 == 0:
                raise faults.pop()
            faults.append(aiohttp.ServerDisconnectedError())
            return await real(*given, **more)

        monkeypatch.setattr(session, "request", once)
        assert (await upstream.chat(BODY))["model"] == "base-model"
        assert [card["id"] for card in await upstream.models()] == ["base-model"]


async def test_a_request_that_a_new_connection_lost_is_not_sent_again() -> None:
    """The server had it: what it did with it nobody knows."""
    came = 0

    async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        await reader.readuntil(b"\r\n\r\n")
        came += 1
        writer.close()

    server = await asyncio.start_server(drop, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, Upstream(url) as upstream:
        with pytest.raises(UpstreamError, match="cannot be reached"):
            await upstream.chat(BODY)
        assert came == 1


async def test_the_first_error_stops_the_rest(fake: Fake) -> None:
    fake.reject = (500, {"error": "boom"})
    async with Upstream(fake.url) as upstream:
        with pytest.raises(UpstreamRejected, match="boom"):
            await upstream.complete_many([BODY] * 50, concurrency=2)
    assert len(fake.requests) < 50


async def test_adapters_and_models(fake: Fake) -> None:
    async with Upstream(fake.url) as upstream:
        await upstream.load_adapter("a@v1", "/somewhere")
        await upstream.load_adapter("a@v1", "/somewhere")
        assert [card["id"] for card in await upstream.models()] == ["base-model", "a@v1"]
        await upstream.unload_adapter("a@v1")
        await upstream.unload_adapter("a@v1")
        fake.load_error = "corrupt"
        with pytest.raises(UpstreamError, match=r"a@v2 could not be loaded from /x: .*corrupt"):
            await upstream.load_adapter("a@v2", "/x")


async def test_health(fake: Fake) -> None:
    async with Upstream(fake.url) as upstream:
        await upstream.health()
        fake.health_status = 404
        await upstream.health()
        fake.health_status = 500
        with pytest.raises(UpstreamRejected):
            await upstream.health()


async def test_errors_of_any_shape_and_a_slow_control_request() -> None:
    body, delay = b"plain words", 0.0

    async def serve(request: web.Request) -> web.Response:
        await asyncio.sleep(delay)
        return web.Response(status=500, body=body)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with Upstream(f"http://127.0.0.1:{runner.addresses[0][1]}", timeouts=Timeouts(control=0.2)) as upstream:
        with pytest.raises(UpstreamRejected, match="plain words"):
            await upstream.unload_adapter("x")
        body = b""
        with pytest.raises(UpstreamRejected, match=r"\(no text\)"):
            await upstream.chat(BODY)
        delay = 1.0
        with pytest.raises(UpstreamError, match=r"sent nothing for 0\.2 s"):
            await upstream.models()
    await runner.cleanup()


async def test_models_that_are_no_models(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Upstream(fake.url) as upstream:

        async def control(*_: Any) -> bytes:
            return b'{"models": []}'

        monkeypatch.setattr(upstream, "_control", control)
        with pytest.raises(UpstreamError, match="invalid list"):
            await upstream.models()


def test_an_answer_of_another_shape() -> None:
    with pytest.raises(UpstreamError, match="not a chat completion"):
        read_answer({"choices": []})
    message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": []}
    choice = {"message": message, "token_ids": [1, 2], "logprobs": {"content": [{"logprob": -9999.0}]}}
    answer = read_answer({"choices": [choice]})
    assert answer.text == "" and answer.completion_ids == (1, 2) and answer.logprobs is None
    assert read_logprobs({"content": [{"logprob": -9999.0}, {"logprob": -1}]}) == [None, -1.0]
    assert read_logprobs(None) == [] and read_logprobs({"content": None}) == []
