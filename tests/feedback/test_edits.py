"""What an edit changed: long texts, moved parts, rewritten ones, and answers that are tool calls."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.feedback.text import edits
from afterword.feedback.text.edits import align
from afterword.records import Turn
from tests.feedback.feedback_builders import decided, feedback, tool_turn

DICE = random.Random(7)
WORDS = [f"w{n}" for n in range(300)]
PARTS = [" ".join(DICE.choices(WORDS, k=500)) + "." for _ in range(10)]
LONG = "\n".join(PARTS)


def test_a_part_of_a_long_text_that_was_moved_is_what_changed() -> None:
    change = align(LONG, "\n".join([PARTS[-1], *PARTS[1:-1], PARTS[0]]))
    assert 0.15 < change.share < 0.25
    inside = [(a, b) for a, b in change.spans if a > len(PARTS[0]) and b < len(LONG) - len(PARTS[-1])]
    assert not inside and sum(b - a for a, b in change.spans) > 0.9 * (len(PARTS[0]) + len(PARTS[-1]))


def test_two_changes_far_apart_are_marked_alone() -> None:
    draft = "Never do it. " + LONG + " Always ask."
    final = "Do it. " + LONG.replace(PARTS[4][:40], "") + " Ask."
    change = align(draft, final)
    assert [draft[a:b] for a, b in change.spans][:1] == ["Never do"] and change.share < 0.01
    assert sum(b - a for a, b in change.spans) < 80


def test_another_long_text_of_the_same_words_is_all_new() -> None:
    other = " ".join(DICE.choices(WORDS, k=4500))
    assert align(LONG, other).share > 0.8


def test_a_long_text_that_repeats_itself_is_not_all_new_after_two_edits() -> None:
    draft = "x " + "the same again " * 2000 + "y"
    change = align(draft, draft.replace("x ", "z ", 1)[:-1] + "q")
    assert change.share < 0.001 and [draft[a:b] for a, b in change.spans] == ["x", "y"]


TEXTS = st.lists(st.sampled_from("abcdefg"), max_size=60).map(" ".join)


@given(draft=TEXTS, final=TEXTS, exact=st.sampled_from([0, 3, 2000]))
def test_spans_lie_in_order_in_the_draft_and_the_rest_was_kept(draft: str, final: str, exact: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edits, "EXACT_WORDS", exact)
        change = align(draft, final)
    assert 0.0 <= change.share <= 1.0
    assert all(0 <= a <= b <= len(draft) for a, b in change.spans) and list(change.spans) == sorted(change.spans)
    kept = "".join(c for n, c in enumerate(draft) if not any(a <= n < b for a, b in change.spans)).split()
    if exact == 2000:
        rest = iter(final.split())
        assert all(word in rest for word in kept), "what was kept is not in the final text in its order"
        assert change.spans or draft.split() == final.split()


@given(before=TEXTS, after=TEXTS)
def test_anchors_rise_in_both_texts_and_are_the_same_words(before: str, after: str) -> None:
    one, two = before.split(), after.split()
    found = edits._anchors(one, two)
    assert all(one[a : a + edits.RUN] == two[b : b + edits.RUN] for a, b in found)
    assert all(a < c and b < d for (a, b), (c, d) in itertools.pairwise(found))


def calling(words: str | None) -> Turn:
    call = {"type": "function", "function": {"name": "delete_file", "arguments": '{"path": "a.txt"}'}}
    answer: dict[str, Any] = {"role": "assistant", "content": words, "tool_calls": [call]}
    return Turn(id="t1", messages=({"role": "user", "content": "Tidy up."},), answer=answer, created_at=100.0)


@pytest.mark.parametrize("words", [None, "", " \n"])
def test_an_edit_of_a_tool_call_without_words_is_refused_with_a_reason(words: str | None) -> None:
    (skip,) = [skip for _, skip in decided(feedback("edited", final_text="Move it."), of=calling(words)).skips]
    assert skip.reason == "edited_call" and "tool_rejected" in skip.detail


def test_an_edit_beside_a_tool_call_is_one_of_the_words() -> None:
    made = decided(feedback("edited", final_text="I will move it."), of=calling("I will delete it.")).interaction
    assert made is not None and made.spans == ((7, 13),)


def test_what_was_refused_of_an_answer_is_its_tool_call() -> None:
    made = decided(feedback("tool_rejected", text="Ask me."), of=calling("I will delete it.")).interaction
    assert made is not None and made.spans == ((17, 17 + len('delete_file({"path": "a.txt"})')),)
    alone = decided(feedback("tool_rejected", text="Ask me."), of=tool_turn()).interaction
    assert alone is not None and alone.spans == ()
