"""Persona and prompt files: complete, original enough, and without overlap between training and measuring."""

from __future__ import annotations

from pathlib import Path

import pytest

from afterword.errors import ConfigError, UsageError
from afterword.simulate.personas import load_persona, persona_names
from afterword.simulate.prompts import load_prompts
from afterword.simulate.users import plan


def test_there_are_enough_personas() -> None:
    names = persona_names()
    assert len(names) >= 6
    assert {"greeting", "spanish", "numbered", "brief", "plain", "pirate"} <= set(names)


@pytest.mark.parametrize("name", persona_names())
def test_a_persona_says_many_things_and_nothing_twice(name: str) -> None:
    persona = load_persona(name)
    assert len(persona.complaints) >= 16
    assert len(persona.thanks) >= 16
    assert len(persona.off_topic) >= 16
    phrases = [text.strip().casefold() for text in (*persona.complaints, *persona.thanks, *persona.off_topic)]
    assert len(set(phrases)) == len(phrases)
    assert all(phrases)
    assert persona.wants.endswith(".")


def test_complaints_of_different_personas_differ() -> None:
    all_complaints = [text for name in persona_names() for text in load_persona(name).complaints]
    assert len(set(all_complaints)) == len(all_complaints)


def test_prompts_are_many_and_split_by_topic() -> None:
    train, heldout = load_prompts("train"), load_prompts("heldout")
    assert len(train) + len(heldout) >= 160
    assert len(heldout) >= 48
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
    assert len(plan(prompts, 300, 7)) == 300


def test_a_typo_in_the_name_is_met_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'greting'.*'greeting'.*spanish"):
        load_persona("greting")
    with pytest.raises(UsageError, match="TOML file"):
        load_persona("/nowhere/mine.toml")


def test_a_persona_of_ones_own_is_a_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('wants = "No lists."\nchecker = "plain"\n[say]\ncomplaints = ["No lists!"]\n', encoding="utf-8")
    persona = load_persona(str(mine))
    assert persona.name == "mine"
    assert persona.complaints == ("No lists!",)
    assert len(persona.thanks) >= 16


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('wants = "x"\nchecker = "nope"\n[say]\ncomplaints = ["a"]\n', "'nope', not one of"),
        ('wants = "x"\nchecker = "plain"\n', "no phrases under say.complaints"),
        ('wants = "x"\nchecker = "plain"\ncolour = 1\n[say]\ncomplaints = ["a"]\n', "unknown key 'colour'"),
        ('wants = "x"\nchecker = "plain"\neditor = "me"\n[say]\ncomplaints = ["a"]\n', "editor is 'me'"),
        ('wants = "x"\nchecker = "plain"\n[habits]\nthank = 1\n[say]\ncomplaints = ["a"]\n', "unknown habit 'thank'"),
        ('wants = "x"\nchecker = "plain"\n[habits]\nthanks = 7\n[say]\ncomplaints = ["a"]\n', "thanks is 7"),
        ("wants = ", "cannot read"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=problem):
        load_persona(str(path))
