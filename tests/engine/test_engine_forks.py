"""The processes of a running `afterword serve`: none shares a torch that was forked, a killed one is replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.serving import serving, until

from afterword.cli import main as cli

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

_FORKED_WITHOUT_EXEC = 0x40
"""PF_FORKNOEXEC in the flags of /proc/PID/stat: forked, and no program executed since."""


def tree(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text("utf-8").split():
            yield from tree(int(child))


def has_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text("utf-8")


def is_fork(pid: int) -> bool:
    flags = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[6]
    return bool(int(flags) & _FORKED_WITHOUT_EXEC)


def test_no_two_processes_of_a_server_share_a_forked_torch(tiny: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--model", str(tiny)) as server:
        pids = list(tree(server.process.pid))
        with_torch = [pid for pid in pids if has_torch(pid)]
        assert len(pids) == 3 and with_torch == [worker(server.process.pid)], pids
        assert not [pid for pid in with_torch if is_fork(pid)]


def test_a_forked_torch_would_be_seen() -> None:
    code = "import os, torch\nif os.fork() == 0: input()\nelse: os.wait()"
    parent = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stdin=subprocess.PIPE)
    until(lambda: len(list(tree(parent.pid))) == 2, 60)
    child = list(tree(parent.pid))[1]
    seen = has_torch(child) and is_fork(child), is_fork(parent.pid)
    parent.communicate(b"\n")
    assert seen == (True, False)


def test_a_killed_model_is_started_again_and_that_is_told(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "data"
    with serving(home, "--model", str(tiny)) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            chat: dict[str, Any] = {
                "model": "afterword",
                "messages": [{"role": "user", "content": "Hi"}],
                "max_tokens": 480,
                "extra_body": {"ignore_eos": True},
            }
            stream = client.chat.completions.create(**chat, stream=True)
            next(stream)
            os.kill(worker(server.process.pid), signal.SIGKILL)
            with pytest.raises(openai.APIError):
                for _ in stream:
                    pass
            until(lambda: health(server.url).get("restarts") == 1 and health(server.url)["status"] == "ok", 90)
            chat["max_tokens"] = 4
            until(lambda: answers(client, chat), 30)
        assert "SIGKILL" in health(server.url)["last_reason"]
        assert cli(["status", "--dir", str(home), "--json"]) == 0
        engine = json.loads(capsys.readouterr().out)["server"]["engine"]
        assert (engine["status"], engine["restarts"]) == ("ok", 1) and "SIGKILL" in engine["last_reason"]
        assert cli(["status", "--dir", str(home)]) == 0
        assert "restarts: 1" in capsys.readouterr().out


def worker(pid: int) -> int:
    """The model's process below a server."""
    return next(each for each in tree(pid) if b"afterword.engine.worker" in Path(f"/proc/{each}/cmdline").read_bytes())


def health(url: str) -> dict[str, Any]:
    """What `/health` says of the engine."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
            body = json.load(answer)
    except urllib.error.HTTPError as error:
        body = json.load(error)
    engine: dict[str, Any] = body["upstream"]["engine"]
    return engine


def answers(client: openai.OpenAI, chat: dict[str, Any]) -> bool:
    try:
        return bool(client.chat.completions.create(**chat).id)
    except openai.APIError:
        return False
