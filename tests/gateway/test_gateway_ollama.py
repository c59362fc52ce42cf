"""Ollama's API through its official client: most desktop front ends speak it. The same turns as a chat's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import ollama
import pytest
from tests.gateway.fake_upstream import Fake
from tests.gateway.gateway_setup import Launch, Setup

from afterword.gateway.keys import create_key

Connect = Callable[..., ollama.Client]
SKY = "The sky is blue."
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture
def clients() -> Iterator[Connect]:
    """Connects clients and closes them."""
    made: list[ollama.Client] = []

    def connect(setup: Setup, **more: Any) -> ollama.Client:
        made.append(ollama.Client(host=setup.url, **more))
        return made[-1]

    yield connect
    for one in made:
        one._client.close()


def ask(*words: str) -> list[Any]:
    return [{"role": ("user", "assistant")[i % 2], "content": w} for i, w in enumerate(words)]


def test_a_chat_is_a_turn_and_its_follow_up_is_feedback(gateway: Setup, clients: Connect) -> None:
    asked = clients(gateway)
    options = {"temperature": 0.3, "num_predict": 50, "stop": ["END"], "repeat_penalty": 1.0, "num_ctx": 4096}
    first = asked.chat(model="afterword", messages=ask("Why?"), options=options)
    assert first.message.content == SKY and first.done and first.done_reason == "stop"
    assert first.prompt_eval_count and first.eval_count and first.total_duration
    asked.chat(model="afterword", messages=ask("Why?", SKY, "Shorter."))
    before, after = gateway.turns()
    assert before.sampling["temperature"] == 0.3 and before.sampling["max_tokens"] == 50 and before.on_policy
    sent = gateway.fake.requests[0]
    assert sent["stop"] == ["END"] and not {"options", "repetition_penalty", "num_ctx"} & set(sent)
    assert after.previous == before.id
    assert [(row.turn, row.text) for row in gateway.feedback()] == [(before.id, "Shorter.")]


def test_a_streamed_chat(gateway: Setup, clients: Connect) -> None:
    parts = list(clients(gateway).chat(model="afterword", messages=ask("Why?"), stream=True))
    assert "".join(part.message.content or "" for part in parts) == SKY
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count and parts[-1].prompt_eval_count
    with httpx.stream("POST", f"{gateway.url}/api/chat", json={"model": "afterword", "messages": ask("Why?")}) as got:
        assert got.headers["content-type"] == "application/x-ndjson" and got.headers["x-afterword-turn"]
        got.read()
    one, two = gateway.turns()
    assert one.answer["content"] == two.answer["content"] == SKY and one.finish_reason == "stop"


def test_generate_is_a_chat_of_one_prompt(gateway: Setup, clients: Connect) -> None:
    asked = clients(gateway)
    whole = asked.generate(model="afterword", prompt="Why?", system="Be brief.")
    parts = list(asked.generate(model="afterword", prompt="Why?", system="Be brief.", stream=True))
    assert whole.response == SKY == "".join(part.response or "" for part in parts) and parts[-1].done
    for turn in gateway.turns():
        assert turn.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"})


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_is_called_and_its_result_goes_back(launch: Launch, clients: Connect, streamed: bool) -> None:
    setup = launch(Fake(tool=True))
    asked = clients(setup)
    if streamed:
        parts = list(asked.chat(model="afterword", messages=ask("Weather?"), tools=[TOOL], stream=True))
        (message,) = (part.message for part in parts if part.message.tool_calls)
    else:
        message = asked.chat(model="afterword", messages=ask("Weather?"), tools=[TOOL]).message
    (call,) = message.tool_calls or ()
    assert call.function.name == "look" and isinstance(call.function.arguments, dict)
    setup.fake.tool = False
    result = {"role": "tool", "tool_name": "look", "content": "Rain."}
    asked.chat(model="afterword", messages=[*ask("Weather?"), message, result], tools=[TOOL])
    before, after = setup.turns()
    assert after.previous == before.id and setup.feedback() == []
    called = after.messages[-2]["tool_calls"][0]
    assert after.messages[-1] == {"role": "tool", "tool_call_id": called["id"], "content": "Rain."}


def test_thoughts_have_a_field_of_their_own(launch: Launch, clients: Connect) -> None:
    def thinking(body: dict[str, Any]) -> Any:
        message = {"role": "assistant", "content": "Blue.", "reasoning_content": "Hmm."}
        return 200, {"id": "x", "object": "chat.completion", "created": 1, "model": body["model"],
                     "choices": [{"index": 0, "message": message, "finish_reason": "length"}]}  # fmt: skip

    setup = launch(Fake(script=thinking))
    answer = clients(setup).chat(model="afterword", messages=ask("Why?"), think=True)
    assert (answer.message.thinking, answer.message.content, answer.done_reason) == ("Hmm.", "Blue.", "length")
    assert setup.fake.requests[0]["chat_template_kwargs"] == {"enable_thinking": True}


def test_pictures_and_the_form_of_the_answer(gateway: Setup) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    body = {
        "model": "afterword",
        "stream": False,
        "messages": [{"role": "user", "content": "What?", "images": ["aGk="]}],
    }
    assert httpx.post(f"{gateway.url}/api/chat", json={**body, "format": schema}).status_code == 200
    assert httpx.post(f"{gateway.url}/api/chat", json={**body, "format": "json"}).status_code == 200
    one, two = gateway.fake.requests
    assert one["response_format"]["json_schema"]["schema"] == schema and two["response_format"] == {
        "type": "json_object"
    }
    assert one["messages"][0]["content"][1]["image_url"]["url"] == "data:image/png;base64,aGk="


def test_a_request_without_a_message_loads_the_model(gateway: Setup, clients: Connect) -> None:
    """`ollama run` and front ends send it before the first question."""
    asked = clients(gateway)
    assert asked.chat(model="afterword", messages=[]).done_reason == "load"
    assert asked.generate(model="afterword").done_reason == "load"
    with pytest.raises(ollama.ResponseError) as missing:
        asked.generate(model="nobody")
    assert missing.value.status_code == 404
    assert gateway.turns() == [] and gateway.fake.requests == []


def test_models_and_the_version(gateway: Setup, clients: Connect) -> None:
    asked = clients(gateway)
    names = [model.model for model in asked.list().models]
    assert "afterword" in names and asked.ps().models
    assert "completion" in (asked.show("afterword:latest").capabilities or ())
    assert httpx.get(f"{gateway.url}/api/version").json()["version"]
    with pytest.raises(ollama.ResponseError, match="does not exist") as caught:
        asked.show("nobody")
    assert caught.value.status_code == 404


@pytest.mark.parametrize(
    ("path", "change", "says"),
    [
        ("chat", {"messages": "hi"}, "must be a list"),
        ("chat", {"options": [1]}, "`options` must be an object"),
        ("chat", {"format": 3}, "`format` must be"),
        ("chat", {"stream": "yes"}, "stream"),
        ("generate", {"prompt": 3}, "`prompt` must be a text"),
        ("generate", {"prompt": "x", "suffix": "y"}, "`suffix` is not available"),
    ],
)
def test_invalid_requests_are_told_in_ollamas_form(
    gateway: Setup, path: str, change: dict[str, Any], says: str
) -> None:
    body = {"model": "afterword", "messages": ask("Why?"), "stream": False, **change}
    answer = httpx.post(f"{gateway.url}/api/{path}", json=body)
    assert answer.status_code in (400, 422) and says in answer.json()["error"]
    assert gateway.turns() == []


def test_errors_have_the_form_that_clients_read(launch: Launch, clients: Connect, tmp_path: Any) -> None:
    key, _ = create_key(tmp_path / "data", ("infer",))
    setup = launch(directory=tmp_path / "data")
    with pytest.raises(ollama.ResponseError, match="API key is missing"):
        clients(setup).chat(model="afterword", messages=ask("Why?"))
    asked = clients(setup, headers={"Authorization": f"Bearer {key}"})
    assert asked.chat(model="afterword", messages=ask("Why?")).message.content == SKY
    with pytest.raises(ollama.ResponseError) as missing:
        asked.chat(model="afterword@v000099", messages=ask("Why?"))
    assert missing.value.status_code == 404
    setup.fake.error_after = 2
    with pytest.raises(ollama.ResponseError, match="failed during the answer"):
        list(asked.chat(model="afterword", messages=ask("Why?"), stream=True))
