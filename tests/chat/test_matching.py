"""Which earlier turn a request continues: linked where it is certain, and a reason where it is not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from afterword.chat.matching import Choice, Earlier, choose
from afterword.chat.trail import DEPTH, trail_of, trail_of_turn
from afterword.chat.wrapped import words_like
from afterword.records import Json

LONG = "A long answer that nobody else has got, with a good number of words in it, so that it identifies its turn."


def talk(*words: str) -> list[Json]:
    return [{"role": ("user", "assistant")[i % 2], "content": w} for i, w in enumerate(words)]


class Turns:
    """Turns of one scope, as the store would give them."""

    def __init__(self) -> None:
        self.found: list[Earlier] = []
        self.questions: dict[str, str] = {}

    def add(self, name: str, *words: str, conversation: str | None = None) -> None:
        thread = trail_of_turn((), talk(*words[:-1]), {"role": "assistant", "content": words[-1]})
        self.found.append(Earlier(name, len(self.found), thread, conversation))
        self.questions[name] = words[-2]

    def read(self, names: Sequence[str]) -> dict[str, str]:
        return {name: self.questions[name] for name in names}

    def choose(self, *words: str, conversation: str | None = None, start: str = "user", **more: bool | int) -> Choice:
        messages = talk(*words) if start == "user" else talk("", *words)[1:]
        trail = trail_of((), messages, DEPTH + 1).answered()
        found = [turn for turn in self.found if turn.thread[1:16] == trail.prints[0][1:]]
        return choose(trail, found, conversation, self.read, **more)  # type: ignore[arg-type]

    def name(self, *words: str, conversation: str | None = None, start: str = "user") -> str | None:
        turn = self.choose(*words, conversation=conversation, start=start).turn
        return turn.id if turn else None


def test_the_only_turn_that_agrees_is_linked_and_two_are_not() -> None:
    turns = Turns()
    turns.add("t1", "Hi", "Yes.")
    assert turns.name("Hi", "Yes.", "Go on") == "t1"
    turns.add("t2", "Hi", "Yes.")
    assert turns.choose("Hi", "Yes.", "Go on").outcome == "ambiguous"
    assert turns.choose("Hi", "No.", "Go on").outcome == "unmatched"


def test_the_beginning_of_one_conversation_may_be_the_end_of_another() -> None:
    turns = Turns()
    turns.add("t1", "Hi", "Yes.")
    turns.add("t2", "Before", "Hm", "Hi", "Yes.")
    assert turns.choose("Hi", "Yes.", "Go on").outcome == "ambiguous"
    assert turns.name("Before", "Hm", "Hi", "Yes.", "Go on") == "t2"
    assert turns.choose("Hi", "Yes.", "Go on", conversation="c").outcome == "ambiguous"


def test_the_end_alone_must_be_long_enough_where_nobody_is_named() -> None:
    turns = Turns()
    turns.add("t1", "Hi", "Hello", "Why?", "Yes.")
    turns.add("t2", "Hi", "Hello", "Why?", LONG)
    assert turns.choose("Yes.", "Go on", start="assistant").outcome == "unsure"
    assert turns.name(LONG, "Go on", start="assistant") == "t2"
    assert turns.choose("Yes.", "Go on", start="assistant", least=0).turn is not None


def test_in_a_named_conversation_the_newest_of_equals_is_linked() -> None:
    turns = Turns()
    turns.add("other", "Hi", "Yes.", conversation="c2")
    turns.add("t1", "Hi", "Yes.", conversation="c1")
    turns.add("t2", "Hi", "Yes.", conversation="c1")
    assert turns.name("Hi", "Yes.", "Go on", conversation="c1") == "t2"
    assert turns.choose("Hi", "Yes.", "Go on", conversation="c3").outcome == "unmatched"


def test_in_a_named_conversation_a_question_may_be_edited() -> None:
    turns = Turns()
    turns.add("t1", "Hi", "Hello", "Why?", "Yes.", conversation="c1")
    assert turns.name("Hi there", "Hello", "Why?", "Yes.", "Go on", conversation="c1") == "t1"
    assert turns.name("Hi", "Hello", "Why so?", "Yes.", "Go on", conversation="c1") == "t1"
    assert turns.choose("Ho", "Hm", "Hi there", "Hello", "Why?", "Yes.", "Go on", conversation="c1").turn is None
    turns.add("t2", "Hi", "Hello", "When?", "Yes.", conversation="c1")
    assert turns.choose("Hi", "Hello", "Why so?", "Yes.", "Go on", conversation="c1").outcome == "ambiguous"


def test_a_copied_chat_is_linked_when_it_is_long() -> None:
    turns = Turns()
    turns.add("t1", "Hi", LONG * 3, conversation="c1")
    assert turns.name("Hi", LONG * 3, "Go on", conversation="c2") == "t1"


def test_a_question_within_other_text_is_known_again() -> None:
    turns = Turns()
    turns.add("t1", "Notes and more notes, and yet more of them, all about eggs, hens and ducks. -> Hi", "Yes.")
    choice = turns.choose("Hi", "Yes.", "Go on")
    assert choice.outcome == "unsure", "too little where nobody is named"
    choice = turns.choose("Hi", "Yes.", "Go on", least=0)
    assert choice.turn is not None and choice.unwrapped
    turns.add("t2", "Hi", "Yes.")
    assert turns.choose("Hi", "Yes.", "Go on").outcome == "ambiguous", "either may be the one"


def test_a_question_that_reads_otherwise_needs_a_rare_answer() -> None:
    turns = Turns()
    turns.add("t1", "What of eggs?", LONG)
    turns.add("t2", "What of hens?", "Yes.")
    assert turns.name("What about ducks?", LONG, "Go on") == "t1"
    assert turns.choose("What about ducks?", "Yes.", "Go on").outcome == "unsure"
    assert not turns.choose("What of eggs? And of ducks?", LONG, "Go on").unwrapped, "the user added to it"
    turns.add("t3", "What of geese?", LONG)
    assert turns.choose("What about ducks?", LONG, "Go on").outcome == "ambiguous"


def test_another_answer_before_is_another_conversation() -> None:
    turns = Turns()
    turns.add("t1", "Hi", "Hello", "Why?", LONG)
    assert turns.choose("Hi", "Hallo", "Why?", LONG, "Go on").outcome == "unmatched"
    assert turns.name("Hi (edited)", "Hello", "Why?", LONG, "Go on") == "t1"


def test_of_a_crowd_only_what_agrees_is_linked() -> None:
    turns = Turns()
    turns.add("t1", "What of hens?", "Yes.")
    assert turns.choose("What of hens?", "Yes.", "Go on", crowded=True).turn is not None
    assert turns.choose("What of eggs?", "Yes.", "Go on", crowded=True).outcome == "ambiguous"


EXTRACTS = "Extraits :\n- {}\n\nDemande : {}"


@pytest.mark.parametrize(
    ("then", "now", "words"),
    [
        (EXTRACTS.format("oeufs", "Why?"), EXTRACTS.format("poules", "In one word."), "In one word."),
        ("Why?\n\n[[ eggs ]]", "In one word.\n\n[[ hens ]]", "In one word."),
        ("[eggs] >>> Why? <<<", "[hens] >>> In one word. <<<", None),
        ("Eggs take six minutes.\n\nWhy?", "Hens take longer.\n\nIn one word.", None),
        ("Why? Eggs take six minutes.", "In one word. Eggs take longer.", None),
        ("something else", "In one word.", None),
        (EXTRACTS.format("oeufs", "Why?"), "In one word.", None),
    ],
)
def test_the_words_in_a_wrapper_of_ones_own(then: str, now: str, words: str | None) -> None:
    assert words_like(then, "Why?", now) == words
