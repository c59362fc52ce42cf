"""Incremental text and stop strings."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.model import loading
from afterword.model.generation.request import RequestError
from afterword.model.generation.text import Codec, Detokenizer, Stopper


@pytest.fixture(scope="module")
def codec(tiny: Path) -> Codec:
    return Codec(loading.load_tokenizer(str(tiny)))


def stream(codec: Codec, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(codec)
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


def test_an_emoji_comes_out_whole(codec: Codec) -> None:
    ids = codec._core.encode("a😀é b", add_special_tokens=False).ids
    assert len(ids) == 9
    assert stream(codec, ids) == ["a", "", "", "", "😀", "", "é", " ", "b", ""]


def test_an_unfinished_character_is_marked_at_the_end(codec: Codec) -> None:
    ids = codec._core.encode("a😀", add_special_tokens=False).ids[:-1]
    assert stream(codec, ids) == ["a", "", "", "", "\ufffd"]


def test_special_tokens_are_silent(codec: Codec) -> None:
    ids = codec._core.encode("a<e>b", add_special_tokens=False).ids
    assert ids[1] == 1 and "".join(stream(codec, ids)) == "ab"


@functools.cache
def embedded() -> Codec:
    return Codec(loading.load_tokenizer(loading.EMBEDDED))


@given(st.text(max_size=30))
def test_pieces_join_to_the_text(text: str) -> None:
    codec = embedded()
    ids = codec._core.encode(text, add_special_tokens=False).ids
    assert "".join(stream(codec, ids)) == codec.decode(ids)


@given(st.text("abc", max_size=40), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_stopper_cuts_before_the_first_stop(text: str, stops: list[str]) -> None:
    stopper, out, done = Stopper(tuple(stops)), "", False
    for letter in text:
        given_out, done = stopper.push(letter)
        out += given_out
        if done:
            break
    if not done:
        out += stopper.flush()
    # Letter by letter, the stop that is completed first ends the text.
    ends = [(text.find(s) + len(s), text.find(s)) for s in stops if s in text]
    if ends:
        end = min(ends)[0]
        assert done and out == text[: min(begin for stop, begin in ends if stop == end)]
    else:
        assert not done and out == text


def test_a_template_that_refuses_is_the_clients_fault(codec: Codec) -> None:
    with pytest.raises(RequestError, match="no robots"):
        codec.render([{"role": "robot", "content": "x"}], None)
