"""Private data in answers is masked from the loss, and what a user changed in an answer weighs most."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from afterword.chat.render import decode
from afterword.learn.contexts import CONTEXTS
from afterword.learn.loss_stage import Scores
from afterword.learn.models import load_tokenizer
from afterword.learn.recipes import Recipe, sdpo_interactions
from afterword.learn.rows import layout
from afterword.learn.weights import PER_SEQUENCE, PER_TOKEN, Average, ChangedTokens
from afterword.train.batches import rows_of
from afterword.train.encoded import Encoded
from afterword.train.examples import Example, prepare
from afterword.train.marks import places, without_private
from tests.train.tiny_model import example, tiny_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def encoded(model: str, given: Example, made: Recipe | None = None) -> Encoded:
    tokenizer = load_tokenizer(model)
    return prepare([given], tokenizer, made or sdpo_interactions(), limit=512, vocabulary=300).rows[0]


def scores_of(loss: torch.Tensor) -> Scores:
    """Scores of which nothing but the loss matters."""
    others = {f.name: torch.zeros(len(loss)) for f in fields(Scores) if f.name != "loss"}
    return Scores(loss=loss, **others)


def marked(model: str, row: Encoded, where: tuple[int, ...]) -> str:
    return decode(load_tokenizer(model), [row.completion[i] for i in where])


def test_tokens_of_private_data_are_marked_in_served_and_fresh_answers(model: str) -> None:
    row = encoded(model, example(model, 1, text="Écris à ana.reis@example.com demain."))
    assert marked(model, row, row.private) == "ana.reis@example.com"
    (fresh,) = without_private([replace(row, private=(), changed=(1, 2))], load_tokenizer(model), "rules")
    assert (fresh.private, fresh.changed) == (row.private, ())
    off = sdpo_interactions(redact="off")
    assert encoded(model, example(model, 1, text="ana.reis@example.com"), off).private == ()


def test_private_tokens_count_neither_above_nor_below(model: str) -> None:
    row = encoded(model, example(model, 1, text="ana.reis@example.com it is."))
    rows = rows_of([row, encoded(model, example(model, 2))])
    (term,) = sdpo_interactions().terms
    keep = term.keep(rows)
    assert int((~keep).sum()) == len("ana.reis@example.com") and not keep[list(row.private)].any()
    loss = torch.ones(len(keep), requires_grad=True)
    scores = scores_of(loss)
    term.value(scores, rows, term.count(rows)).backward()  # type: ignore[no-untyped-call]
    assert loss.grad is not None and (loss.grad[~keep] == 0).all() and (loss.grad[keep] > 0).all()
    assert float(loss.grad.sum()) == pytest.approx(1.0)


def test_words_are_redacted_again_before_the_teacher_reads_them(model: str) -> None:
    old = example(model, 1, hindsight="Send it to ana.reis@example.com instead.")
    row = encoded(model, old)
    told = decode(load_tokenizer(model), row.teacher_prompts[CONTEXTS["appended"]])
    assert "Send it to [EMAIL] instead." in told and "ana" not in told


def test_changed_characters_become_tokens(model: str) -> None:
    given = example(model, 1, text="Boil for six minutes.")
    spans = ((9, 12), (20, 20))
    edited = Example(replace(given.interaction, kind="edited", spans=spans), given.turn)
    row = encoded(model, edited)
    assert marked(model, row, row.changed) == "six."
    assert places(load_tokenizer(model), row.completion, [(10**6, 10**6 + 3)]) == ()


def test_a_refused_tool_call_is_marked_behind_the_words(model: str) -> None:
    given = example(model, 1, text='I will. <call>{"name": "rm", "arguments": {}}</call>')
    call = {"type": "function", "function": {"name": "rm", "arguments": "{}"}}
    turn = replace(given.turn, answer={"role": "assistant", "content": "I will.", "tool_calls": [call]})
    refused = replace(given.interaction, kind="tool_rejected", spans=((7, 13),))
    row = encoded(model, Example(refused, turn))
    assert marked(model, row, row.changed) == ' <call>{"name": "rm", "arguments": {}}</call>'
    assert row.changed[-1] == len(row.completion) - 2  # the token that ends the turn is no part of it
    off = replace(turn, prompt_ids=None, completion_ids=None, logprobs=None)
    made = prepare([Example(replace(refused, on_policy=False), off), example(model, 2)], load_tokenizer(model),
                   sdpo_interactions(include_off_policy=True), limit=512, vocabulary=300)  # fmt: skip
    assert [left.reason for left in made.left] == ["tool_call"] and len(made.rows) == 1


def test_changed_tokens_weigh_most_and_an_answer_as_much_as_before() -> None:
    rows = layout([4, 2], [1.0, 1.0], [True, True], changed=[(1,), ()])
    factors = ChangedTokens(boost=4.0)(scores_of(torch.zeros(6)), rows, torch.ones(6, dtype=torch.bool))
    assert factors[1] == 4 * factors[0] and float(factors[:4].sum()) == pytest.approx(4.0)
    assert factors[4:].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("changed", [(0, 1), (2, 3), (1, 2), (4,), (0, 1, 2, 3, 4, 5)])
@pytest.mark.parametrize("average", [PER_SEQUENCE, PER_TOKEN])
def test_an_answer_counts_as_before_wherever_its_changed_tokens_are(changed: tuple[int, ...], average: Average) -> None:
    """Two tokens are skipped and one is private: the mean factor over the other three is 1 (an edit among them or
    not), and a changed one of them still counts four times a kept one."""
    rows = layout([6, 2], [1.0, 1.0], [True, True], changed=[changed, ()], private=[(4,), ()])
    (term,) = sdpo_interactions(skip_first=2, average=average).terms
    loss = torch.ones(8, requires_grad=True)
    value = term.value(scores_of(loss), rows, term.count(rows))
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == pytest.approx(1.0)
    assert loss.grad is not None
    shares = [float(loss.grad[k]) for k in (2, 3, 5)]
    wanted = [4.0 if k in changed else 1.0 for k in (2, 3, 5)]
    assert [s / sum(shares) for s in shares] == pytest.approx([w / sum(wanted) for w in wanted])


def test_the_mark_survives_tokens_that_share_a_character(model: str, tmp_path: Path) -> None:
    row = encoded(model, example(model, 1, text="日本 ana.reis@example.com 日本"))
    assert marked(model, row, row.private).strip() == "ana.reis@example.com"
