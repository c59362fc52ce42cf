"""Where the hindsight goes, and that only the hindsight is ever cut."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.errors import ConfigError
from afterword.learn.contexts import CONTEXTS, context, fit_hindsight, shuffled

CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Why?"},
]
ANSWER = {"role": "assistant", "content": "Because."}


class Words:
    """A tokenizer whose tokens are characters; its header is "A:"."""

    eos_token_id: int | None = 3

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        body = "".join(f"{m['role'][0]}:{m['content']}\x03" for m in conversation)
        return body + ("A:" if options["add_generation_prompt"] else "")

    def encode(self, text: str, **options: Any) -> Any:
        return [ord(c) for c in text]

    def decode(self, token_ids: Any, **options: Any) -> Any:
        return "".join(map(chr, token_ids))


def test_each_context_puts_the_words_where_it_says() -> None:
    placed = {name: c.place(CHAT, ANSWER, "Shorter.") for name, c in CONTEXTS.items()}
    assert placed["appended"][-1] == {"role": "user", "content": "Why?\n\nShorter."}
    assert placed["block"][-1]["content"].startswith("Why?\n\n[")
    assert placed["block"][-1]["content"].endswith("\nShorter.")
    assert placed["system"][0]["content"].startswith("Be kind.\n\n")
    assert placed["system"][-1] == CHAT[-1]
    assert placed["next_turn"] == [*CHAT, ANSWER, {"role": "user", "content": "Shorter."}]
    assert placed["none"] == CHAT
    assert all(("Shorter." in str(p)) == CONTEXTS[name].privileged for name, p in placed.items())


def test_conversations_that_do_not_end_with_a_user_message() -> None:
    tool = [*CHAT, {"role": "assistant", "content": ""}, {"role": "tool", "content": "42"}]
    assert CONTEXTS["appended"].place(tool, ANSWER, "No.")[-2:] == [tool[-1], {"role": "user", "content": "No."}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]
    assert CONTEXTS["appended"].place(parts, ANSWER, "No.")[-1]["content"][-1] == {"type": "text", "text": "\n\nNo."}
    assert CONTEXTS["system"].place(CHAT[1:], ANSWER, "No.")[0]["role"] == "system"


def test_contexts_leave_their_input_alone() -> None:
    before = [dict(m) for m in CHAT]
    for one in CONTEXTS.values():
        one.place(CHAT, ANSWER, "No.")[-1]["content"] = "changed"
    assert before == CHAT


def test_an_unknown_context_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="appended"):
        context("apended")


@given(st.text(alphabet="abc ", min_size=1, max_size=80), st.integers(0, 90), st.integers(1, 60))
def test_only_the_hindsight_is_cut(hindsight: str, room: int, longest: int) -> None:
    where = CONTEXTS["appended"]
    seen = fit_hindsight(Words(), where, CHAT, ANSWER, hindsight, room=room, longest=longest)
    bare = len("s:Be kind.\x03u:Why?\n\n\x03A:")
    if seen is None:
        assert room < bare + 1
        return
    assert len(seen.prompt.ids) <= room
    assert seen.prompt.text.startswith("s:Be kind.\x03u:Why?\n\n")
    assert seen.prompt.text.endswith("\x03A:")
    assert hindsight.startswith(seen.hindsight)
    assert seen.cut == len(hindsight) - len(seen.hindsight)
    assert len(seen.hindsight) == max(1, min(len(hindsight), longest, room - bare))


def test_a_context_without_hindsight_has_nothing_to_cut() -> None:
    assert fit_hindsight(Words(), CONTEXTS["none"], CHAT, ANSWER, "No.", room=5, longest=9) is None


@given(st.lists(st.text(max_size=3), max_size=12, unique=True), st.integers(0, 9))
def test_shuffled_gives_everyone_another_ones_words(texts: list[str], seed: int) -> None:
    given_ = shuffled(texts, seed)
    assert sorted(given_) == sorted(texts)
    assert given_ == shuffled(texts, seed)
    if len(texts) > 1:
        assert all(a != b for a, b in zip(texts, given_, strict=True))
