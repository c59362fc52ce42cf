"""The plan of a training run: order, weights, balance, replay, and what is missing; no torch, no model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from afterword.config import TrainConfig
from afterword.errors import NothingToDo
from afterword.feedback.select.plan import plan_training
from afterword.feedback.select.select import Selection
from afterword.records import (
    Candidate,
    Excluded,
    Feedback,
    Interaction,
    Release,
    Report,
    TrainingPlan,
    Turn,
    Verdict,
)
from afterword.store import Store


@dataclass
class Encoder:
    """A recipe that reads words and a model that cannot be trained on some interactions."""

    broken: set[str] = field(default_factory=set)
    recipe: str = "fake"
    model: str = "m"
    reads_hindsight: bool = True

    def newest_trainable(self, newest: Iterable[Interaction], most: int) -> list[Interaction]:
        found: list[Interaction] = []
        for row in newest:
            found.append(row)
            if sum(one.id not in self.broken for one in found) == most:
                break
        return found

    def encode(self, rows: Sequence[Interaction], seed: int) -> tuple[tuple[Excluded, ...], int]:
        excluded = tuple(Excluded(row.id, "broken", "a test") for row in rows if row.id in self.broken)
        return excluded, len(rows) - len(excluded)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "afterword.db") as opened:
        yield opened


def add(store: Store, numbers: Iterable[int], *, words: str = "Shorter.", on_policy: bool = True) -> None:
    for n in numbers:
        store.write(
            Turn(id=f"t{n}", messages=(), answer={"role": "assistant", "content": "Hi"}),
            Feedback(id=f"f{n}", turn=f"t{n}", kind="follow_up", text=words or "Thanks"),
            Interaction(
                id=f"i{n:02}", turn=f"t{n}", feedback=(f"f{n}",), kind="follow_up", hindsight=words, polarity=-1,
                weight=1.0, split="train", on_policy=on_policy, created_at=1000.0 + n,
            ),
        )  # fmt: skip


def test_the_newest_that_can_be_trained_are_taken_oldest_first_with_their_weights(store: Store) -> None:
    add(store, range(6))
    weights = {f"i{n:02}": 1.0 for n in range(1, 6)} | {"i05": 0.123456789}
    selection = Selection(weights=weights, rows=[row for row in store.usable("train") if row.id in weights])
    plan = plan_training(
        store, TrainConfig(min_interactions=1, max_interactions=3), selection, encoder=Encoder({"i04"})
    )
    assert plan.interactions == ("i02", "i03", "i04", "i05") and plan.weights == {"i05": 0.123457}
    assert (plan.waiting, plan.steps, plan.parent, plan.replayed) == (5, 3, None, 0)
    assert plan.excluded == (Excluded("i04", "broken", "a test"),)
    assert TrainingPlan.from_dict(plan.to_dict()) == plan


def test_without_an_encoder_it_only_counts(store: Store) -> None:
    add(store, range(4))
    add(store, range(4, 8), on_policy=False)
    plan = plan_training(store, TrainConfig(min_interactions=4))
    assert (len(plan.interactions), plan.steps, plan.excluded) == (4, None, ())
    with pytest.raises(NothingToDo, match=r"4 interactions wait .* is 8 .*4 come from turns without served token ids"):
        plan_training(store, TrainConfig())
    assert plan_training(store, TrainConfig(off_policy=True)).waiting == 8


def test_praise_is_held_to_twice_the_words(store: Store) -> None:
    add(store, range(2))
    add(store, range(2, 12), words="")
    plan = plan_training(store, TrainConfig(min_interactions=6), encoder=Encoder())
    assert plan.interactions == ("i00", "i01", "i08", "i09", "i10", "i11")
    with pytest.raises(NothingToDo, match=r"12 interactions wait to be learned and 2 of them carry words.*fake takes"):
        plan_training(store, TrainConfig(min_interactions=7), encoder=Encoder())


def test_what_was_learned_is_drawn_again_and_the_same_run_is_made_once(store: Store) -> None:
    add(store, range(4))
    settings = TrainConfig(min_interactions=1, replay=0.5)
    first = plan_training(store, settings, encoder=Encoder())
    store.write(
        Candidate(
            id=first.candidate, path="adapters/c", base="m", parent=None, interactions=first.interactions, recipe={}
        )
    )
    with pytest.raises(NothingToDo, match=f"candidate {first.candidate} was already trained on exactly these 4"):
        plan_training(store, settings, encoder=Encoder())
    store.write(
        Report(id="r", candidate=first.candidate, against=None, suites={}, about={}),
        Verdict(id="v", candidate=first.candidate, report="r", passed=True, reasons=()),
        Release(id="rel", channel="default", adapter="c", candidate=first.candidate, path="adapters/c", verdict="v",
                previous=None, action="publish", why="a test"),
    )  # fmt: skip
    add(store, range(10, 14))
    second = plan_training(store, settings, encoder=Encoder())
    assert second.parent == first.candidate and second.replayed == 2 and len(second.interactions) == 6
    assert set(second.interactions[:2]) < set(first.interactions) and second.interactions[2:] == (
        "i10",
        "i11",
        "i12",
        "i13",
    )
