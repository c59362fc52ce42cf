"""Phrases are found where `re` finds them."""

import random
import re
from pathlib import Path

import pytest

from afterword.chat import machine, machine_classifier
from afterword.chat.vocabulary import SHORT, LinePattern, Phrases, beginnings, index_of

MESSAGES = Path(__file__).parents[1] / "feedback" / "data" / "machine_messages.tsv"
LISTS = [value for module in (machine, machine_classifier) for value in vars(module).values() if type(value) is Phrases]
LINES = [v for module in (machine, machine_classifier) for v in vars(module).values() if type(v) is LinePattern]


def _texts() -> list[str]:
    """Messages in 19 languages, some cut and joined inside of words, with digits, marks and lines between them."""
    rows = [line.split("\t")[-1].replace("\\n", "\n").lower() for line in MESSAGES.read_text("utf-8").splitlines()]
    chance = random.Random(18)
    found = chance.sample(rows, 80)
    for _ in range(120):
        between = chance.choice(["", " ", "\n", "_", "中", "1", "`", ". the ", "٣ ", "\x00", "İ"])
        found.append(between.join(text[chance.randint(0, 9) :][:300] for text in chance.choices(rows, k=3)))
    return ["", "\n", *found]


def test_every_list_finds_what_its_pattern_finds() -> None:
    assert len(LISTS) > 24
    for text in _texts():
        for phrases in LISTS:
            wanted = [match.span() for match in phrases.pattern.finditer(text)]
            assert [match.span() for match in phrases.finditer(text)] == wanted, (phrases.entries[:3], text)
            assert phrases.found(text) == bool(wanted)


def test_every_line_pattern_finds_what_its_pattern_finds() -> None:
    assert len(LINES) > 5
    for text in _texts():
        for lines in LINES:
            wanted = [match.span() for match in lines.pattern.finditer(text)]
            assert [match.span() for match in lines.finditer(text)] == wanted
            assert lines.found(text) == bool(wanted)


@pytest.mark.parametrize(
    ("entry", "begins"),
    [
        ("titles?", {"title", "titles"}),
        ("(?:in|using) it", {"in it", "using it"}),
        ("(?<!any )chat", {"chat"}),
        ("step \\d+ of", {"step 0"}),
        ("sum(?:mary){0,1}", {"sum", "summary"}),
        ("[ab]c|d.e", {"ac", "bc", "d"}),
        ("stor(?:y|ies)(?! so far)", {"story", "stories"}),
        ("^a+b", {"a"}),
        ("\\{ ?x", {"{x", "{ x"}),
        ("\\w+x", set()),
        ("(?:a|)b?", set()),
        ("[^a]b", set()),
        ("(?:i|my)(?!\\w)|me", {"i\0", "my\0", "me"}),
    ],
)
def test_beginnings_of_an_expression(entry: str, begins: set[str]) -> None:
    assert beginnings(entry) == begins


def test_a_list_is_compared_only_where_one_of_its_phrases_can_begin() -> None:
    text = "why is the sky blue, and who says so? " * 50
    phrases = Phrases(("titles?", "the user", "skyline", "\\d+ words"))
    assert list(phrases._candidates(index_of(text))) == []
    assert list(phrases._candidates(index_of(text + "the user"))) == [len(text)]


def test_digits_of_any_script_are_digits() -> None:
    phrases = Phrases(("at most \\d words", "3 lines"))
    for before in ("", "so " * SHORT):
        for text in ("at most ٣ words", "at most 4 words", "in 3 lines"):
            assert phrases.found(before + text)
        assert not phrases.found(before + "in 4 lines")


def test_a_quotation_may_hold_an_apostrophe_before_it() -> None:
    """The faster form of the single quotation mark is that of `(?<!\\w)'`."""
    slow = re.compile(r"(?<!\w)'[^'\n]{12,300}'(?!\w)")
    fast = re.compile(r"'(?<!\w')[^'\n]{12,300}'(?!\w)")
    for text in ("it's a user's question, isn't it'", "'a quoted sentence' and 'another sentence'", "x'a quoted text'"):
        assert [m.span() for m in slow.finditer(text)] == [m.span() for m in fast.finditer(text)]
