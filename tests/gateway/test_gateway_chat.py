"""Answers through the gateway: what the client sees, what the upstream is asked, what is kept."""

from __future__ import annotations

import json

import httpx
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.fake_upstream import Fake
from tests.gateway.gateway_setup import Launch, Setup

from afterword.gateway.wire.request import parse_chat
from afterword.gateway.wire.response import UpstreamAnswer

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
    chunks = list(client.chat.completions.create(**ASK, stream=True))
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


def test_an_upstream_that_ignores_the_question_is_said_so(launch: Launch) -> None:
    gateway = launch(Fake(ignores=True))
    gateway.chat("Hi")
    assert gateway.turns()[0].missing_ids == "the upstream gives no token ids"


def test_tools_pass_and_tool_calls_are_put_together(launch: Launch) -> None:
    gateway = launch(Fake(tool=True))
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
    whole = gateway.chat("Look up", tools=tools)
    assert whole["choices"][0]["message"]["tool_calls"] == [call]
    client = gateway.openai()
    with client.chat.completions.stream(model="afterword", messages=ASK["messages"], tools=tools) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls is not None
    assert final.choices[0].message.tool_calls[0].function.arguments == '{"at": "sky"}'
    first, second = gateway.turns()
    assert first.answer["tool_calls"] == second.answer["tool_calls"] == [call]
    assert not first.answer["content"] and not second.answer["content"]
    assert second.finish_reason == "tool_calls" and second.tools == tuple(tools)
    assert gateway.fake.requests[0]["tools"] == tools


def test_unknown_fields_pass_and_ours_do_not(gateway: Setup) -> None:
    gateway.chat("Hi", guided_json={"a": 1}, metadata={"task": "code", "team": "red", "conversation": "c9"}, user="ada")
    (seen,) = gateway.fake.requests
    assert seen["guided_json"] == {"a": 1} and seen["user"] == "ada"
    assert "metadata" not in seen and "store" not in seen
    assert seen["model"] == "base-model" and seen["return_token_ids"] and seen["logprobs"]
    (turn,) = gateway.turns()
    assert (turn.task, turn.team, turn.conversation) == ("code", "red", "c9")


def test_headers_win_over_the_body(gateway: Setup) -> None:
    headers = {
        "x-afterword-user": "grace", "x-afterword-conversation": "c2", "x-afterword-task": "support",
        "x-request-id": "mine",
    }  # fmt: skip
    body = {**ASK, "user": "ada", "metadata": {"conversation": "c1", "task": "code"}}
    response = gateway.post("/v1/chat/completions", body, headers=headers)
    assert response.headers["x-request-id"] == "mine"
    (turn,) = gateway.turns()
    assert (turn.user, turn.conversation, turn.task) == ("grace", "c2", "support")


def test_store_false_answers_and_keeps_nothing(gateway: Setup) -> None:
    first = gateway.chat("Hi", user="ada")
    said = first["choices"][0]["message"]["content"]
    answer = gateway.chat("Hi", said, "Shorter, please.", user="ada", store=False)
    assert answer["choices"][0]["message"]["content"] == "The sky is blue."
    assert len(gateway.turns()) == 1 and gateway.feedback() == []
    assert "store" not in gateway.fake.requests[1]


def test_several_choices_reach_the_client_and_the_first_is_the_turn(gateway: Setup) -> None:
    gateway.chat("Hi", n=2)
    assert gateway.turns()[0].sampling == {"n": 2}


def test_the_upstream_key_is_sent(launch: Launch) -> None:
    gateway = launch(upstream_key="sk-up")
    gateway.chat("Hi")
    assert gateway.fake.authorization == ["Bearer sk-up"]


def test_an_answer_in_one_piece_and_without_its_own_ids(launch: Launch) -> None:
    choice = {"index": 0, "delta": {"content": "Blue."}, "finish_reason": "stop"}
    chunk = {"id": "x", "model": "base-model", "prompt_token_ids": [1], "choices": [choice]}
    gateway = launch(Fake(raw=b"data: " + json.dumps(chunk).encode() + b"\n\ndata: [DONE]\n\n"))
    (only,) = gateway.stream("Why?")
    assert only.choices[0].delta.content == "Blue."
    (turn,) = gateway.turns()
    assert turn.id == only.id and turn.missing_ids == "the answer has no token ids"


def test_lone_comments_keep_the_line_alive() -> None:
    served = _served()
    assert served.feed(b": still here\n\n") == b": still here\n\n"
    assert not served.started


def _served(**body: object) -> UpstreamAnswer:
    data = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True, **body}
    return UpstreamAnswer("turn-1", parse_chat(json.dumps(data).encode(), {}, None))


def _chunk(delta: dict[str, object], index: int = 0, reason: str | None = None, **more: object) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": reason, **more}
    return b"data: " + json.dumps({"id": "x", "model": "m", "choices": [choice]}).encode() + b"\r\n\r\n"


@given(st.lists(st.integers(1, 40), max_size=40))
def test_chunks_may_be_split_anywhere(sizes: list[int]) -> None:
    whole = _chunk({"role": "assistant"}) + _chunk({"content": "é"}, token_ids=[7]) + _chunk({}, reason="stop")
    stream = whole + b"data: [DONE]\r\n\r\n"
    served, out = _served(), b""
    for size in [*sizes, len(stream)]:
        out += served.feed(stream[:size])
        stream = stream[size:]
    out += served.finish()
    events = [line[6:] for line in out.split(b"\n\n") if line]
    assert events[-1] == b"[DONE]" and served.done
    assert [json.loads(e)["id"] for e in events[:-1]] == ["turn-1"] * 3
    assert served.answer() == {"role": "assistant", "content": "é"}
    assert served.ids == [7] and served.finish_reason == "stop"


def test_the_end_of_the_answer_is_held_back() -> None:
    served = _served()
    assert b"hello" in served.feed(_chunk({"content": "hello"}))
    assert served.feed(_chunk({"content": "!"}, reason="stop")) == b""
    tail = served.finish()
    assert b'"!"' in tail and tail.endswith(b"data: [DONE]\n\n")


def test_with_two_choices_only_the_last_end_is_held_back() -> None:
    served = _served(n=2)
    assert b"stop" in served.feed(_chunk({"content": "a"}, 0, "stop"))
    assert b'"b"' in served.feed(_chunk({"content": "b"}, 1))
    assert served.feed(_chunk({}, 1, "length")) == b""
    assert served.answer()["content"] == "a" and served.finish_reason == "stop"


def test_log_probabilities_that_do_not_match_are_missing_never_zero() -> None:
    served = _served()
    entry = {"token": "a", "logprob": -9999.0}
    served.feed(_chunk({"content": "a"}, token_ids=[7], logprobs={"content": [entry]}))
    assert served.aligned_logprobs() == (None,)
    served.feed(_chunk({"content": "b"}, token_ids=[8]))
    assert served.aligned_logprobs() is None
