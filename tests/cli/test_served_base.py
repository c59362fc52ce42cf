"""Which base the stages take: what was said, else what the running server serves."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from afterword.cli import server_state
from afterword.cli.entry import main
from afterword.cli.server_state import announce, owned
from afterword.config import BUILT_IN, Config, resolve
from afterword.errors import UsageError


class _Context:
    def __init__(self, directory: Path, config: Config) -> None:
        self.dir, self.config = directory, config


def context(directory: Path, **flags: str) -> Any:
    given = {f"serve.{key}": (value, "--set") for key, value in flags.items()}
    return _Context(directory, resolve(BUILT_IN, flags=given))


SERVERS = ExitStack()


@pytest.fixture(autouse=True)
def _servers_end() -> Iterator[None]:
    with SERVERS:
        yield


def running(directory: Path, **data: Any) -> None:
    """A server of this directory, until the test ends."""
    SERVERS.enter_context(owned(directory))
    announce(directory, {"url": "http://127.0.0.1:1", "model": "tiny-folder", "name": "mine", **data})


@pytest.fixture
def upstream() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    cards: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = json.dumps({"object": "list", "data": cards}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", cards
    server.shutdown()
    thread.join()
    server.server_close()


def test_without_a_server_the_setting_counts(tmp_path: Path) -> None:
    assert server_state.served_model(context(tmp_path)) == "smollm2-135m-instruct"
    assert server_state.served_name(context(tmp_path, name="x")) == "x"


def test_the_running_server_is_asked_unless_the_setting_was_given(tmp_path: Path) -> None:
    running(tmp_path, upstream="http://127.0.0.1:1", embedded=True)
    assert server_state.served_model(context(tmp_path)) == "tiny-folder"
    assert server_state.served_name(context(tmp_path)) == "mine"
    assert server_state.served_model(context(tmp_path, model="other")) == "other"
    assert server_state.served_name(context(tmp_path, name="said")) == "said"


def test_a_foreign_upstream_says_what_its_base_is(tmp_path: Path, upstream: tuple[str, list[dict[str, Any]]]) -> None:
    url, cards = upstream
    running(tmp_path, upstream=url, embedded=False)
    cards += [{"id": "qwen@v1", "parent": "qwen", "root": "/a"}, {"id": "qwen", "parent": None, "root": "/models/qwen"}]
    assert server_state.served_model(context(tmp_path)) == "/models/qwen"
    del cards[1]["root"]
    with pytest.raises(UsageError, match=r"does not say where its model 'qwen' comes from.*serve\.model"):
        server_state.served_model(context(tmp_path))


def test_a_stage_without_a_model_does_not_ask(tmp_path: Path) -> None:
    running(tmp_path, upstream="http://127.0.0.1:1/v1", embedded=False)
    (tmp_path / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n', encoding="utf-8")
    main(["--dir", str(tmp_path), "--quiet", "import", str(tmp_path / "chat.jsonl")])
    assert main(["--dir", str(tmp_path), "--quiet", "collect"]) == 0
