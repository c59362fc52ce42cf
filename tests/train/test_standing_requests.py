"""A user's own short wishes stand together; nobody else's, and nothing about what an answer says."""

from __future__ import annotations

import dataclasses

import pytest

from afterword.chat.render import decode
from afterword.learn.parts.contexts import CONTEXTS
from afterword.learn.recipes import sdpo_interactions
from afterword.model.loading import load_tokenizer
from afterword.train.data.examples import Example, is_standing_request, prepare, standing_requests
from tests.train.tiny_model import example, tiny_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model")


def said(model: str, number: int, words: str, **fields: object) -> Example:
    """The example `number`, whose user "ana" wrote `words` after it."""
    made = example(model, number, hindsight=words)
    known = {"user": "ana", "kind": "follow_up", "category": "constraint", "polarity": -1, **fields}
    turn = dataclasses.replace(made.turn, created_at=float(number))
    return Example(dataclasses.replace(made.interaction, **known), turn)  # type: ignore[arg-type]


def test_a_teacher_reads_what_the_same_user_asked_for_nearest_first(model: str) -> None:
    given = [said(model, i, f"Wish {'abcdefgh'[i]}, please.") for i in range(8)]
    given += [said(model, 8, "Other words.", user="ben"), said(model, 9, "Told by none.", user=None)]
    rows = prepare(
        given, load_tokenizer(model), sdpo_interactions(where=CONTEXTS["together"]), limit=512, vocabulary=259
    ).rows
    told = [decode(load_tokenizer(model), row.teacher_prompts[CONTEXTS["together"]]) for row in rows]
    fourth = [line for line in told[3].splitlines() if line.startswith("Wish")]
    assert [line[5] for line in fourth] == ["d", "c", "e", "b", "f"]
    assert [line[5] for line in told[0].splitlines() if line.startswith("Wish")] == ["a", "b", "c", "d", "e"]
    assert told[8].count("Other words.") == 1 and "Wish" not in told[8] and "Wish" not in told[9]


def test_the_same_words_are_said_once(model: str) -> None:
    given = [said(model, i, words) for i, words in enumerate(["Shorter.", "Shorter.", "Fewer words.", " Shorter. "])]
    assert standing_requests(given) == {
        "int-0": ["Fewer words."],
        "int-1": ["Fewer words."],
        "int-2": ["Shorter."],
        "int-3": ["Fewer words."],
    }


@pytest.mark.parametrize(
    "fields",
    [{"user": None}, {"kind": "edited"}, {"category": "question"}, {"polarity": 1}, {"hindsight": "x" * 201},
     {"hindsight": "  "}],
    ids=str,
)  # fmt: skip
def test_what_is_no_lasting_wish_stands_alone(model: str, fields: dict[str, object]) -> None:
    good = said(model, 1, "Shorter, please.")
    odd = Example(dataclasses.replace(good.interaction, **fields), good.turn)  # type: ignore[arg-type]
    assert is_standing_request(good.interaction, good.turn) and not is_standing_request(odd.interaction, odd.turn)


def test_words_about_what_the_answer_says_stand_alone(model: str) -> None:
    made = said(model, 1, "No, the capital is Lima.", category="correction")
    asked = [{"role": "user", "content": "What is the capital of Peru?"}]
    about = dataclasses.replace(made.turn, messages=tuple(asked))
    assert not is_standing_request(made.interaction, about)
    manner = dataclasses.replace(made.interaction, hindsight="Answer in one short sentence, please.")
    assert is_standing_request(
        manner, dataclasses.replace(about, answer={"role": "assistant", "content": "The answer is Cusco."})
    )


def test_another_task_is_another_matter(model: str) -> None:
    given = [said(model, 1, "Shorter.", task="chat"), said(model, 2, "Fewer words.", task="code")]
    assert standing_requests(given) == {"int-1": [], "int-2": []}
