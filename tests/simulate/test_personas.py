"""Persona and prompt files: complete, original enough, and without overlap between training and measuring."""

from __future__ import annotations

import dataclasses
import difflib
import random
import re
import tomllib
from typing import Any

import pytest

from afterword.errors import UsageError
from afterword.simulate.checkers import CheckResult
from afterword.simulate.personas import FOLDER, Habits, Persona, load_persona, persona_names
from afterword.simulate.prompts import TASKS, load_prompts
from afterword.simulate.users import Reaction, misspelt, opening, plan, react

CHANGING = {"turns_to_detail", "list_to_prose", "home_again"}
SEVERAL = {"office", "coach", "layers"}
ADVERSARIAL = {"punisher", "injector", "fickle", "flooder"}


def written(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text("utf-8"))


def own_phrasings(name: str) -> list[str]:
    """What a persona says about answers in words of its own: complaints, requests, praise, silence."""
    data = written(name)
    wishes = data.get("wishes") or [data.get("say", {})]
    kinds = [say.get(kind, []) for say in wishes for kind in ("complaints", "requests")]
    kinds += [data.get("say", {}).get(kind, []) for kind in ("thanks", "silence")]
    return [text for texts in kinds for text in texts]


def test_there_are_enough_personas_of_every_sort() -> None:
    names = set(persona_names())
    assert len(names) >= 24
    assert names >= CHANGING | SEVERAL | ADVERSARIAL
    for name in CHANGING:
        persona = load_persona(name)
        assert [w.wants for w in persona.wished(99)] != [w.wants for w in persona.wished(100)]
        assert len(persona.wished(0)) == len(persona.wished(500)) == 1
    for name in SEVERAL:
        assert len(load_persona(name).wished(500)) >= 3
    assert [len(load_persona("layers").wished(n)) for n in (59, 60, 120)] == [1, 2, 3]
    fickle = load_persona("fickle")
    assert fickle.wished(0) != fickle.wished(1) and fickle.wished(0) == fickle.wished(2)
    assert load_persona("flooder").habits.flood == 3 and len(load_persona("punisher").questions) >= 12


@pytest.mark.parametrize("name", persona_names())
def test_a_persona_says_many_things_and_nothing_twice(name: str) -> None:
    persona, own = load_persona(name), own_phrasings(name)
    assert len(own) >= 30
    for texts in (persona.complaints, persona.thanks, persona.off_topic, persona.silence, persona.wrong):
        assert len(texts) >= 3 and all(text.strip() for text in texts)
    assert all(wish.requests and len(wish.complaints) >= 7 for wish in persona.wishes)
    assert len({text.strip().casefold() for text in own}) == len(own)
    assert persona.wants.endswith(".") and all(wish.wants.endswith(".") for wish in persona.wishes)


AS_MEASURED = {"brief", "capitals", "french", "german", "greeting", "json", "numbered", "spanish"}
"""Personas of the published experiments: their words and rates stay as they were when those were measured."""


def alike(one: str, other: str) -> bool:
    """Nearly the same phrase: three quarters of the words in common, or of the same letters but a few."""
    a, b = (set(re.findall(r"\w+", text.casefold())) for text in (one, other))
    close = difflib.SequenceMatcher(None, one.casefold(), other.casefold()).ratio() >= 0.85
    return close or len(a & b) >= 0.75 * len(a | b) > 0


@pytest.mark.parametrize("name", persona_names())
def test_thirty_phrasings_are_really_different_ones(name: str) -> None:
    own = own_phrasings(name)
    different = [text for i, text in enumerate(own) if not any(alike(text, before) for before in own[:i])]
    assert len(different) >= 30


@pytest.mark.parametrize("name", sorted(set(persona_names()) - AS_MEASURED))
def test_nothing_is_written_that_is_never_said(name: str) -> None:
    persona, habits = load_persona(name), load_persona(name).habits
    said = written(name)["say"]
    assert said["thanks"] and habits.thanks
    assert said["silence"] and habits.shrug
    assert habits.request and any(wish.requests for wish in persona.wishes)
    assert habits.off_topic and habits.typos and (habits.wrong or name in ADVERSARIAL)


def test_complaints_of_different_personas_differ() -> None:
    said = [text for name in persona_names() for wish in load_persona(name).wishes for text in wish.complaints]
    asked = [text for name in persona_names() for wish in load_persona(name).wishes for text in wish.requests]
    assert len(set(said)) == len(said)
    assert len(set(asked)) == len(asked)


def test_prompts_are_many_and_split_by_topic() -> None:
    train, heldout = load_prompts("train"), load_prompts("heldout")
    assert len(train) + len(heldout) >= 400
    assert len(heldout) >= 128
    assert {p.task for p in train} == {p.task for p in heldout} == set(TASKS) and len(TASKS) >= 8
    assert len(load_prompts("heldout", ["question"])) >= 64
    topics = {p.topic for p in train}, {p.topic for p in heldout}
    assert not topics[0] & topics[1]
    assert len(topics[0] | topics[1]) >= 8
    texts = [p.text.casefold() for p in (*train, *heldout)]
    assert len(set(texts)) == len(texts)


def test_any_beginning_of_the_prompts_covers_all_topics() -> None:
    heldout = load_prompts("heldout")
    assert {p.topic for p in heldout[:4]} == {p.topic for p in heldout}


def test_the_plan_is_the_seeds() -> None:
    prompts = load_prompts("train")
    assert plan(prompts, 96, 7) == plan(prompts, 96, 7)
    assert plan(prompts, 96, 7) != plan(prompts, 96, 8)
    assert len({p.text for p in plan(prompts, 96, 7)}) == 96
    assert plan(prompts, 96, 7)[:40] == plan(prompts, 40, 7)
    assert len(plan(prompts, 300, 7)) == 300


def test_a_typo_in_the_name_is_met_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'greting'.*'greeting'.*spanish"):
        load_persona("greting")
    with pytest.raises(UsageError, match="TOML file"):
        load_persona("/nowhere/mine.toml")


def test_an_unknown_task_is_named_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'poems'.*summarise"):
        load_prompts("train", ["question", "poems"])


LONG = "Put it into simmering water for six minutes. " * 4
SHORT = "Put it into simmering water for six minutes."


def acting(name: str, **rates: Any) -> Persona:
    """A persona with these rates and no others."""
    none = {field.name: 0.0 for field in dataclasses.fields(Habits)}
    return dataclasses.replace(load_persona(name), habits=Habits(**{**none, "patience": 2, "flood": 0, **rates}))


def reaction(persona: Persona, answer: str, conversation: int = 0, asked: int = 1, seed: int = 0) -> Reaction:
    mark = persona.mark(answer, "How?", conversation)
    return react(persona, mark, answer, seed=seed, conversation=conversation, asked=asked, said=["How?"])


def test_a_retry_an_abandonment_a_shrug_and_a_wrong_complaint() -> None:
    again = reaction(acting("brief", retry=1.0), LONG)
    assert (again.act, again.text, again.events, again.informs) == ("retry", None, ({"kind": "retried"},), True)
    gone = reaction(acting("brief", silence=1.0, abandoned=1.0), LONG)
    assert (gone.act, gone.text, gone.events) == ("leave", None, ({"kind": "abandoned"},))
    assert not reaction(acting("brief", silence=1.0), LONG).informs
    shrug = reaction(acting("office", silence=1.0, shrug=1.0), LONG)
    assert shrug.act == "leave" and shrug.text in load_persona("office").silence and shrug.last
    unjust = reaction(acting("brief", wrong=1.0), SHORT)
    assert unjust.act == "complain" and unjust.text in load_persona("brief").wrong
    flood = reaction(acting("flooder", flood=3, wrong=1.0), SHORT.upper())
    assert flood.events == ({"kind": "rating", "value": -1.0},) * 3 and flood.text in load_persona("flooder").wrong


def test_a_change_of_mind_changes_what_is_complained_about() -> None:
    persona = acting("turns_to_detail")
    brief, detail = persona.wishes
    assert reaction(persona, LONG, 99).text in brief.complaints
    assert reaction(persona, SHORT, 100).text in detail.complaints
    assert persona.mark(LONG, "How?", 100).passed is False  # the same sentence four times is not detail
    assert persona.mark(detail.good, "How?", 99).passed is False
    assert persona.mark(detail.good, "How?", 100).passed


def test_of_several_wishes_the_worst_is_complained_about_and_an_edit_grants_all() -> None:
    persona = acting("office")
    assert reaction(persona, SHORT).text in persona.wishes[0].complaints
    greeted = f"Dear colleague, it's easy. {SHORT}"
    assert reaction(persona, greeted).text in persona.wishes[2].complaints
    edited = reaction(acting("office", edit=1.0), f"It's easy. {SHORT}")
    assert edited.act == "edit"
    assert persona.mark(edited.events[0]["final_text"], "How?") == CheckResult(1.0, True)
    assert reaction(acting("spanish", edit=1.0), SHORT).act == "complain"  # no program writes Spanish


def test_requests_and_typos_come_at_their_rates_and_the_same_each_time() -> None:
    persona = acting("numbered", request=0.5, typos=0.5)
    said = [opening(persona, "How do I boil an egg?", seed=3, conversation=i) for i in range(200)]
    assert said == [opening(persona, "How do I boil an egg?", seed=3, conversation=i) for i in range(200)]
    asked = [text for text in said if len(text) > len("How do I boil an egg?") + 4]
    assert 70 <= len(asked) <= 130
    exact = {f"How do I boil an egg? {r}" for r in persona.wishes[0].requests} | {"How do I boil an egg?"}
    assert 70 <= sum(text not in exact for text in said) <= 130
    assert misspelt("ok :)", random.Random(0)) == "ok :)"
    slipped = misspelt("please number every single step", random.Random(1))
    assert slipped != "please number every single step" and len(slipped.split()) == 5
