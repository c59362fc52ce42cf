"""Anthropic's Messages and OpenAI's Responses, through their official clients: the same turns as a chat's."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx
import openai
import pytest
from tests.gateway.fake_upstream import Fake
from tests.gateway.gateway_setup import Launch, Setup

from afterword.gateway.keys import create_key
from afterword.gateway.wire.encoder import CallParts
from afterword.records import Feedback, Turn

SKY = "The sky is blue."
TOOL = {
    "name": "weather",
    "description": "The weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def claude(setup: Setup, key: str = "none") -> anthropic.Anthropic:
    return setup.clients.enter_context(anthropic.Anthropic(base_url=setup.url, api_key=key, max_retries=0))


def ask(*words: str) -> list[Any]:
    return [{"role": ("user", "assistant")[i % 2], "content": w} for i, w in enumerate(words)]


# ---- Messages


def test_a_message_is_a_turn_and_its_follow_up_is_feedback(gateway: Setup) -> None:
    client = claude(gateway)
    first = client.messages.create(
        model="afterword", max_tokens=50, system="Be brief.", messages=ask("Why?"), metadata={"user_id": "ada"},
        stop_sequences=["END"], extra_body={"top_k": 5},
    )  # fmt: skip
    assert first.content[0].type == "text" and first.content[0].text == SKY
    assert (first.stop_reason, first.usage.output_tokens > 0, first.role) == ("end_turn", True, "assistant")
    client.messages.create(
        model="afterword", max_tokens=50, system="Be brief.", messages=ask("Why?", SKY, "Shorter."),
        metadata={"user_id": "ada"},
    )  # fmt: skip
    before, after = gateway.turns()
    assert before.id == first.id and before.user == "ada"
    assert before.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"})
    assert before.sampling["max_tokens"] == 50 and before.sampling["top_k"] == 5 and before.on_policy
    assert gateway.fake.requests[0]["stop"] == ["END"]
    assert after.previous == before.id
    assert [(row.turn, row.text) for row in gateway.feedback()] == [(before.id, "Shorter.")]


def test_a_streamed_message(gateway: Setup) -> None:
    kinds, words = [], ""
    with claude(gateway).messages.stream(model="afterword", max_tokens=9, messages=ask("Why?")) as stream:
        for event in stream:
            kinds.append(event.type)
            if event.type == "text":
                words += event.text
        final = stream.get_final_message()
    assert words == SKY == final.content[0].text  # type: ignore[union-attr]
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert final.usage.input_tokens > 0 and final.usage.output_tokens > 0
    (turn,) = gateway.turns()
    assert (turn.id, turn.answer["content"], turn.finish_reason) == (final.id, SKY, "stop")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_is_used_and_its_result_goes_back(launch: Launch, streamed: bool) -> None:
    setup = launch(Fake(tool=True))
    client = claude(setup)
    given: Any = {"model": "afterword", "max_tokens": 99, "tools": [TOOL], "tool_choice": {"type": "any"}}
    if streamed:
        with client.messages.stream(messages=ask("Weather?"), **given) as stream:
            answer = stream.get_final_message()
    else:
        answer = client.messages.create(messages=ask("Weather?"), **given)
    call: Any = answer.content[-1]
    assert (call.type, answer.stop_reason) == ("tool_use", "tool_use") and isinstance(call.input, dict)
    sent = setup.fake.requests[0]
    assert sent["tools"] == [{"type": "function", "function": {
        "name": "weather", "description": "The weather", "parameters": TOOL["input_schema"]}}]  # fmt: skip
    assert sent["tool_choice"] == "required"
    setup.fake.tool = False
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "Rain."}]}
    turns: list[Any] = [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    client.messages.create(messages=[*ask("Weather?"), *turns], **given)
    before, after = setup.turns()
    assert after.previous == before.id and setup.feedback() == []
    assert after.messages[-1] == {"role": "tool", "tool_call_id": call.id, "content": "Rain."}
    assert after.messages[-2]["tool_calls"][0]["id"] == call.id


def test_thoughts_are_blocks_of_their_own(launch: Launch) -> None:
    def thinking(body: dict[str, Any]) -> Any:
        message = {"role": "assistant", "content": "Blue.", "reasoning_content": "Hmm."}
        return 200, {"id": "x", "object": "chat.completion", "created": 1, "model": body["model"],
                     "choices": [{"index": 0, "message": message, "finish_reason": "length"}]}  # fmt: skip

    setup = launch(Fake(script=thinking))
    answer = claude(setup).messages.create(model="afterword", max_tokens=9, messages=ask("Why?"))
    assert [block.type for block in answer.content] == ["thinking", "text"] and answer.stop_reason == "max_tokens"
    with claude(setup).messages.stream(model="afterword", max_tokens=9, messages=ask("Why?")) as stream:
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert final.content[0].thinking == "Hmm."  # type: ignore[union-attr]


def test_tokens_are_counted_and_nothing_is_kept(gateway: Setup) -> None:
    found = claude(gateway).messages.count_tokens(model="afterword", messages=ask("Why?"))
    assert found.input_tokens > 0
    assert gateway.turns() == []


def test_errors_have_the_form_that_clients_read(launch: Launch, tmp_path: Any) -> None:
    key, _ = create_key(tmp_path / "data", ("infer",))
    setup = launch(directory=tmp_path / "data")
    with pytest.raises(anthropic.AuthenticationError, match="API key is invalid"):
        claude(setup).messages.create(model="afterword", max_tokens=9, messages=ask("Why?"))
    client = claude(setup, key)  # sent as x-api-key
    assert client.messages.create(model="afterword", max_tokens=9, messages=ask("Why?")).id
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="afterword@v000099", max_tokens=9, messages=ask("Why?"))
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    setup.fake.reject = (429, {"error": {"message": "slow down", "type": "rate", "param": None, "code": 429}})
    with pytest.raises(anthropic.RateLimitError, match="slow down"):
        client.messages.create(model="afterword", max_tokens=9, messages=ask("Why?"))
    setup.fake.reject = None
    setup.fake.error_after = 2
    with (
        pytest.raises(anthropic.APIError, match="failed during the answer"),
        client.messages.stream(model="afterword", max_tokens=9, messages=ask("Why?")) as stream,
    ):
        stream.get_final_message()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_tokens": None}, "max_tokens"), ({"max_tokens": 0}, "max_tokens"), ({"messages": []}, "at least one"),
        ({"messages": [{"role": "user", "content": [1]}]}, "no object"), ({"system": 5}, "system prompt"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "Anthropic's servers"),
        ({"tools": 5}, "list of objects"), ({"tools": [TOOL], "tool_choice": {"type": "x"}}, "tool_choice"),
        ({"messages": "x"}, "list"), ({"model": None}, "model"),
    ],
)  # fmt: skip
def test_invalid_messages_are_told(gateway: Setup, change: dict[str, Any], says: str) -> None:
    body = {"model": "afterword", "max_tokens": 9, "messages": ask("Why?"), **change}
    answer = gateway.post("/v1/messages", body)
    assert answer.status_code == 422 and answer.json()["type"] == "error"
    assert says in answer.json()["error"]["message"]
    assert gateway.post("/v1/messages", [1]).status_code == 422
    assert httpx.post(f"{gateway.url}/v1/messages", content=b"{").json()["error"]["type"] == "invalid_request_error"


def test_an_agent_that_writes_its_session_into_the_users_name(gateway: Setup) -> None:
    session = "0b1c2d3e-0000-4000-8000-000000000001"
    name = f"user_abc_account_def_session_{session}"
    claude(gateway).messages.create(model="afterword", max_tokens=9, messages=ask("Hi"), metadata={"user_id": name})
    (turn,) = gateway.turns()
    assert (turn.user, turn.conversation) == ("user_abc_account_def", session)


# ---- Responses


def test_a_response_is_a_turn_and_can_be_continued(gateway: Setup) -> None:
    client: openai.OpenAI = gateway.openai()
    first = client.responses.create(
        model="afterword", input="Why?", instructions="Be brief.", max_output_tokens=50, metadata={"task": "sky"}
    )
    assert (first.output_text, first.status, first.object) == (SKY, "completed", "response")
    assert first.usage is not None and first.usage.output_tokens > 0
    second = client.responses.create(model="afterword", input="Shorter.", previous_response_id=first.id)
    before, after = gateway.turns()
    assert (before.id, after.id, after.previous, before.task) == (first.id, second.id, first.id, "sky")
    assert before.messages[0] == {"role": "system", "content": "Be brief."}
    assert [m["content"] for m in after.messages] == ["Why?", SKY, "Shorter."]  # instructions are not carried over
    assert [(row.turn, row.text) for row in gateway.feedback()] == [(before.id, "Shorter.")]
    assert second.previous_response_id == first.id


def test_a_streamed_response(gateway: Setup) -> None:
    kinds, words = [], ""
    with gateway.openai().responses.stream(model="afterword", input=[{"role": "user", "content": "Why?"}]) as stream:
        for event in stream:
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                words += event.delta
        final = stream.get_final_response()
    assert words == SKY == final.output_text
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    assert final.id == gateway.turns()[0].id


@pytest.mark.parametrize("streamed", [False, True])
def test_a_function_is_called_and_its_output_goes_back(launch: Launch, streamed: bool) -> None:
    setup = launch(Fake(tool=True))
    client = setup.openai()
    tools = [{"type": "function", "name": "weather", "parameters": TOOL["input_schema"], "strict": False}]
    given: Any = {"model": "afterword", "tools": tools, "tool_choice": "auto"}
    asked = [{"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]}]
    if streamed:
        with client.responses.stream(input=asked, **given) as stream:
            answer = stream.get_final_response()
    else:
        answer = client.responses.create(input=asked, **given)
    call = next(item for item in answer.output if item.type == "function_call")
    setup.fake.tool = False
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}
    items = [*asked, *(item.model_dump(exclude_none=True) for item in answer.output), output]
    client.responses.create(input=items, **given)
    client.responses.create(input=[output], previous_response_id=answer.id, **given)
    before, after, again = setup.turns()
    assert after.previous == again.previous == before.id
    for turn in (after, again):
        assert turn.messages[-1] == {"role": "tool", "tool_call_id": call.call_id, "content": "Rain."}
        assert turn.messages[-2]["tool_calls"][0]["function"]["name"] == call.name
    assert setup.fake.requests[0]["tools"][0]["function"]["name"] == "weather"


def test_the_form_of_the_answer_is_asked_for(gateway: Setup) -> None:
    schema = {"type": "json_schema", "name": "s", "schema": {"type": "object"}, "strict": True}
    gateway.openai().responses.create(
        model="afterword", input="Why?", text={"format": schema}, reasoning={"effort": "low"}
    )
    sent = gateway.fake.requests[-1]
    assert sent["response_format"] == {
        "type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": True}
    }  # fmt: skip
    assert sent["reasoning_effort"] == "low"


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"input": None}, 422, "input"), ({"input": [5]}, 422, "input[0]"),
        ({"input": [{"type": "x"}]}, 422, "unknown type"), ({"instructions": 5}, 422, "instructions"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, 422, "unsupported type"),
        ({"tools": [{"type": "web_search"}]}, 422, "OpenAI's servers"), ({"conversation": "c"}, 422, "conversation"),
        ({"background": True}, 422, "background"), ({"previous_response_id": 5}, 422, "previous_response_id"),
        ({"previous_response_id": "resp_unknown"}, 404, "does not exist here"),
    ],
)  # fmt: skip
def test_invalid_responses_are_told(gateway: Setup, change: dict[str, Any], status: int, says: str) -> None:
    answer = gateway.post("/v1/responses", {"model": "afterword", "input": "Why?", **change})
    assert answer.status_code == status and says in answer.json()["error"]["message"]


def test_nobody_continues_the_response_of_another_key(launch: Launch, tmp_path: Any) -> None:
    ada, bob = (create_key(tmp_path / "data", ("infer",))[0] for _ in range(2))
    setup = launch(directory=tmp_path / "data")
    first = setup.openai(ada).responses.create(model="afterword", input="My secret is 5.")
    with pytest.raises(openai.NotFoundError):
        setup.openai(bob).responses.create(model="afterword", input="What is it?", previous_response_id=first.id)
    assert setup.openai(ada).responses.create(model="afterword", input="And?", previous_response_id=first.id).id


def test_a_failed_stream_is_told_in_the_clients_form(launch: Launch) -> None:
    setup = launch(Fake(error_after=2))
    kinds = [event.type for event in setup.openai().responses.create(model="afterword", input="Why?", stream=True)]
    assert kinds[-1] == "response.failed"
    assert setup.store.count(Turn) == 1 and setup.store.count(Feedback) == 0


def test_a_retry_in_another_form_is_another_request(gateway: Setup) -> None:
    headers = {"Idempotency-Key": "k"}
    one = gateway.post("/v1/chat/completions", {"model": "afterword", "messages": ask("Why?")}, headers=headers)
    assert one.status_code == 200
    other = gateway.post("/v1/responses", {"model": "afterword", "input": "Why?"}, headers=headers)
    assert other.status_code == 422 and other.json()["error"]["code"] == "idempotency_key_reused"


def test_parts_of_calls_find_their_call() -> None:
    calls = CallParts()
    parts: list[dict[str, Any]] = [
        {"index": 0, "id": "a"},
        {"index": 0},
        {"index": 1, "id": "b"},
        {"index": 0},
        {"index": 1},
    ]
    assert [calls.place(part) for part in parts] == [(0, True), (0, False), (1, True), (0, False), (1, False)]
    at_one_index = CallParts()  # some servers send every call at index 0
    assert [at_one_index.place({"index": 0, "id": name}) for name in "aab"] == [(0, True), (0, False), (1, True)]
    without = CallParts()
    named: list[dict[str, Any]] = [{"id": "a"}, {}, {"id": "b"}, {}]
    assert [without.place(part) for part in named] == [
        (0, True), (0, False), (1, True), (1, False)
    ]  # fmt: skip
