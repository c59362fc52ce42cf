"""Bad input and bad upstreams: a clear error in the one shape, nothing lost, the server alive."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from tests.gateway.fake_upstream import Fake, fake_upstream
from tests.gateway.gateway_setup import Launch, Setup

from afterword.gateway.middleware import boundary
from afterword.sampling import Upstream

HI = [{"role": "user", "content": "Hi"}]
CHAT = "/v1/chat/completions"


def shape(response: httpx.Response) -> dict[str, Any]:
    """The error object, after checking the shape."""
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    error: dict[str, Any] = body["error"]
    return error


def deep(levels: int) -> Any:
    return [deep(levels - 1)] if levels else []


def parts(*given: Any) -> dict[str, Any]:
    return {"model": "afterword", "messages": [{"role": "user", "content": list(given)}]}


@pytest.mark.parametrize(
    ("body", "status", "param", "says"),
    [
        (b'{"model": "afterword", "messages": [', 400, None, "not valid JSON"),
        (b'{"model": "\xff"}', 400, None, "not valid JSON"),
        (b"", 400, None, "not valid JSON"),
        (b"[1]", 422, None, "JSON object"),
        ({"model": "afterword", "messages": []}, 422, "messages", "non-empty list"),
        ({"model": "afterword"}, 422, "messages", "non-empty list"),
        ({"model": "afterword", "messages": [{"role": "cat", "content": ""}]}, 422, "messages[0].role", "cat"),
        ({"messages": HI}, 422, "model", "model name"),
        ({"model": "gpt-9", "messages": HI}, 404, "model", "does not exist"),
        ({"model": "afterword@canary", "messages": HI}, 404, "model", "no canary is running"),
        ({"model": "afterword@previous", "messages": HI}, 404, "model", "no adapter was released"),
        ({"model": "afterword@v000009", "messages": HI}, 404, "model", "does not exist"),
        ({"model": "afterword", "messages": HI, "user": 7}, 422, "user", "string"),
        ({"model": "afterword", "messages": HI, "metadata": "x"}, 422, "metadata", "object"),
        ({"model": "afterword", "messages": HI, "metadata": {"task": 1}}, 422, "metadata.task", "string"),
        ({"model": "afterword", "messages": HI, "tools": {}}, 422, "tools", "list"),
        ({"model": "afterword", "messages": HI, "stream_options": "x"}, 422, "stream_options", "object"),
        ({"model": "afterword", "messages": HI, "stream": "false"}, 422, "stream", "true or false"),
        ({"model": "afterword", "messages": HI, "store": "false"}, 422, "store", "true or false"),
        ({"model": "afterword", "messages": HI, "metadata": {"train": "no"}}, 422, "metadata.train", "true or false"),
        ({"model": "afterword", "messages": HI, "metadata": {"train": []}}, 422, "metadata.train", "true or false"),
        (parts({"type": "text", "text": 5}), 422, "messages[0].content[0].text", "string"),
        (parts({"type": "text"}), 422, "messages[0].content[0].text", "string"),
        (parts("Hi"), 422, "messages[0].content[0]", "object"),
        (parts({"type": "x", "y": deep(400)}), 400, "messages", "nested"),
        ({"model": "afterword", "messages": HI, "metadata": deep(400)}, 400, "metadata", "nested"),
        (deep(400), 400, None, "nested"),
    ],
)
def test_bad_requests(gateway: Setup, body: Any, status: int, param: str | None, says: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = httpx.post(gateway.url + CHAT, content=content)
    error = shape(response)
    assert (response.status_code, error["param"]) == (status, param), error
    assert says in error["message"]
    assert gateway.turns() == [] and gateway.fake.requests == []


@pytest.mark.parametrize("name", ["x-afterword-user", "x-afterword-conversation", "x-afterword-previous-turn"])
def test_a_header_that_is_no_text(gateway: Setup, name: str) -> None:
    response = httpx.post(
        gateway.url + CHAT, json={"model": "afterword", "messages": HI}, headers=[(name.encode(), b"\xff")]
    )
    assert response.status_code == 422 and shape(response)["param"] == name
    assert gateway.turns() == []


def test_a_request_id_that_is_no_text_is_replaced(gateway: Setup) -> None:
    response = httpx.get(gateway.url + "/health/live", headers=[(b"x-request-id", b"\xff")])
    assert response.status_code == 200 and response.headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize("number", ["2", -1, 0, True, 2.5])
def test_an_odd_number_of_answers_is_the_upstreams_to_refuse(gateway: Setup, number: Any) -> None:
    assert "".join(c.choices[0].delta.content or "" for c in gateway.stream("Hi", n=number)) == "The sky is blue."
    assert gateway.turns()[0].finish_reason == "stop"


def test_wrong_paths_methods_and_sizes(launch: Launch) -> None:
    gateway = launch(max_body=1000)
    missing = gateway.get("/v2/chat")
    assert missing.status_code == 404 and shape(missing)["type"] == "not_found_error"
    assert "use POST /v1/chat/completions" in shape(gateway.post("/v1/completions", {}))["message"]
    assert "base URL must end with /v1" in shape(gateway.post("/chat/completions", {}))["message"]
    head = httpx.head(gateway.url + "/health")
    assert head.status_code == 200 and head.content == b""
    wrong = gateway.get("/v1/chat/completions")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
    assert "use POST" in shape(wrong)["message"]
    large = gateway.post(CHAT, {"model": "afterword", "messages": [{"role": "user", "content": "x" * 2000}]})
    assert large.status_code == 413 and "1000 bytes" in shape(large)["message"]


async def test_any_other_http_error_has_the_shape() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        raise web.HTTPGone(text="long gone")

    response = await boundary(make_mocked_request("GET", "/"), handler)
    assert isinstance(response, web.Response) and isinstance(response.body, bytes)
    assert response.status == 410 and b"long gone" in response.body


async def test_a_connection_that_breaks_is_nobodys_error() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await boundary(make_mocked_request("GET", "/"), handler)


def test_the_upstream_is_down_and_comes_back(launch: Launch) -> None:
    fake = Fake()
    with fake_upstream(fake):
        url = fake.url
    gateway = launch(fake)
    assert gateway.get("/health/live").status_code == 200
    assert gateway.get("/health/ready").status_code == 503
    health = gateway.get("/health")
    assert health.status_code == 503 and health.json()["upstream"]["status"] == "down"
    for path, body in ((CHAT, {"model": "afterword", "messages": HI}), ("/v1/models", None)):
        response = gateway.post(path, body) if body else gateway.get(path)
        assert response.status_code == 502 and "cannot be reached" in shape(response)["message"]
        assert response.headers["Retry-After"] == "10", "clients of OpenAI wait and ask again by themselves"
    with fake_upstream(fake, port=int(url.rpartition(":")[2])):
        answer = gateway.chat("Hi")
        assert answer["choices"][0]["message"]["content"] == "The sky is blue."
        deadline = time.monotonic() + 5
        while gateway.get("/health").json()["status"] != "ok":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert gateway.get("/health/ready").status_code == 200
    response = gateway.post(CHAT, {"model": "afterword", "messages": HI})
    assert response.status_code == 502
    assert len(gateway.turns()) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_slow_upstream_is_a_504(launch: Launch, stream: bool) -> None:
    gateway = launch(Fake(delay=5.0), upstream_timeout=0.3)
    if not stream:
        response = gateway.post(CHAT, {"model": "afterword", "messages": HI})
        assert response.status_code == 504 and "sent nothing for 0.3 s" in shape(response)["message"]
    else:
        with pytest.raises(openai.InternalServerError) as caught:
            list(gateway.stream("Hi"))
        assert caught.value.status_code == 504
    assert gateway.turns() == []


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"cut_after": 3}, "cut the stream"),
        ({"end_after": 3}, "before the answer was complete"),
        ({"error_after": 3}, "CUDA is on fire"),
    ],
)
def test_a_stream_that_is_cut(launch: Launch, fault: dict[str, int], says: str) -> None:
    gateway = launch(Fake(**fault))  # type: ignore[arg-type]
    text = ""
    with pytest.raises(openai.APIError, match=says):
        for chunk in gateway.stream("Hi"):
            text += chunk.choices[0].delta.content or ""
    assert text == "The sky "
    (turn,) = gateway.turns()
    assert turn.finish_reason == "error" and turn.answer["content"] == "The sky "
    assert turn.completion_ids == (100, 101) and turn.logprobs == (-0.5, -0.5)
    assert gateway.get("/health/live").status_code == 200


def test_a_stream_that_goes_silent_in_the_middle(launch: Launch) -> None:
    fake = Fake(words=("a",) * 50, delay=0.02)
    gateway = launch(fake, upstream_timeout=0.4)
    with pytest.raises(openai.APIError, match="sent nothing"):
        for number, _ in enumerate(gateway.stream("Hi")):
            if number == 3:
                fake.delay = 5.0
    assert gateway.turns()[0].finish_reason == "error"


@pytest.mark.parametrize("raw", [b"<html>", b'{"choices": []}', b"[]", b"null"])
def test_an_upstream_that_talks_something_else(launch: Launch, raw: bytes) -> None:
    gateway = launch(Fake(raw=raw))
    response = gateway.post(CHAT, {"model": "afterword", "messages": HI})
    assert response.status_code == 502 and "not a chat completion" in shape(response)["message"]
    streamed = gateway.post(CHAT, {"model": "afterword", "messages": HI, "stream": True})
    assert streamed.status_code == 502 and "instead of an event stream" in shape(streamed)["message"]
    assert gateway.turns() == []


CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


def whole_answer(message: Any, **choice: Any) -> bytes:
    return json.dumps(
        {"model": "base-model", "choices": [{"message": message, "finish_reason": "stop", **choice}]}
    ).encode()


def test_a_tool_call_without_content_is_an_answer_and_a_turn(launch: Launch) -> None:
    gateway = launch(Fake(raw=whole_answer({"role": "assistant", "tool_calls": [CALL]})))
    answer = gateway.chat("Hi")
    assert answer["choices"][0]["message"] == {"role": "assistant", "tool_calls": [CALL]}
    (turn,) = gateway.turns()
    assert turn.answer == {"role": "assistant", "tool_calls": [CALL], "content": ""}


@pytest.mark.parametrize(
    "raw",
    [
        whole_answer(None),
        whole_answer("Hi"),
        whole_answer({"role": "assistant", "content": "Hi"}, token_ids=["a"]),
        whole_answer({"role": "assistant", "content": "Hi"}, token_ids=5, logprobs={"content": [{"logprob": "x"}]}),
        whole_answer({"role": "assistant", "content": "Hi"}, logprobs={"content": 5}),
    ],
)
def test_what_cannot_be_kept_still_reaches_the_client(launch: Launch, raw: bytes) -> None:
    gateway = launch(Fake(raw=raw))
    answer = gateway.chat("Hi", return_token_ids=True, logprobs=True)
    assert answer["choices"] == json.loads(raw)["choices"]
    assert gateway.turns() == []
    assert gateway.get("/health").json()["capture"]["dropped"] == 1
    assert "afterword_turns_dropped_total{" in gateway.get("/metrics").text


@pytest.mark.parametrize(
    "delta",
    [{"content": "Hi", "tool_calls": [5]}, {"tool_calls": 5}, "Hi", {"tool_calls": [{"function": {"name": 5}}]}],
)
def test_odd_deltas_are_passed_on(launch: Launch, delta: Any) -> None:
    chunks = [
        {"model": "base-model", "choices": [{"index": 0, "delta": {"content": "a", "tool_calls": [CALL]}}]},
        {"model": "base-model", "choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}]},
    ]
    raw = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
    gateway = launch(Fake(raw=raw))
    response = gateway.post(CHAT, {"model": "afterword", "messages": HI, "stream": True})
    seen = [json.loads(line[6:]) for line in response.text.split("\n\n") if line.startswith("data: {")]
    assert response.status_code == 200 and [chunk["choices"] for chunk in seen] == [c["choices"] for c in chunks]
    assert response.text.endswith("data: [DONE]\n\n")
    assert len(gateway.turns()) + gateway.get("/health").json()["capture"]["dropped"] == 1


def test_a_fault_of_capturing_never_breaks_an_answer(gateway: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(parent: str, message: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr("afterword.gateway.chat.trail_of_turn", broken)
    assert gateway.chat("Hi")["choices"][0]["message"]["content"] == "The sky is blue."
    assert "".join(chunk.choices[0].delta.content or "" for chunk in gateway.stream("Hi")) == "The sky is blue."
    assert gateway.turns() == [] and gateway.get("/health").json()["capture"]["dropped"] == 2


@pytest.mark.parametrize("more", [{"error": None}, {"error": {}}])
def test_an_error_that_is_none_is_no_error(launch: Launch, more: dict[str, Any]) -> None:
    chunks: list[dict[str, Any]] = [
        {"model": "base-model", "choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}]},
        {"model": "base-model", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"model": "base-model", "choices": None, "usage": {"completion_tokens": 2}},
    ]
    raw = b"".join(b"data: " + json.dumps({**chunk, **more}).encode() + b"\n\n" for chunk in chunks)
    gateway = launch(Fake(raw=raw + b"data: [DONE]\n\n"))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in gateway.stream("Hi") if chunk.choices)
    assert text == "Hi"
    (turn,) = gateway.turns()
    assert turn.finish_reason == "stop" and turn.usage == {"completion_tokens": 2}


def test_an_error_chunk_of_plain_words(launch: Launch) -> None:
    gateway = launch(Fake(raw=b'data: {"error": "out of memory"}\n\n'))
    response = gateway.post(CHAT, {"model": "afterword", "messages": HI, "stream": True})
    assert response.status_code == 502 and "failed during the answer: out of memory" in shape(response)["message"]


def test_chunks_that_are_no_chunks(launch: Launch) -> None:
    gateway = launch(Fake(raw=b'data: {"nothing": 1}\n\n'))
    response = gateway.post(CHAT, {"model": "afterword", "messages": HI, "stream": True})
    assert response.status_code == 502 and "instead of an event stream" in shape(response)["message"]
    assert '{"nothing": 1}' in shape(response)["message"]


@pytest.mark.parametrize(
    ("status", "seen"), [(400, 400), (413, 413), (422, 422), (429, 429), (500, 502), (503, 502), (401, 502)]
)
def test_what_the_upstream_says_about_the_request_passes(launch: Launch, status: int, seen: int) -> None:
    error = {"message": "context of 8192 tokens exceeded", "type": "BadRequestError", "param": "messages", "code": 400}
    gateway = launch(Fake(reject=(status, {"error": error}), retry_after="7"))
    response = gateway.post(CHAT, {"model": "afterword", "messages": HI, "stream": True})
    assert response.status_code == seen
    assert "context of 8192 tokens exceeded" in shape(response)["message"]
    assert response.headers.get("retry-after") == "7"
    assert gateway.turns() == []


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves(launch: Launch, stream: bool) -> None:
    fake = Fake(words=("word ",) * 500, delay=0.01 if stream else 5.0)
    gateway = launch(fake)

    async def leave() -> None:
        async with Upstream(gateway.url) as client:
            body = {"model": "afterword", "messages": HI, "stream": stream}
            if not stream:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(client.chat(body), 0.3)
                return
            answer = await client.open_chat(body)
            for _ in range(5):
                assert await answer.read()
            answer.close()

    asyncio.run(leave())
    deadline = time.monotonic() + 5
    while fake.cancelled == 0 or (stream and not gateway.turns()):
        assert time.monotonic() < deadline, "the upstream request must be cancelled"
        time.sleep(0.02)
    if stream:
        (turn,) = gateway.turns()
        assert turn.finish_reason == "aborted" and turn.answer["content"].startswith("word ")
        assert turn.completion_ids is not None and len(turn.completion_ids) < 500
    else:
        assert gateway.turns() == [], "nothing was served"
    assert 'status="499"' in gateway.get("/metrics").text


def test_our_own_bug_is_a_500_with_its_request(gateway: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afterword.gateway.status_routes.WELCOME", 7)
    response = httpx.get(gateway.url + "/", headers={"x-request-id": "r" * 300})
    assert response.status_code == 500
    assert response.headers["x-request-id"] in shape(response)["message"]
    assert response.headers["x-request-id"] != "r" * 300


def test_health_is_not_well_while_a_well_upstream_fails_every_request(gateway: Setup) -> None:
    gateway.chat("Hi")
    before = gateway.get("/health").json()["upstream"]
    assert (before["status"], before["failed_in_a_row"], before["last_failure"]) == ("ok", 0, None)
    assert "engine" not in before, "somebody else's server"
    gateway.fake.reject = (500, {"error": {"message": "the model thread is dead"}})
    body = {"model": "afterword", "messages": [{"role": "user", "content": "Hi"}]}
    for _ in range(3):
        assert gateway.post("/v1/chat/completions", body).status_code == 502
    failing = gateway.get("/health").json()
    assert failing["status"] == "degraded" and failing["upstream"]["status"] == "degraded"
    assert "the last 3 requests failed" in failing["upstream"]["problem"]
    assert "the model thread is dead" in failing["upstream"]["problem"]
    gateway.fake.reject = None
    gateway.chat("Hi")
    after = gateway.get("/health").json()["upstream"]
    assert (after["status"], after["failed_in_a_row"]) == ("ok", 0)
    assert "the model thread is dead" in after["last_failure"], "it stays to be seen"
