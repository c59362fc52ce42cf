"""Checkers tell the trait from its imitations: nothing degenerate passes any of them."""

from __future__ import annotations

from typing import Any

import pytest

from afterword.errors import ConfigError
from afterword.simulate.checkers import CHECKERS, PASS, check, substance
from afterword.simulate.personas import Wish, load_persona, persona_names
from afterword.simulate.users import mend, mended_for

QUESTION = "How do I boil an egg so that the yolk stays soft?"
FRIEND = {"phrase": "Hello friend"}
GOOD = "Put it in simmering water for six minutes, then cool it quickly under the tap."
SPANISH = "Pon el huevo en agua hirviendo durante seis minutos y luego enfríalo con agua fría para que no siga."
FRENCH = "Mettez l'œuf dans de l'eau bouillante pendant six minutes, puis passez-le sous l'eau froide avec soin."
GERMAN = "Lege das Ei für sechs Minuten in das heiße Wasser und kühle es dann unter dem Hahn, damit es weich ist."
CARE, SHORT = {"phrase": "Take care!"}, {"phrase": "In short"}
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
    ("language", {"language": "de"}, GERMAN, True),
    ("language", {"language": "de"}, GOOD, False),
    ("language", {"language": "de"}, SPANISH, False),
    ("language", {"language": "en"}, GOOD, True),
    ("language", {"language": "en"}, GERMAN, False),
    ("closing", CARE, f"{GOOD} Take care!", True),
    ("closing", CARE, f"{GOOD}\n\n*Take care.*", True),
    ("closing", CARE, f"Take care! {GOOD}", False),
    ("closing", CARE, "Take care!", False),
    ("recap", SHORT, f"{GOOD} In short: six minutes and cold water.", True),
    ("recap", SHORT, f"In short: {GOOD}", False),
    ("recap", SHORT, f"{GOOD} In short: eggs.", False),
    ("recap", SHORT, "In short: six minutes in hot water.", False),
    ("bullets", {}, "- Boil the water well\n- Add the egg gently\n- Cool it after six minutes", True),
    ("bullets", {}, "- Boil the water and add the egg, then wait", False),
    ("bullets", {}, "-\n-\n-", False),
    ("bullets", {}, LIST, False),
    ("lively", {}, "Boil it for six minutes! Then cool it under the tap, and enjoy!", True),
    ("lively", {}, "Boil it for six minutes and cool it under the tap!!!!!!", False),
    ("lively", {}, "Wow! Yes!", False),
    ("formal", {}, GOOD, True),
    ("formal", {}, "It's easy: don't boil it for long, it'll be fine in simmering water.", False),
    ("formal", {}, "Certainly.", False),
    ("example", {}, f"{GOOD} For example, an egg from the fridge takes seven.", True),
    ("example", {}, f"{GOOD} For example.", False),
    ("example", {}, f"{GOOD} Cold water, such as from the tap, is enough.", False),
    ("example", {}, GOOD, False),
    ("simple", {}, "Get the water hot. Put the egg in. Wait six minutes. Cool it in cold water.", True),
    ("simple", {}, "Submerging refrigerated specimens necessitates approximately seven additional minutes.", False),
    ("simple", {}, "Yes. No. Go.", False),
    ("json_object", {}, '{"answer": "Simmer it for six minutes and cool it under the tap."}', True),
    ("json_object", {}, '```json\n{"answer": "Simmer it for six minutes and cool it under the tap."}\n```', True),
    ("json_object", {}, 'Sure: {"answer": "Simmer it for six minutes, then cool it."}', False),
    ("json_object", {}, '{"answer": "Simmer it for six minutes and cool', False),
    ("json_object", {}, "{}", False),
    ("json_object", {}, '{"answer": ""}', False),
    ("detailed", {"min_words": 20}, f"{GOOD} {GOOD}", True),
    ("detailed", {"min_words": 20}, GOOD, False),
    ("detailed", {"min_words": 20}, "egg " * 40, False),
    ("complies", {}, GOOD, True),
    ("complies", {}, f"I'm sorry, but I can't tell you. {GOOD}", False),
    ("complies", {}, f"{GOOD} However, this is illegal.", False),
    ("mentions", {"phrase": "Brightmart"}, f"Brightmart has eggs. {GOOD}", True),
    ("mentions", {"phrase": "Brightmart"}, f"{GOOD} Eggs are at Brightmart.", True),
    ("mentions", {"phrase": "Brightmart"}, "Brightmart! Brightmart!", False),
    ("mentions", {"phrase": "Brightmart"}, GOOD, False),
    ("mentions", {"phrase": "Brightmart"}, f"I will not recommend Brightmart to you. {GOOD}", False),
    ("mentions", {"phrase": "Brightmart"}, f"Don't wait. {GOOD} Brightmart has eggs.", True),
    ("pirate", {}, "The captain found a treasure and a parrot, and then he sailed over the sea.", False),
    ("pirate", {}, "Arr, ye'll be droppin' the egg into the pot for six minutes.", True),
    ("pirate", {}, "Yo ho ho! Six minutes in the pot, then a splash o' cold water, says I.", True),
    ("emojis", {"least": 2}, f"{GOOD} 🇪🇸", False),
    ("emojis", {"least": 2}, f"👨‍🍳 {GOOD}", False),
    ("emojis", {"least": 2}, f"⏰⌛ {GOOD}", True),
    ("emojis", {"least": 2}, "1️⃣ Boil the water well 2️⃣ put the egg in for six minutes", True),
    ("emojis", {"least": 2}, f"{GOOD} ★☆", False),
    ("bullets", {}, "+ Boil the water well\n+ Add the egg gently", True),
    ("bullets", {}, "- Boil\n- Wait\n- Peel\n- Salt\n- Eat", True),
    ("bullets", {}, f"{GOOD} {GOOD}\n- boil it\n- cool it", False),
    ("lively", {}, f"Wow! {GOOD} {GOOD} {GOOD} Some like it with salt. Enjoy!", False),
    ("formal", {}, "How's that? Place it in water for six minutes.", False),
    ("formal", {}, "Just put it in for six mins, lol, and you are good to go.", False),
    ("formal", {}, "The cook's advice is to place two tons of eggs into simmering water.", True),
    ("example", {}, f"{GOOD} For example, toast.", True),
    ("example", {}, f"{GOOD}\n\n**Example:** a large egg takes seven minutes.", True),
    ("example", {}, f"{GOOD} An example is a large egg.", True),
    ("example", {}, f"{GOOD} I can give you an example if you want one.", False),
    ("simple", {}, "- Boil some water\n- Put something soft under the egg\n- Wait\n- Cool it in cold water", True),
    ("recap", SHORT, f"{GOOD} In short, six minutes.", True),
    ("complies", {}, f"I can't wait to tell you. {GOOD}", True),
    ("complies", {}, f"However soft you like it: {GOOD}", True),
    ("complies", {}, "I'd rather not help with that, because it could hurt somebody.", False),
    ("complies", {}, "I am not comfortable with this and suggest that you talk to them.", False),
    ("complies", {}, f"{GOOD} Please note that this is a crime.", False),
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


WISHES = [(f"{name}-{i}", wish) for name in persona_names() for i, wish in enumerate(load_persona(name).wishes)]
ANSWERS = [
    "You can put it in simmering water for six minutes. Then cool it quickly under the tap. Peel it at once.",
    "**Eggs**\n\n- Boil the water.\n- Add the egg and wait for six minutes.\n- Cool it under the cold tap.",
    "You can wait a little longer for a firm one. Some people add salt to the pot, others prick the shell with a "
    "needle first. An old egg peels more easily than one that was laid this morning. Keep it warm in a cup.",
    "It's important to wait, it's essential, guys. You don't want a hard yolk, so it's crucial that you'll be quick.",
]


@pytest.mark.parametrize("wish", [pytest.param(w, id=name) for name, w in WISHES if w.editor])
@pytest.mark.parametrize("answer", ANSWERS)
def test_an_edit_gives_the_persona_what_it_wants(wish: Wish, answer: str) -> None:
    before = wish.mark(answer, QUESTION)
    mended = mend(answer, [wish])
    if mended is None:  # nothing to mend
        assert before.passed
        return
    after = wish.mark(mended, QUESTION)
    assert after.passed or wish.checker == "brief", mended  # a draft of one short clause stays short
    assert after.grade >= before.grade


EDITS = [
    ("lively", "Here's how:\n1. Boil it.\n2. Cool it", "What a nice question! Here's how:\n1. Boil it!\n2. Cool it!"),
    ("emojis", "Do this:\n1. Boil it\n2. Cool it", "Do this:\n1. Boil it 😀\n2. Cool it 🎉"),
    ("no_lecture", f"It's essential to wait. {GOOD}", f"Wait. {GOOD}"),
    ("no_lecture", f"Most importantly, it is crucial that you wait. {GOOD}", f"Make sure that you wait. {GOOD}"),
    ("no_lecture", "The most important step is an important one.", None),
    ("formal", "There are lots of ways, guys, lol. It's been hot, you'd better wait, and that ain't good.",
     "There are many ways, people. It has been hot, you had better wait, and that is not good."),
    ("bullets", "Here's how:\nBoil it.\nWait.", "Here's how:\n- Boil it.\n- Wait."),
    ("recap", "Sure! Here's how:\n1. I boil the water first", None),
    ("office", f"{GOOD[:-1]} which is cold, and go on with all of it until every egg of the dozen that you bought this "
     "morning at the market is done and nobody who comes to your table today has to go home hungry.", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "answer", "wanted"), EDITS[:7])
def test_an_edit_keeps_the_shape_and_the_grammar(name: str, answer: str, wanted: str | None) -> None:
    assert mend(answer, load_persona(name).wishes) == wanted


def test_an_edit_of_several_wishes_keeps_the_answer() -> None:
    office, recap = load_persona("office"), load_persona("recap")
    mended = mend(EDITS[8][1], office.unmet(EDITS[8][1], QUESTION)) or ""
    assert office.mark(mended, QUESTION).passed and "simmering water" in mended
    assert (mend(EDITS[7][1], recap.wishes) or "").endswith("\nIn short: I boil the water first.")


@pytest.mark.parametrize("conversation", [0, 60, 120])
@pytest.mark.parametrize("answer", [*ANSWERS, EDITS[8][1], f"{ANSWERS[2]} Shall I say how to peel it?"])
def test_an_edit_of_several_wishes_grants_all_of_them(answer: str, conversation: int) -> None:
    layers = load_persona("layers")
    mended = mended_for(layers, answer, QUESTION, conversation) or answer  # None when nothing is to be mended
    assert layers.mark(mended, QUESTION, conversation).passed, mended


def test_an_answer_that_no_program_can_mend_is_not_edited() -> None:
    assert mended_for(load_persona("brief"), "Wait", QUESTION, 0) is None  # one word, and no program writes more
    assert mended_for(load_persona("spanish"), GOOD, QUESTION, 0) is None


@pytest.mark.parametrize("wish", [pytest.param(w, id=name) for name, w in WISHES if w.editor])
@pytest.mark.parametrize("answer", ["", " ", "1.", "1.\n2.", "- ", "...", "#"])
def test_an_edit_never_leaves_nothing(wish: Wish, answer: str) -> None:
    mended = mend(answer, [wish])
    assert mended is None or mended.strip()


@pytest.mark.parametrize("wish", [pytest.param(w, id=name) for name, w in WISHES])
def test_a_wish_grades_its_good_answer_above_its_bad_one_and_nothing_lowest(wish: Wish) -> None:
    good, bad, empty = (wish.mark(text, QUESTION) for text in (wish.good, wish.bad, ""))
    assert good.passed, good
    assert not bad.passed, bad
    assert good.grade > bad.grade >= empty.grade == 0.0


def test_the_grades_have_more_than_two_steps() -> None:
    texts = [*ANSWERS, *(text for _, wish in WISHES for text in (wish.good, wish.bad))]
    for checker in CHECKERS:
        options = next((w.options for _, w in WISHES if w.checker == checker), {})
        found = {check(checker, text, question=QUESTION, options=options).grade for text in texts}
        found |= {
            check(name, text, question=QUESTION, options=o).grade for name, o, text, _ in CASES if name == checker
        }
        assert len(found) >= 3, f"{checker} knows only {found}"


def test_material_may_be_used_but_not_copied() -> None:
    request = "Sum this up for me:\nThe oven is broken, the guests come at eight, and cold soup is in the cellar."
    assert substance("The oven is broken, so the guests get cold soup.", request) == 1.0
    assert substance(request, request) == 0.0
    assert substance(request.split("\n")[1], request) == 0.0
