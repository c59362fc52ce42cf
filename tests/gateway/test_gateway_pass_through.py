"""What is no conversation goes to the model server as it is: nothing is stored, names of ours are translated."""

from __future__ import annotations

import json

import httpx
import openai
import pytest
from tests.gateway.fake_upstream import Fake
from tests.gateway.gateway_setup import Launch, Setup

VECTORS = {
    "object": "list", "model": "base-model", "usage": {"prompt_tokens": 1, "total_tokens": 1},
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}],
}  # fmt: skip


def test_embeddings_of_a_model_of_ours(launch: Launch) -> None:
    setup = launch(Fake(other={"/v1/embeddings": (200, json.dumps(VECTORS).encode(), "application/json")}))
    found = setup.openai().embeddings.create(model="afterword", input="Hi", encoding_format="float")
    assert found.data[0].embedding == [0.5, -1.0]
    ((path, body, _),) = setup.fake.passed
    assert path == "/v1/embeddings" and json.loads(body)["model"] == "base-model"
    setup.openai().embeddings.create(model="some-embedder", input="Hi", encoding_format="float")
    assert json.loads(setup.fake.passed[1][1])["model"] == "some-embedder"
    assert setup.turns() == []


def test_audio_and_events_go_through_byte_for_byte(launch: Launch) -> None:
    events = b'data: {"choices": [{"text": "Hi"}]}\n\ndata: [DONE]\n\n'
    setup = launch(Fake(other={
        "/v1/audio/transcriptions": (200, b'{"text": "Hi"}', "application/json"),
        "/v1/audio/speech": (200, b"\x00\x01", "audio/mpeg"),
        "/v1/completions": (200, events, "text/event-stream"),
    }))  # fmt: skip
    said = setup.openai().audio.transcriptions.create(model="whisper", file=("a.wav", b"RIFF", "audio/wav"))
    assert said.text == "Hi"
    _, body, kind = setup.fake.passed[0]
    assert b"RIFF" in body and kind.startswith("multipart/form-data; boundary=")
    assert setup.openai().audio.speech.create(model="tts", voice="alloy", input="Hi").read() == b"\x00\x01"
    streamed = setup.openai().completions.create(model="afterword", prompt="Say", stream=True)
    assert [chunk.choices[0].text for chunk in streamed] == ["Hi"]
    assert setup.turns() == []


def test_a_server_without_the_route_is_named(gateway: Setup) -> None:
    with pytest.raises(openai.NotFoundError, match="has no route /v1/embeddings"):
        gateway.openai().embeddings.create(model="afterword", input="Hi")


def test_errors_of_the_server_are_the_clients(launch: Launch) -> None:
    told = json.dumps({"error": {"message": "too long", "type": "invalid_request_error"}}).encode()
    setup = launch(Fake(other={"/v1/embeddings": (400, told, "application/json")}))
    answer = httpx.post(f"{setup.url}/v1/embeddings", json={"model": "x", "input": "Hi"})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "too long")
    assert answer.headers["x-request-id"]
    assert (
        httpx.post(f"{setup.url}/v1/embeddings", content=b"{", headers={"Content-Type": "application/json"}).status_code
        == 400
    )
