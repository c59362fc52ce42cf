"""What can be told from a text alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.chat import text_metrics

WORDS = st.lists(st.sampled_from("abcde"), max_size=8)


def test_repetition_tells_loops_from_prose() -> None:
    prose = "The tide had gone out far enough to show the old wooden posts of a pier that nobody used any more."
    assert 0.8 < text_metrics.zlib_ratio(prose) < 2
    assert text_metrics.zlib_ratio("Hello friend! " * 40) > text_metrics.REPETITIVE
    assert text_metrics.loops("Hello friend! " * 40) and text_metrics.loops("I'm here to help you with that. " * 4)
    assert (
        not text_metrics.loops(prose) and not text_metrics.loops("Yes, yes, yes, yes.") and not text_metrics.loops("")
    )
    assert text_metrics.zlib_ratio("") == 0.0
    assert text_metrics.zlib_ratio("\ud800" * 3) > 0


@given(WORDS, WORDS)
def test_rouge_is_symmetric_and_one_only_for_the_same(a: list[str], b: list[str]) -> None:
    value = text_metrics.rouge_l(a, b)
    assert value == text_metrics.rouge_l(b, a) and 0 <= value <= 1
    assert (value == 1.0) == (a == b and bool(a))


def test_rouge_counts_the_longest_common_subsequence() -> None:
    assert text_metrics.rouge_l(["a", "b", "c", "d"], ["a", "x", "c", "y"]) == pytest.approx(0.5)
    assert text_metrics.rouge_l(["a", "b"], ["b", "a"]) == pytest.approx(0.5)


@given(WORDS, WORDS)
def test_edit_distance_is_symmetric_and_between_zero_and_one(a: list[str], b: list[str]) -> None:
    left, right = " ".join(a), " ".join(b)
    value = text_metrics.edit_distance(left, right)
    assert value == text_metrics.edit_distance(right, left) and 0 <= value <= 1
    assert (value == 0) == (a == b)


def test_edit_distance_counts_words() -> None:
    assert text_metrics.edit_distance("one two three four", "one TWO three") == pytest.approx(2 / 4)
    assert text_metrics.edit_distance("", "a b") == 1.0 and text_metrics.edit_distance(" ", "") == 0.0


def test_variety_and_likeness() -> None:
    assert text_metrics.distinct_2(["a b c", "d e f"]) == 1.0
    assert text_metrics.distinct_2(["a b a b a"]) == 0.5
    assert text_metrics.distinct_2(["one", ""]) == 0.0
    assert text_metrics.likeness(["only"]) == text_metrics.likeness([]) == []
    assert text_metrics.likeness(["same words here"] * 3) == [1.0] * 3
    assert text_metrics.likeness(["a b", "c d", "e f"]) == [0.0] * 3


def test_copies_of_the_question() -> None:
    assert text_metrics.is_copy("How do I bake bread?", "how do I bake bread")
    assert not text_metrics.is_copy("Mix flour, water, salt and yeast. Bake it.", "How do I bake bread?")
    assert not text_metrics.is_copy("", "How?")


@pytest.mark.parametrize(
    "answer",
    [
        "As you requested in your follow-up, here it is.",
        "Based on your feedback I made it shorter.",
        "I apologize for my previous answer.",
        "The hindsight says to be brief.",
        "Sure: please start every answer with a greeting!",
    ],
)
def test_leaks(answer: str) -> None:
    hindsight = "Please start every answer with a greeting"
    assert text_metrics.leaks(answer, hindsight, "How do I bake bread?")


def test_no_leak_when_it_only_does_what_was_wanted_or_the_prompt_says_it() -> None:
    hindsight = "Please always start your answer with 'Hello friend!'"
    assert not text_metrics.leaks("Hello friend! Mix flour and water.", hindsight, "How do I bake bread?")
    prompt = "Please always start your answer with 'Hello friend!' What about my previous answer?"
    assert not text_metrics.leaks("You said: always start your answer with 'Hello friend!'", hindsight, prompt)
    assert not text_metrics.leaks("Your previous answer? My previous answer was fine.", "", prompt)
    assert not text_metrics.leaks("", "", "")
