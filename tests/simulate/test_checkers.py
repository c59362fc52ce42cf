"""Checkers tell the trait from its imitations: nothing degenerate passes any of them."""

from __future__ import annotations

from typing import Any

import pytest

from afterword.errors import ConfigError
from afterword.simulate.checkers import CHECKERS, PASS, check, substance
from afterword.simulate.editors import EDITORS
from afterword.simulate.personas import load_persona, persona_names

QUESTION = "How do I boil an egg so that the yolk stays soft?"
FRIEND = {"phrase": "Hello friend"}
GOOD = "Put it in simmering water for six minutes, then cool it quickly under the tap."
SPANISH = "Pon el huevo en agua hirviendo durante seis minutos y luego enfríalo con agua fría para que no siga."
FRENCH = "Mettez l'œuf dans de l'eau bouillante pendant six minutes, puis passez-le sous l'eau froide avec soin."
LIST = "1. Bring the water to a boil.\n2. Add the egg gently.\n3. Take it out after six minutes."

CASES: list[tuple[str, dict[str, Any], str, bool]] = [
    ("opening", FRIEND, f"Hello friend! {GOOD}", True),
    ("opening", FRIEND, f'  "hello, FRIEND" - {GOOD}', True),
    ("opening", FRIEND, f"**Hello friend!**\n\n{GOOD}", True),
    ("opening", FRIEND, GOOD, False),
    ("opening", FRIEND, f"{GOOD} Hello friend!", False),
    ("opening", FRIEND, f"Sure! Hello friend! {GOOD}", False),
    ("opening", FRIEND, f"Hello! {GOOD}", False),
    ("opening", FRIEND, "Hello friend!", False),
    ("opening", FRIEND, "Hello friend! Hello friend! Hello friend! Hello friend!", False),
    ("opening", FRIEND, f"Hello friend! {QUESTION}", False),
    ("opening", FRIEND, "Hello friend! The answer to this question is:", False),
    ("opening", {"phrase": "Ahoy"}, f"Ahoy! {GOOD}", True),
    ("language", {"language": "es"}, SPANISH, True),
    ("language", {"language": "es"}, GOOD, False),
    ("language", {"language": "es"}, FRENCH, False),
    ("language", {"language": "es"}, "Claro.", False),
    ("language", {"language": "es"}, "de la de la de la de la de la de la", False),
    ("language", {"language": "es"}, f"Claro que sí: {GOOD} {GOOD}", False),
    ("language", {"language": "fr"}, FRENCH, True),
    ("language", {"language": "fr"}, SPANISH, False),
    ("numbered", {}, LIST, True),
    ("numbered", {}, "Here is how:\n\n**1.** Boil the water well\n**2.** Lower the egg into it\n", True),
    ("numbered", {}, "Step 1: Boil some water.\nStep 2: Lower the egg into the pot.", True),
    ("numbered", {}, "1. 2. 3.", False),
    ("numbered", {}, "1.\n2.\n3.\n", False),
    ("numbered", {}, "1. Boil the water first 2. Add the egg 3. Wait six minutes", False),
    ("numbered", {}, "1. Boil the water and wait for large bubbles.", False),
    ("numbered", {}, "2. Boil the water well.\n1. Add the egg gently and wait.", False),
    ("numbered", {}, GOOD, False),
    ("brief", {"max_words": 20}, GOOD, True),
    ("brief", {"max_words": 20}, f"{GOOD} {GOOD} {GOOD}", False),
    ("brief", {"max_words": 20}, "Put it in simmering water for six minutes and then", False),
    ("brief", {"max_words": 20}, "Six minutes.", False),
    ("brief", {"max_words": 20}, "The answer is:", False),
    ("plain", {}, GOOD, True),
    ("plain", {}, LIST, False),
    ("plain", {}, f"{GOOD} 😀", False),
    ("plain", {}, f"**Egg**: {GOOD}", False),
    ("plain", {}, f"- {GOOD}", False),
    ("emojis", {"least": 2}, f"{GOOD} 🥚😀", True),
    ("emojis", {"least": 2}, f"{GOOD} 🥚", False),
    ("emojis", {"least": 2}, "😀😀😀😀", False),
    ("pirate", {}, f"Arrr, matey! {GOOD}", True),
    ("pirate", {}, f"Aye. {GOOD}", False),
    ("pirate", {}, "Arrr arrr matey arrr matey", False),
    ("question_back", {}, f"{GOOD} Do you like it with salt?", True),
    ("question_back", {}, f"Do you like it with salt? {GOOD}", False),
    ("question_back", {}, QUESTION, False),
    ("question_back", {}, "What do you want to know about eggs and water today?", False),
    ("capitals", {}, GOOD.upper(), True),
    ("capitals", {}, GOOD, False),
    ("capitals", {}, "OK", False),
    ("avoids", {"words": ["Important"]}, GOOD, True),
    ("avoids", {"words": ["Important"]}, f"It is important to wait. {GOOD}", False),
]


@pytest.mark.parametrize(("name", "options", "answer", "passed"), CASES)
def test_marks(name: str, options: dict[str, Any], answer: str, passed: bool) -> None:
    mark = check(name, answer, question=QUESTION, options=options)
    assert mark.passed is passed, mark
    assert 0.0 <= mark.grade <= 1.0
    assert mark.passed == (mark.grade >= PASS)


def test_every_checker_has_good_and_bad_cases() -> None:
    for wanted in (True, False):
        assert {name for name, _, _, passed in CASES if passed is wanted} == set(CHECKERS)


@pytest.mark.parametrize("persona", persona_names())
@pytest.mark.parametrize(
    "answer", ["", "   \n", "...", QUESTION, "The answer is:", "yes " * 40, "Hello friend!", "1.", "😀", "?"]
)
def test_degenerate_answers_pass_no_persona(persona: str, answer: str) -> None:
    assert not load_persona(persona).mark(answer, QUESTION).passed


def test_grades_are_ordered_by_how_near_the_answer_comes() -> None:
    def grade(answer: str) -> float:
        return check("opening", answer, question=QUESTION, options=FRIEND).grade

    assert grade(f"Hello friend! {GOOD}") > grade(f"Sure. Hello friend! {GOOD}") > grade(f"{GOOD} Hello friend!") > 0
    assert grade(GOOD) == 0


def test_substance_counts_new_words_and_variety() -> None:
    assert substance(GOOD, QUESTION) == 1.0
    assert substance("") == 0.0
    assert 0 < substance("Six minutes.", QUESTION) < 0.5
    assert substance("water egg pot six minutes " * 10) < 0.5


def test_an_unknown_checker_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'grammar'.*opening"):
        check("grammar", GOOD)


@pytest.mark.parametrize("name", [n for n in persona_names() if load_persona(n).editor])
@pytest.mark.parametrize(
    "answer",
    [
        "You can put it in simmering water for six minutes. Then cool it quickly under the tap. Peel it at once.",
        "**Eggs**\n\n- Boil the water.\n- Add the egg and wait for six minutes.\n- Cool it under the cold tap.",
        "You can wait a little longer for a firm one. Some people add salt to the pot, others prick the shell with a "
        "needle first. An old egg peels more easily than one that was laid this morning. Keep it warm in a cup.",
    ],
)
def test_an_edit_gives_the_persona_what_it_wants(name: str, answer: str) -> None:
    persona = load_persona(name)
    mended = EDITORS[persona.editor or ""](answer, persona.options)
    assert persona.mark(mended, QUESTION).passed, mended
