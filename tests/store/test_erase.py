"""Forgetting in the database: the whole of it, nothing else, for good, and never by halves."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from afterword.errors import StoreError
from afterword.records import (
    AnswerAdvantages,
    Candidate,
    Feedback,
    Interaction,
    Record,
    Report,
    Review,
    Revision,
    SignalRatio,
    Skip,
    Turn,
    WorkRequest,
)
from afterword.store import Store
from afterword.store.erasure.erase import Eraser, user_hash
from afterword.store.schema import CLEARED, PRUNED, connect
from tests.store.store_rows import BESIDE, SPINE, interaction, turn

SECRET = "my cat is called Bartholomew the Third"


def said(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def rows_of_ada() -> list[Record]:
    """Ada's turn and everything that can hold her words, beside Bob's."""
    reply = {"role": "assistant", "content": f"Noted: {SECRET}."}
    history = (*said(SECRET), reply, *said("And?"))
    return [
        turn("a1", user="ada.l", conversation="c", messages=said(SECRET), answer=reply, prompt_ids=(7, 8)),
        turn("a2", user=None, previous="a1", messages=history),
        turn("b1", user="bob", conversation="c", messages=history),
        turn("b2", user="bob", conversation="c", messages=said("How are you?"), task="chat"),
        Feedback(id="f1", turn="a1", kind="comment", text="no", user="bob"),
        Feedback(id="f2", turn="b2", kind="edited", final_text=SECRET, user="ada.l"),
        Feedback(id="f3", turn="b2", kind="retraction", retracts="f2"),
        Feedback(id="f4", turn="b2", kind="accepted", user="bob"),
        interaction("i1", of="a1", feedback=("f1",), hindsight="no"),
        interaction("i2", of="b2", feedback=("f4", "f2"), hindsight=SECRET),
        interaction("i3", of="b2", feedback=("f4",), hindsight=""),
        Skip(id="s1", feedback="f2", turn="b2", reason="thanks", detail=f"it says {SECRET!r}"),
        Skip(id="s2", feedback="f9", turn="b2", reason="thanks", detail="x"),
        Review(id="v1", interaction="i1", decision="reject", by="eve", why=f"she says {SECRET}"),
        Review(id="v3", interaction="i3", decision="approve", by="eve"),
        SignalRatio(id="l1", interaction="i2", model="m", real=0.5, shuffled=None, neutral=0.1, tokens=3),
        Revision(id="w1", interaction="i2", model="m", text=SECRET, draft_score=-1.0, score=-0.5, kept=True),
        AnswerAdvantages(id="h1", interaction="i2", model="m", tokens=(SECRET,), without=(-1.0,)),
        WorkRequest(id="q1", interaction="i2", kind="heatmap", by="eve"),
        Candidate(id="k1", path="adapters/k1", base="m", parent=None, interactions=("i3",), recipe={}),
        Candidate(
            id="k2", path="adapters/k2", base="m", parent="k1", interactions=("i2", "i3"), recipe={},
            metrics={"loss": 1.0, "left": [{"interaction": "i1", "detail": SECRET}, {"interaction": "i3"}]},
        ),
        Candidate(id="k3", path="adapters/k3", base="m", parent="k2", interactions=("i3",), recipe={}),
        Report(
            id="r1", candidate="k2", against=None, suites={"holdout": {"n": 2}},
            examples=({"interaction": "i1", "before": SECRET}, {"interaction": "i3", "before": "fine"}),
        ),
    ]  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "afterword.db"
    with Store.open(path) as store:
        assert set(store.write(*rows_of_ada())) == {"stored"}
    return path


def forget(path: Path, user: str = "ada.l", erasure: str = "era-1") -> Any:
    with Eraser(path) as eraser:
        held = eraser.redact(user, erasure)
        eraser.scrub()
    return held


def test_everything_of_a_user_is_found_and_nothing_else(path: Path) -> None:
    with Eraser(path) as eraser:
        held = eraser.find("ada.l")
        assert held.rows == {
            "turns": ("a1", "a2", "b1"), "feedback": ("f1", "f2", "f3"), "interactions": ("i1", "i2"),
            "skips": ("s1",), "reviews": ("v1",), "relevances": ("l1",), "revisions": ("w1",), "advantages": ("h1",),
            "requests": ("q1",), "exports": (),
            "episodes": (), "episode_ends": (), "skills": (),
        }  # fmt: skip
        assert held.pruned == {"reports": ("r1",), "candidates": ("k2",)}
        assert {row["id"] for _, row in eraser.bodies(held)} == {
            "a1",
            "a2",
            "b1",
            "f1",
            "f2",
            "f3",
            "i1",
            "i2",
            "s1",
            "v1",
            "l1",
            "w1",
            "h1",
            "q1",
        }
        assert not eraser.find("nobody")


def test_what_was_erased_is_gone_for_every_reader(path: Path) -> None:
    with Store.open(path) as store:  # it has the database open all the time
        before = store.counts()
        assert store.find(Turn, "a1") is not None
        forget(path)
        after = store.counts()
        assert {name: before[name] - after[name] for name in before} == {
            "turns": 3, "episodes": 0, "feedback": 3, "interactions": 2, "skips": 1, "candidates": 0, "reports": 0,
            "verdicts": 0, "releases": 0,
        }  # fmt: skip
        assert store.find(Turn, "a1") is None and [t.id for t in store.rows(Turn)] == ["b2"]
        assert store.count(Turn, user=None) == 0 and store.count(Turn, user="bob") == 1
        assert [f.id for f in store.rows(Feedback)] == ["f4"] and store.tally(Feedback, "kind") == {"accepted": 1}
        assert [t.id for t in store.leaves()] == ["b2"] and store.retracted() == set()
        assert [i.id for i in store.usable("train")] == ["i3"] and list(store.undecided()) == []
        assert store.among(Turn, "id", ["a1", "b2"])[0][1].id == "b2"
        assert [name for name, era in store.tombstones("turns") if era == "era-1"] == ["a1", "a2", "b1"]
        report = store.get(Report, "r1")
        assert report.examples == ({"interaction": "i3", "before": "fine"},) and report.suites == {"holdout": {"n": 2}}
        assert store.get(Candidate, "k2").metrics == {"loss": 1.0, "left": [{"interaction": "i3"}]}
        assert list(store.reviews()) == ["i3"] and store.count(Revision) == 0
        assert store.tainted() == {"k2": ("i2",), "k3": ()}


def test_not_a_byte_is_left(path: Path) -> None:
    reader = Store.open(path)
    assert reader.count(Turn) == 4
    needles = [SECRET.encode(), b"ada.l", b"Noted: "]
    files = sorted(path.parent.glob("afterword.db*"))
    assert len(files) == 3 and any(SECRET.encode() in f.read_bytes() for f in files)
    forget(path)
    assert [(f.name, n) for f in path.parent.glob("*") for n in needles if n in f.read_bytes()] == []
    assert b"How are you?" in path.read_bytes() and reader.count(Turn) == 1
    reader.close()


def test_the_hash_of_the_user_is_known_by_the_name_alone(path: Path) -> None:
    forget(path)
    with Store.open(path) as store:
        ((name, moment, salt, found),) = store.erasures()
    assert name == "era-1" and moment > 1e9 and found == user_hash("ada.l", salt) != user_hash("ada.l", "")
    assert b"ada.l" not in path.read_bytes()


@pytest.mark.parametrize(
    "late",
    [
        Feedback(id="late", turn="a1", kind="comment", text=SECRET, user="ada.l"),
        Feedback(id="f1", turn="a1", kind="comment", text="no", user="bob"),
        Feedback(id="f2", turn="b2", kind="edited", final_text=SECRET, user="ada.l"),
        interaction("late", of="a1", feedback=("late",), hindsight=SECRET),
        Review(id="late", interaction="i1", decision="approve", why=SECRET),
        Skip(id="late", feedback="late", turn="a1", reason="r", detail=SECRET),
        turn("a1", user="ada.l", conversation="c", messages=said(SECRET)),
    ],
    ids=lambda row: f"{row.TABLE}-{row.id}",
)
def test_what_is_sent_again_stays_forgotten(path: Path, late: Record) -> None:
    forget(path)
    with Store.open(path) as store:
        before = store.counts()
        assert store.write(late, turn("new", user="ada.l")) == ["forgotten", "stored"]
        assert store.counts() == {**before, "turns": before["turns"] + 1}
    assert SECRET.encode() not in b"".join(f.read_bytes() for f in path.parent.glob("*"))


FILLED = {"turns": "prompt_ids = NULL", "feedback": "kind = 'forgotten'", "interactions": "kind = 'forgotten'",
          "skips": "reason = 'forgotten'", "reviews": "decision = 'forgotten'", "exports": "user = NULL",
          "episodes": "user = NULL", "skills": "user = NULL"}  # fmt: skip


def test_only_a_tombstone_may_take_the_place_of_a_row(path: Path) -> None:
    with Store.open(path) as store:
        store.write(*(row for row in SPINE if row.TABLE not in ("candidates", "reports")))
        store.write(*(row for row in BESIDE if row.TABLE in ("episode_ends", "skills")))
    forget(path, "nobody")  # there is an erasure to name
    connection = connect(path)
    connection.execute(
        "INSERT INTO exports (id, created_at, digest, path, user, body) VALUES ('x', 1, x'01', 'p', 'u', '{}')"
    )
    for table, cleared in CLEARED.items():
        full = "".join(f", {column} = {value}" for column, value in cleared.items())
        for change in (
            f"body = CAST('era-1' AS BLOB){full}",  # not empty
            f"digest = x'', body = CAST('era-2' AS BLOB){full}",  # in nobody's name
            f"digest = x'', body = CAST('era-1' AS BLOB){full}, id = 'other'",
            f"digest = x'', body = CAST('era-1' AS BLOB){full}, created_at = 0",
            "digest = x'', body = CAST('era-1' AS BLOB)" + full.replace(FILLED.get(table, ""), "id = id"),  # words left
        )[: 5 if cleared else 4]:
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(f"UPDATE {table} SET {change}")
    for table in PRUNED:
        for change in ("body = CAST('{}' AS BLOB)", "digest = x''", "created_at = 0"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(f"UPDATE {table} SET {change}")
    for table in (*CLEARED, *PRUNED, "verdicts", "releases", "erasures"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(f"DELETE FROM {table}")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute("UPDATE erasures SET salt = ''")
    connection.close()


def test_every_table_says_what_an_erasure_does_with_it(path: Path) -> None:
    """A new table with words of users in it must be placed: `CLEARED`, `PRUNED`, or here as one without words."""
    connection = connect(path)
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    connection.close()
    without_words = {
        "attempts",
        "predictions",
        "prediction_outcomes",
        "verdicts",
        "releases",
        "alarms",
        "erasures",
        "traces",
        "sqlite_sequence",
    }
    assert tables - set(CLEARED) - set(PRUNED) - without_words == set()


def test_a_second_time_finds_nothing_and_changes_nothing(path: Path) -> None:
    forget(path)
    before = path.read_bytes()
    with Eraser(path) as eraser:
        held = eraser.redact("ada.l", "era-1")
        assert not held and held.pruned == {"reports": (), "candidates": ()}
    with Store.open(path) as store:
        assert len(store.erasures()) == 1
    assert SECRET.encode() not in before


def test_a_reader_that_stays_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with Store.open(path) as store, Eraser(path) as eraser:
        rows = store.rows(Turn)
        next(rows)
        eraser._db.execute("PRAGMA busy_timeout=20")
        eraser.redact("ada.l", "era-1")
        with pytest.raises(StoreError, match="reads an old state"):
            eraser.scrub()
        rows.close()  # type: ignore[attr-defined]
        eraser.scrub()
    assert SECRET.encode() not in path.read_bytes()


def test_words_that_others_wrote_too_are_known_as_living(path: Path) -> None:
    forget(path)
    with Eraser(path) as eraser:
        assert eraser.living("How are you?") and not eraser.living(SECRET)


KILLED = """
import sys, os, signal, sqlite3
from pathlib import Path
from afterword.store.erasure.erase import Eraser
eraser = Eraser(Path(sys.argv[1]))
count = 0
def trace(statement):
    global count
    count += statement.startswith("UPDATE")
    if count == 4:
        os.kill(os.getpid(), signal.SIGKILL)
eraser._db.set_trace_callback(trace)
eraser.redact("ada.l", "era-1")
"""


def test_a_kill_in_the_middle_leaves_all_or_nothing(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL
    with Store.open(path) as store:
        assert store.count(Turn) == 4 and store.erasures() == [] and store.count(Interaction) == 3
    forget(path)
    with Store.open(path) as store:
        assert store.count(Turn) == 1 and len(store.erasures()) == 1
    assert SECRET.encode() not in path.read_bytes()
