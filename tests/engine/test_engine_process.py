"""The engine as a process of its own, spoken to by the real `openai` client."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest


@contextmanager
def engine(*flags: str) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """A running engine and the JSON that it printed when ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "afterword.engine", "--port", "0", *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield process, json.loads(line)
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
                "messages": [{"role": "user", "content": "What is the capital of France?"}],
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


def test_usage_errors_and_busy_ports(tiny: Path) -> None:
    def run(*flags: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "afterword.engine", *flags], capture_output=True, text=True, timeout=60
        )
        assert done.stdout == ""
        return done.returncode, done.stderr

    code, text = run("--model", "/nowhere")
    assert code == 2 and "there is no model folder '/nowhere'" in text
    code, text = run("--model", str(tiny), "--max-model-len", "4096")
    assert code == 2 and "more than the model's context of 512" in text
    with engine("--model", str(tiny)) as (process, ready):
        code, text = run("--model", str(tiny), "--port", str(ready["port"]))
        assert code == 1 and "cannot serve on" in text
        assert process.poll() is None
