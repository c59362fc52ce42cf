"""Turns by the end of their conversation: which are found, and that an index finds them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from afterword.store import Store
from tests.store.store_rows import turn


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "a.db") as opened:
        opened.write(
            turn("t1", thread="a1u1."), turn("t2", thread="a1u2a2u1.", conversation="c1"),
            turn("t3", thread="w1a2u1.|u3", conversation="c1"), turn("t4", thread="a2u1.", conversation="c2"),
            turn("t5"),
        )  # fmt: skip
        yield opened


def test_turns_that_begin_so_are_found(store: Store) -> None:
    found = store.turns_on_trails(("a1", "w1"), 9)
    assert {row.id for row in found} == {"t1", "t2", "t3"}
    assert {(row.id, row.thread, row.conversation) for row in found if row.id == "t3"} == {("t3", "w1a2u1.|u3", "c1")}
    assert [row.seq for row in store.turns_on_trails(("a2",), 9)] == [4]
    assert len(store.turns_on_trails(("a1", "w1"), 1)) == 2, "one for each"
    assert {row.id for row in store.turns_on_trails(("a1u2", "x"), 9)} == {"t2"}


def test_those_of_a_conversation_are_found(store: Store) -> None:
    assert [row.id for row in store.turns_of_conversation_on_trail("c1", "a1", 9)] == ["t2"]
    assert store.turns_of_conversation_on_trail("c2", "a1", 9) == []


def test_those_that_agree_later_are_found_unless_they_are_too_many(store: Store) -> None:
    assert [row.id for row in store.turns_on_trail_later("a1", 4, "a2u1", 9, 9) or ()] == ["t2"]
    assert store.turns_on_trail_later("a1", 4, "a3", 9, 9) == []
    assert store.turns_on_trail_later("a1", 4, "a2u1", 1, 9) is None
