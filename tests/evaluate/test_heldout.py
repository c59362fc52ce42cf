"""Held-out interactions: those of the channel, and only those that the model can read; the others are counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from afterword.chat.render import decode
from afterword.chat.turn_prompt import turn_prompt
from afterword.errors import ModelError, NothingToDo
from afterword.evaluate.comparison.heldout import CONTEXT, ContextFit, held_out
from afterword.evaluate.stage import require_work
from afterword.learn.parts.contexts import turn_hindsight
from afterword.model.loading import load_tokenizer, model_sizes
from afterword.records import Candidate, Feedback, Interaction, Record, Turn
from afterword.store import Store
from tests.feedback.feedback_builders import feedback, turn
from tests.train.tiny_model import TEMPLATE, example, tiny_folder


def test_a_channel_is_measured_on_its_own(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a.db") as store:
        for n, (user, task) in enumerate((("ada", "code"), ("bob", "code"), ("ada", "mail"))):
            store.write(turn(f"t{n}", user=user, task=task), feedback("comment", f"f{n}", f"t{n}", text="No."))
            store.write(Interaction(id=f"i{n}", turn=f"t{n}", feedback=(f"f{n}",), kind="comment", hindsight="No.",
                                    polarity=-1, weight=1.0, split="holdout", user=user, task=task))  # fmt: skip
        found = {c: [item.interaction.id for item in held_out(store, 9, c)]
                 for c in ("default", "user:ada", "task:code", "user:bob/task:mail")}  # fmt: skip
        assert found == {"default": ["i0", "i1", "i2"], "user:ada": ["i0", "i2"], "task:code": ["i0", "i1"],
                         "user:bob/task:mail": []}  # fmt: skip
        new = Candidate(id="c", path="p", base="b", parent=None, interactions=(), recipe={})
        require_work(store, new, ["holdout"], "user:ada")
        with pytest.raises(NothingToDo):
            require_work(store, new, ["holdout"], "user:eve")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def rows(model: str, number: int, *, asked: str | None = None, hindsight: str = "Shorter.") -> list[Record]:
    made = example(model, number, hindsight=hindsight)
    served = made.turn.to_dict()
    if asked is not None:
        served |= {"messages": [{"role": "user", "content": asked}], "prompt_ids": None}
    kept = made.interaction.to_dict() | {"split": "holdout", "feedback": (f"f{number}",)}
    said = Feedback(id=f"f{number}", turn=made.turn.id, kind="comment", text=hindsight)
    return [Turn.from_dict(served), said, Interaction.from_dict(kept)]


def test_the_newest_that_fit_are_measured_and_the_rest_is_counted(tiny: str, tmp_path: Path) -> None:
    room = ContextFit(load_tokenizer(tiny), model_sizes(Path(tiny))[0], max_tokens=16)
    words = "word " * room.longest
    with Store.open(tmp_path / "a.db") as store:
        store.write(*rows(tiny, 0), *rows(tiny, 1, asked=words), *rows(tiny, 2), *rows(tiny, 3))
        store.write(*rows(tiny, 4, asked=words))
        everything = [item.interaction.id for item in held_out(store, 10)]
        kept = [item.interaction.id for item in held_out(store, 3, fits=room.fits)]
        assert len(everything) == 5 and kept == [everything[0], *everything[2:4]] and room.excluded == 2
        assert [item.interaction.id for item in held_out(store, 1, fits=room.fits)] == [everything[3]]


def test_what_has_a_token_without_an_embedding_is_excluded(tiny: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    tokenizer.add_tokens(["<image>"])
    with Store.open(tmp_path / "a.db") as store:
        store.write(*rows(tiny, 0), *rows(tiny, 1, hindsight="No <image>."), *rows(tiny, 2, asked="An <image>?"))
        room = ContextFit(tokenizer, model_sizes(Path(tiny))[0], 16, model_sizes(Path(tiny))[1])
        assert [item.interaction.id for item in held_out(store, 5, fits=room.fits)] == ["int-0"] and room.excluded == 2


def test_an_answer_of_full_length_has_room(tiny: str, tmp_path: Path) -> None:
    longest = model_sizes(Path(tiny))[0]
    with Store.open(tmp_path / "a.db") as store:
        store.write(*rows(tiny, 0))
        (item,) = held_out(store, 1)
    tokenizer = load_tokenizer(tiny)
    assert ContextFit(tokenizer, longest, max_tokens=16).fits(item)
    assert not ContextFit(tokenizer, longest, max_tokens=longest - 3).fits(item)


def test_a_conversation_that_the_template_refuses_is_excluded_and_one_without_a_header_is_an_error(
    tmp_path: Path,
) -> None:
    tokenizer = load_tokenizer(tiny_folder(tmp_path / "model"))
    with Store.open(tmp_path / "a.db") as store:
        store.write(*rows(str(tmp_path / "model"), 0), *rows(str(tmp_path / "model"), 1, asked="REFUSED"))
        items = held_out(store, 5)
    tokenizer.chat_template = (
        "{% if messages[0]['content'] == 'REFUSED' %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE
    )
    room = ContextFit(tokenizer, 512, max_tokens=16)
    assert [room.fits(item) for item in items] == [item.interaction.id == "int-0" for item in items]
    assert room.excluded == 1
    tokenizer.chat_template = TEMPLATE.partition("{% if add_generation_prompt %}")[0]
    with pytest.raises(ModelError, match="no generation header"):
        ContextFit(tokenizer, 512, max_tokens=16)


def test_a_template_that_needs_arguments_excludes_the_conversations_without_them(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_folder(tmp_path / "model"))
    given, more = rows(str(tmp_path / "model"), 0), {"chat_template_kwargs": {"mode": "brief"}}
    given[0] = Turn.from_dict({**given[0].to_dict(), "sampling": more})
    with Store.open(tmp_path / "a.db") as store:
        store.write(*given, *rows(str(tmp_path / "model"), 1))
        items = held_out(store, 5)
    tokenizer.chat_template = "{% if not mode %}{{ raise_exception('mode is missing') }}{% endif %}" + TEMPLATE
    room = ContextFit(tokenizer, 512, max_tokens=16)
    kept = [item for item in items if room.fits(item)]
    assert [item.interaction.id for item in kept] == ["int-0"] and room.excluded == 1
    assert kept[0].asked.fields == more


def test_an_answer_that_was_begun_is_continued(tiny: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    row, said, interaction = rows(tiny, 0)
    begun = [*row.to_dict()["messages"], {"role": "assistant", "content": "It is"}]
    how = {"continue_final_message": True, "add_generation_prompt": False}
    turn = Turn.from_dict({**row.to_dict(), "messages": begun, "sampling": how, "prompt_ids": None})
    with Store.open(tmp_path / "a.db") as store:
        store.write(turn, said, interaction)
        (item,) = held_out(store, 1, fits=ContextFit(tokenizer, 512, max_tokens=16).fits)
    assert item.asked.fields == how and item.asked.messages == tuple(begun)
    plain = turn_prompt(tokenizer, item.turn).text
    assert plain.endswith("<|im_start|>assistant\nIt is")
    seen = turn_hindsight(tokenizer, CONTEXT, item.turn, "Shorter.", room=500, longest=100)
    assert seen is not None
    hinted = decode(tokenizer, seen.prompt.ids, special=True)
    assert hinted.endswith("<|im_start|>assistant\nIt is") and hinted.count("Shorter.") == 1
    assert hinted.count("<|im_start|>assistant") == plain.count("<|im_start|>assistant")
    assert len(seen.prompt.ids) <= 500 and turn_hindsight(
        tokenizer, CONTEXT, item.turn, "Shorter.", room=len(seen.prompt.ids) - 8, longest=100
    ) is None  # fmt: skip
