"""What each recipe has to be told before it can be trained: one place for all tests."""

from __future__ import annotations

from typing import Any

_TEACHER = {"teacher": "/models/other"}
_VERIFIER = {"verifier": "tests.learn.recipe_inputs:some_letters"}

INPUTS: dict[str, dict[str, Any]] = {
    "opcd": {"experience": "Be brief."},
    **dict.fromkeys(
        (
            "gkd",
            "minillm",
            "opd",
            "eopd",
            "veto",
            "stable-opd",
            "revisit-opd",
            "exopd",
            "reopold",
            "dasd",
            "fast-opd",
            "lightning-opd",
            "mopd",
            "episode-opd",
        ),
        _TEACHER,
    ),
    "grpo": {"verifier": "tests.learn.recipe_inputs:few_words"},
    **dict.fromkeys(
        (
            "rlsd",
            "sdar",
            "srpo",
            "hdpo",
            "sage",
            "rltf",
            "sd-zero",
            "ra-opd",
            "iterative-sft",
            "varreason",
            "nurl",
            "pope",
            "erl",
            "pi-distill",
        ),
        _VERIFIER,
    ),
    **{name: _TEACHER | _VERIFIER for name in ("kdrl", "rlad", "scope", "npo", "vold")},
}
"""By recipe; a recipe that is not here needs nothing."""


def some_letters(turn: Any, answer: str) -> float:
    """A verifier: 1 for about a third of all answers, else 0."""
    return float(sum(map(ord, answer)) % 3 == 0)


def few_words(turn: Any, answer: str) -> float:
    """A verifier: 1 for nothing, less for every word."""
    return 1.0 / (1 + len(answer.split()))
