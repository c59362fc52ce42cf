"""What real model servers send: each client gets the answer that it would have got from the server, and it is kept."""

from __future__ import annotations

import itertools
import json
import random
import time
from typing import Any

import openai
import pytest
from tests.gateway.fake_upstream import Fake
from tests.gateway.gateway_setup import Launch, Setup

CHAT = "/v1/chat/completions"
HI = {"model": "afterword", "messages": [{"role": "user", "content": "Hi"}]}
ADDED = {"return_token_ids", "logprobs", "stream_options"}
USAGE = {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}


def chunk(delta: Any = None, finish: Any = None, index: int = 0, **more: Any) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": index, "delta": delta, "finish_reason": finish}]
    return {"id": "up", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more}


def sse(*chunks: Any, done: bool = True) -> list[bytes]:
    out = [c if isinstance(c, bytes) else b"data: " + json.dumps(c).encode() + b"\n\n" for c in chunks]
    return [*out, b"data: [DONE]\n\n"] if done else out


def say(*texts: str, finish: str = "stop") -> list[dict[str, Any]]:
    return [chunk({"role": "assistant", "content": ""}), *(chunk({"content": t}) for t in texts), chunk({}, finish)]


def tool(**part: Any) -> dict[str, Any]:
    return chunk({"tool_calls": [part]})


def streamed(gateway: Setup, pieces: list[bytes], **more: Any) -> list[Any]:
    gateway.fake.pieces = pieces
    return list(gateway.stream("Hi", **more))


def text(chunks: list[Any]) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


A, B, SIX = '{"city": "Oslo"}', '{"city": "Rome"}', ["Six ", "minutes."]
NO_CHOICES = {k: v for k, v in chunk().items() if k != "choices"}

ODD_STREAMS = {
    "usage without choices": sse(*say(*SIX), {**NO_CHOICES, "usage": USAGE}),
    "usage with null choices": sse(*say(*SIX), chunk(usage=USAGE) | {"choices": None}),
    "usage in every chunk": sse(*(c | {"usage": USAGE} for c in say(*SIX))),
    "null usage in every chunk": sse(*(c | {"usage": None} for c in say(*SIX)), chunk(usage=USAGE)),
    "bare data, pings, numbers": sse(
        b"data:\n\n", b"event: ping\ndata: {}\n\n", *say(*SIX)[:2], b"data: 5\n\n", b"data: null\n\n",
        b'event: ping\ndata: {"type": "ping"}\n\n', b"data: keep-alive\n\n", *say(*SIX)[2:], chunk(usage=USAGE)),
    "OpenRouter's comments": [b": OPENROUTER PROCESSING\n\n" * 3, *sse(*say(*SIX), chunk(usage=USAGE))],
    "Azure's filter results first": sse(
        {"choices": [], "created": 0, "id": "", "model": "", "object": "", "prompt_filter_results": [{"x": 0}]},
        *say(*SIX), chunk(usage=USAGE)),
    "empty finish reasons": sse(*(chunk({"content": t}, "") for t in SIX), chunk({}, "stop"), chunk(usage=USAGE)),
    "null deltas and choices": sse(
        *say(*SIX)[:-1], chunk() | {"choices": [{"index": 0, "delta": None, "finish_reason": None}]},
        chunk() | {"choices": [None]}, chunk() | {"choices": None}, chunk({}, "stop"), chunk(usage=USAGE)),
    "a finish reason in every chunk": sse(*(chunk({"content": t}, "stop") for t in SIX), chunk(usage=USAGE)),
    "no line end at the end": [b"\xef\xbb\xbf", *sse(*say(*SIX), chunk(usage=USAGE), done=False), b"data: [DONE]"],
    "no end mark": sse(*say(*SIX), chunk(usage=USAGE), done=False),
    "no empty lines": [b"".join(sse(*say(*SIX), chunk(usage=USAGE))).replace(b"\n\n", b"\n")],
    "several data lines": [
        b"".join(b"data: " + line + b"\r\n" for line in json.dumps(c, indent=1).encode().split(b"\n")) + b"\r\n"
        for c in [*say(*SIX), chunk(usage=USAGE)]],
    "content in parts": sse(
        chunk({"content": [{"type": "text", "text": SIX[0]}]}), chunk({"content": SIX[1]}, "stop"), chunk(usage=USAGE)),
    "the whole message at the end": sse(
        *say(*SIX)[:-1], chunk(usage=USAGE) | {"choices": [
            {"index": 0, "message": {"role": "assistant", "content": "".join(SIX)}, "finish_reason": "stop"}]}),
    "a whole answer as its only event": sse(
        chunk(usage=USAGE) | {"choices": [
            {"index": 0, "message": {"role": "assistant", "content": "".join(SIX)}, "finish_reason": "stop"}]}),
    "a whole answer in place of a stream": [json.dumps(
        {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "usage": USAGE, "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "".join(SIX)}, "finish_reason": "stop"}]}
    ).encode()],
    "objects a line": [json.dumps(c).encode() + b"\n" for c in [*say(*SIX), chunk(usage=USAGE)]],
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_STREAMS)
def test_an_odd_stream_is_an_answer_and_a_turn(gateway: Setup, name: str) -> None:
    chunks = streamed(gateway, ODD_STREAMS[name])
    if name != "content in parts":
        assert text(chunks) == "Six minutes."
    assert all(c.usage is None for c in chunks), "who did not ask for usage gets none"
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason][-1] == "stop"
    gateway.fake.kind = "application/json"  # a lie
    asked = streamed(gateway, ODD_STREAMS[name], stream_options={"include_usage": True})
    assert [c.usage.total_tokens for c in asked if c.usage][-1] == 11
    for turn in gateway.turns():
        assert (turn.answer["content"], turn.finish_reason, turn.usage) == ("Six minutes.", "stop", USAGE)
    assert len(gateway.turns()) == 2


CALLS: list[dict[str, Any]] = [
    {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": A}},
    {"id": "call_b", "type": "function", "function": {"name": "weather", "arguments": B}},
]
NO_IDS = [{**call, "id": None} for call in CALLS]
TOOL_STREAMS: dict[str, list[dict[str, Any]]] = {
    "OpenAI's": [
        tool(index=0, id="call_a", type="function", function={"name": "weather", "arguments": ""}),
        *(tool(index=0, function={"arguments": A[i : i + 5]}) for i in range(0, len(A), 5)),
        tool(index=1, id="call_b", type="function", function={"name": "weather", "arguments": ""}),
        *(tool(index=1, function={"arguments": B[i : i + 5]}) for i in range(0, len(B), 5)),
    ],
    "all at index 0": [tool(index=0, **call) for call in CALLS],
    "all in one chunk at index 0": [chunk({"tool_calls": [{"index": 0, **call} for call in CALLS]})],
    "without an index": [tool(**call) for call in CALLS],
    "without an index or id": [tool(**{**call, "id": ""}) for call in CALLS],
    "at index 0 without ids": [tool(index=0, **call) for call in NO_IDS],
    "everything repeated": [
        tool(index=i, **{**call, "function": {"name": "weather", "arguments": part}})
        for i, call in enumerate(CALLS)
        for part in (call["function"]["arguments"][:6], call["function"]["arguments"][6:])
    ],
    "everything emptied": [
        part for i, call in enumerate(CALLS) for part in (
            tool(index=i, **{**call, "function": {"name": "weather", "arguments": ""}}),
            tool(index=i, id="", type=None, function={"name": "", "arguments": call["function"]["arguments"]}),
            tool(index=i, id=None, function=None), tool(index=i, function={"name": None, "arguments": None}))
    ],
    "new ids in every part": [
        tool(index=i, id=call["id"] if n == 0 else f"other-{i}{n}", type="function", function={
            "name": "weather" if n == 0 else None, "arguments": part})
        for i, call in enumerate(CALLS) for n, part in enumerate(("", *call["function"]["arguments"]))
    ],
    "the whole once more at the end": [
        part for i, call in enumerate(CALLS) for part in (tool(index=i, **call), tool(index=i, **call))
    ],
    "an object in place of the list": [chunk({"tool_calls": {"index": i, **call}}) for i, call in enumerate(CALLS)],
    "arguments as objects": [
        tool(index=i, **{**call, "function": {"name": "weather", "arguments": arguments}})
        for i, (call, arguments) in enumerate(zip(CALLS, (json.loads(A), json.loads(B)), strict=True))
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", TOOL_STREAMS)
def test_tool_calls_as_servers_stream_them(launch: Launch, name: str) -> None:
    gateway = launch(Fake(pieces=sse(*TOOL_STREAMS[name], chunk({}, "tool_calls"))))
    response = gateway.post(CHAT, {**HI, "stream": True})
    assert response.status_code == 200 and b'"error"' not in response.content
    (turn,) = gateway.turns()
    kept = turn.answer["tool_calls"]
    assert [call["function"]["name"] for call in kept] == ["weather", "weather"]
    assert [json.loads(call["function"]["arguments"]) for call in kept] == [json.loads(A), json.loads(B)]
    if "without" not in name:
        assert [call["id"] for call in kept] == ["call_a", "call_b"]
    assert turn.finish_reason == "tool_calls" and not turn.answer["content"]


def test_other_fields_of_deltas_are_kept(gateway: Setup) -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    streamed(gateway, sse(
        chunk({"role": "assistant", "reasoning_content": "eg", "reasoning": "x"}), chunk({"reasoning_content": "gs"}),
        chunk({"content": [thinking, {"type": "text", "text": "Si"}]}), chunk({"content": "x."}),
        chunk({"annotations": [{"a": 1}]}), chunk({"annotations": [{"a": 2}], "refusal": None}),
        chunk({"audio": {"id": "au", "data": "AAAA", "transcript": "Si"}}),
        chunk({"audio": {"id": "au", "data": "BBBB", "transcript": "x."}}), chunk({}, "stop")))  # fmt: skip
    streamed(gateway, sse(
        chunk({"function_call": {"name": "weather", "arguments": '{"ci'}}),
        chunk({"function_call": {"name": "", "arguments": 'ty": 1}'}}), chunk({}, "function_call")))  # fmt: skip
    streamed(gateway, sse(chunk({"refusal": "I would "}), chunk({"refusal": "not."}, "content_filter")))
    first, second, third = (turn.answer for turn in gateway.turns())
    assert first == {
        "role": "assistant", "content": [thinking, {"type": "text", "text": "Six."}], "reasoning_content": "eggs",
        "reasoning": "x", "annotations": [{"a": 1}, {"a": 2}], "audio": {"id": "au", "transcript": "Six."},
    }  # fmt: skip
    assert second["function_call"] == {"name": "weather", "arguments": '{"city": 1}'}
    assert third["refusal"] == "I would not."


def test_several_answers_in_one_stream(gateway: Setup) -> None:
    chunks = streamed(gateway, sse(
        chunk({"content": "a"}), chunk({"content": "x"}, index=1), chunk({}, "stop"), chunk({}, "stop"),
        chunk({"content": "y"}, index=1), chunk({}, "length", index=1), chunk(usage=USAGE)), n=2)  # fmt: skip
    said = ["".join(c.choices[0].delta.content or "" for c in chunks if c.choices[0].index == i) for i in (0, 1)]
    assert said == ["a", "xy"]
    assert [(t.answer["content"], t.finish_reason) for t in gateway.turns()] == [("a", "stop")]


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
def test_a_stream_in_place_of_a_whole_answer(launch: Launch, kind: str) -> None:
    gateway = launch(Fake(pieces=sse(b": hi\n\n", *say(*SIX), chunk(usage=USAGE)), kind=kind))
    answer = gateway.openai().chat.completions.create(model="afterword", messages=[{"role": "user", "content": "Hi"}])
    assert answer.choices[0].message.content == "Six minutes." and answer.usage.total_tokens == 11
    assert [(t.answer["content"], t.finish_reason, t.usage) for t in gateway.turns()] == [
        ("Six minutes.", "stop", USAGE)
    ]


HALF = b'data: {"choices": [{"index": 0, "delta": {"con'
FAULTS: dict[str, tuple[list[bytes], str]] = {
    "half a chunk at the end": (sse(*say(*SIX)[:-1], HALF, done=False), "invalid JSON"),
    "half a chunk in the middle": (sse(*say(*SIX)[:-1], HALF + b"\n\n", *say("x")), "invalid JSON"),
    "an end without an end": (sse(*say(*SIX)[:-1], done=False), "before the answer was complete"),
    "words at the end": (sse(*say(*SIX)[:-1], b"data: Internal Server Error\n\n", done=False), "Internal Server Error"),
    "an error event": (sse(*say(*SIX)[:-1], b'data: {"error": {"message": "on fire", "code": 500}}\n\n'), "on fire"),
    "an error event of words": (sse(*say(*SIX)[:-1], b"event: error\ndata: on fire\n\n"), "on fire"),
    "vLLM's old error": (sse(*say(*SIX)[:-1], {"object": "error", "message": "on fire", "code": 400}), "on fire"),
    "OpenRouter's error": (
        sse(*say(*SIX)[:-1], {**chunk({"content": ""}, "error"), "error": {"code": 502, "message": "on fire"}}),
        "on fire",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_stream_that_breaks_ends_with_an_error_and_keeps_what_came(gateway: Setup, name: str) -> None:
    pieces, says = FAULTS[name]
    gateway.fake.pieces, seen = pieces, ""
    with pytest.raises(openai.APIError, match=says):
        for one in gateway.stream("Hi"):
            seen += text([one])
    assert seen == "Six minutes."
    assert [(t.answer["content"], t.finish_reason) for t in gateway.turns()] == [("Six minutes.", "error")]
    assert "afterword_upstream_errors_total{" in gateway.get("/metrics").text
    gateway.fake.pieces = None
    assert gateway.chat("Hi")["choices"]


PAGE = b"<!DOCTYPE html><html><head><title>502</title></head><body>Bad Gateway</body></html>"


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (PAGE, 502, "Bad Gateway"),
        (b"", 502, ""),
        (b'{"error": {"message": "on fire", "code": 500}}', 502, "on fire"),
        (b'[{"error": {"message": "slow down", "code": 429, "status": "RESOURCE_EXHAUSTED"}}]', 429, "slow down"),
        (b'{"object": "error", "message": "too long", "code": 400}', 400, "too long"),
        (b'{"detail": "on fire"}', 502, "on fire"),
        (b'{"choices": [{"index": 0, "mess', 502, ""),
    ],
)
def test_what_is_no_answer_with_status_200(gateway: Setup, body: bytes, status: int, says: str) -> None:
    gateway.fake.pieces = [body] if body else []
    for stream, kind in itertools.product((True, False), ("text/html", "text/event-stream", "application/json")):
        gateway.fake.kind = kind
        response = gateway.post(CHAT, {**HI, "stream": stream})
        error = response.json()["error"]
        assert response.status_code == status and set(error) == {"message", "type", "param", "code"}
        assert says in error["message"] and gateway.turns() == []
    gateway.fake.pieces = None
    assert gateway.chat("Hi")["choices"]


def test_a_refusal_of_our_own_question_with_status_200(gateway: Setup) -> None:
    def script(body: dict[str, Any]) -> Any:
        named = [name for name in sorted(ADDED) if name in body]
        return (200, {"error": {"message": f"{named[0]} is not supported", "code": 400}}) if named else None

    gateway.fake.script = script
    assert text(list(gateway.stream("Hi"))) == "The sky is blue."
    assert gateway.chat("Hi")["choices"]
    assert [len(body.keys() & ADDED) for body in gateway.fake.requests] == [3, 2, 1, 0, 0]


def test_ten_megabytes_in_one_event(gateway: Setup) -> None:
    long = "x" * 10_000_000
    data = b"".join(sse(*say(long)))
    start = time.monotonic()
    assert text(streamed(gateway, [data[i : i + 65536] for i in range(0, len(data), 65536)])) == long
    assert time.monotonic() - start < 10
    assert len(gateway.turns()[0].answer["content"]) == len(long)


def test_an_answer_that_was_complete_before_the_connection_broke(launch: Launch) -> None:
    gateway = launch(Fake(cut_after=7))  # the usage chunk never comes
    assert text(list(gateway.stream("Hi"))) == "The sky is blue."
    assert gateway.turns()[0].finish_reason == "stop"


def test_answers_without_content_are_taken_back(gateway: Setup) -> None:
    gateway.fake.raw = json.dumps(
        {"model": "m", "choices": [{"index": 0, "message": {"role": "assistant", "content": None,
         "reasoning_content": "Let me see"}, "finish_reason": "length"}]}
    ).encode()  # fmt: skip
    served = gateway.chat("Think", max_tokens=3)["choices"][0]["message"]
    gateway.fake.raw = None
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    taken: list[dict[str, Any]] = [
        served, {"role": "assistant", "content": None, "refusal": "No."}, {"role": "assistant", "audio": {"id": "a"}},
        {"role": "assistant"}, {"role": "assistant", "content": None, "tool_calls": []},
    ]  # fmt: skip
    for message in taken:
        messages = [{"role": "user", "content": "Think"}, message, {"role": "user", "content": "On."}]
        assert gateway.post(CHAT, {"model": "afterword", "messages": messages}).status_code == 200
        assert gateway.fake.requests[-1]["messages"] == messages
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c", "content": None}]  # fmt: skip
    assert gateway.post(CHAT, {"model": "afterword", "messages": messages}).status_code == 200


@pytest.mark.parametrize("status", [429, 500, 503, 529])
def test_when_to_try_again_and_why_are_passed_on(launch: Launch, status: int) -> None:
    gateway = launch(Fake(reject=(status, {"detail": "overloaded by others"}), retry_after="7"))
    response = gateway.post(CHAT, HI)
    assert response.status_code == (429 if status == 429 else 502) and response.headers["retry-after"] == "7"
    assert "overloaded by others" in response.json()["error"]["message"]


SEVERAL = {"data": [{"id": "nomic-embed-text"}, {"id": "small:latest"}, {"id": "big"}]}


def asked_of(gateway: Setup, name: str = "afterword") -> str:
    response = gateway.post(CHAT, {"model": name, "messages": [{"role": "user", "content": "Hi"}]})
    assert response.status_code == 200, response.text
    model: str = gateway.fake.requests[-1]["model"]
    return model


@pytest.mark.parametrize(
    ("settings", "model"),
    [
        ({}, "small:latest"),
        ({"upstream_model": "big"}, "big"),
        ({"upstream_model": "small"}, "small:latest"),
        ({"preferred_model": "big"}, "big"),
        ({"preferred_model": "not-there"}, "small:latest"),
    ],
)
def test_which_of_several_models_is_served(launch: Launch, settings: dict[str, str], model: str) -> None:
    gateway = launch(Fake(models_body=SEVERAL), **settings)
    assert asked_of(gateway) == model
    assert asked_of(gateway, "small") == "small:latest" and asked_of(gateway, "big") == "big"


@pytest.mark.parametrize("models", [{"models_status": 404}, {"models_status": 403}, {"models_body": {"data": []}}])
def test_a_server_that_lists_no_models(launch: Launch, models: dict[str, Any]) -> None:
    for settings in ({"upstream_model": "base-model"}, {"preferred_model": "base-model"}):
        gateway = launch(Fake(**models), **settings)
        assert asked_of(gateway) == "base-model" and gateway.get("/health/ready").status_code == 200
        assert gateway.get("/health").json()["status"] == "ok"
    gateway = launch(Fake(**models))
    assert asked_of(gateway, "base-model") == "base-model", "a client may name the model itself"
    assert 'model="other"' in gateway.get("/metrics").text and 'model="base-model"' not in gateway.get("/metrics").text
    response = gateway.post(CHAT, HI)
    assert response.status_code == 502 and "serve.upstream_model" in response.json()["error"]["message"]


ANY: list[Any] = [None, "", 0, 1, -1, True, [], {}, "x", [None], [{}], {"a": 1}, "stop", [1, "a"], 1.5, {"index": 0}]


def odd_chunk(pick: random.Random) -> dict[str, Any]:
    """A chunk in which any field may be anything, or missing."""

    def some() -> Any:
        return pick.choice(ANY)

    function = pick.choice([some(), {"name": some(), "arguments": some()}])
    deltas = [{"content": some()}, {"tool_calls": some()}, {"function_call": some()}, {"role": some()}, some(),
              {"tool_calls": [{"index": some(), "id": some(), "function": function}]}]  # fmt: skip
    choice = {"index": pick.choice([0, 0, 0, 1, None, "0", []]), "delta": pick.choice(deltas), "token_ids": some(),
              "finish_reason": pick.choice([None, None, "", some()]), "logprobs": some()}  # fmt: skip
    if pick.random() < 0.3:
        choice["message"] = pick.choice([some(), {"tool_calls": some(), "content": some()}])
        del choice["delta"]
    chunk = {"id": some(), "model": some(), "choices": [choice], "usage": some(), "prompt_token_ids": some()}
    chunk = {name: value for name, value in chunk.items() if pick.random() > 0.1}
    return {**chunk, pick.choice([*chunk, "x"]): some()} if pick.random() < 0.1 else chunk


def test_whatever_a_server_sends_the_gateway_answers_in_the_contracts_shape(gateway: Setup) -> None:
    pick = random.Random(17)
    for _ in range(150):
        chunks = [odd_chunk(pick) for _ in range(pick.randint(1, 4))]
        data = b"".join(sse(*chunks, done=pick.random() < 0.6))
        if pick.random() < 0.3:
            data = json.dumps(chunks[0]).encode()
        gateway.fake.pieces = [data[: pick.randint(0, len(data))] if pick.random() < 0.2 else data]
        gateway.fake.kind = pick.choice(["text/event-stream", "application/json", "text/plain"])
        response = gateway.post(CHAT, {**HI, "stream": pick.random() < 0.6, "n": pick.choice([1, 2])})
        assert response.status_code in (200, 400, 404, 502), (response.text, data)
        if response.status_code != 200:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    gateway.fake.pieces = None
    assert gateway.chat("Hi")["choices"]
