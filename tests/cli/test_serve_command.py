"""`afterword serve` as its operator meets it: what stops it, what it says, and that there is one a directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from tests.gateway.fake_upstream import Fake, fake_upstream
from tests.serving import afterword, serving, until

from afterword.cli import run
from afterword.cli.entry import main
from afterword.cli.server_state import health, owned, running_server
from afterword.config import ServeConfig
from afterword.errors import ConfigError, UpstreamError
from afterword.records import Turn
from afterword.store import Store

DEAD = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--port", "99999", "--upstream", DEAD), "99999"),
        (("--port", "-1", "--upstream", DEAD), "-1"),
        (("--upstream", "127.0.0.1:8000"), "http://127.0.0.1:8000/v1"),
        (("--upstream", "localhost"), "no URL"),
        (("--upstream", DEAD, "--set", 'serve.allow_origins=["chat.example"]'), "invalid origin"),
    ],
)
def test_what_cannot_be_is_a_sentence_and_a_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], says: str
) -> None:
    assert main(["serve", "--dir", str(tmp_path), *flags]) == 2
    assert says in capsys.readouterr().err


def test_a_model_that_is_not_there_is_a_2(tmp_path: Path) -> None:
    done = afterword(tmp_path, "serve", "--port", "0", "--model", "/nonexistent")
    assert done.returncode == 2 and "/nonexistent" in done.stderr and "Traceback" not in done.stderr


def test_one_server_a_directory_and_the_second_touches_nothing(tmp_path: Path) -> None:
    home = tmp_path / "data"
    with fake_upstream(Fake()) as fake, serving(home, "--upstream", fake.url) as server:
        second = afterword(home, "serve", "--port", "0", "--upstream", fake.url)
        assert second.returncode == 2 and server.url in second.stderr and "--dir" in second.stderr
        found = running_server(home)
        assert found is not None and found["pid"] == server.process.pid
        assert httpx.get(f"{server.url}/health").json()["status"] == "ok"
        server.kill()
        assert (home / "server.json").exists() and running_server(home) is None, "the system told, not the file"
        left = json.loads((home / "server.json").read_text("utf-8"))
        (home / "server.json").write_text(json.dumps({**left, "pid": 1}), "utf-8")
        assert running_server(home) is None, "process 1 lives, but it is no server"
        with serving(home, "--upstream", fake.url) as again:
            found = running_server(home)
            assert found is not None and found["url"] == again.url
        assert running_server(home) is None and not (home / "server.json").exists()


def test_who_is_refused_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afterword.cli.server_state._PATIENCE", 0.0)
    with owned(tmp_path):
        (tmp_path / "server.json").write_text('{"url": "http://x", "pid": 7}', "utf-8")
        with pytest.raises(ConfigError, match=r"at http://x \(process 7\)"), owned(tmp_path):
            pytest.fail("it must not start")
        assert running_server(tmp_path) == {"url": "http://x", "pid": 7}


def test_a_dead_upstream_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_upstream(Fake()) as gone:
        pass
    with serving(tmp_path / "data", "--upstream", gone.url) as server:
        log = (tmp_path / "data-serve.log").read_text("utf-8")
        assert "warning" in log and "cannot be reached" in log and "--upstream" in log
        assert httpx.get(f"{server.url}/health").status_code == 503
        monkeypatch.setenv("http_proxy", DEAD)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.setattr(urllib.request, "_opener", None)  # it reads the environment once
        assert health(running_server(tmp_path / "data"))["status"] == "down", "a proxy is not for this machine"
        doctor = afterword(tmp_path / "data", "doctor")
        says = " ".join(doctor.stdout.split())
        assert f"{server.url} says down" in says and "does not answer" not in says, doctor.stdout + doctor.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="children are read from /proc")
def test_sigterm_while_the_engine_loads_ends_both(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "afterword", "serve", "--dir", str(tmp_path / "data"), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        until(lambda: bool(_children(process.pid)), 60)
        engine = _children(process.pid)[0]
        until(lambda: bool(_children(engine)), 60)  # the model's own process
        family = [engine, *_children(engine)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 130
    until(lambda: not any(_lives(pid) for pid in family), 20)
    assert "Broken pipe" not in (tmp_path / "data/logs/engine.log").read_text("utf-8")


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]
    except FileNotFoundError:
        return []


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_engine_that_dies_is_told_of_and_started_until_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[Any] = [OSError(28, "No space left on device"), UpstreamError("the engine ended"), None]
    running = [True]

    def start(*_: Any, **__: Any) -> Any:
        fault = outcomes.pop(0) if not running[0] else None
        if fault is not None:
            raise fault
        running[0] = True
        return Process()

    class Process(SimpleNamespace):
        url = "http://127.0.0.1:4321"

        @property
        def alive(self) -> bool:
            return running[0]

        def stop(self) -> int:
            return -9

        def last_words(self, status: int) -> str:
            return f"the engine's process ended with status {status}"

    monkeypatch.setattr(run, "start_engine", start)
    monkeypatch.setattr(run, "_PATIENCE", 0.01)
    said: list[str] = []
    engine = run._Engine(ServeConfig(), tmp_path / "log", SimpleNamespace(say=said.append, dir=tmp_path))  # type: ignore[arg-type]
    running[0] = False
    until(lambda: bool(said) and "runs again" in said[-1], 10)
    engine.stop()
    text = "\n".join(said)
    assert "status -9" in text and "No space left" in text and "the engine ended" in text
    assert outcomes == []
    state = engine.state()
    assert (state["status"], state["restarts"]) == ("ok", 1) and "status -9" in state["last_reason"]


def test_whose_turn_it_is_to_mend_an_upstream_that_is_down(tmp_path: Path) -> None:
    config = ServeConfig(upstream=DEAD)
    context = SimpleNamespace(dir=tmp_path, say=lambda text: None)
    with run._model_server(context, config) as server:  # type: ignore[arg-type]
        assert server.url == DEAD and "--upstream" in server.remedy and server.state is None


def test_piped_lists_have_one_line_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(tmp_path / "afterword.db") as store:
        for number in range(3):
            answer = {"role": "assistant", "content": "word " * 30}
            question = {"role": "user", "content": "long question " * 20}
            store.write(
                Turn(id=f"chatcmpl-{number}{'0' * 28}", messages=(question,), answer=answer, created_at=time.time())
            )
    assert main(["turns", "list", "--dir", str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("chatcmpl-")]
    assert [line.split()[0] for line in lines] == [f"chatcmpl-{number}{'0' * 28}" for number in (2, 1, 0)]
    assert os.environ.get("COLUMNS") is None
