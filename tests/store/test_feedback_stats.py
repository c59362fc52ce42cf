"""The live figures, by hand-counted turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from afterword.errors import UsageError
from afterword.records import Feedback, Record
from afterword.store import Store
from afterword.store.feedback_stats import feedback_stats
from tests.store.store_rows import interaction, turn

WEEK = 1_700_000_000.0


def said(turn: str, kind: str, n: int = 0, **extra: object) -> Feedback:
    return Feedback(id=f"f-{turn}-{kind}-{n}", turn=turn, kind=kind, **extra)  # type: ignore[arg-type]


def rows() -> list[Record]:
    names = ("a", "b", "c", "d", "e", "f", "g")
    turns = {name: turn(name, task="code" if name in "abc" else None, adapter="a@v1" if name in "ef" else None,
                        created_at=WEEK + (7 * 86400 if name in "fg" else 0), previous={"b": "a", "d": "c"}.get(name))
             for name in names}  # fmt: skip
    return [
        *turns.values(),
        said("a", "follow_up", text="no"), interaction("i-a", "a", ("f-a-follow_up-0",), polarity=-1),
        said("b", "accepted"),
        said("c", "demonstration", text="so"), said("d", "retried"), said("d", "rating", value=-1.0),
        said("e", "edited", final_text="x"), said("e", "accepted"),
        said("f", "rating", 1, value=1.0), said("f", "abandoned"), said("f", "copied"),
        Feedback(id="gone", turn="f", kind="retraction", retracts="f-f-copied-0"),
    ]  # fmt: skip


def test_figures_for_all_and_by_group(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a.db") as store:
        assert feedback_stats(store) == []
        store.write(*rows())
        (every,) = feedback_stats(store)
        shares = [every.acceptance, every.edited, every.correction, every.retry, every.abandonment]
        assert every.turns == 6 and [round(share * 6, 6) for share in shares] == [2, 1, 3, 1, 1], (
            "a vote against the answer corrects it"
        )
        assert every.post_correction_success == pytest.approx(0.5), "b was accepted after a, d not after c"
        by_task = {row.name: row for row in feedback_stats(store, "task")}
        assert by_task["code"].turns == 3 and by_task["code"].correction == pytest.approx(2 / 3)
        assert by_task[""].post_correction_success is None
        assert [(row.name, row.turns) for row in feedback_stats(store, "adapter")] == [("a@v1", 2), ("base", 4)]
        assert [(row.name, row.turns) for row in feedback_stats(store, "week")] == [
            ("2023-11-13", 5),
            ("2023-11-20", 1),
        ]
        assert set(every.to_dict()) >= {"acceptance", "post_correction_success"}


@pytest.mark.parametrize(
    ("kinds", "gone"),
    [
        (("abandoned",), 1), (("abandoned", "stopped"), 1), (("accepted", "abandoned"), 1),
        (("abandoned", "accepted"), 0), (("abandoned", "follow_up"), 0), (("abandoned", "retried", "abandoned"), 1),
    ],
)  # fmt: skip
def test_who_comes_back_has_not_given_up(tmp_path: Path, kinds: tuple[str, ...], gone: int) -> None:
    with Store.open(tmp_path / "a.db") as store:
        store.write(turn("t"), *(said("t", kind, n, text="hm") for n, kind in enumerate(kinds)))
        (every,) = feedback_stats(store)
        assert (every.turns, every.abandonment) == (1, gone)
        last = f"f-t-{kinds[-1]}-{len(kinds) - 1}"
        if kinds[0] == "abandoned" and not gone:  # taking the reaction back leaves what was before it
            store.write(Feedback(id="x", turn="t", kind="retraction", retracts=last))
            assert feedback_stats(store)[0].abandonment == 1


def test_an_unknown_group_is_named(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a.db") as store, pytest.raises(UsageError, match="task, adapter, week"):
        feedback_stats(store, "mood")
