"""Skills: written of finished episodes, chosen by UCB, for the same task and user alone, and forgotten with them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from afterword.cli import main
from afterword.feedback.collect.collect import collect
from afterword.feedback.settings import CollectSettings
from afterword.feedback.skills import SkillText, write_skills
from afterword.forget import forget_user
from afterword.records import Episode, EpisodeEnd, Feedback, TaskSkill, Turn
from afterword.store import Store
from afterword.store.skills import SkillBank


def play(store: Store, name: str, said: list[str], value: float | None, **episode: Any) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Find the exit."}]
    for number, answer in enumerate(said):
        store.write(
            Turn(id=f"{name}-{number}", messages=tuple(messages), answer={"role": "assistant", "content": answer},
                 previous=f"{name}-{number - 1}" if number else None, episode_id=name, episode_index=number)
        )  # fmt: skip
        messages = [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": f"saw {answer}"}]
    store.write(
        Episode(id=name, **{"task_id": "walk", **episode}),
        EpisodeEnd(id=f"end-{name}", episode=name, status="finished", ended_at=2e9),
        Feedback(id=f"r-{name}", turn=name, kind="outcome", value=value, metadata={"episode": name}),
    )


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "data" / "afterword.db") as opened:
        yield opened


def test_a_successful_episode_gives_a_skill_for_the_task_and_one_for_each_state(store: Store) -> None:
    play(store, "good", ["north", "mail ada@example.org"], 1.0)
    play(store, "bad", ["west"], 0.0)
    collect(store, CollectSettings(holdout=0.0))
    assert write_skills(store) == 2 and write_skills(store) == 0
    whole, step = store.rows(TaskSkill)
    assert whole.text.startswith("What worked in this task, step by step: north | mail [")
    assert "ada@example.org" not in whole.text + step.text
    assert whole.state is None and "When you read 'saw north', this worked: mail" in step.text
    bank = SkillBank(store)
    chosen = bank.choose("walk", state=step.state)
    assert chosen is not None and chosen.id == step.id
    assert bank.choose("walk", without="good") is None and bank.choose("climb") is None


def test_held_out_and_running_episodes_give_none(store: Store) -> None:
    play(store, "good", ["north"], 1.0)
    assert write_skills(store) == 0, "not collected yet"
    collect(store, CollectSettings(holdout=1.0))
    assert write_skills(store) == 0, "held out"


def test_the_bank_tries_each_skill_and_then_weighs_success_against_few_tries(store: Store) -> None:
    for name in ("a", "b"):
        store.write(TaskSkill(id=name, task="walk", episode=f"from-{name}", text=name))
    for n in range(8):
        play(store, f"a{n}", ["x"], 1.0 if n < 4 else 0.0, metadata={"skill": "a"})
    bank = SkillBank(store)
    first = bank.choose("walk")
    assert first is not None and first.id == "b", "never tried"
    play(store, "b0", ["x"], 0.0, metadata={"skill": "b"})
    play(store, "b1", ["x"], None, metadata={"skill": "b"})
    bank = SkillBank(store)
    a, b = (store.get(TaskSkill, name) for name in ("a", "b"))
    assert bank.score(a, 9) == pytest.approx(0.5 + math.sqrt(2 * math.log(9) / 8))
    assert bank.score(b, 9) == pytest.approx(0.0 + math.sqrt(2 * math.log(9) / 1))
    assert bank.score(b, 9) > bank.score(a, 9)
    cautious = SkillBank(store, explore=0.1).choose("walk")
    assert cautious is not None and cautious.id == "a"


def test_skills_of_one_user_are_not_shown_to_another_and_are_forgotten(store: Store) -> None:
    play(store, "good", ["north to the secret garden of Ada"], 1.0, user="ada")
    collect(store, CollectSettings(holdout=0.0))
    assert write_skills(store) == 1
    bank = SkillBank(store)
    assert bank.choose("walk", "ada") is not None and bank.choose("walk", "bob") is None is bank.choose("walk")
    assert forget_user(store, "ada")["clean"]
    assert not list(store.rows(TaskSkill))


def test_any_function_is_an_analyser_and_the_command_shows_the_bank(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    play(store, "bad", ["west"], 0.0)
    collect(store, CollectSettings(holdout=0.0))
    assert write_skills(store, lambda view: [SkillText(f"Not {view.turns[0].turn.answer['content']}.")]) == 1
    home = str(store.path.parent)
    capsys.readouterr()
    assert main(["episodes", "skills", "--write", "--json", "--dir", home]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["new"] == 0 and [(one["text"], one["tries"]) for one in told["skills"]] == [("Not west.", 0)]
    assert main(["episodes", "skills", "--dir", home]) == 0 and "Not west." in capsys.readouterr().out
