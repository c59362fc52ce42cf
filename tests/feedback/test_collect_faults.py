"""Collection under faults: killed at any moment, clocks that jump, feedback that comes late, input that is broken."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from afterword.feedback import CollectSettings
from afterword.feedback.collect.collect import collect
from afterword.records import Feedback, Interaction, Record, Review, Skip, Turn
from afterword.store import Store
from tests.feedback.feedback_builders import feedback, turn

module = importlib.import_module("afterword.feedback.collect.collect")
WORKER = """
import importlib, pathlib, sys
module = importlib.import_module("afterword.feedback.collect.collect")
module.PAGE = 20
from afterword.store import Store
with Store.open(pathlib.Path(sys.argv[1])) as store:
    print("ready", flush=True)
    module.collect(store, progress=lambda n: print(n, flush=True))
"""
TEXTS = ("Shorter, please.", "Thanks!", "That's wrong, number {0}.", "Why {0} minutes?", "go on")


def fill(path: Path, turns: int) -> None:
    with Store.open(path) as store:
        rows: list[Record] = []
        for i in range(turns):
            rows.append(turn(f"t{i}", f"Boil {i} eggs for {i} minutes, cool {i}.", conversation=f"c{i // 3}"))
            rows.append(feedback("follow_up", f"f{i}", f"t{i}", text=TEXTS[i % len(TEXTS)].format(i)))
        store.write(*rows)


def contents(path: Path) -> tuple[set[str], set[str], list[str]]:
    with Store.open(path) as store:
        made, skips = list(store.rows(Interaction)), list(store.rows(Skip))
    decided = [f for i in made for f in i.feedback] + [s.feedback for s in skips]
    return {i.id for i in made}, {s.id for s in skips}, sorted(decided)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_killed_collection_goes_on_where_it_was(tmp_path: Path, after: int) -> None:
    whole, cut = tmp_path / "whole.db", tmp_path / "cut.db"
    for path in (whole, cut):
        fill(path, 400)
    with Store.open(whole) as store:
        collect(store)
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(cut)], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    for _ in range(after + 1):
        worker.stdout.readline()
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    worker.stdout.close()
    assert len(contents(cut)[2]) < 400, "it was killed before its end"
    with Store.open(cut) as store:
        collect(store)
    assert contents(cut) == contents(whole)
    assert len(contents(cut)[2]) == len(set(contents(cut)[2])) == 400


REVIEW = """
import sys
from afterword.cli import main
print("ready", flush=True)
sys.exit(main(["review", "reject", sys.argv[2], "--why", "quoted", "--by", "eve", "--dir", sys.argv[1]]))
"""


def test_a_killed_review_can_be_given_again(tmp_path: Path) -> None:
    fill(tmp_path / "afterword.db", 5)
    with Store.open(tmp_path / "afterword.db") as store:
        collect(store)
        name = next(store.rows(Interaction)).id
    for wait in (0.0, 0.05, None):
        worker = subprocess.Popen(
            [sys.executable, "-c", REVIEW, str(tmp_path), name], stdout=subprocess.PIPE, text=True
        )
        assert worker.stdout is not None
        worker.stdout.readline()
        if wait is not None:
            time.sleep(wait)
            os.kill(worker.pid, signal.SIGKILL)
        worker.communicate()
    with Store.open(tmp_path / "afterword.db") as store:
        assert [(r.interaction, r.decision) for r in store.rows(Review)] == [(name, "reject")]


def test_clocks_that_jump_change_no_decision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.db"
    with Store.open(path) as store:
        store.write(turn("t1", user="ada"), feedback("retried", "f1", "t1", created_at=1e12),
                    turn("t2", "No.", user="bob"),
                    feedback("comment", "f2", "t2", text="too short", created_at=-5.0, occurred_at=4e18))  # fmt: skip
        monkeypatch.setattr("time.time", lambda: 0.0)
        assert collect(store).skipped == {"no_hindsight": 1}, "a row from far in the future waits for nothing"
        monkeypatch.setattr("time.time", lambda: 2e12)
        assert collect(store).skipped == {} and collect(store).waiting == {}
        assert [i.turn for i in store.rows(Interaction)] == ["t2"]


def test_feedback_a_week_late_is_read_like_any_other(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a.db") as store:
        store.write(turn(created_at=1e9), feedback("stopped", "f1", created_at=1e9))
        assert collect(store).skipped == {"no_hindsight": 1}
        store.write(feedback("comment", "f2", text="too long", created_at=1e9 + 7 * 86400))
        assert collect(store, CollectSettings(wait_seconds=0)).interactions == 1
        assert [i.feedback for i in store.rows(Interaction)] == [("f2",)] and store.count(Skip) == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (feedback("comment", text="x" * 10_000_000), "too_long"),
        (feedback("edited", final_text="y " * 5_000_000), "too_long"),
        (feedback("rating", value=float("nan")), "bad_value"),
        (feedback("rating", value=float("-inf")), "bad_value"),
        (feedback("rating", value=-17.0), "bad_value"),
        (feedback("executed", exit_code=0, output="\x00" * 1000), None),
        (feedback("executed", exit_code=-9, output="boom\n" * 2_000_000), None),
        (feedback("comment", text="no \x00 \u202e\ufffe wrong \U0001f600"), None),
        (feedback("comment", text="a" * 7999), None),
        (feedback("follow_up", text="(((((" * 1500), None),
    ],
    ids=["10MB", "10MB-edit", "nan", "inf", "negative", "nul", "10MB-output", "odd", "one-word", "brackets"],
)  # fmt: skip
def test_broken_input_is_decided_in_time(tmp_path: Path, row: Feedback, reason: str | None) -> None:
    with Store.open(tmp_path / "a.db") as store:
        store.write(turn(words="long answer " * 2000), row)
        started = time.process_time()
        funnel = collect(store)
        assert time.process_time() - started < 5
    assert funnel.feedback == 1 and (dict(funnel.skipped) == {reason: 1} if reason else not funnel.waiting)


def test_a_ten_megabyte_conversation_is_decided_in_time(tmp_path: Path) -> None:
    words = "the cat sat on the mat, " * 400_000
    with Store.open(tmp_path / "a.db") as store:
        store.write(Turn(id="t1", messages=({"role": "user", "content": words},), created_at=1.0,
                         answer={"role": "assistant", "content": words}),
                    feedback("follow_up", text="Shorter, please."))  # fmt: skip
        started = time.process_time()
        assert collect(store).skipped == {"answer_too_long": 1}
        assert collect(store, CollectSettings(max_answer_chars=10**9)).feedback == 0
        assert time.process_time() - started < 5


@pytest.mark.parametrize("n", [10_000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_a_very_long_conversation_without_a_name(tmp_path: Path, n: int) -> None:
    """100,000 messages are 50,000 turns. The root of a long chain is found once, not once a turn."""
    with Store.open(tmp_path / "a.db") as store:
        rows: list[Record] = [turn(f"t{i}", f"Answer {i}", previous=f"t{i - 1}" if i else None) for i in range(n)]
        store.write(*rows)
        store.write(*[feedback("accepted", f"f{i}", f"t{i}") for i in range(n - 500, n)])
        started = time.process_time()
        collect(store)
        assert time.process_time() - started < 20
        assert len({i.split for i in store.rows(Interaction)}) == 1
