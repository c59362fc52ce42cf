"""Where the hindsight goes, and that only the hindsight is ever cut."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.errors import ConfigError
from afterword.learn.parts.contexts import CONTEXTS, context, fit_hindsight, shuffled, with_template, with_text

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
    for name in ("block", "reference", "peer", "environment", "by_kind"):
        assert placed[name][:-1] == CHAT[:-1]
        assert placed[name][-1]["content"].startswith("Why?\n\n[")
        assert "]\nShorter." in placed[name][-1]["content"]
    assert placed["system"][0]["content"].startswith("Be kind.\n\n")
    assert placed["system"][-1] == CHAT[-1]
    assert placed["next_turn"] == [*CHAT, ANSWER, {"role": "user", "content": "Shorter."}]
    assert placed["shuffled"] == placed["appended"]
    assert placed["none"] == CHAT
    assert {name for name, p in placed.items() if "Shorter." not in str(p)} == {"none", "remark"}


@pytest.mark.parametrize("name", ["block", "system", "environment"])
def test_praise_is_not_worded_as_a_complaint(name: str) -> None:
    where = CONTEXTS[name]
    complaint, unknown, praise = (where.place(CHAT, ANSWER, "So.", polarity=p) for p in (-1, 0, 1))
    assert complaint == unknown != praise
    assert "So." in str(praise)


def test_the_default_context_is_the_users_plain_words_whatever_they_mean() -> None:
    assert [CONTEXTS["appended"].place(CHAT, ANSWER, "So.", polarity=p, kind="edited") for p in (-1, 0, 1)] == [
        [CHAT[0], {"role": "user", "content": "Why?\n\nSo."}]
    ] * 3


def test_by_kind_takes_the_words_that_fit_what_happened() -> None:
    def place(name: str, kind: str) -> list[dict[str, Any]]:
        return CONTEXTS[name].place(CHAT, ANSWER, "So.", kind=kind)

    for kind, name in (("retried", "peer"), ("edited", "reference"), ("tests", "environment"), ("comment", "block")):
        assert place("by_kind", kind) == place(name, kind)


def test_a_remark_says_nothing_of_what_is_wanted() -> None:
    def said(polarity: int, kind: str) -> str:
        return str(CONTEXTS["remark"].place(CHAT, ANSWER, "So.", polarity=polarity, kind=kind)[-1]["content"])

    assert said(-1, "follow_up") == said(0, "comment") == "Why?\n\nThat is not what I wanted."
    assert said(1, "follow_up") == "Why?\n\nThat is what I wanted."
    assert said(-1, "edited") == "Why?\n\nSo."


def test_own_words_around_the_hindsight() -> None:
    own = with_template(CONTEXTS["by_kind"], "They said {hindsight} to {answer} {{sic}}", "Liked: {hindsight}")
    last = own.place(CHAT, ANSWER, "{no} {hindsight}", polarity=-1, kind="tests")[-1]["content"]
    assert last == "Why?\n\nThey said {no} {hindsight} to Because. {sic}"  # braces in the user's words are words
    assert own.place(CHAT, ANSWER, "So.", polarity=1)[-1]["content"] == "Why?\n\nLiked: So."
    assert own.version == 0
    fixed = with_text(CONTEXTS["system"], "Be brief.")
    assert fixed.place(CHAT[1:], ANSWER, fixed.text or "")[0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("Improve.", "does not name {hindsight}"),
        ("{hindsigth}", r"cannot be filled at \{hindsigth\}"),
        ("{hindsight.__class__}", "cannot be filled"),
        ("{hindsight!r}", "cannot be filled"),
        ("{hindsight:>20}", "cannot be filled"),
        ("{} {hindsight}", "cannot be filled"),
        ("{hindsight", "written twice"),
        ("{hindsight} }", "written twice"),
    ],
)
def test_a_bad_template_says_what_is_wrong(template: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as one:
        with_template(CONTEXTS["block"], template)
    assert one.value.param == "template"
    with pytest.raises(ConfigError, match=says) as other:
        with_template(CONTEXTS["block"], "{hindsight}", template)
    assert other.value.param == "template_praise"


def test_a_context_that_shows_nothing_takes_no_words() -> None:
    with pytest.raises(ConfigError, match="takes no template"):
        with_template(CONTEXTS["none"], "{hindsight}")


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
    with pytest.raises(ConfigError, match=r"did you mean 'appended'.*next_turn"):
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
