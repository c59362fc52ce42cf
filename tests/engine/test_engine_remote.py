"""The model's process and the pipe to it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from afterword.engine.__main__ import _until_stopped
from afterword.engine.host import Host
from afterword.engine.protocol import parse_request
from afterword.engine.server import Server
from afterword.engine.worker_client import Remote
from afterword.errors import ModelError
from afterword.model import loading
from afterword.model.generation.runner import Runner
from afterword.model.generation.text import Codec


def build(options: argparse.Namespace) -> Host:
    """The tiny model, in the other process."""
    if options.fault == "error":
        raise ModelError("the folder is empty")
    if options.fault == "death":
        os._exit(9)
    model = loading.load_model(options.model, dtype="float32")
    codec = Codec(loading.load_tokenizer(options.model))
    runner = Runner(model, ends=frozenset([1]))
    return Host(runner, codec, "tiny", loading.base_hash(Path(options.model)))


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """`build` is found by its name in the other process."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


def remote(folder: Path, fault: str | None = None) -> Remote:
    return Remote(build, argparse.Namespace(model=str(folder), fault=fault))


@contextlib.asynccontextmanager
async def served(it: Remote, folder: Path) -> AsyncIterator[TestClient[Any, Any]]:
    server = Server(it, Codec(loading.load_tokenizer(str(folder))), "tiny", str(folder))
    it.start(server.distribute)
    async with TestClient(TestServer(server.app, handler_cancellation=True)) as http:
        yield http


def body(**fields: Any) -> dict[str, Any]:
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "ignore_eos": True}
    return {**chat, "return_token_ids": True, **fields}


async def test_answers_adapters_and_counts_cross_the_pipe(tiny: Path, adapters: dict[str, Path]) -> None:
    it = remote(tiny)
    it.wait_ready()
    assert it.max_model_len == 512
    async with served(it, tiny) as http:
        plain = await (await http.post("/v1/chat/completions", json=body(max_tokens=12))).json()
        assert len(plain["choices"][0]["token_ids"]) == 12
        load = {"lora_name": "one", "lora_path": str(adapters["one"])}
        assert (await http.post("/v1/load_lora_adapter", json=load)).status == 200
        changed = await (await http.post("/v1/chat/completions", json=body(max_tokens=12, model="one"))).json()
        assert changed["choices"][0]["token_ids"] != plain["choices"][0]["token_ids"]
        wrong = await http.post("/v1/load_lora_adapter", json={"lora_name": "b", "lora_path": "/nowhere"})
        assert wrong.status == 400 and "no adapter folder '/nowhere'" in await wrong.text()
        assert (await http.post("/v1/unload_lora_adapter", json={"lora_name": "one"})).status == 200
        health = await (await http.get("/health")).json()
        assert (health["status"], health["running"], health["tokens_generated"]) == ("ok", 0, 24)
    it.close()
    assert it._process.returncode == 0


async def test_a_client_that_leaves_stops_the_work(tiny: Path) -> None:
    it = remote(tiny)
    it.wait_ready()
    async with served(it, tiny) as http:
        ask = asyncio.create_task(http.post("/v1/chat/completions", json=body(max_tokens=480)))
        async with asyncio.timeout(20):
            while (await asyncio.wrap_future(it.counts()))["tokens_generated"] < 3:
                await asyncio.sleep(0.001)
        ask.cancel()
        async with asyncio.timeout(20):
            while (counts := await asyncio.wrap_future(it.counts()))["running"]:
                await asyncio.sleep(0.001)
        assert counts["tokens_generated"] < 470 and not it._open
    it.close()


async def test_a_process_that_is_killed_leaves_nobody_waiting(tiny: Path) -> None:
    it = remote(tiny)
    it.wait_ready()
    async with served(it, tiny) as http:
        ask = asyncio.create_task(http.post("/v1/chat/completions", json=body(max_tokens=480)))
        async with asyncio.timeout(20):
            while not it._open:
                await asyncio.sleep(0.001)
        os.kill(it._process.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            assert (await ask).status == 500
            assert (await http.post("/v1/chat/completions", json=body())).status == 500
            assert (await http.get("/health")).status == 503
            refused = await http.post("/v1/load_lora_adapter", json={"lora_name": "a", "lora_path": "x"})
            assert "the model's process has ended" in await refused.text()
    it.close()


async def test_a_process_that_reads_nothing_is_ended_while_somebody_writes_to_it(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = remote(tiny)
    it.wait_ready()
    monkeypatch.setattr("afterword.engine.worker_client.SILENCE", 2.0)
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    last_resort = threading.Timer(60.0, it._process.kill)
    last_resort.start()
    async with served(it, tiny):
        watching = asyncio.create_task(_until_stopped(None, it, stop))
        await asyncio.sleep(0.1)
        try:
            os.kill(it._process.pid, signal.SIGSTOP)
            for number in range(1000):  # far more than a pipe holds
                it.submit(number, parse_request(body()), [70_000] * 500, 1)
            assert not it.alive and it.reason is not None
            assert "no progress" in it.reason and "stopped by a signal" in it.reason
        finally:
            last_resort.cancel()
            stop.set()
            await watching
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
    it.close()


def test_what_fails_while_loading_is_told(tiny: Path) -> None:
    for fault, message in (("error", "the folder is empty"), ("death", r"ended while loading \(exit code 9\)")):
        it = remote(tiny, fault)
        with pytest.raises(ModelError, match=message):
            it.wait_ready()
        it.close()
