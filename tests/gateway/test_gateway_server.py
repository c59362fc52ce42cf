"""The process: how it starts, what stops it, and that nothing acknowledged is lost when it is killed."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from tests.gateway.fake_upstream import Fake, fake_upstream

from afterword.errors import ConfigError, StoreError
from afterword.gateway import GatewaySettings, run_gateway, serve_in_thread
from afterword.gateway.routes import ROUTES
from afterword.records import Feedback, Turn
from afterword.store import Store

MAIN = """
import sys
from pathlib import Path
from afterword.gateway import GatewaySettings, run_gateway
settings = GatewaySettings(dir=Path(sys.argv[1]), upstream=sys.argv[2], port=0, stop_patience=3.0)
run_gateway(settings, lambda url: print(url, flush=True))
print("torch" in sys.modules, "transformers" in sys.modules, "peft" in sys.modules, flush=True)
"""
ASK = {"model": "afterword", "messages": [{"role": "user", "content": "Hi"}]}


@contextmanager
def process(directory: Path, upstream: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A gateway in a process of its own."""
    command = [sys.executable, "-c", MAIN, str(directory), upstream]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            yield child.stdout.readline().strip(), child
        finally:
            child.kill()


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    answered, acknowledged = [], []
    with fake_upstream(Fake()) as fake, process(tmp_path, fake.url) as (url, child):
        with httpx.Client(base_url=url) as client:
            for number in range(30):
                body = {**ASK, "stream": number % 2 == 0}
                response = client.post("/v1/chat/completions", json=body)
                answered.append(response.headers["x-afterword-turn"])
                event = {"id": f"fb-{number}", "turn": answered[-1], "kind": "copied"}
                assert client.post("/v1/feedback", json=event).status_code == 202
                acknowledged.append(event["id"])
            answered.append(client.post("/v1/chat/completions", json=ASK).json()["id"])
        child.send_signal(signal.SIGKILL)
        child.wait()
    with Store.open(tmp_path / "afterword.db") as store:
        assert [turn.id for turn in store.rows(Turn)] == answered
        assert [event.id for event in store.rows(Feedback)] == acknowledged


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_answers_finish_and_torch_was_never_there(tmp_path: Path, number: signal.Signals) -> None:
    fake = Fake(words=("a",) * 40, delay=0.02)
    with fake_upstream(fake), process(tmp_path, fake.url) as (url, child):
        with httpx.stream("POST", f"{url}/v1/chat/completions", json={**ASK, "stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            child.send_signal(number)
            last = [line for line in lines if line][-1]
        assert last == "data: [DONE]"
        assert child.stdout is not None
        assert child.stdout.readline().split() == ["False"] * 3, "torch, transformers and peft stay out"
        assert child.wait(5) == 0
    with Store.open(tmp_path / "afterword.db") as store:
        (turn,) = store.rows(Turn)
        assert turn.finish_reason == "stop"


def test_a_stop_does_not_wait_for_ever(tmp_path: Path) -> None:
    fake = Fake(words=("a",) * 10_000, delay=0.02)
    with fake_upstream(fake):
        settings = GatewaySettings(dir=tmp_path, upstream=fake.url, port=0, stop_patience=0.3)
        with serve_in_thread(settings) as url:
            client = httpx.Client(base_url=url, timeout=20)
            request = client.build_request("POST", "/v1/chat/completions", json={**ASK, "stream": True})
            response = client.send(request, stream=True)
            chunks = response.iter_raw()
            while b"content" not in next(chunks):
                pass
            start = time.monotonic()
        assert time.monotonic() - start < 5
        with pytest.raises(httpx.RemoteProtocolError):
            list(chunks)
        client.close()
    with Store.open(settings.database) as store:
        (turn,) = store.rows(Turn)
        assert turn.finish_reason == "aborted" and turn.on_policy


def test_a_busy_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = GatewaySettings(dir=tmp_path, upstream="http://127.0.0.1:9", port=port)
        with pytest.raises(ConfigError, match=f"port {port} is in use .* --port"):
            run_gateway(settings)
        with pytest.raises(ConfigError), serve_in_thread(settings):
            pytest.fail("it must not start")


@pytest.mark.parametrize("port", [99999, -1])
def test_a_port_that_is_none(tmp_path: Path, port: int) -> None:
    with pytest.raises(ConfigError, match=rf"--port {port} is invalid"):
        run_gateway(GatewaySettings(dir=tmp_path, upstream="http://127.0.0.1:9", port=port))


def test_an_address_that_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = GatewaySettings(dir=tmp_path, upstream="http://127.0.0.1:9", host="192.0.2.1", port=0)
    monkeypatch.setattr("afterword.gateway.server.check_address", lambda _: None)
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1"):
        run_gateway(settings)


def test_a_newer_database(tmp_path: Path) -> None:
    settings = GatewaySettings(dir=tmp_path, upstream="http://127.0.0.1:9", port=0)
    with Store.open(settings.database) as store:
        store.read("PRAGMA user_version=999")
    with pytest.raises(StoreError, match="newer version"):
        run_gateway(settings)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _knows_localhost() -> bool:
    try:
        return bool(socket.getaddrinfo("localhost", 0))
    except OSError:  # a bare root without /etc/hosts
        return False


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("localhost", marks=pytest.mark.skipif(not _knows_localhost(), reason="no name for loopback")),
        pytest.param("::1", marks=pytest.mark.skipif(not _has_ipv6(), reason="needs IPv6")),
    ],
)
def test_other_names_of_loopback(tmp_path: Path, host: str) -> None:
    with fake_upstream(Fake()) as fake:
        settings = GatewaySettings(dir=tmp_path, upstream=fake.url, port=0, host=host)
        with serve_in_thread(settings) as url:
            assert httpx.get(f"{url}/health/live").json() == {"status": "ok"}


def test_run_gateway_stops_on_the_event_in_the_main_thread(tmp_path: Path) -> None:
    stop = threading.Event()
    seen: list[str] = []

    def ready(url: str) -> None:
        seen.append(url)
        stop.set()

    run: Callable[..., None] = run_gateway
    with fake_upstream(Fake()) as fake:
        run(GatewaySettings(dir=tmp_path, upstream=fake.url, port=0), ready, stop)
        run(GatewaySettings(dir=tmp_path, upstream=fake.url, port=0), None, stop)
    assert seen[0].startswith("http://127.0.0.1:")


def test_the_description_is_true(tmp_path: Path) -> None:
    with (
        fake_upstream(Fake()) as fake,
        serve_in_thread(GatewaySettings(dir=tmp_path, upstream=fake.url, port=0)) as url,
    ):
        document = httpx.get(f"{url}/openapi.json").json()
        calls = [(m, p, o) for p, operations in document["paths"].items() for m, o in operations.items()]
        for method, path, operation in calls:
            message = {**ASK, "max_tokens": 9}
            bodies = {
                "/v1/chat/completions": ASK,
                "/v1/feedback": {"turn": "t", "kind": "copied"},
                "/v1/responses": {"model": ASK["model"], "input": "Why?"},
                "/v1/messages": message,
                "/v1/messages/count_tokens": message,
                "/api/chat": ASK,
                "/api/generate": {"model": ASK["model"], "prompt": "Why?"},
                "/api/show": {"model": ASK["model"]},
            }
            call = httpx.request(method, url + path.replace("{id}", "base-model").replace("{episode}", "e"),
                                 json=bodies.get(path.removeprefix("/episodes/{episode}")))  # fmt: skip
            assert str(call.status_code) in operation["responses"], (method, path, call.text)
            kind = call.headers["content-type"].partition(";")[0]
            assert kind in operation["responses"][str(call.status_code)]["content"]
        assert len(calls) == len(ROUTES) == 43 and document["info"]["title"] == "Afterword"
        refs = {part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]}
        assert refs <= set(document["components"]["schemas"])
        assert "OpenAI-compatible" in httpx.get(url).text
