"""The engine as a process of its own, spoken to by the real `openai` client."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from afterword.engine.__main__ import main


@contextmanager
def engine(*flags: str) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """A running engine and the JSON that it printed when ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "afterword.engine", "--port", "0", *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    try:
        said: dict[str, Any] = {}
        while not said.get("ready"):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            said = json.loads(line)
        yield process, said
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)
        process.stdout.close()
        process.stderr.close()


def test_the_openai_client_chats_and_streams_with_the_embedded_model() -> None:
    with engine("--max-model-len", "1024") as (process, ready):
        assert ready["ready"] is True and ready["max_model_len"] == 1024
        with openai.OpenAI(base_url=f"http://127.0.0.1:{ready['port']}/v1", api_key="none") as client:
            chat: dict[str, Any] = {
                "model": ready["model"],
                "messages": [{"role": "user", "content": "Complete this sentence: The capital of France is"}],
                "temperature": 0,
                "max_tokens": 24,
            }
            answer = client.chat.completions.create(**chat)
            assert "Paris" in (answer.choices[0].message.content or "")
            assert answer.choices[0].finish_reason == "stop" and answer.usage is not None
            stream = client.chat.completions.create(**chat, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            assert text == answer.choices[0].message.content
            assert [model.id for model in client.models.list()] == ["smollm2-135m-instruct"]
            with pytest.raises(openai.NotFoundError, match="does not exist"):
                client.chat.completions.create(**{**chat, "model": "nobody"})
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_it_ends_when_its_parent_is_gone(tiny: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with engine("--model", str(tiny), "--parent-pid", str(parent.pid)) as (process, _):
        assert process.poll() is None
        parent.communicate(b"\n")
        assert process.wait(20) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_model_leaves_with_a_killed_server(tiny: Path) -> None:
    with engine("--model", str(tiny)) as (process, _):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("utf-8").split()
        assert len(children) == 1
        process.kill()
        process.wait(10)
        deadline = time.monotonic() + 20
        while _runs(int(children[0])):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """`main` in this process, whose log settings are not the engine's to change."""
    monkeypatch.setattr("afterword.engine.__main__.start_log", lambda: None)
    monkeypatch.setattr("afterword.engine.__main__.dump_stacks_when_asked", lambda: None)


@pytest.mark.usefixtures("in_place")
def test_usage_errors_are_one_line(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "/nowhere"]) == 2
    assert "there is no model folder '/nowhere'" in capsys.readouterr().err
    assert main(["--model", str(tiny), "--max-model-len", "4096"]) == 2
    assert "more than the model's context of 512" in capsys.readouterr().err


@pytest.mark.usefixtures("in_place")
def test_a_busy_port_is_named(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        assert main(["--model", str(tiny), "--dtype", "float32", "--port", str(port)]) == 1
    assert f"cannot serve on 127.0.0.1:{port}" in capsys.readouterr().err
