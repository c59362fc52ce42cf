"""Private data in answers is masked from the loss, and what a user changed in an answer weighs most."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import cast

import pytest
import torch
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from afterword.chat.render import Tokenizer, decode
from afterword.learn.loss.loss_stage import Scores
from afterword.learn.loss.token_batch import layout
from afterword.learn.parts.contexts import CONTEXTS
from afterword.learn.parts.weights import SEQUENCE_MEAN, TOKEN_MEAN, ChangedTokens, Reduction
from afterword.learn.recipes import Recipe, sdpo_interactions
from afterword.model.loading import load_tokenizer
from afterword.train.data.batches import rows_of
from afterword.train.data.examples import Example, prepare, with_private_masked
from afterword.train.data.rows import Encoded
from afterword.train.data.token_spans import places, private_positions
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
    (fresh,) = with_private_masked([replace(row, private=(), changed=(1, 2))], load_tokenizer(model), "rules")
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
    assert [left.reason for left in made.excluded] == ["tool_call"] and len(made.rows) == 1


def test_changed_tokens_weigh_most_and_an_answer_as_much_as_before() -> None:
    rows = layout([4, 2], [1.0, 1.0], [True, True], changed=[(1,), ()])
    factors = ChangedTokens(boost=4.0)(scores_of(torch.zeros(6)), rows, torch.ones(6, dtype=torch.bool))
    assert factors[1] == 4 * factors[0] and float(factors[:4].sum()) == pytest.approx(4.0)
    assert factors[4:].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("changed", [(0, 1), (2, 3), (1, 2), (4,), (0, 1, 2, 3, 4, 5)])
@pytest.mark.parametrize("reduction", [SEQUENCE_MEAN, TOKEN_MEAN])
def test_an_answer_counts_as_before_wherever_its_changed_tokens_are(
    changed: tuple[int, ...], reduction: Reduction
) -> None:
    """Two tokens are skipped and one is private: the mean factor over the other three is 1 (an edit among them or
    not), and a changed one of them still counts four times a kept one."""
    rows = layout([6, 2], [1.0, 1.0], [True, True], changed=[changed, ()], private=[(4,), ()])
    (term,) = sdpo_interactions(skip_first=2, reduction=reduction).terms
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


def test_every_byte_of_a_split_character_is_marked_and_none_of_its_neighbours(model: str) -> None:
    tokenizer = load_tokenizer(model)
    text = "日本é语x"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) == len(text.encode())  # one token a byte
    begins = [len(text[:n].encode()) for n in range(len(text) + 1)]
    for n in range(len(text)):
        assert places(tokenizer, ids, [(n, n + 1)]) == tuple(range(begins[n], begins[n + 1]))


def test_marking_decodes_no_prefix_again_and_again(model: str) -> None:
    tokenizer = load_tokenizer(model)
    ids = tokenizer.encode("The 😀 kettle 日本 boils. " * 200, add_special_tokens=False)
    decoded = 0

    class Counting:
        eos_token_id = None

        def decode(self, token_ids: list[int], **options: bool) -> str:
            nonlocal decoded
            decoded += len(token_ids)
            return str(tokenizer.decode(token_ids, **options))

    assert places(cast(Tokenizer, Counting()), ids, [(4, 5)]) == (4, 5, 6, 7)
    assert decoded < 40 * len(ids)


def test_characters_of_a_byte_fallback_tokenizer(tmp_path: Path) -> None:
    """SentencePiece's decoder strips the first space and writes a replacement character for each byte of a part."""
    core = Core(models.BPE(unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", *[f"<0x{n:02X}>" for n in range(256)]]
    core.train_from_iterator(["write to ana.reis@example.com"], trainers.BpeTrainer(special_tokens=special))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False)
    ids = tokenizer.encode("to é ana@example.com 日本 or " * 40, add_special_tokens=False)
    found = private_positions(tokenizer, ids, "rules")
    assert tokenizer.decode([ids[n] for n in found]).replace(" ", "") == "ana@example.com" * 40
    split = places(tokenizer, ids, [(21, 22)])
    assert tokenizer.convert_ids_to_tokens([ids[n] for n in split[:3]]) == ["<0xE6>", "<0x97>", "<0xA5>"]
