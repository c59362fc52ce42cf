"""Where a server's routes are, for every form of its URL that people paste."""

from __future__ import annotations

import pytest
from tests.gateway.fake_upstream import Fake, fake_upstream

from afterword.errors import UpstreamError
from afterword.sampling import NO_LIST, Upstream
from afterword.sampling.stream import UpstreamRejected
from afterword.sampling.urls import base_urls, route_url, server_root

BODY = {"model": "base-model", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("url", "first"),
    [
        ("http://h:1", "http://h:1/v1/chat/completions"),
        ("http://h:1/", "http://h:1/v1/chat/completions"),
        ("http://h:1/v1", "http://h:1/v1/chat/completions"),
        ("http://h:1/v1//", "http://h:1/v1/chat/completions"),
        ("http://h:1/api/paas/v4/", "http://h:1/api/paas/v4/chat/completions"),
        ("http://h:1/v1beta/openai/", "http://h:1/v1beta/openai/chat/completions"),
        ("http://h:1/v1/chat/completions", "http://h:1/v1/chat/completions"),
        ("http://h:1/chat/completions/", "http://h:1/chat/completions"),
        ("http://h:1/v1/models", "http://h:1/v1/chat/completions"),
        (
            "http://h:1/openai/deployments/x?api-version=2",
            "http://h:1/openai/deployments/x/chat/completions?api-version=2",
        ),
    ],
)
def test_the_likeliest_place(url: str, first: str) -> None:
    assert str(route_url(base_urls(url)[0], "/chat/completions")) == first
    assert str(server_root(base_urls("http://h:1/a/v1")[0])) == "http://h:1/a"


@pytest.mark.parametrize(
    ("prefix", "given"),
    [
        ("/v1", ""), ("/v1", "/"), ("/v1", "/v1/"), ("/v1", "/v1/chat/completions"), ("", ""),
        ("", "/chat/completions"),
        ("/v4", "/v4"), ("/v1beta/openai", "/v1beta/openai/"), ("/inference", "/inference"), ("/a/v1", "/a"),
        ("/a", "/a/chat/completions"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("listed", [True, False])
async def test_every_form_reaches_the_server(prefix: str, given: str, listed: bool) -> None:
    fake = Fake(prefix=prefix, models_status=200 if listed else 404)
    with fake_upstream(fake):
        async with Upstream(fake.url + given) as upstream:
            if listed:
                assert [card["id"] for card in await upstream.models()] == ["base-model"]
            else:
                with pytest.raises(UpstreamError) as caught:
                    await upstream.models()
                assert caught.value.code == NO_LIST
            await upstream.health()
            assert (await upstream.chat(BODY))["choices"]
            before = len(fake.requests)
            assert (await upstream.chat(BODY))["choices"] and len(fake.requests) == before + 1


async def test_a_model_that_is_not_there_is_told_as_the_server_says() -> None:
    with fake_upstream(Fake()) as fake:
        async with Upstream(fake.url) as upstream:
            with pytest.raises(UpstreamRejected, match="The model `x` does not exist"):
                await upstream.chat(BODY | {"model": "x"})


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        ([{"id": "a"}, {"id": "b"}], ["a", "b"]),
        ({"data": ["a", {"id": "b"}, {"id": 5}, 7]}, ["a", "b"]),
        ({"models": [{"name": "a:latest"}]}, ["a:latest"]),
        ({"object": "list", "data": []}, []),
    ],
)
async def test_lists_of_models_in_other_shapes(body: object, ids: list[str]) -> None:
    with fake_upstream(Fake(models_body=body)) as fake:
        async with Upstream(fake.url) as upstream:
            assert [card["id"] for card in await upstream.models()] == ids


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": "boom"}', "boom"),
        (b'{"error": {"message": {"a": 1}}}', '{"a":1}'),
        (b'[{"error": {"code": 429, "message": "quota", "status": "X"}}]', "quota"),
        (b'{"detail": "Not allowed"}', "Not allowed"),
        (b'{"detail": [{"loc": ["body", "x"], "msg": "Extra"}, {"msg": "More"}]}', "body.x: Extra; More"),
        (b'{"errors": ["a", "b"]}', "a; b"),
        (b'{"object": "error", "message": "old vLLM", "code": 40001}', "old vLLM"),
        (b'"words"', "words"),
        (b"[]", "[]"),
        (b"null", "null"),
        (b'{"error": null}', '{"error":null}'),
        (b"<html><style>p{}</style><title>502</title><h1>Bad&nbsp;Gateway</h1></html>", "502 Bad Gateway"),
        (b"<script" * 20000, None),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"", "(no text)"),
    ],
)
def test_errors_of_every_shape(body: bytes, message: str | None) -> None:
    error = UpstreamRejected("http://x", 500, body)
    assert isinstance(error.error["message"], str) and len(error.error["message"]) <= 500
    if message is not None:
        assert error.error["message"] == message
