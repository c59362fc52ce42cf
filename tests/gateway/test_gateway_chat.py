"""Answers through the gateway: what the client sees, what the upstream is asked, what is kept."""

from __future__ import annotations

import json

import httpx
from fake_upstream import Fake
from gateway_setup import Launch, Setup

ASK = {"model": "afterword", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}


def test_an_answer_is_a_turn(gateway: Setup) -> None:
    response = gateway.post("/v1/chat/completions", {**ASK, "temperature": 0.5, "user": "ada"})
    body = response.json()
    (turn,) = gateway.turns()
    assert body["id"] == turn.id == response.headers["x-afterword-turn"]
    assert body["choices"][0]["message"]["content"] == "The sky is blue."
    assert body["model"] == "base-model"
    assert response.headers["x-afterword-adapter"] == "base"
    assert float(response.headers["x-afterword-overhead-ms"]) < 1000
    assert "token_ids" not in body["choices"][0] and "prompt_token_ids" not in body
    assert body["choices"][0]["logprobs"] is None
    assert turn.prompt_ids == (1, 2, 3)
    assert turn.completion_ids == (100, 101, 102, 103, 104, 2)
    assert turn.logprobs == (-0.5,) * 6
    assert turn.sampling == {"temperature": 0.5}
    assert (turn.user, turn.adapter, turn.model, turn.finish_reason) == ("ada", None, "base-model", "stop")
    assert turn.missing_ids is None and turn.on_policy


def test_a_stream_is_a_turn(gateway: Setup) -> None:
    client = gateway.openai()
    chunks = list(client.chat.completions.create(**ASK, stream=True))  # type: ignore[call-overload]
    (turn,) = gateway.turns()
    assert {chunk.id for chunk in chunks} == {turn.id}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "The sky is blue."
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None and chunk.choices[0].logprobs is None for chunk in chunks)
    assert "token_ids" not in chunks[2].choices[0].model_dump()
    assert turn.answer == {"role": "assistant", "content": "The sky is blue."}
    assert turn.completion_ids == (100, 101, 102, 103, 104, 2)
    assert turn.logprobs == (-0.5,) * 6
    assert turn.usage["completion_tokens"] == 6


def test_what_the_client_asks_for_it_gets(gateway: Setup) -> None:
    more = {"return_token_ids": True, "logprobs": True, "stream": True, "stream_options": {"include_usage": True}}
    with httpx.stream("POST", gateway.url + "/v1/chat/completions", json={**ASK, **more}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines[:-1]]
    assert chunks[0]["prompt_token_ids"] == [1, 2, 3]
    assert chunks[1]["choices"][0]["token_ids"] == [100]
    assert chunks[1]["choices"][0]["logprobs"]["content"][0]["logprob"] == -0.5
    assert chunks[-1]["usage"]["completion_tokens"] == 6 and chunks[-1]["choices"] == []


def test_a_plain_upstream_works_and_the_turn_says_why_ids_are_missing(launch: Launch) -> None:
    gateway = launch(Fake(native=False))
    gateway.chat("Hi")
    gateway.chat("Hi again", stream=False)
    first, second = gateway.turns()
    assert first.missing_ids == second.missing_ids == "the upstream refuses return_token_ids"
    assert not first.on_policy and first.answer["content"] == "The sky is blue."
    assert len(gateway.fake.requests) == 3, "it is asked once with the question, and never again"
