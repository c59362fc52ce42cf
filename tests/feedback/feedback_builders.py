"""Small turns and feedback for the tests of this room."""

from __future__ import annotations

from typing import Any

from afterword.feedback.collect.decide import CaseDecision, decide
from afterword.feedback.collect.signals import FeedbackCase
from afterword.feedback.settings import CollectSettings
from afterword.records import Feedback, Turn


def turn(name: str = "t1", words: str = "Boil the eggs for six minutes, then cool them.", **extra: Any) -> Turn:
    values: dict[str, Any] = {
        "id": name, "messages": ({"role": "user", "content": "How do I boil eggs?"},),
        "answer": {"role": "assistant", "content": words}, "prompt_ids": (1, 2), "completion_ids": (3, 4),
        "logprobs": (-0.5, None), "finish_reason": "stop", "created_at": 100.0,
    }  # fmt: skip
    return Turn(**{**values, **extra})


def tool_turn(name: str = "t1") -> Turn:
    call = {"id": "c1", "type": "function", "function": {"name": "delete_file", "arguments": '{"path": "a.txt"}'}}
    answer: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call]}
    return Turn(id=name, messages=({"role": "user", "content": "Tidy up."},), answer=answer, created_at=100.0)


def feedback(kind: str, name: str = "f1", of: str = "t1", **extra: Any) -> Feedback:
    return Feedback(**{"id": name, "turn": of, "kind": kind, "created_at": 200.0, **extra})


def decided(
    *rows: Feedback, of: Turn | None = None, settings: CollectSettings | None = None, **case: Any
) -> CaseDecision:
    values = {"turn": of or turn(), "feedback": rows, "conversation": "c1", "now": 1000.0, **case}
    return decide(FeedbackCase(**values), settings or CollectSettings())
