"""The alignment report: what both sides read and score, under every recipe, and the control of its signal."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from afterword.learn.recipes import Recipe, recipe
from afterword.model.loading import load_model, load_tokenizer
from afterword.train.data.examples import Example, prepare
from afterword.train.monitoring.alignment import _Probe, write_alignment
from afterword.train.runtime.policy import load_policy
from afterword.train.runtime.teacher_runtime import TeacherRuntime
from tests.train.tiny_model import example, tiny_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model", context=300)


def probe(model: str, one: Recipe, examples: list[Example]) -> _Probe:
    prepared = prepare(examples, load_tokenizer(model), one, limit=300, vocabulary=259)
    teaching = TeacherRuntime(load_policy(model, one, parent=None, seed=0, device="cpu"), one, model)
    return _Probe(teaching, load_tokenizer(model), prepared, one, len(examples))


def others_of(model: str, one: Recipe, examples: list[Example]) -> list[str | None]:
    made = probe(model, one, examples)
    found = made.other_parts(one.terms[0].context, 0)
    assert all(parts is None or sum(map(len, parts)) <= 300 for parts in found)
    return [None if parts is None else load_tokenizer(model).decode(parts[0]) for parts in found]


def test_the_other_words_are_shown_as_their_own_would_be(model: str) -> None:
    one = recipe("sdpo-interactions", context="by_kind", dtype="float32")
    given = [example(model, i, hindsight=f"Wish {i}.") for i in range(2)]
    changes: list[dict[str, Any]] = [{"polarity": 1}, {"kind": "tests"}]
    given = [Example(dataclasses.replace(e.interaction, **c), e.turn) for e, c in zip(given, changes, strict=True)]
    first, second = others_of(model, one, given)
    assert first and "Wish 1." in first and "was tried out" in first and "They liked it" not in first
    assert second and "Wish 0." in second and "They liked it" in second


def test_the_other_words_fit_the_context_and_are_redacted(model: str) -> None:
    one = recipe("sdpo-interactions", dtype="float32")
    given = [example(model, 0, hindsight="w" * 2500), example(model, 1, hindsight="Write to ann@example.org now.")]
    first, second = others_of(model, one, given)
    assert first and "ann@example.org" not in first and "Write to" in first
    assert second and "wwww" in second


def test_a_fixed_text_and_equal_words_have_no_other(model: str) -> None:
    fixed = recipe("opcd", experience="Answer briefly.", dtype="float32")
    assert others_of(model, fixed, [example(model, i, hindsight=f"Wish {i}.") for i in range(2)]) == [None, None]
    equal = recipe("sdpo-interactions", dtype="float32")
    assert others_of(model, equal, [example(model, i) for i in range(2)]) == [None, None]


def test_recipes_without_hindsight_show_what_is_read_and_scored(model: str, tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "other", seed=1, context=300)
    given = [example(model, i) for i in range(3)]
    for name, told in (("opd", {"teacher": other}), ("sft", {})):
        one = recipe(name, **told, dtype="float32")
        if told:
            terms = tuple(
                dataclasses.replace(t, teacher=dataclasses.replace(t.teacher, dtype="float32"))  # type: ignore[type-var]
                for t in one.terms
            )
            one = dataclasses.replace(one, terms=terms)
        made = probe(model, one, given)
        prepared = prepare(given, load_tokenizer(model), one, limit=300, vocabulary=259)
        folder = tmp_path / name
        folder.mkdir()
        assert write_alignment(made.teachers, load_tokenizer(model), prepared, one, folder, 0) is None
        text = (folder / "alignment.txt").read_text()
        assert text.count("student reads") == 2 and "Question 0?" in text and "boundary after" in text
        assert text.count("teacher of") == (4 if told else 0)
        row = made.rows[0]
        ids = torch.tensor([[*row.prompt, *row.completion]])
        for folder_name in (model, other)[: 2 if told else 1]:
            with torch.no_grad():
                logits = load_model(folder_name, dtype="float32")(ids).logits
            value = logits[0, len(row.prompt) - 1].log_softmax(-1)[row.completion[0]].item()
            line = next(x for x in text.splitlines() if x.startswith(f"{row.completion[0]:>7} "))
            assert f"{value:+.3f}" in line
        student, *teachers = map(float, line.split()[-3 if told else -1 :])
        assert not teachers or teachers[1] == pytest.approx(teachers[0] - student, abs=2e-3)
        assert text.count("minus student") == (2 if told else 0)
