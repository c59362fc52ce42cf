"""The canonical form of messages and the hashes of conversations."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.chat.canonical import canonical, check_messages, text_of, thread_hashes
from afterword.errors import UsageError

PARTS = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "you"}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("a", "a"),
        (PARTS, "Hello you"),
        ([*PARTS, IMAGE, "x"], "Hello you"),
        ([{"type": "text"}], ""),
        ([], ""),
    ],
)
def test_text_of(content: Any, text: str) -> None:
    assert text_of(content) == text


def test_forms_of_the_same_message_are_one() -> None:
    same: list[dict[str, Any]] = [
        {"role": "user", "content": " Hello you\n"},
        {"role": "user", "content": PARTS, "weight": 1},
        {"role": "user", "content": "Hello you", "tool_calls": [], "name": None},
    ]
    assert {str(canonical(m)) for m in same} == {str({"role": "user", "content": "Hello you"})}
    assert canonical({"role": "assistant", "content": None, "tool_calls": [1]}) == {
        "role": "assistant", "content": "", "tool_calls": [1]
    }  # fmt: skip
    assert canonical({"role": "user", "content": [IMAGE]})["content"] == [IMAGE]


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXT), min_size=1, max_size=6))
def test_a_prefix_keeps_its_hash(pairs: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": text} for role, text in pairs]
    hashes = thread_hashes(["key", "ada"], messages)
    assert len(hashes) == len(messages) and len(set(hashes)) == len(hashes)
    for i in range(1, len(messages) + 1):
        assert thread_hashes(["key", "ada"], messages[:i]) == hashes[:i]
    assert set(hashes).isdisjoint(thread_hashes(["key", "bob"], messages))
    assert set(hashes).isdisjoint(thread_hashes(["key", None], messages))


def test_a_changed_message_changes_every_later_hash() -> None:
    messages = [{"role": "user", "content": str(i)} for i in range(4)]
    changed = [messages[0], {"role": "user", "content": "x"}, *messages[2:]]
    same = [a == b for a, b in zip(thread_hashes([], messages), thread_hashes([], changed), strict=True)]
    assert same == [True, False, False, False]


@pytest.mark.parametrize(
    "messages",
    [[{"role": "user", "content": "Hi"}], [{"role": "user", "content": PARTS}],
     [{"role": "assistant", "tool_calls": [{"id": "1"}]}], [{"role": "assistant", "function_call": {"name": "f"}}]],
)  # fmt: skip
def test_usable_messages_are_given_back(messages: list[dict[str, Any]]) -> None:
    assert check_messages(messages) is messages


@pytest.mark.parametrize(
    ("messages", "param", "says"),
    [
        (None, "messages", "non-empty list"), ([], "messages", "non-empty list"), ("hi", "messages", "'hi'"),
        ([3], "messages[0]", "must be an object, got 3"), ([{"role": "boss"}], "messages[0].role", "'boss'"),
        ([{"content": "x"}], "messages[0].role", "None"), ([{"role": "user"}], "messages[0].content", "missing"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": 3}], "messages[1].content", "got int"),
    ],
)  # fmt: skip
def test_unusable_messages_name_their_first_fault(messages: Any, param: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_messages(messages)
    assert caught.value.param == param and says in caught.value.message
