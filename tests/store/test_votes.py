"""The newest vote of each user on a turn counts, under one id or several; earlier ones stay as history."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from afterword.feedback.collect.collect import collect
from afterword.records import Feedback, Interaction, Skip
from afterword.store import Store
from afterword.store.feedback_stats import feedback_stats
from afterword.store.votes import first_id, version_id
from tests.store.store_rows import turn


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "afterword.db") as opened:
        opened.write(turn("t", user="ada", answer={"role": "assistant", "content": "Six minutes."}))
        yield opened


def vote(name: str, value: float, at: float | None = None, **more: Any) -> Feedback:
    return Feedback(
        **{"id": name, "turn": "t", "kind": "rating", "value": value, "occurred_at": at, "user": "ada", **more}
    )


def send(store: Store, *rows: Feedback, live: bool = True) -> list[str]:
    return [store.submit([row], live=live).result()[0] for row in rows]


def counting(store: Store) -> list[float | None]:
    """Values of the votes that count."""
    out = store.superseded() | store.retracted()
    return [row.value for row in store.rows(Feedback, kind="rating") if row.id not in out]


@pytest.mark.parametrize(
    ("rows", "outcomes", "counted"),
    [
        ([vote("v", 1, 1.0), vote("v", -1, 2.0)], ["stored", "stored"], [-1]),
        ([vote("v", 1, 1.0), vote("v", -1, 2.0), vote("v", 1, 3.0)], ["stored"] * 3, [1]),
        ([vote("v", 1, 2.0), vote("v", -1, 1.0)], ["stored", "stored"], [1]),
        ([vote("v", 1, 1.0), vote("v", -1, 2.0), vote("v", 1, 1.0)], ["stored", "stored", "duplicate"], [-1]),
        ([vote("v", 1, 1.0), vote("v", -1, 1.0)], ["stored", "conflict"], [1]),
        ([vote("v", 1), vote("v", 1)], ["stored", "duplicate"], [1]),
        ([vote("v", 1), vote("v", -1), vote("v", 1), vote("v", 1)], ["stored"] * 3 + ["duplicate"], [1]),
        ([vote("a", 1), vote("b", -1), vote("a", 1)], ["stored"] * 3, [1]),
        ([vote("a", 1, 1.0), vote("b", -1, 2.0), vote("c", 1, 3.0)], ["stored"] * 3, [1]),
        ([vote("a", 1), vote("b", -1, user=None)], ["stored"] * 2, [-1]),
        ([vote("a", 1), vote("b", -1, user="bob")], ["stored"] * 2, [1, -1]),
        ([vote("a", 1), vote("b", -1, source="reviewer")], ["stored"] * 2, [1, -1]),
        ([vote("a", 1, metadata={"name": "tone"}), vote("b", -1, metadata={"name": "facts"})], ["stored"] * 2, [1, -1]),
        ([vote("v", 1), vote("v", -1, turn="u")], ["stored", "conflict"], [1]),
    ],
)  # fmt: skip
def test_the_newest_vote_of_a_user_counts(
    store: Store, rows: Sequence[Feedback], outcomes: list[str], counted: list[float]
) -> None:
    assert send(store, *rows) == outcomes
    assert counting(store) == counted


def test_a_file_that_is_read_twice_stores_nothing_twice(store: Store) -> None:
    rows = [vote("v", 1), vote("v", -1), vote("w", 1, 5.0), vote("w", -1, 6.0)]
    assert send(store, *rows, live=False) == ["stored"] * 4
    assert send(store, *rows, live=False) == ["duplicate"] * 4


def test_other_feedback_under_a_known_id_is_a_conflict(store: Store) -> None:
    said = Feedback(id="v", turn="t", kind="comment", text="no")
    assert send(store, said, Feedback(id="v", turn="t", kind="comment", text="yes")) == ["stored", "conflict"]
    assert send(store, vote("v", 1)) == ["conflict"]


def test_what_is_taken_back_lets_the_vote_before_it_count(store: Store) -> None:
    send(store, vote("a", 1), vote("b", -1))
    back = Feedback(id="r", turn="t", kind="retraction", retracts="b")
    store.write(back)
    assert counting(store) == [1]
    assert send(store, vote("b", -1)) == ["stored"], "given again after it was taken back"
    assert counting(store) == [-1]
    assert store.versions(vote("b", -1)) == ["b", version_id("b", 2)] and first_id("b#v2") == "b"


def test_a_change_after_collection_takes_the_interaction_back(store: Store) -> None:
    send(store, vote("a", 1))
    assert collect(store).interactions == 1
    send(store, vote("a", -1, text="Wrong: it is ten minutes."))
    funnel = collect(store)
    assert funnel.interactions == 1 and not funnel.skipped
    (made,) = [*store.usable("train"), *store.usable("holdout")]
    assert (made.polarity, made.hindsight) == (-1, "Wrong: it is ten minutes.")
    assert [store.barred()(row) for row in store.rows(Interaction)] == ["changed", None]


def test_votes_that_were_changed_before_collection_are_skipped_with_the_reason(store: Store) -> None:
    send(store, vote("a", 1), vote("a", -1, text="Wrong."), vote("a", 1))
    assert collect(store).skipped == {"changed": 2}
    assert [row.polarity for row in store.rows(Interaction)] == [1]
    assert {row.reason for row in store.rows(Skip)} == {"changed"}


def test_the_figures_follow_the_newest_vote(store: Store) -> None:
    send(store, vote("a", 1), vote("b", -1))
    assert feedback_stats(store)[0].acceptance == 0.0
    send(store, vote("c", 1))
    assert feedback_stats(store)[0].acceptance == 1.0
