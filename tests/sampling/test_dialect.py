"""What a server is asked for beyond OpenAI's API: a refusal of one odd body is not a refusal for ever."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from tests.gateway.fake_upstream import Fake, fake_upstream

from afterword.records import Json
from afterword.sampling import Upstream, UpstreamRejected

IDS = "return_token_ids"


@pytest.fixture
def fake() -> Iterator[Fake]:
    with fake_upstream(Fake()) as running:
        yield running


def ask(text: str, **more: object) -> Json:
    return {"model": "base-model", "messages": [{"role": "user", "content": text}], **more}


def asked(fake: Fake) -> list[set[str]]:
    """Which extras each request had that reached the server."""
    return [{IDS, "logprobs", "stream_options"} & body.keys() for body in fake.requests]


@pytest.mark.parametrize("says", ["this template cannot do that", "logprobs do not go with prefix caching here"])
async def test_one_odd_first_request_does_not_turn_ids_off(fake: Fake, says: str) -> None:
    fake.refuses, fake.only_refuses = {"logprobs": says}, "odd"
    async with Upstream(fake.url) as upstream:
        assert (await upstream.chat(ask("odd")))["choices"]
        answer = await upstream.chat(ask("even"))
        assert answer["prompt_token_ids"] and upstream.gives_ids is True


async def test_a_field_that_the_refusal_names_is_left_out_alone(fake: Fake) -> None:
    fake.refuses = {"logprobs": "logprobs: Extra inputs are not permitted"}
    async with Upstream(fake.url) as upstream:
        for number in range(3):
            assert (await upstream.chat(ask(f"{number}")))["prompt_token_ids"]
    assert asked(fake) == [{IDS, "logprobs"}, {IDS}, {IDS}, {IDS}]


async def test_what_is_refused_without_a_word_is_left_out_after_several_bodies(fake: Fake) -> None:
    fake.refuses = {IDS: "bad request"}
    async with Upstream(fake.url) as upstream:
        for text in ("a", "a", "b", "c"):
            await upstream.chat(ask(text))
            seen = upstream.gives_ids
        assert seen is False
        await upstream.chat(ask("d"))
    assert asked(fake) == [{IDS, "logprobs"}, set()] * 4 + [set()]


async def test_it_is_asked_for_again_now_and_then(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.refuses = {IDS: f"unknown field {IDS}"}
    now = time.monotonic()
    monkeypatch.setattr("afterword.sampling.dialect.time.monotonic", lambda: now)
    async with Upstream(fake.url) as upstream:
        await upstream.chat(ask("a"))
        await upstream.chat(ask("b"))
        assert upstream.gives_ids is False and IDS not in fake.requests[-1]
        now += 31
        await upstream.chat(ask("c"))
        assert IDS in fake.requests[-2] and upstream.gives_ids is False
        now += 31
        await upstream.chat(ask("d"))
        assert IDS not in fake.requests[-1], "the wait doubles"
        now += 31
        fake.refuses = {}
        assert (await upstream.chat(ask("e")))["prompt_token_ids"] and upstream.gives_ids is True


async def test_another_server_at_the_same_address_is_asked_for_everything(fake: Fake) -> None:
    fake.native = False
    async with Upstream(fake.url) as upstream:
        await upstream.chat(ask("a"))
        known = [upstream.gives_ids]
        fake.native = True
        upstream.forget_dialect()
        await upstream.chat(ask("b"))
        assert [*known, upstream.gives_ids] == [False, True]


async def test_a_server_that_takes_all_may_still_refuse_one_body(fake: Fake) -> None:
    async with Upstream(fake.url) as upstream:
        await upstream.chat(ask("a"))
        fake.refuses, fake.only_refuses = {"logprobs": "no logprobs with this grammar"}, "odd"
        assert (await upstream.chat(ask("odd")))["prompt_token_ids"]
        await upstream.chat(ask("b"))
        assert asked(fake)[-1] == {IDS, "logprobs"}
        fake.reject = (400, {"error": {"message": "too long"}})
        before = len(fake.requests)
        with pytest.raises(UpstreamRejected, match="too long"):
            await upstream.chat(ask("c"))
        assert len(fake.requests) == before + 1


async def test_what_the_client_asked_for_itself_is_never_taken_out(fake: Fake) -> None:
    fake.refuses = {"logprobs": "logprobs: not here"}
    async with Upstream(fake.url) as upstream:
        with pytest.raises(UpstreamRejected, match="not here"):
            await upstream.chat(ask("a", logprobs=True))
        assert all("logprobs" in body for body in fake.requests) and upstream.gives_ids is None
