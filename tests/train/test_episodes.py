"""Several scored spans in one row: the answers of a conversation, and their place in the layout."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from afterword.chat.render import encode, end_of_turn_ids, generation_header, render_prompt
from afterword.learn.diagnostics import log_probs
from afterword.learn.loss.token_batch import layout
from afterword.learn.parts.contexts import CONTEXTS, with_text
from afterword.learn.parts.divergences import PolicyGradient
from afterword.learn.parts.teachers import START
from afterword.learn.recipes import Recipe, sdpo_interactions, sft
from afterword.model.head import head_of
from afterword.model.loading import load_model, load_tokenizer
from afterword.model.packing import hidden_states, packed
from afterword.train.data.batches import rows_of
from afterword.train.data.examples import Example, prepare
from afterword.train.data.rows import NONE, Encoded
from afterword.train.loop import train_candidate
from afterword.train.monitoring.metrics import read_metrics
from afterword.train.runtime.policy import load_policy
from afterword.train.runtime.teacher_cache import TeacherCache, TeacherStates
from afterword.train.runtime.teacher_runtime import TeacherRuntime
from tests.train.tiny_model import example, tiny_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

SETTINGS: dict[str, Any] = {"dtype": "float32", "fresh": 0, "scored": "conversation"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model", initializer_range=0.3)


def conversation(model: str, number: int = 0, turns: int = 3) -> Example:
    """An interaction about the last answer of a conversation."""
    tokenizer = load_tokenizer(model)
    messages: list[dict[str, str]] = []
    for k in range(turns - 1):
        messages += [{"role": "user", "content": f"Q{k}?"}, {"role": "assistant", "content": f"Answer {k}."}]
    messages.append({"role": "user", "content": f"Last {number}?"})
    return example(
        model, number, text="The end.", messages=tuple(messages), prompt_ids=render_prompt(tokenizer, messages).ids
    )


def encoded(model: str, examples: list[Example], recipe: Recipe) -> list[Encoded]:
    return list(prepare(examples, load_tokenizer(model), recipe, limit=512, vocabulary=259).rows)


def test_the_layout_counts_places_by_span() -> None:
    some = layout([5, 0, 3], [1.0] * 3, [True] * 3, breaks=[(2,), (), ()])
    assert some.span.tolist() == [0, 0, 1, 1, 1, 0, 0, 0]
    assert some.position.tolist() == [0, 1, 0, 1, 2, 0, 1, 2]
    assert some.last.tolist() == [False, True, False, False, True, False, False, True]
    assert some.final.tolist() == [False, False, True, True, True, True, True, True]
    assert some.row.tolist() == [0] * 5 + [2] * 3
    empty = layout([], [], [])
    assert len(empty.span) == len(empty.last) == len(empty.final) == 0


def test_estimators_over_samples_leave_earlier_answers_out(model: str) -> None:
    exact = sdpo_interactions(**SETTINGS).terms[0]
    sampled = dataclasses.replace(exact, estimator=PolicyGradient())
    rows = encoded(model, [conversation(model)], sdpo_interactions(**SETTINGS))
    whole = rows_of(rows)
    assert exact.keep(whole).all() and sampled.keep(whole).tolist() == whole.final.tolist()


def test_all_answers_of_a_conversation_are_scored_and_nothing_else(model: str) -> None:
    tokenizer = load_tokenizer(model)
    (row,) = encoded(model, [conversation(model)], sft(**SETTINGS))
    end = end_of_turn_ids(tokenizer)[0]
    said = [encode(tokenizer, text) for text in ("Answer 0.", "Answer 1.", "The end.")]
    assert row.parts(NONE)[1::2] == tuple((*ids, end) for ids in said)
    plain = conversation(model).turn
    assert tuple(i for part in row.parts(NONE) for i in part) == (
        *(plain.prompt_ids or ()),
        *(plain.completion_ids or ()),
    )
    assert row.before == plain.prompt_ids and row.answer_ids == plain.completion_ids
    header = generation_header(tokenizer)
    assert all(part[-len(header) :] == header for part in row.parts(NONE)[::2])
    assert sorted(set(rows_of([row]).span.tolist())) == [0, 1, 2]
    assert math.isnan(rows_of([row]).served[0])
    (one,) = encoded(model, [example(model, 1)], sft(**SETTINGS))
    assert one.between == () and one.parts(NONE) == (one.prompt, one.completion)


def test_a_span_is_scored_as_it_is_scored_alone(model: str) -> None:
    """The hidden states of a span are those of its own prompt and completion."""
    (row,) = encoded(model, [conversation(model)], sft(**SETTINGS))
    base = load_model(model, dtype="float32")
    parts = row.parts(NONE)
    together = hidden_states(base, packed([parts, (parts[0], parts[1])]))
    alone = []
    for k in range(0, len(parts), 2):
        read = tuple(i for part in parts[: k + 1] for i in part)
        alone.append(hidden_states(base, packed([(read, parts[k + 1])])))
    torch.testing.assert_close(together[: len(row.completion)], torch.cat(alone), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        torch.cat(log_probs(base, head_of(base), [(row.before, row.answer_ids)])),
        log_probs(base, head_of(base), [parts])[0][-len(row.answer_ids) :],
        atol=1e-4, rtol=1e-4,
    )  # fmt: skip


def test_a_teacher_may_read_something_else_between_the_spans(model: str) -> None:
    """Hindsight after the last user message stands behind the earlier answers; a system message before all."""
    recipe = sdpo_interactions(**SETTINGS)
    (row,) = encoded(model, [conversation(model)], recipe)
    where = recipe.terms[0].context
    assert row.parts(where)[1::2] == row.parts(NONE)[1::2]
    assert row.parts(where)[:-2] == row.parts(NONE)[:-2] and row.parts(where)[-2] != row.parts(NONE)[-2]
    system = with_text(CONTEXTS["system"], "Be brief.")
    (row,) = encoded(model, [conversation(model)], sdpo_interactions(where=system, **SETTINGS))
    assert row.parts(system)[0] != row.parts(NONE)[0] and row.parts(system)[2:] == row.parts(NONE)[2:]


def test_a_live_teacher_and_a_kept_one_read_the_same_spans(model: str) -> None:
    recipe = sdpo_interactions(**SETTINGS)
    where = recipe.terms[0].context
    rows = encoded(model, [conversation(model), example(model, 1)], recipe)
    policy = load_policy(model, recipe, parent=None, seed=0, device="cpu")
    states = TeacherStates(TeacherRuntime(policy, recipe, model), rows, recipe, TeacherCache(None), "x")
    kept = states.get(START, where, [0, 1])
    read = policy.read([r.parts(NONE) for r in rows])
    assert kept is not None
    torch.testing.assert_close(policy.after([r.parts(where) for r in rows], read), kept.states, atol=1e-5, rtol=1e-4)


def test_a_conversation_trains(model: str, tmp_path: Path) -> None:
    recipe = dataclasses.replace(sft(**SETTINGS), batch=2)
    given = [conversation(model, i) for i in range(2)]
    train_candidate(given, model=model, out=tmp_path / "out", run_dir=tmp_path / "run", recipe=recipe)
    (step,) = read_metrics(tmp_path / "run")
    assert step.tokens == sum(len(r.completion) for r in encoded(model, given, recipe)) and step.grad_norm > 0
