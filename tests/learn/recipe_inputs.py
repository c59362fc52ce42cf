"""What each recipe has to be told before it can be trained: one place for all tests."""

from __future__ import annotations

from typing import Any

_TEACHER = {"teacher": "/models/other"}

INPUTS: dict[str, dict[str, Any]] = {
    "opcd": {"experience": "Be brief."},
    **dict.fromkeys(
        ("gkd", "minillm", "opd", "eopd", "veto", "stable-opd", "revisit-opd", "exopd", "reopold"), _TEACHER
    ),
    "grpo": {"verifier": "tests.learn.recipe_inputs:few_words"},
}
"""By recipe; a recipe that is not here needs nothing."""


def few_words(turn: Any, answer: str) -> float:
    """A verifier: 1 for nothing, less for every word."""
    return 1.0 / (1 + len(answer.split()))
