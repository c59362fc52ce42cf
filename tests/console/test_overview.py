"""Counts, funnels and small helpers of the console, without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from afterword.console import filters
from afterword.console.background import Refreshed
from afterword.console.interaction_pages import word_diff
from afterword.console.live import live_metrics_beside
from afterword.console.overview import Learned, chart, funnel, live_metrics, widths
from afterword.feedback.select.review_queue import ReviewIndex, ReviewSettings, review_queue
from afterword.feedback.select.select import auditable
from afterword.forget import forget_user
from afterword.records import Feedback, Interaction, Review, Skip, Turn
from afterword.store import Store
from afterword.store.browse import RowCounts, TurnFilter, conversation_of, search_turns, why_unused


def turn(number: int, **more: object) -> Turn:
    given = {"messages": ({"role": "user", "content": f"question {number}"},),
             "answer": {"role": "assistant", "content": f"answer {number}"}, **more}  # fmt: skip
    return Turn(id=f"t{number:04}", created_at=1000.0 + number, **given)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "afterword.db") as opened:
        yield opened


def test_counts_grow_with_the_rows_and_shrink_with_an_erasure(store: Store) -> None:
    counts = RowCounts()
    counts.update(store)
    assert counts.total("turns") == 0
    store.write(*(turn(i, user="ada" if i % 2 else "ben", previous="t0000" if i == 3 else None) for i in range(10)))
    store.write(Feedback(id="f1", turn="t0001", kind="comment", text="no"))
    counts.update(store)
    counts.update(store)
    assert (counts.total("turns"), counts.turns(linked=True), counts.by("feedback", "kind")) == (10, 1, {"comment": 1})
    store.write(turn(10, source="import:x", unlinked="unmatched"))
    counts.update(store)
    assert counts.turns(served=True) == 10
    assert counts.by("turns", "unlinked") == {"unmatched": 1}
    forget_user(store, "ada")
    counts.update(store)
    assert (counts.total("turns"), counts.total("feedback")) == (6, 0)


def test_pages_of_a_search_meet_every_row_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afterword.store.browse.SCANNED", 7)
    store.write(*(turn(i, task="code" if i % 3 == 0 else None, adapter="a@v1" if i % 2 else None) for i in range(50)))
    for wanted, expected in ((TurnFilter(), range(50)), (TurnFilter(task="code"), range(0, 50, 3)),
                             (TurnFilter(adapter="base", text="QUESTION"), range(0, 50, 2)),
                             (TurnFilter(text='question "'), range(0))):  # fmt: skip
        seen: list[str] = []
        before = None
        for _ in range(60):
            found = search_turns(store, wanted, before, limit=4)
            seen += [row.turn.id for row in found.rows]
            before = found.before
            if before is None:
                break
        assert seen == [f"t{i:04}" for i in reversed(expected)]


def interaction(number: int, **more: object) -> Interaction:
    given = {
        "turn": f"t{number:04}",
        "feedback": (f"f{number}",),
        "kind": "comment",
        "hindsight": "x" if number % 4 else "",
        "polarity": -1,
        "weight": 1.0,
        "split": "train",
        "confidence": (number * 7 % 10) / 10,
        **more,
    }
    return Interaction(id=f"i{number}", created_at=2000.0 + number, **given)  # type: ignore[arg-type]


def test_the_review_index_is_the_queue(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afterword.feedback.select.review_queue.READ_AT_ONCE", 7)
    settings = ReviewSettings(share=0.2, strange=0.1)
    index = ReviewIndex(settings)

    def queue() -> list[str]:
        done = store.reviews()
        return [row.id for row in review_queue(auditable(store), settings) if row.id not in done]

    def found() -> list[str]:
        index.update(store)
        return index.waiting(store)

    assert found() == queue() == []
    store.write(*(turn(i, user=f"u{i % 5}") for i in range(100)))
    for start in (0, 60):
        store.write(
            *(Feedback(id=f"f{i}", turn=f"t{i:04}", kind="comment", text="x") for i in range(start, start + 40))
        )
        store.write(*(interaction(i) for i in range(start, start + 40)))
        assert found() == queue() and len(queue()) > 5
    first, second = queue()[:2]
    store.write(Review(id="r", interaction=first, decision="approve"))
    store.write(Feedback(id="back", turn="t0000", kind="retraction", retracts=f"f{second[1:]}"))
    assert found() == queue() and not {first, second} & set(found())
    forget_user(store, "u1")
    assert found() == queue()


def test_why_an_interaction_is_unused_is_what_training_says(store: Store) -> None:
    store.write(*(turn(i) for i in range(8)))
    store.write(*(Feedback(id=f"f{i}", turn=f"t{i:04}", kind="rating", value=-1.0, user="ada") for i in range(8)))
    store.write(*(interaction(i, kind="rating") for i in range(8)))
    store.write(
        Review(id="r1", interaction="i1", decision="reject", why="x"),
        Review(id="r2", interaction="i2", decision="reject", why="x"),
        Feedback(id="back", turn="t0003", kind="retraction", retracts="f3"),
        Feedback(id="new", turn="t0004", kind="rating", value=1.0, user="ada"),
        Skip(id="s5", feedback="other", turn="t0005", reason="contradictory", detail="x", created_at=9000.0),
        Skip(id="s6", feedback="f-gone", turn="t0006", reason="contradictory", detail="x", created_at=9000.0),
        Feedback(id="back6", turn="t0006", kind="retraction", retracts="f-gone"),
        Skip(id="s7", feedback="other", turn="t0007", reason="contradictory", detail="x", created_at=1.0),
    )
    store.write(Review(id="r3", interaction="i2", decision="approve"))
    barred = store.barred()
    rows = list(store.rows(Interaction))
    assert [why_unused(store, row) for row in rows] == [barred(row) for row in rows]
    assert [barred(row) for row in rows] == [
        None, "rejected", None, "retracted", "changed", "contradicted", None, None
    ]  # fmt: skip


def test_live_metrics_are_the_same_in_another_process(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(*(turn(i, task="code" if i % 2 else None) for i in range(4)))
    store.write(*(Feedback(id=f"f{i}", turn=f"t{i:04}", kind="rating", value=float(i % 2)) for i in range(1, 4)))
    here = live_metrics_beside(store)
    monkeypatch.setattr("afterword.console.live.LARGE", 1)
    assert live_metrics_beside(store) == here == live_metrics(store)
    assert [row["name"] for row in here["task"]] == ["", "code"]


def test_a_conversation_has_its_branches(store: Store) -> None:
    store.write(turn(0), turn(1, previous="t0000"), turn(2, previous="t0001"), turn(3, previous="t0001"), turn(9))
    ids = [one.id for one in conversation_of(store, store.get(Turn, "t0001"))]
    assert ids == ["t0000", "t0001", "t0002", "t0003"]


def test_the_funnel_tells_what_is_lost(store: Store) -> None:
    store.write(turn(0), turn(1, unlinked="unmatched"), turn(2, automated="task"))
    store.write(*(Feedback(id=f"f{i}", turn="t0000", kind="comment", text="x") for i in range(5)))
    store.write(
        Interaction(id="i", turn="t0000", feedback=("f0",), kind="comment", hindsight="x", polarity=0, weight=1.0,
                    split="holdout"),
        Skip(id="s", feedback="f1", turn="t0000", reason="thanks", detail="x"),
        Skip(id="s2", feedback="f2", turn="t0000", reason="made_up_reason", detail="x"),
    )  # fmt: skip
    counts = RowCounts()
    counts.update(store)
    reviews = {"approved": 2, "rejected": 1}
    steps = {
        step.name: step for step in funnel(counts, Learned(trained=0, released=0, candidates=0, releases=0), reviews)
    }
    assert [step.number for step in steps.values()] == [3, 0, 5, 1, 3, 0, 0]
    assert dict(steps["Kept"].lost) == {
        "the follow-up only says thank you": 1, "made up reason": 1, "not collected yet": 2
    }  # fmt: skip
    assert dict(steps["Linked"].lost) == {
        "the history matches no stored turn": 1, "the newest message is a program's": 1
    }  # fmt: skip
    assert steps["Trained"].lost == [("held out to measure candidates", 1)]
    assert "Trained" not in {step.name for step in funnel(counts, None, reviews)}


def test_bars_curves_and_texts() -> None:
    assert widths([0, 1, 1000]) == [0.0, 1.0, 100.0]
    assert widths([]) == []
    week = {"name": "2026-11-30", "acceptance": 0.5, "correction": None, "retry": 0.0, "abandonment": 0.0}
    live = {"week": [week], "releases": [{"at": 5.0, "adapter": "a", "action": "publish"}]}
    drawn = chart(live)
    assert drawn["x"] == [datetime(2026, 11, 30, tzinfo=UTC).timestamp()]
    assert drawn["series"]["correction"] == [None] and drawn["marks"] == [{"x": 5.0, "name": "a"}]
    assert word_diff("one two three", "one 2 three four") == [
        ("same", "one"), ("del", "two"), ("ins", "2"), ("same", "three"), ("ins", "four")
    ]  # fmt: skip
    assert filters.when(None) == "never" and filters.when(0.0) == "1970-01-01 00:00"
    assert filters.count(1234567) == "1\u202f234\u202f567"
    assert filters.share(None) == "–" and filters.share(0.256) == "26 %"
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}, "bad"]}
    assert filters.message_text(call) == "[calls f: {}]\n[calls ?: ]"
    assert filters.excerpt("a\n b" + "c" * 200, 5) == "a bc…"


async def test_a_slow_value_is_computed_once_and_an_error_is_tried_again() -> None:
    runs: list[int] = []

    def slow() -> int:
        runs.append(len(runs))
        if len(runs) == 1:
            raise OSError("once")
        return len(runs)

    value = Refreshed(slow, every=0.0)
    with pytest.raises(OSError, match="once"):
        while True:
            await value.get()
            await asyncio.sleep(0.01)
    while await value.get() is None:
        await asyncio.sleep(0.01)
    assert value.at is not None and len(runs) >= 2
    await value.close()
