"""The second pass: what is written again, what is dropped, and how a revision comes into a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from afterword.config import TrainConfig
from afterword.errors import NothingToDo
from afterword.learn.recipes import recipe, sdpo_interactions
from afterword.model.loading import load_tokenizer
from afterword.records import Revision
from afterword.store import Store
from afterword.train.data.examples import Example, prepare
from afterword.train.generation import revise
from afterword.train.generation.revise import echoes, revise_stage, with_revisions, worth_revising
from tests.train.test_train_stage import filled, train
from tests.train.tiny_model import example, tiny_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
SMALL = sdpo_interactions(max_fresh=12, dtype="float32")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model")


def changed(given: Example, **fields: object) -> Example:
    return Example(dataclasses.replace(given.interaction, **fields), given.turn)  # type: ignore[arg-type]


def test_only_what_a_second_draft_can_help_is_looked_at(model: str) -> None:
    one = example(model, 1)
    assert worth_revising(one) and worth_revising(changed(one, polarity=0, kind="tests"))
    for fields in ({"polarity": 1}, {"kind": "edited"}, {"kind": "demonstration"}, {"kind": "retried"}):
        assert not worth_revising(changed(one, **fields))
    assert not worth_revising(changed(one, hindsight=" "))


def test_revisions_are_written_once_and_weaker_ones_are_marked(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [example(model, n, text=f"Answer {n} of many words.") for n in range(4)]
    # A random model's scores mean nothing: drafts 0 to 2 are disliked, 3 is not; of the second drafts 1 is weaker.
    scores = iter([-0.5, -0.5, -0.5, 0.1, -0.2, -0.7, -0.49])
    monkeypatch.setattr(revise, "score", lambda *_: next(scores))
    with Store.open(tmp_path / "a.db") as store:
        seen: list[tuple[int, int]] = []
        cost = revise_stage(
            store, examples, SMALL, model=model, parent=None, most=9, device="cpu",
            progress=lambda done, total: seen.append((done, total)),
        )  # fmt: skip
        rows = {row.interaction: row for row in store.rows(Revision)}
        assert [rows[f"int-{n}"].kept for n in range(4)] == [True, False, False, False]
        assert rows["int-3"].text == "" and all(rows[f"int-{n}"].text for n in range(3))
        assert (cost.looked_at, cost.written, cost.kept) == (4, 3, 1) and 0 < cost.tokens <= 36 and seen == [(4, 4)]
        assert "4 answers looked at, 3 written again" in cost.sentence and cost.seconds > 0
        again = revise_stage(store, examples, SMALL, model=model, parent=None, most=9, device="cpu")
        assert again.looked_at == 0 and store.count(Revision) == 4


def test_a_revision_is_read_by_the_teacher_or_imitated(model: str, tmp_path: Path) -> None:
    examples = [example(model, n) for n in range(3)]
    with Store.open(tmp_path / "a.db") as store:
        for n, (text, kept) in enumerate((("Better.", True), ("Worse.", False))):
            store.write(Revision(id=f"r{n}", interaction=f"int-{n}", model=model, text=text, draft_score=-1.0,
                                 score=0.0, kept=kept))  # fmt: skip
        shown, used = with_revisions(store, examples, "context", model)
        assert used == 1 and [e.turn for e in shown] == [e.turn for e in examples]
        words = shown[0].interaction.hindsight
        assert words.startswith("Shorter, please.") and words.endswith("takes this into account:\nBetter.")
        assert shown[1:] == examples[1:]
        assert with_revisions(store, examples, "context", "another model") == (examples, 0)
        (target,), _ = with_revisions(store, examples, "target", model)
    rows = prepare([target], load_tokenizer(model), recipe("sft", include_off_policy=True), limit=512, vocabulary=300)
    (row,) = rows.rows
    assert not row.on_policy and target.turn.missing_ids == "a revision, imitated off-policy"
    assert load_tokenizer(model).decode(row.completion, skip_special_tokens=True) == "Better."


def test_an_echo_of_the_users_words_is_no_better_draft() -> None:
    assert echoes("A quick answer is enough for me.", "A quick answer is enough for me, thanks.")
    assert not echoes("Six minutes.", "How many minutes? A quick answer is enough.")
    assert not echoes("", "Shorter.")


def test_a_run_with_revisions_says_what_they_cost(model: str, tmp_path: Path) -> None:
    said: list[str] = []
    settings = TrainConfig(min_interactions=1, fresh=0, revise="context", max_revisions=2)
    with filled(tmp_path, model, [5, 6, 7]) as store:
        candidate = train(store, tmp_path, settings, model, note=said.append)
        assert store.count(Revision) == 2
        figures = candidate.metrics
        assert figures["revisions"] == "context" and figures["revisions_looked_at"] == 2 and "second pass" in said[0]
        assert figures["revisions_used"] == sum(row.kept for row in store.rows(Revision))
        alone = TrainConfig(min_interactions=3, recipe="sft", revise="target", max_revisions=0)
        with pytest.raises(NothingToDo, match="better than their drafts"):
            train(store, tmp_path, alone, model)
