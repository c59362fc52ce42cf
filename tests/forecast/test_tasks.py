"""Verifiable tasks: splits that share no prompt, marks, feedback that does not give the answer away, and a verifier."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from afterword.errors import ConfigError, NothingToDo
from afterword.forecast.contexts import TEACHER_CONTEXTS
from afterword.forecast.tasks import FAMILIES, GymTask, answer_in, gym_reward, task_of
from afterword.records import Turn

gym = pytest.importorskip("reasoning_gym")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_marks_right_answers_and_gives_feedback_on_wrong_ones(family: str) -> None:
    task = GymTask(family)
    train, heldout = task.items("train", 12, 0), task.items("heldout", 6, 5)
    assert not {i.messages[0]["content"] for i in train} & {i.messages[0]["content"] for i in heldout}
    assert task.items("train", 12, 0) == train and len({i.id for i in train}) == 12
    wrong = "12345" if FAMILIES[family].numeric else "nothing of the sort"
    for item in train:
        assert task.score(item, item.reference) == 1.0
        assert task.score(item, f"The answer is {item.reference}.") == 1.0, item
        assert task.score(item, wrong) == 0.0 and task.score(item, "") == 0.0
        told = task.feedback(item, wrong)
        assert told and not task.feedback(item, item.reference) and task.follow_up(item, wrong)
        assert task.edit(item, wrong) == item.reference and task.hints(item)
        turn = Turn(id=f"{item.id}#3", messages=item.messages, answer={"role": "assistant", "content": wrong})
        assert gym_reward(turn, item.reference) == 1.0 and gym_reward(turn, wrong) == 0.0
        assert TEACHER_CONTEXTS["peer_feedback"].shows(task, item, wrong, None) == told
        assert TEACHER_CONTEXTS["peer_feedback"].shows(task, item, wrong, "a peer") == "a peer"
        assert TEACHER_CONTEXTS["reference"].shows(task, item, item.reference, None) == ""


@pytest.mark.parametrize(
    ("text", "said"),
    (
        ("The answer is 12.", "12"),
        ("3 + 4 = 7", "7"),
        ("1,204", "1204"),
        ("I count 5 of them, so 6", "6"),
        ("none", ""),
    ),
)
def test_where_a_number_is_found(text: str, said: str) -> None:
    assert answer_in(text, FAMILIES["chain_sum"]) == said


def test_personas_are_tasks_too() -> None:
    task = task_of("persona:pirate")
    item = task.items("train", 4, 1)[0]
    assert task.score(item, "Ahoy, matey! Set yer sails by the wind an' mind the tide, arr!") > 0.9
    plain = "You could try it with a little salt in the water, and taste it after ten minutes."
    assert task.score(item, plain) == 0.0 and task.follow_up(item, plain) and task.edit(item, plain)
    assert "pirate" in task.hints(item) and task.feedback(item, plain)
    with pytest.raises(NothingToDo, match="are wanted"):
        task.items("heldout", 5000, 0)


def test_unknown_tasks_and_foreign_turns_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="gym:chain_sum"):
        task_of("gym:chess")
    with pytest.raises(ConfigError, match="gym_reward"):
        gym_reward(Turn(id="chatcmpl-1", messages=(), answer={}), "4")
    small = replace(FAMILIES["chain_sum"], options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})
    monkeypatch.setitem(FAMILIES, "tiny_sum", small)
    with pytest.raises(NothingToDo, match="different prompts"):
        GymTask("tiny_sum").items("heldout", 500, 0)


def test_without_the_extra_the_remedy_is_named() -> None:
    code = (
        "import sys; sys.modules['reasoning_gym'] = None\n"
        "from afterword.forecast.tasks import task_of\n"
        "try: task_of('gym:chain_sum').items('train', 1, 0)\n"
        "except Exception as error: print(error.message)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'afterword[tasks]'" in done.stdout
