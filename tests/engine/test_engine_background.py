"""Requests of an evaluation at the engine that serves: users go first, and what it answers stays the same."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.engine.conftest import Client, serve_tiny

from afterword.engine.host import Host
from afterword.evaluate.comparison.answers import Arm, Cache, EvaluationPrompt, ask
from afterword.model.generation.cached_attention import Interrupted
from afterword.sharing import BACKGROUND_HEADER, engines

DRAWN: dict[str, Any] = {"temperature": 1.0, "seed": 3, "ignore_eos": True}
TEXTS = ("one", "two, which is longer", "three")


async def _behind(client: Client, text: str, count: int) -> list[int]:
    messages = [{"role": "user", "content": text}]
    body = {"model": "tiny", "messages": messages, "max_tokens": count, "return_token_ids": True, **DRAWN}
    response = await client.http.post("/v1/chat/completions", json=body, headers=BACKGROUND_HEADER)
    ids: list[int] = (await response.json())["choices"][0]["token_ids"]
    return ids


def _noted(client: Client, monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, ...]]:
    """For each step that is done, whether its requests are in the background."""
    steps: list[tuple[bool, ...]] = []
    step = client.engine._step

    def noting(requests: list[Any]) -> Any:
        pieces = step(requests)
        steps.append(tuple(r.ask.background for r in requests))
        return pieces

    monkeypatch.setattr(client.engine, "_step", noting)
    return steps


async def _until(steps: list[tuple[bool, ...]], count: int) -> None:
    async with asyncio.timeout(30):
        while len(steps) < count:
            await asyncio.sleep(0.001)


async def test_users_go_first_and_no_answer_changes(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [await client.ids(text, 60, **DRAWN) for text in TEXTS]
    user = await client.ids("user", 20, **DRAWN)
    steps = _noted(client, monkeypatch)
    behind = [asyncio.create_task(_behind(client, text, 60)) for text in TEXTS]
    await _until(steps, 5)
    assert await client.ids("user", 20, **DRAWN) == user
    served = [n for n, step in enumerate(steps) if step == (False,)]
    assert len(served) == 20
    between = [step for step in steps[served[0] : served[-1]] if step != (False,)]
    assert all(step == (True,) * len(step) for step in between), "steps of their own"
    assert await asyncio.gather(*behind) == alone


async def test_a_step_in_the_background_is_given_up_for_a_user(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [await client.ids(text, 30, **DRAWN) for text in TEXTS]
    forward, given_up = client.runner.forward, list[int]()

    def arriving(ids: list[int], plan: Any, *rest: Any) -> Any:
        if len(given_up) < 5:
            client.engine._urgent = True  # as `submit` sets it while a step runs
        try:
            return forward(ids, plan, *rest)
        except Interrupted:
            given_up.append(len(ids))
            raise

    monkeypatch.setattr(client.runner, "forward", arriving)
    assert await asyncio.gather(*(_behind(client, text, 30) for text in TEXTS)) == alone
    assert len(given_up) == 5
    given_up.clear()
    assert await client.ids(TEXTS[0], 30, **DRAWN) == alone[0]
    assert not given_up, "a user's step is never given up"


async def test_a_fifth_of_the_time_is_left_to_the_background(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, account = client.engine, client.engine._account
    # every step takes a tenth of a second
    monkeypatch.setattr(engine, "_account", lambda requests, seconds: account(requests, 0.1))
    steps = _noted(client, monkeypatch)
    behind = asyncio.create_task(_behind(client, "one", 200))
    await _until(steps, 5)
    await client.ids("user", 60, ignore_eos=True)
    served = [n for n, step in enumerate(steps) if step == (False,)]
    between = len(range(served[0], served[-1] + 1)) - len(served)
    assert 10 <= between <= 13, "of 60 steps"
    behind.cancel()


async def test_half_of_the_rows_are_for_users(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve_tiny(tiny, max_batch=4) as client:
        steps = _noted(client, monkeypatch)
        behind = [asyncio.create_task(_behind(client, "one", 100)) for _ in range(6)]
        await _until(steps, 5)
        assert {len(step) for step in steps} <= {1, 2}
        await client.ids("user", 5, ignore_eos=True)
        assert not any(task.done() for task in behind)
        for task in behind:
            task.cancel()


async def test_an_evaluation_asks_in_the_background(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, submit = [], client.engine.submit

    def noting(request: Any) -> None:
        asked.append(request.ask.background)
        submit(request)

    monkeypatch.setattr(client.engine, "submit", noting)
    prompts = [EvaluationPrompt.of(text) for text in TEXTS]
    sampling = {"temperature": 0.0, "max_tokens": 3}
    arms = [Arm("served", None, None)]
    url = str(client.http.make_url("/"))
    await asyncio.to_thread(ask, url, arms, prompts, cache=Cache(None, "answers"), base="b", sampling=sampling)
    assert asked == [True] * 3


async def test_the_engine_of_an_evaluation_signals_nothing(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFTERWORD_RUN_DIR", str(tmp_path))
    host = Host(client.runner, client.server.codec, "tiny", "", background=True)
    assert engines() == []
    host.stop()
    host.run(lambda pieces: None)
