"""The gateway in front of the real engine, in a process of its own: ids, adapters, errors, restarts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine.conftest import write_adapter, write_tiny
from tests.gateway.fake_upstream import Fake
from tests.gateway.gateway_setup import Setup

from afterword.gateway import GatewaySettings, serve_in_thread
from afterword.model import loading
from afterword.model.generation.text import Codec
from afterword.records import Release, Turn
from afterword.sampling import EngineProcess, start_engine
from afterword.store import Store


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def engine(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    log = tmp_path_factory.mktemp("logs") / "engine.log"
    with start_engine(tiny, device="cpu", dtype="float32", log_path=log) as running:
        yield running


def test_the_whole_way_with_the_real_engine(tiny: Path, engine: EngineProcess, tmp_path: Path) -> None:
    settings = GatewaySettings(dir=tmp_path, upstream=engine.url, port=0, poll_ms=20.0)
    write_adapter(tiny, tmp_path / "adapters" / "one", seed=1)
    with serve_in_thread(settings) as url, Store.open(settings.database) as store:
        gateway = Setup(url, Fake(), store, settings)
        base = gateway.chat("abc", temperature=0, max_tokens=8)
        chunks = list(gateway.stream("abc", temperature=0, max_tokens=8))
        first, second = gateway.turns()
        assert first.on_policy and first.missing_ids is None and first.model == engine.model
        assert first.prompt_ids == second.prompt_ids and first.completion_ids == second.completion_ids
        assert first.logprobs is not None and second.logprobs is not None and first.completion_ids is not None
        assert len(first.logprobs) == len(first.completion_ids) <= 8
        assert second.logprobs == pytest.approx(first.logprobs, abs=1e-4)
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == base["choices"][0]["message"]["content"]

        too_long = gateway.post(
            "/v1/chat/completions", {"model": "afterword", "messages": [{"role": "user", "content": "x" * 2000}]}
        )
        assert too_long.status_code == 400 and "512" in too_long.json()["error"]["message"]

        release = Release(
            id="rel-1", channel="default", adapter="afterword@v000001", candidate="cand-1", path="adapters/one",
            verdict=None, previous=None, action="publish", why="test",
        )  # fmt: skip
        store.write(release)
        deadline = time.monotonic() + 10
        while gateway.chat("abc", temperature=0, max_tokens=8)["model"] != "afterword@v000001":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        adapted = gateway.turns()[-1]
        assert adapted.adapter == "afterword@v000001" and adapted.completion_ids != first.completion_ids
        again = gateway.chat("abc", model="afterword@base", temperature=0, max_tokens=8)
        assert store.get(Turn, again["id"]).completion_ids == first.completion_ids

        broken = Release(
            id="rel-2", channel="default", adapter="afterword@v000002", candidate="cand-2", path="adapters/none",
            verdict=None, previous="rel-1", action="publish", why="test",
        )  # fmt: skip
        store.write(broken)
        while gateway.get("/health").json()["status"] != "degraded":
            assert time.monotonic() < deadline + 10
            time.sleep(0.02)
        assert gateway.chat("abc", max_tokens=2)["model"] == "afterword@v000001"
        assert "afterword@v000002" in gateway.get("/health").json()["adapter"]["problem"]


def test_a_long_conversation_loses_its_oldest_turns_and_can_still_be_trained(
    tiny: Path, engine: EngineProcess, tmp_path: Path
) -> None:
    settings = GatewaySettings(
        dir=tmp_path,
        upstream=engine.url,
        port=0,
        poll_ms=20.0,
        embedded=True,
        max_tokens=30,
        on_full_context="drop_oldest",
    )
    codec = Codec(loading.load_tokenizer(str(tiny)))
    with serve_in_thread(settings) as url, Store.open(settings.database) as store:
        gateway = Setup(url, Fake(), store, settings)
        words: list[str] = []
        for number in range(5):
            answer = gateway.chat(*words, f"question {number} " + "x" * 110, temperature=0)
            words += [f"question {number} " + "x" * 110, answer["choices"][0]["message"]["content"]]
        deadline = time.monotonic() + 20
        while len(turns := gateway.turns()) < 5 and time.monotonic() < deadline:  # on a busy machine one may be late
            time.sleep(0.02)
        assert [len(turn.messages) for turn in turns][:2] == [1, 3] and len(turns[4].messages) < 9
        assert [turn.previous for turn in turns[1:]] == [turn.id for turn in turns[:-1]]
        for turn in turns:
            assert turn.prompt_ids == tuple(codec.render(list(turn.messages), None)), "what training checks"
            assert turn.completion_ids is not None and len(turn.completion_ids) <= 30
            assert 512 - len(turn.prompt_ids) >= 30 and turn.sampling["max_tokens"] == 30
