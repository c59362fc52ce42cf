"""Several model servers as one, over HTTP: who is asked, who is left out, and what a release means on all of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from tests.gateway.fake_upstream import Fake, fake_upstream

from afterword.errors import UpstreamError
from afterword.sampling import Upstream, UpstreamRejected, upstream_of
from afterword.sampling import replicas as module
from afterword.sampling.replicas import Replicas, split_urls

FOLDER = "/data/adapters/cand-1"


def chat(number: int, **more: Any) -> dict[str, Any]:
    return {"model": "base-model", "messages": [{"role": "user", "content": f"Question {number}"}], **more}


@pytest.fixture
def fakes() -> Iterator[list[Fake]]:
    with ExitStack() as stack:
        yield [stack.enter_context(fake_upstream(Fake())) for _ in range(3)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE", 0.02)


def group(fakes: list[Fake]) -> Replicas:
    found = upstream_of(" , ".join(fake.url for fake in fakes))
    assert isinstance(found, Replicas)
    return found


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


def test_one_url_is_one_server() -> None:
    assert type(upstream_of("http://127.0.0.1:8000/v1")) is Upstream
    assert split_urls("http://a, http://b ,,http://a") == ["http://a", "http://b"]


async def test_conversations_are_spread_and_stay_where_they_began(fakes: list[Fake]) -> None:
    async with group(fakes) as servers:
        await servers.models()
        for number in range(30):
            await servers.chat(chat(number))
        first = [len(fake.requests) for fake in fakes]
        assert sum(first) == 30 and min(first) > 0
        for number in range(30):
            more = [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And?"}]
            await servers.chat({**chat(number), "messages": [*chat(number)["messages"], *more]})
    seen = [Counter(request["messages"][0]["content"] for request in fake.requests) for fake in fakes]
    assert sum(map(len, seen)) == 30 and all(set(one.values()) == {2} for one in seen)
    async with group(fakes) as servers:  # another gateway sends the same conversations to the same servers
        await servers.models()
        for fake in fakes:
            fake.requests.clear()
        for number in range(30):
            await servers.chat(chat(number))
    assert [len(fake.requests) for fake in fakes] == first


async def test_a_busy_server_is_spared(fakes: list[Fake]) -> None:
    async with group(fakes) as servers:
        await servers.models()
        streams = [await servers.open_chat(chat(1, stream=True)) for _ in range(15)]
        asked = [len(fake.requests) for fake in fakes]
        assert 0 < max(asked) - min(asked) <= 5 and sum(asked) == 15  # all have one beginning
        assert sorted(one["in_flight"] for one in servers.replicas()) == sorted(asked)
        for stream in streams:
            stream.close()
            stream.close()
        assert [one["in_flight"] for one in servers.replicas()] == [0, 0, 0]


@pytest.mark.parametrize("status", [429, 502, 503])
async def test_a_request_goes_on_where_a_server_refuses(fakes: list[Fake], status: int) -> None:
    fakes[0].reject = fakes[1].reject = (status, {"error": {"message": "full"}})
    async with group(fakes) as servers:
        await servers.models()
        for number in range(6):
            assert (await servers.chat(chat(number)))["choices"]
        fakes[2].reject = fakes[0].reject
        with pytest.raises(UpstreamRejected, match="full"):
            await servers.chat(chat(0))
        assert all(one["status"] == "ok" and not one["in_flight"] for one in servers.replicas())


async def test_a_bad_request_is_asked_once(fakes: list[Fake]) -> None:
    for fake in fakes:
        fake.reject = (400, {"error": {"message": "no such field"}})
    async with group(fakes) as servers:
        await servers.models()
        with pytest.raises(UpstreamRejected, match="no such field"):
            await servers.chat(chat(0))
    assert sum(bool(fake.requests) for fake in fakes) == 1  # again without fields of ours, but at the same server


async def test_a_server_that_dies_costs_no_request_and_comes_back_with_every_adapter(fakes: list[Fake]) -> None:
    with fake_upstream(Fake()) as mortal:
        url = mortal.url
        async with group([fakes[0], mortal]) as servers:
            await servers.models()
            assert await servers.load_adapter("afterword@v000001", FOLDER) == FOLDER
            assert fakes[0].adapters == mortal.adapters == {"afterword@v000001": FOLDER}
            mortal.health_status = 503  # it drains
            await until(lambda: servers.replicas()[1]["status"] == "down")
            for number in range(10):
                await servers.chat(chat(number))
            assert len(fakes[0].requests) == 10 and "503" in servers.replicas()[1]["problem"]
            await servers.load_adapter("afterword@v000002", FOLDER + "2")
            mortal.adapters.clear()  # it was started anew
            mortal.health_status = 200
            await until(lambda: servers.replicas()[1]["status"] == "ok")
            assert mortal.adapters == {"afterword@v000001": FOLDER, "afterword@v000002": FOLDER + "2"}
            assert url in servers.url


async def test_without_any_server_the_error_names_them_all(fakes: list[Fake]) -> None:
    nobody = "http://127.0.0.1:9"
    async with upstream_of(f"{nobody},http://127.0.0.1:10") as servers:
        with pytest.raises(UpstreamError, match="cannot be reached"):
            await servers.models()
        with pytest.raises(UpstreamError, match=r"no model server is ready: .*:9: .*:10: .*Check that"):
            await servers.chat(chat(0))
    async with upstream_of(f"{nobody},{fakes[0].url}") as servers:
        assert [card["id"] for card in await servers.models()] == ["base-model"]
        for number in range(4):
            await servers.chat(chat(number))
        await servers.health()


async def test_a_server_with_another_model_gets_nothing(fakes: list[Fake]) -> None:
    fakes[1].base = "another-model"
    async with group(fakes) as servers:
        await servers.models()
        for number in range(12):
            await servers.chat(chat(number))
        assert not fakes[1].requests
        assert "it serves ['another-model'], the others ['base-model']" in servers.replicas()[1]["problem"]


async def test_a_release_is_on_all_servers_or_not_served(fakes: list[Fake]) -> None:
    async with group(fakes) as servers:
        await servers.models()
        fakes[2].load_error = "no slot is free"
        with pytest.raises(UpstreamError, match="no slot is free"):
            await servers.load_adapter("afterword@v000001", FOLDER)
        fakes[2].load_error = None
        assert await servers.load_adapter("afterword@v000001", FOLDER) == FOLDER
        assert all(fake.adapters == {"afterword@v000001": FOLDER} for fake in fakes)
        cards = await servers.models()
        assert [card["id"] for card in cards] == ["base-model", "afterword@v000001"]
        await fakes_lose(fakes[1], servers)
        await servers.unload_adapter("afterword@v000001")
        assert not any(fake.adapters for fake in fakes)


async def fakes_lose(fake: Fake, servers: Replicas) -> None:
    """An adapter that one server lacks is not listed."""
    fake.adapters.clear()
    assert [card["id"] for card in await servers.models()] == ["base-model"]
    await servers.load_adapter("afterword@v000001", FOLDER)


async def test_a_name_that_one_server_has_from_elsewhere_is_told(fakes: list[Fake]) -> None:
    fakes[1].adapters["afterword@v000001"] = "/other/folder"
    async with group(fakes) as servers:
        await servers.models()
        assert await servers.load_adapter("afterword@v000001", FOLDER) == "/other/folder"
