"""Persona files of one's own: docs/simulate.md says how to write one, and mistakes are named before anybody talks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from afterword.errors import ConfigError
from afterword.simulate import load_persona, persona_names, simulate_users
from afterword.simulate.checkers import CHECKERS, LANGUAGES, check
from afterword.simulate.editors import EDITORS
from afterword.simulate.persona_schema import OPTIONS, WISH_KEYS
from tests.simulate.fake_server import FakeServer

PAGE = (Path(__file__).parents[2] / "docs" / "simulate.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"^```toml\n# (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
"""The files on the page, by name."""
ROWS = {
    row[0]: row[1:] for row in re.findall(r"^\| `(\w+)` \| ([^|]*) \| ([^|]*?) ?\| ([^|]*?) ?\|$", PAGE, re.MULTILINE)
}
"""The table of checkers: what each passes, its options, its editors."""
GOOD, BAD = "Leave it in the pot for four minutes.", "**Leave** it in the pot for four minutes."
PLAIN = f"""checker = "plain"
good = "{GOOD}"
bad = "{BAD}"
"""
SAY = '[say]\ncomplaints = ["No marks!"]\n'


def written(folder: Path, text: str, name: str = "mine.toml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def mistakes(folder: Path, text: str) -> list[str]:
    """What a file is refused for."""
    with pytest.raises(ConfigError) as refused:
        load_persona(written(folder, text))
    return str(refused.value).partition(" cannot be used: ")[2].split("; ")


def test_a_persona_of_ones_own_is_a_file(tmp_path: Path) -> None:
    persona = load_persona(written(tmp_path, f'wants = "No marks."\n{PLAIN}{SAY}'))
    assert persona.name == "mine"
    assert persona.complaints == ("No marks!",)
    assert len(persona.thanks) >= 16
    assert persona.mark(GOOD).passed and not persona.mark(BAD).passed


def test_the_page_has_examples() -> None:
    assert set(EXAMPLES) == {"kettle.toml", "hurried.toml"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_on_the_page_run(name: str, tmp_path: Path, server: FakeServer) -> None:
    persona = load_persona(written(tmp_path, EXAMPLES[name], name))
    server.reply = lambda messages: persona.wishes[0].bad
    summary = simulate_users(server.url, persona, conversations=12, seed=1)
    assert (summary.conversations, summary.failed, summary.first_passed) == (12, 0, 0)
    typed = {m["content"] for r in server.requests for m in r["messages"][1:] if m["role"] == "user"}
    assert typed & set(persona.complaints)
    server.reply = lambda messages: persona.wishes[0].good
    assert simulate_users(server.url, persona, conversations=12, seed=1).first_passed == 12


def test_the_second_example_changes_when_the_page_says(tmp_path: Path) -> None:
    persona = load_persona(written(tmp_path, EXAMPLES["hurried.toml"]))
    assert [len(persona.wished(n)) for n in (0, 39, 40, 5000)] == [1, 1, 2, 2]


def test_every_key_and_every_checker_stands_on_the_page() -> None:
    assert set(ROWS) >= set(CHECKERS)
    keys = PAGE.partition("| key | meaning |")[2].partition("`[habits]`")[0]
    assert [key for key in sorted(WISH_KEYS) if f"`{key}`" not in keys] == []


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_checkers_options_and_editors_are_as_the_page_says(checker: str, tmp_path: Path) -> None:
    _, options, editors = ROWS[checker]
    kinds, named = OPTIONS.get(checker, {}), re.findall(r"`(\w+)`", editors)
    assert set(re.findall(r"`(\w+)`", options)) == set(kinds) | (set(LANGUAGES) if "language" in kinds else set())
    assert set(named) <= set(EDITORS)
    given = {"phrase": '"Hello friend"', "language": '"de"', "list": '["pot"]'}
    values = [f"{key} = {given[kind]}" for key, kind in kinds.items() if kind != "count"]
    for editor in named:  # the checker's options are all that the editor needs
        text = f'wants = "x"\nchecker = "{checker}"\neditor = "{editor}"\noptions = {{ {", ".join(values)} }}\n{SAY}'
        assert not [problem for problem in mistakes(tmp_path, text) if "option" in problem or "editor" in problem]


def test_every_editor_stands_beside_a_checker() -> None:
    assert {name for row in ROWS.values() for name in re.findall(r"`(\w+)`", row[2]) if name in EDITORS} == set(EDITORS)


@pytest.mark.parametrize(
    ("checker", "option", "value"),
    [
        (checker, option, int(value))
        for checker in CHECKERS
        for option, value in re.findall(r"`(\w+)` (\d+)", ROWS[checker][1])
    ],
)
def test_an_option_left_out_counts_as_the_page_says(checker: str, option: str, value: int) -> None:
    words = re.findall(
        r"\w+", "pour four hot cups for her and for him too so no one has to wait in the cold hall on our way"
    )
    texts = [f"{' '.join(words[:n] + [w + str(n) for w in words])}." for n in range(20)]
    texts += [f"{' '.join(words[:n])}." for n in range(1, 20)] + [f"- {' '.join(words)}\n" * n for n in range(1, 5)]
    texts += [f"{' '.join(words)} " + "🎉 " * n for n in range(1, 6)]
    texts += [f"{' '.join(words)}! " * n for n in range(1, 5)] + [
        f"{' '.join(words[:4])} {'p' * n}." for n in range(5, 15)
    ]
    usual, same, other = (
        [check(checker, text, options=options) for text in texts]
        for options in ({}, {option: value}, {option: value + 1})
    )
    assert usual == same != other


def test_every_conversation_is_looked_at(tmp_path: Path) -> None:
    def first_silent(*times: str) -> int | None:
        wishes = "".join(f'[[wishes]]\nwants = "x"\ncomplaints = ["a"]\n{PLAIN}{time}\n' for time in times)
        path = written(tmp_path, f'wants = "x"\n{wishes}')
        try:
            persona = load_persona(path)
        except ConfigError as error:
            found = re.search(r"it wants nothing in conversation (\d+): let a wish hold there", str(error))
            assert found, error
            return int(found[1])
        assert all(persona.mark(GOOD, conversation=n).passed for n in (*range(130), 1499, 1500, 10**9))
        return None

    assert first_silent("until = 1500") == 1500
    assert first_silent("until = 1500", "after = 1500") is None
    assert first_silent("until = 1500", "after = 1501") == 1500
    assert first_silent("after = 1") == 0
    assert first_silent("until = 2000000000") == 2000000000
    assert first_silent("until = 70", "after = 70\nuntil = 5000") == 5000
    assert first_silent("every = [0, 2]") == 1
    assert first_silent("every = [0, 2]", "every = [1, 2]") is None
    assert first_silent("every = [0, 2]", "every = [1, 2]\nuntil = 3000") == 3001
    assert first_silent("until = 2001", "every = [0, 2]\nafter = 2001") == 2001
    assert (
        first_silent("every = [0, 2]", "every = [0, 3]", "every = [1, 4]", "every = [5, 6]", "every = [7, 12]") is None
    )
    assert first_silent("every = [0, 2]", "every = [0, 3]", "every = [1, 4]", "every = [5, 6]") == 7
    assert first_silent("until = 9", "every = [0, 1000003]", "every = [1, 1000033]") == 9
    assert first_silent("", "every = [0, 1000003]", "every = [1, 1000033]") is None  # and in no time


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    several = f"""questions = "why?"
colour = 1
[say]
complaints = ["a"]
shouts = ["b"]
thanks = "ta"
[habits]
thank = 1
silence = false
[[wishes]]
wants = "Plain text."
{PLAIN}
[[wishes]]
checker = "nope"
after = "soon"
shade = "red"
complaints = [1]
"""
    found = mistakes(tmp_path, several)
    assert found[:4] == [
        "unknown key 'colour' (keys are habits, questions, say, wants, wishes)",
        "'wants' is missing",
        "questions is 'why?', not a list of texts",
        "complaints stands under [say], but each [[wishes]] has its own: move it there",
    ]
    assert found[4] == "unknown phrases say.shouts (phrases are off_topic, silence, thanks, wrong)"
    assert found[5] == "say.thanks is 'ta', not a list of texts"
    assert found[6].startswith("unknown habit 'thank' (habits are abandoned, ")
    assert found[7:9] == [
        "habit silence is False, not a rate from 0 to 1",
        "wish 1 ('Plain text.'): no complaints: write a list of them under it",
    ]
    assert [problem.partition(" (keys are")[0].partition(", not one of")[0] for problem in found[9:]] == [
        "wish 2: unknown key 'shade'",
        "wish 2: 'wants' is missing",
        "wish 2: complaints is [1], not a list of texts",
        "wish 2: after is 'soon', not the number of a conversation",
        "wish 2: checker is 'nope'",
        "wish 2: 'good' is missing: write an answer that grants the wish",
        "wish 2: 'bad' is missing: write an answer that does not grant the wish",
    ]
    assert mistakes(tmp_path, "colour = 1\nsay = 2\nhabits = 3\nwishes = 4\n") == [
        "unknown key 'colour' (keys are habits, questions, say, wants, wishes)",
        "'wants' is missing",
        "say is 2, not a table",
        "habits is 3, not a table",
        "wishes is 4, not one [[wishes]] table or more",
    ]


def test_a_file_with_one_wish_is_told_of_say_and_of_no_number(tmp_path: Path) -> None:
    assert mistakes(tmp_path, f'wants = "x"\nuntil = 1500\n{PLAIN}colour = 1\n[habits]\nsilence = 2\n') == [
        "unknown key 'colour' (keys are after, bad, checker, complaints, editor, every, good, habits, options, "
        "questions, requests, say, until, wants)",
        "habit silence is 2, not a rate from 0 to 1",
        "no phrases under say.complaints",
        "it wants nothing in conversation 1500: let a wish hold there (after, until, every)",
    ]


def brief(options: str, good: str, bad: str) -> str:
    return f'wants = "x"\nchecker = "brief"\noptions = {{ {options} }}\ngood = "{good}"\nbad = "{bad}"\n{SAY}'


@pytest.mark.parametrize(
    ("options", "lengths"),
    [("min_words = 50, max_words = 10", (50, 10)), ("min_words = 50", (50, 40)), ("max_words = 4", (5, 4))],
)
def test_a_length_that_no_answer_can_have_is_refused(options: str, lengths: tuple[int, int], tmp_path: Path) -> None:
    (found,) = mistakes(tmp_path, brief(options, GOOD, "No."))
    assert found.startswith("min_words is {} and max_words {} (where not given, 5 and 40)".format(*lengths))


def test_good_must_pass_and_bad_must_not(tmp_path: Path) -> None:
    load_persona(written(tmp_path, brief("min_words = 8, max_words = 8", GOOD, "No.")))
    fifty = " ".join(f"word{n}" for n in range(50))
    load_persona(written(tmp_path, brief("min_words = 45, max_words = 60", f"{fifty}.", "No."), "long.toml"))
    assert mistakes(tmp_path, brief("max_words = 9", "no", GOOD)) == [
        "good is 'no', which 'brief' grades 0.02 and does not grant (it grants from 0.75 on): "
        "write a better answer or change the options",
        "bad is 'Leave it in ...four minutes.', which 'brief' grades 1.0 and grants (it grants from 0.75 on): "
        "write a worse answer or change the options",
    ]
    assert mistakes(tmp_path, brief("max_words = 9", " ", GOOD).replace('" "', "3"))[0] == (
        "'good' is 3, not a text: write an answer that grants the wish"
    )


def test_the_files_of_the_package_have_a_good_and_a_bad_answer_too() -> None:
    assert all(wish.good and wish.bad for name in persona_names() for wish in load_persona(name).wishes)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('wants = "x"\nchecker = "nope"\n[say]\ncomplaints = ["a"]\n', "'nope', not one of"),
        ('wants = "x"\nchecker = "plain"\n', "no phrases under say.complaints"),
        ('wants = "x"\nchecker = "plain"\ncolour = 1\n[say]\ncomplaints = ["a"]\n', "unknown key 'colour'"),
        ('wants = "x"\nchecker = "plain"\neditor = "me"\n[say]\ncomplaints = ["a"]\n', "editor is 'me'"),
        ('wants = "x"\nchecker = "plain"\n[habits]\nthank = 1\n[say]\ncomplaints = ["a"]\n', "unknown habit 'thank'"),
        ('wants = "x"\nchecker = "plain"\n[habits]\nthanks = 7\n[say]\ncomplaints = ["a"]\n', "thanks is 7"),
        ('wants = "x"\nchecker = "plain"\n[habits]\npatience = -1\n[say]\ncomplaints = ["a"]\n', "patience is -1"),
        ('wants = "x"\nchecker = "plain"\n[say]\ncomplaints = ["a"]\nshouts = ["b"]\n', "unknown phrases say.shouts"),
        ('[[wishes]]\nwants = "x"\nchecker = "plain"\ncomplaints = ["a"]\n', "'wants' is missing"),
        ('wants = "x"\n[[wishes]]\nwants = "x"\nchecker = "plain"\n', r"wish 1 \('x'\): no complaints"),
        ('wants = "x"\nuntil = 5\nchecker = "plain"\n[say]\ncomplaints = ["a"]\n', "nothing in conversation 5"),
        ("wants = ", "cannot read"),
        ('wants = 3\nchecker = "plain"\n[say]\ncomplaints = ["a"]\n', "'wants' is 3, not a text"),
        ('wants = "x"\nchecker = "plain"\nsay = 4\n', "say is 4, not a table"),
        ('wants = "x"\nchecker = "plain"\nhabits = 4\n', "habits is 4, not a table"),
        ('wants = "x"\nchecker = "plain"\n[say]\ncomplaints = "short"\n', "complaints is 'short', not a list"),
        ('wants = "x"\nchecker = "plain"\n[say]\ncomplaints = [1]\n', "complaints is .1., not a list of texts"),
        ('wants = "x"\nchecker = "plain"\n[say]\ncomplaints = ["a"]\nthanks = "ta"\n', "say.thanks is 'ta'"),
        ('wants = "x"\nchecker = "plain"\nquestions = "why?"\n[say]\ncomplaints = ["a"]\n', "questions is 'why[?]'"),
        ('wants = "x"\nchecker = ["plain"]\n[say]\ncomplaints = ["a"]\n', "checker is .'plain'., not one of"),
        ('wants = "x"\nchecker = "opening"\n[say]\ncomplaints = ["a"]\n', "option 'phrase' of 'opening' is missing"),
        ('wants = "x"\nchecker = "opening"\noptions = { phrase = "!" }\n[say]\ncomplaints = ["a"]\n', "a word in it"),
        ('wants = "x"\nchecker = "language"\noptions = { language = "it" }\n[say]\ncomplaints = ["a"]\n', "de, en, es"),
        ('wants = "x"\nchecker = "brief"\noptions = { max_words = "9" }\n[say]\ncomplaints = ["a"]\n', "whole number"),
        ('wants = "x"\nchecker = "brief"\noptions = { max_word = 9 }\n[say]\ncomplaints = ["a"]\n', "unknown option"),
        ('wants = "x"\nchecker = "avoids"\noptions = { words = "no" }\n[say]\ncomplaints = ["a"]\n', "list of words"),
        ('wants = "x"\nchecker = "brief"\neditor = "greet"\n[say]\ncomplaints = ["a"]\n', "'phrase'.* is missing"),
        ('wants = "x"\nchecker = "plain"\nafter = "soon"\n[say]\ncomplaints = ["a"]\n', "after is 'soon'"),
        ('wants = "x"\nchecker = "plain"\nafter = 5\n[say]\ncomplaints = ["a"]\n', "nothing in conversation 0"),
        ('wants = "x"\nchecker = "plain"\nevery = [0, 0]\n[say]\ncomplaints = ["a"]\n', "every is .0, 0."),
        ('wants = "x"\nwishes = []\n', "wishes is .., not one"),
        ('wants = "x"\nwishes = ["a"]\n', "wishes is .'a'., not one"),
        ('wants = "x"\nchecker = "plain"\n[habits]\nthanks = true\n[say]\ncomplaints = ["a"]\n', "thanks is True"),
        ('wants = "x"\nchecker = "plain"\n[habits]\nsilence = false\n[say]\ncomplaints = ["a"]\n', "silence is False"),
        ('wants = "x"\nchecker = "plain"\n[habits]\nflood = true\n[say]\ncomplaints = ["a"]\n', "flood is True"),
        ('wants = "x"\nchecker = "plain"\n[say]\ncomplaints = ["a"]\nrequests = 0\n', "say.requests is 0, not a list"),
        ('wants = "x"\nafter = 9\nuntil = 9\nchecker = "plain"\n', "until is 9, not above 9"),
        ('wants = "x"\nchecker = "nope"\noptions = 3\n', "options is 3, not a table"),
        ('wants = "x"\nuntil = 0\nchecker = "plain"\n', "until is 0, not above 0"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=problem):
        load_persona(str(path))
