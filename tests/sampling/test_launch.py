"""Starting a model server as a child: ready, dead on arrival, silent, stubborn."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.serving import until

from afterword.errors import ModelError, UpstreamError
from afterword.sampling import launch, start_engine


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in place of the engine; its behaviour is chosen by --mode."""
    code = """
        import json, os, signal, sys, time
        arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
        mode = arguments["--mode"]
        print("arguments:", sys.argv[1:], file=sys.stderr)
        if mode == "dies":
            print("the model folder is gone", file=sys.stderr)
            sys.exit(3)
        if mode == "refuses":
            print("there is no model at /nonexistent", file=sys.stderr)
            sys.exit(2)
        if mode == "babbles":
            print("hello")
        if mode == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if mode in ("ready", "stubborn"):
            print(json.dumps({"ready": True, "port": 4321, "model": "m"}), flush=True)
            for number in range(20000):
                print("more output", number)
        if mode == "ready":
            assert int(arguments["--parent-pid"]) == os.getppid()
        sys.stdout.flush()
        time.sleep(60)
    """
    (tmp_path / "fake_engine.py").write_text(textwrap.dedent(code), "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "fake_engine"


def test_it_is_ready(engine: str, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "engine.log"
    with start_engine(
        "some-model", device="cpu", dtype="float32", log_path=log, extra=("--mode", "ready"), module=engine
    ) as running:
        assert running.url == "http://127.0.0.1:4321" and running.model == "m"
        alive = [running.alive]
        assert running.pid > 0
    alive.append(running.alive)
    assert alive == [True, False]
    text = log.read_text("utf-8")
    for words in ("'--model', 'some-model'", "'--device', 'cpu'", "'--dtype', 'float32'", "'--port', '0'"):
        assert words in text
    assert running.stop() != 0, "stopping twice is fine"


def test_it_dies(engine: str, tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match=r"ended with status 3.*\n.*\nthe model folder is gone"):
        start_engine(log_path=tmp_path / "log", extra=("--mode", "dies"), module=engine)


def test_what_it_was_told_is_impossible_and_only_this_start_is_quoted(engine: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("an error of yesterday\n", "utf-8")
    with pytest.raises(ModelError, match="there is no model at /nonexistent") as caught:
        start_engine(log_path=log, extra=("--mode", "refuses"), module=engine)
    assert caught.value.exit_code == 2 and "yesterday" not in caught.value.message
    assert "yesterday" in log.read_text("utf-8")


def test_a_signal_while_it_loads_ends_it(engine: str, tmp_path: Path) -> None:
    main = threading.main_thread().ident
    assert main is not None
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    log = tmp_path / "log"

    def interrupt() -> None:
        until(lambda: log.exists() and "arguments" in log.read_text("utf-8"))
        signal.pthread_kill(main, signal.SIGUSR1)

    threading.Thread(target=interrupt).start()
    started: list[subprocess.Popen[str]] = []
    spawn = launch._spawn

    def remembering(command: list[str], log_path: Path, environment: Any) -> subprocess.Popen[str]:
        started.append(spawn(command, log_path, environment))
        return started[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_spawn", remembering)
        with pytest.raises(KeyboardInterrupt):
            start_engine(log_path=log, extra=("--mode", "silent"), module=engine)
    signal.signal(signal.SIGUSR1, before)
    assert started[0].poll() is not None, "it ended with us"


@pytest.mark.parametrize("mode", ["silent", "babbles"])
def test_it_never_gets_ready(engine: str, tmp_path: Path, mode: str) -> None:
    with pytest.raises(UpstreamError, match=r"was not ready within 2 s and was stopped"):
        start_engine(log_path=tmp_path / "log", extra=("--mode", mode), wait=2.0, module=engine)


def test_it_does_not_want_to_end(engine: str, tmp_path: Path) -> None:
    running = start_engine(log_path=tmp_path / "log", extra=("--mode", "stubborn"), module=engine)
    assert running.stop(patience=0.3) == -9


def test_an_empty_log_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quiet_engine.py").write_text("", "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert sys.executable
    with pytest.raises(UpstreamError, match=r"status 0.*\n\(empty\)"):
        start_engine(log_path=tmp_path / "log", module="quiet_engine")
