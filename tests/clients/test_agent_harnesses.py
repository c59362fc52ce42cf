"""smolagents and the OpenAI Agents SDK, unmodified, each leave one episode with linked turns.

They live in an environment of their own: `python -m venv DIR; DIR/bin/pip install 'smolagents[openai]' openai-agents`,
then `HARNESS_PYTHON=DIR/bin/python pytest -m slow tests/clients`. A scripted model answers.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.conftest import launch  # noqa: F401
from tests.gateway.fake_upstream import Fake
from tests.gateway.gateway_setup import Launch

from afterword.chat.canonical import text_of
from afterword.chat.observations import observation_after
from afterword.store.episodes import episode_view

PYTHON = os.environ.get("HARNESS_PYTHON")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason="HARNESS_PYTHON names no interpreter")]
SCRIPT = Path(__file__).with_name("agent_harness.py")


def _message(body: dict[str, Any], message: dict[str, Any], reason: str) -> tuple[int, dict[str, Any]]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
    usage = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
    return 200, {"id": "x", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice],
                 "usage": usage}  # fmt: skip


def code(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """As a model with `stop: ["</code>"]` answers: a tool call in Python, then the final answer."""
    assert "</code>" in body["stop"]
    asked = sum(message["role"] == "assistant" for message in body["messages"])
    words = ('Thought: I look.\n<code>\nprint(look("Rome"))\n', "Thought: I know.\n<code>\nfinal_answer('rain')\n")
    return _message(body, {"content": words[min(asked, 1)]}, "stop")


def calls(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """A tool call in OpenAI's form, then the final answer."""
    if any(message["role"] == "tool" for message in body["messages"]):
        return _message(body, {"content": "rain"}, "stop")
    function = {"name": "look", "arguments": '{"city": "Rome"}'}
    call = {"id": "call_1", "type": "function", "function": function}
    return _message(body, {"content": None, "tool_calls": [call]}, "tool_calls")


@pytest.mark.parametrize(("harness", "script"), [
    ("smolagents", code), ("agents-chat", calls), ("agents-responses", calls),
])  # fmt: skip
def test_an_unmodified_harness_leaves_one_episode(
    launch: Launch,  # noqa: F811
    harness: str,
    script: Callable[[dict[str, Any]], Any],
) -> None:
    gateway = launch(Fake(script=script))
    url = f"{gateway.url}/episodes/run-1/v1"
    done = subprocess.run([str(PYTHON), str(SCRIPT), harness, url], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"answer": "rain"}
    view = episode_view(gateway.store, "run-1")
    first, second = view.task_turns
    assert [one.parent for one in view.turns] == [None, first.turn.id]
    assert len(view.branches()) == 1 and not any(one.outside for one in view.turns)
    assert "18 degrees in Rome" in observation_after(first.turn, second.turn)
    assert "rain" in text_of(second.turn.answer["content"])
