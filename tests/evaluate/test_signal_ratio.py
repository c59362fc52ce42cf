"""The model's own signal under the user's words, on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from afterword.chat.render import encode
from afterword.errors import UsageError
from afterword.evaluate.signal_ratio import NEUTRAL, Item, measure, measure_stage
from afterword.learn.diagnostics import token_advantages
from afterword.learn.parts.contexts import CONTEXTS
from afterword.model.loading import load_model, load_tokenizer
from afterword.records import Feedback, Interaction, Record, SignalRatio, Turn
from afterword.store import Store
from tests.train.tiny_model import example, tiny_folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def items(model: str, *words: str, others: tuple[str, ...] = ()) -> list[Item]:
    made = [example(model, n, hindsight=text) for n, text in enumerate(words)]
    return [Item(e.interaction, e.turn, others) for e in made]


def test_words_that_say_nothing_have_the_ratio_of_a_control(tiny: str) -> None:
    model, tokenizer = load_model(tiny, device="cpu"), load_tokenizer(tiny)
    (row,) = measure(model, tokenizer, items(tiny, "Shorter.", others=("Shorter.", "Shorter.")), name="tiny")
    assert row.real == pytest.approx(row.shuffled) and row.real > 0 and row.tokens > 5
    assert row.ratio == pytest.approx(row.real / max(row.neutral, row.real))
    alone = measure(model, tokenizer, items(tiny, "Shorter."), name="tiny")[0]
    assert alone.shuffled is None and alone.neutral == pytest.approx(row.neutral) and alone.model == "tiny"


def test_the_order_of_the_items_does_not_matter(tiny: str) -> None:
    model, tokenizer = load_model(tiny, device="cpu"), load_tokenizer(tiny)
    rows = items(tiny, "Shorter.", "In French, please, and much longer than before.", "Why?", others=("No.",))
    first = {row.interaction: row.real for row in measure(model, tokenizer, rows, name="m")}
    second = {row.interaction: row.real for row in measure(model, tokenizer, rows[::-1], name="m")}
    assert first == pytest.approx(second, abs=1e-4) and len(set(first.values())) == 3


def test_what_does_not_fit_or_has_no_answer_is_left_out(tiny: str) -> None:
    model, tokenizer = load_model(tiny, device="cpu"), load_tokenizer(tiny)
    good = items(tiny, "Shorter.")[0]
    long = Turn(id="t", messages=({"role": "user", "content": "x" * 2000},), answer={"content": "y"})
    empty = Turn(id="t", messages=({"role": "user", "content": "x"},), answer={"content": ""})
    refused = Turn(id="t", messages=({"role": "user", "content": None},), answer={"content": "y"})
    rows = [Item(good.interaction, turn, ()) for turn in (long, empty, refused)]
    assert measure(model, tokenizer, [*rows, good], name="m")[0].interaction == good.interaction.id


def test_what_the_model_cannot_read_is_left_out(tiny: str) -> None:
    """A token without an embedding, or with one that was never trained, in the words or in those compared with."""
    model, tokenizer = load_model(tiny, device="cpu"), load_tokenizer(tiny)
    tokenizer.add_tokens(["<image>"])
    good, bad = items(tiny, "Shorter.", "What is <image>?")
    beside = Item(good.interaction, good.turn, ("Take ~ out.",))
    assert measure(model, tokenizer, [bad], name="m") == []
    assert [row.interaction for row in measure(model, tokenizer, [bad, good], name="m")] == ["int-0"]
    with torch.no_grad():
        model.get_input_embeddings().weight = torch.nn.Parameter(model.get_input_embeddings().weight.clone())
        model.get_input_embeddings().weight[encode(tokenizer, "~")[0]] = torch.nan
    assert [row.shuffled for row in measure(model, tokenizer, [beside, good], name="m")] == [None]
    with pytest.raises(UsageError, match=r"the token '~' \(id \d+\), for which this model has no embedding"):
        token_advantages(model, tokenizer, good.turn, "Take ~ out.", CONTEXTS["appended"])


def test_the_stage_writes_each_once_and_compares_within_the_task(tiny: str, tmp_path: Path) -> None:
    rows: list[Record] = []
    for n, (words, task) in enumerate((("Shorter.", "a"), ("Longer.", "a"), ("In French.", "b"), ("", "a"))):
        made = example(tiny, n, hindsight=words)
        rows += [made.turn, Feedback(id=f"f{n}", turn=made.turn.id, kind="comment", text=words or "-")]
        data = made.interaction.to_dict() | {"task": task, "feedback": (f"f{n}",)}
        rows.append(Interaction.from_dict(data))
    with Store.open(tmp_path / "a.db") as store:
        store.write(*rows)
        seen: list[int] = []
        assert measure_stage(store, model=tiny, device="cpu", progress=lambda done, total: seen.append(done)) == 3
        assert measure_stage(store, model=tiny, device="cpu") == 0 and seen == [3]
        found = {row.interaction: row for row in store.rows(SignalRatio)}
        names = [row.id for row in rows if isinstance(row, Interaction)]
        assert [found[n].shuffled is None for n in names[:3]] == [False, False, True] and names[3] not in found
    assert len(NEUTRAL) == 2
