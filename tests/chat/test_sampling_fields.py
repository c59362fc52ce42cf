"""How an answer was sampled is recorded whole, and what is unset is unknown."""

from __future__ import annotations

from typing import Any

import pytest

from afterword.chat.sampling_fields import BOUNDS, PLAIN, SHAPED, sampling_of, why_not_plain


def test_every_field_that_shapes_an_answer_is_recorded() -> None:
    body: dict[str, Any] = {name: 0.5 for name in (*PLAIN, *SHAPED, *BOUNDS)}
    assert sampling_of({**body, "messages": [], "model": "m", "stream": True, "user": "ada"}) == body
    assert sampling_of({"temperature": None, "top_p": 0.0}) == {"top_p": 0.0}
    schema = sampling_of({"guided_json": {"type": "object", "description": "x" * 300}})["guided_json"]
    words = sampling_of(
        {"guided_choice": ["ada@example.org", "no"], "response_format": {"type": "text"}, "stop": ["a"]}
    )
    assert set(words.pop("guided_choice")) == {"hash"} and words == {"response_format": {"type": "text"}, "stop": ["a"]}
    assert set(schema) == {"hash"} and why_not_plain(PLAIN | {"guided_json": schema})


def test_only_a_plain_sample_is_one() -> None:
    assert why_not_plain(PLAIN) is None
    assert why_not_plain(PLAIN | {"top_k": -1, "tool_choice": "auto", "max_tokens": 5, "stop": ["a"]}) is None
    for name in PLAIN:
        unset = {key: value for key, value in PLAIN.items() if key != name}
        assert f"left {name} unset" in (why_not_plain(unset) or "")


@pytest.mark.parametrize(
    "field",
    [{"temperature": 0.0}, {"temperature": 0.7}, {"top_p": 0.9}, {"min_tokens": 4}, {"ignore_eos": True},
     {"bad_words": ["no"]}, {"allowed_token_ids": [1, 2]}, {"use_beam_search": True}, {"typical_p": 0.9},
     {"response_format": {"type": "json_object"}}, {"ebnf": "root ::= a"}, {"logit_bias": {"5": -100}},
     {"tool_choice": "required"}],
)  # fmt: skip
def test_what_shapes_the_distribution_is_named(field: dict[str, Any]) -> None:
    assert next(iter(field)) in (why_not_plain(PLAIN | field) or "")
