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


async def test_what_is_refused_without_a_word_is_found_by_leaving_out_one_after_the_other(fake: Fake) -> None:
    fake.refuses = {"logprobs": "bad request"}
    async with Upstream(fake.url) as upstream:
        for text in ("a", "b", "c"):
            await upstream.chat(ask(text))
    assert asked(fake) == [{IDS, "logprobs"}, {"logprobs"}, set(), {IDS}, {IDS}]


@pytest.mark.parametrize("status", [400, 403, 404, 405, 409, 418, 422, 500, 501, 502, 503])
@pytest.mark.parametrize("says", ["Unsupported: {}", "no"])
async def test_a_refusal_with_any_status_is_asked_again_without_the_field(fake: Fake, status: int, says: str) -> None:
    fake.refuses = {IDS: says.format(IDS), "logprobs": says.format("logprobs")}
    fake.refusal_status = status
    async with Upstream(fake.url) as upstream:
        for number in range(4):
            assert (await upstream.chat(ask(f"{number}")))["choices"]
        assert upstream.gives_ids is False
    assert asked(fake)[-2:] == [set(), set()], "it is remembered"


@pytest.mark.parametrize(("status", "requests"), [(401, 1), (413, 1), (429, 1), (503, 2), (500, 3)])
async def test_a_refusal_about_something_else_is_not_asked_for_ever(fake: Fake, status: int, requests: int) -> None:
    fake.reject = (status, {"error": {"message": "busy"}})
    async with Upstream(fake.url) as upstream:
        with pytest.raises(UpstreamRejected, match="busy"):
            await upstream.chat(ask("a"))
    assert len(fake.requests) == requests


async def test_each_model_is_remembered_by_itself(fake: Fake) -> None:
    fake.adapters["other"] = "somewhere"
    fake.refuses, fake.only_for = {IDS: f"unknown field {IDS}"}, "other"
    async with Upstream(fake.url) as upstream:
        for model in ("other", "base-model", "other"):
            await upstream.chat(ask("a") | {"model": model})
        assert upstream.gives_ids is True and upstream.dialect("other").gives_ids is False
    assert asked(fake) == [{IDS, "logprobs"}, {"logprobs"}, {IDS, "logprobs"}, {"logprobs"}]


async def test_only_one_refused_field_at_a_time_is_asked_for_again(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.refuses = {IDS: f"no {IDS}", "logprobs": "no logprobs"}
    now = time.monotonic()
    monkeypatch.setattr("afterword.sampling.dialect.time.monotonic", lambda: now)
    async with Upstream(fake.url) as upstream:
        await upstream.chat(ask("a"))
        now, fake.refuses = now + 31, {"logprobs": "no logprobs"}
        await upstream.chat(ask("b"))
        await upstream.chat(ask("c"))
        assert asked(fake)[-1] == {IDS} and upstream.gives_ids is True


async def test_a_bound_gives_way_to_the_clients_and_takes_the_servers_name(fake: Fake) -> None:
    more = {"max_tokens": 9}
    fake.refuses = {"max_tokens": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}
    async with Upstream(fake.url) as upstream:
        for body in (ask("a"), ask("b")):
            (await upstream.open_chat(body, more)).close()
        assert [(b.get("max_tokens"), b.get("max_completion_tokens")) for b in fake.requests] == [
            (9, None), (None, 9), (None, 9)
        ]  # fmt: skip
        fake.refuses = {}
        (await upstream.open_chat(ask("c", max_completion_tokens=3), more)).close()
        assert fake.requests[-1]["max_completion_tokens"] == 3 and "max_tokens" not in fake.requests[-1]


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
        assert asked(fake)[before:] == [{IDS, "logprobs"}, set()], "once more, as the client wrote it"
        fake.reject = (500, {"error": {"message": "broken"}})
        with pytest.raises(UpstreamRejected, match="broken"):
            await upstream.chat(ask("d"))
        assert len(fake.requests) == before + 3


async def test_what_the_client_asked_for_itself_is_never_taken_out(fake: Fake) -> None:
    fake.refuses = {"logprobs": "logprobs: not here"}
    async with Upstream(fake.url) as upstream:
        with pytest.raises(UpstreamRejected, match="not here"):
            await upstream.chat(ask("a", logprobs=True))
        assert all("logprobs" in body for body in fake.requests) and upstream.gives_ids is None
