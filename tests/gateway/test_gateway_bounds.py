"""How long an answer and a conversation may be: default bounds, and what happens when a context is full."""

from __future__ import annotations

from typing import Any

import pytest
from tests.gateway.fake_upstream import Fake
from tests.gateway.gateway_setup import Launch, Setup

from afterword.cli.run import _max_tokens
from afterword.config import ServeConfig
from afterword.gateway.full_context import droppable, fit, is_full
from afterword.sampling import UpstreamRejected

CHAT = "/v1/chat/completions"


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, *calls: str) -> dict[str, Any]:
    made = [{"id": c, "type": "function", "function": {"name": "f", "arguments": "{}"}} for c in calls]
    return {"role": "assistant", "content": text, **({"tool_calls": made} if made else {})}


def result(call: str, text: str = "ok") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "content": text}


SYSTEM = {"role": "system", "content": "Be kind."}


def test_what_belongs_together_and_what_stays() -> None:
    talk = [SYSTEM, assistant("Welcome"), user("a"), assistant("", "c1", "c2"), result("c1"), result("c2"),
            assistant("A"), user("b"), SYSTEM, assistant("B"), user("now"), assistant("", "c3"), result("c3"),
            assistant("", "c4"), result("c4")]  # fmt: skip
    assert droppable(talk) == [[1], [2, 3, 4, 5, 6], [7, 9], [11, 12]]
    assert fit(talk, 0.0) == [SYSTEM, SYSTEM, user("now"), assistant("", "c4"), result("c4")]
    assert fit(talk, 0.9)[0] == SYSTEM and len(fit(talk, 0.999)) < len(talk)
    assert droppable([SYSTEM, user("only")]) == [] and fit([SYSTEM, user("only")], 0.0) == [SYSTEM, user("only")]
    assert droppable([user("a"), assistant("A")]) == [] and droppable([assistant("x"), assistant("y")]) == [[0]]


@pytest.mark.parametrize(
    ("says", "full"),
    [
        ("This model's maximum context length is 4096 tokens. However, your messages resulted in 5000 tokens.", True),
        ("the request exceeds the available context size, try increasing it", True),
        ("prompt is too long: 210000 tokens > 200000 maximum", True),
        ("Input length 9000 exceeds maximum sequence length of 8192", True),
        ("max_tokens must be at least 1", False),
        ("Invalid value for temperature", False),
        ("`messages` must end with a user message", False),
    ],
)
def test_words_of_a_full_context(says: str, full: bool) -> None:
    body = b'{"error": {"message": "' + says.encode() + b'"}}'
    assert is_full(UpstreamRejected("http://x", 400, body)) is full
    assert not is_full(UpstreamRejected("http://x", 429, body))


def limited(most: int, code: str | None = "context_length_exceeded") -> Any:
    """A server that reads so many characters, and says so as OpenAI does."""

    def script(body: dict[str, Any]) -> Any:
        sent = sum(len(message["content"] or "") for message in body["messages"])
        if sent <= most:
            return None
        says = f"This model's maximum context length is {most} tokens. However, your messages have {sent} tokens."
        return 400, {"error": {"message": says, "type": "invalid_request_error", "param": "messages", "code": code}}

    return script


LONG = [SYSTEM, *(m for i in range(8) for m in (user(f"question {i} " + "x" * 90), assistant("answer " + "y" * 90)))]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("code", ["context_length_exceeded", None])
def test_a_full_context_drops_the_oldest(launch: Launch, stream: bool, code: str | None) -> None:
    gateway = launch(Fake(script=limited(1000, code)), on_full_context="drop_oldest")
    talk: list[dict[str, Any]] = [*LONG, user("And now?")]
    response = gateway.post(CHAT, {"model": "afterword", "messages": talk, "stream": stream})
    assert response.status_code == 200
    read = gateway.fake.requests[-1]["messages"]
    assert read[0] == SYSTEM and read[-1] == user("And now?") and read[1]["role"] == "user" and len(read) >= 7
    assert response.headers["x-afterword-dropped-messages"] == str(len(talk) - len(read))
    (first,) = gateway.turns()
    assert list(first.messages) == read, "the turn has what the model read"
    assert 'afterword_full_context_total{action="dropped"} 1.0' in gateway.get("/metrics").text
    # The client sends the whole history again: the next turn continues this one, and its words are feedback on it.
    talk += [{"role": "assistant", "content": "The sky is blue."}, user("Shorter, please.")]
    assert gateway.post(CHAT, {"model": "afterword", "messages": talk}).status_code == 200
    assert gateway.turns()[1].previous == first.id
    assert [f.text for f in gateway.feedback(turn=first.id)] == ["Shorter, please."]
    assert (
        "x-afterword-dropped-messages"
        not in gateway.post(CHAT, {"model": "afterword", "messages": [user("Hi")]}).headers
    )


def test_an_agents_oldest_steps_are_dropped_with_their_results(launch: Launch) -> None:
    gateway = launch(Fake(script=limited(700)), on_full_context="drop_oldest")
    talk = [SYSTEM, user("Do it.")]
    for step in range(6):
        talk += [assistant("", f"c{step}"), result(f"c{step}", "r" * 200)]
    assert gateway.post(CHAT, {"model": "afterword", "messages": talk}).status_code == 200
    read = gateway.fake.requests[-1]["messages"]
    assert read[:2] == talk[:2] and read[-2:] == talk[-2:]
    assert [m["tool_calls"][0]["id"] for m in read[2::2]] == [m["tool_call_id"] for m in read[3::2]]


def test_a_full_context_is_an_error_with_what_to_do(launch: Launch) -> None:
    gateway = launch(Fake(script=limited(1000)))
    response = gateway.post(CHAT, {"model": "afterword", "messages": [*LONG, user("And now?")]})
    error = response.json()["error"]
    assert response.status_code == 400 and error["code"] == "context_length_exceeded"
    assert "maximum context length is 1000" in error["message"] and "serve.on_full_context" in error["message"]
    assert 'afterword_full_context_total{action="error"} 1.0' in gateway.get("/metrics").text


def test_a_last_message_that_is_too_long_alone(launch: Launch) -> None:
    gateway = launch(Fake(script=limited(1000)), on_full_context="drop_oldest")
    response = gateway.post(CHAT, {"model": "afterword", "messages": [*LONG, user("z" * 2000)]})
    assert response.status_code == 400 and "Nothing more can be dropped" in response.json()["error"]["message"]
    assert len(gateway.fake.requests) <= 8


def test_the_default_bound_gives_way_to_the_clients(launch: Launch) -> None:
    gateway = launch(max_tokens=512, embedded=True)
    gateway.chat("Hi")
    gateway.chat("Hi there", max_tokens=5)
    gateway.chat("Hi you", max_completion_tokens=7)
    gateway.chat("Hi all", max_tokens=None)
    sent = [(b.get("max_tokens"), b.get("max_completion_tokens"), b["stop_repetition"]) for b in gateway.fake.requests]
    assert sent == [(512, None, True), (5, None, True), (None, 7, True), (512, None, True)]
    assert [turn.sampling for turn in gateway.turns()] == [
        {"max_tokens": 512}, {"max_tokens": 5}, {"max_completion_tokens": 7}, {"max_tokens": 512}
    ]  # fmt: skip


def test_an_upstream_is_sent_no_bound_unless_set(gateway: Setup) -> None:
    gateway.chat("Hi")
    assert gateway.fake.requests[0].keys() == {"model", "messages", "return_token_ids", "logprobs"}
    configs = (ServeConfig(), ServeConfig(model="/models/other"), ServeConfig(upstream="http://127.0.0.1:1"))
    assert [_max_tokens(config) for config in configs] == [512, 4096, None]
    assert _max_tokens(ServeConfig(max_tokens=0)) is None and _max_tokens(ServeConfig(max_tokens=9)) == 9


def test_what_was_cut_is_counted(gateway: Setup) -> None:
    message = {"role": "assistant", "content": "a a a"}
    for reason in ({}, {"stop_reason": "repetition"}):
        choice = {"index": 0, "message": message, "finish_reason": "length", **reason}
        gateway.fake.script = lambda body, choice=choice: (200, {"model": "base-model", "choices": [choice]})
        assert gateway.chat("Hi")["choices"][0]["finish_reason"] == "length"
    assert [turn.finish_reason for turn in gateway.turns()] == ["length", "length"]
    text = gateway.get("/metrics").text
    assert 'afterword_answers_cut_total{reason="length"} 1.0' in text
    assert 'afterword_answers_cut_total{reason="repetition"} 1.0' in text
    assert gateway.get("/health").json()["answers"] == {
        "cut": {"length": 1, "repetition": 1}, "full_context": {"dropped": 0, "error": 0}
    }  # fmt: skip
