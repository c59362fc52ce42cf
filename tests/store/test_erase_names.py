"""Forgetting where the name is not on the turn: candidates that name a user, feedback that alone says who it was."""

from __future__ import annotations

from pathlib import Path
from sqlite3 import IntegrityError
from typing import Any

import pytest

from afterword.feedback.collect.collect import collect
from afterword.forget import check, forget_user
from afterword.records import Candidate, Feedback, Interaction, Json
from afterword.store import Store
from afterword.store.attribution import speaker
from afterword.store.erasure.erase import Eraser
from afterword.store.schema import MIGRATIONS, connect
from tests.store.store_rows import turn

ADA = "ada.l"
WORDS = "the pin of my card is four times seven"


def influences(**users: float) -> Json:
    one = {"task": "code", "interactions": 9, "users": 2, "influence": users}
    return {"loss": 0.5, "selection": {"left": {"expired": 1}, "slices": [one, {"task": None, "interactions": 2}]}}


def candidate(name: str, **users: float) -> Candidate:
    return Candidate(
        id=name, path=f"adapters/{name}", base="m", parent=None, interactions=(), recipe={}, metrics=influences(**users)
    )


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "data" / "afterword.db") as opened:
        yield opened


def question(text: str) -> tuple[Json, ...]:
    return ({"role": "user", "content": text},)


def test_the_name_goes_out_of_the_influence_that_candidates_report(store: Store) -> None:
    store.write(turn("a", user=ADA), candidate("k1", **{ADA: 0.6, "bob": 0.4}), candidate("k2", bob=1.0))
    with Eraser(store.path) as eraser:
        assert eraser.find(ADA).pruned["candidates"] == ("k1",)
    report = forget_user(store, ADA)
    assert report["clean"]
    with Store.open(store.path) as after:
        assert after.get(Candidate, "k1").metrics == influences(bob=0.4)
        assert after.get(Candidate, "k2").metrics == influences(bob=1.0)
        assert ADA.encode() not in b"".join(f.read_bytes() for f in store.path.parent.glob("*") if f.is_file())
        assert all(line["ok"] for line in check(after, report, ADA))


def test_an_erasure_that_leaves_the_name_in_a_candidate_is_not_clean(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(turn("a", user=ADA), candidate("k1", **{ADA: 0.6, "bob": 0.4}))
    monkeypatch.setattr(Eraser, "_prune", lambda *_: None)
    report = forget_user(store, ADA)
    assert not report["clean"] and report["search"]["found"] == [{"file": "candidates k1", "needle": "a quotation"}]
    with Store.open(store.path) as after:
        failed = [line["check"] for line in check(after, report) if not line["ok"]]
        assert "quoted" in failed
        monkeypatch.undo()
        assert forget_user(after, ADA)["clean"]
        assert "quoted" not in [line["check"] for line in check(after, report) if not line["ok"]]


def test_a_database_from_before_lets_only_the_selection_change(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    connection = connect(path)
    for script in MIGRATIONS[:6]:
        connection.executescript(script.replace(", '$.metrics.selection.slices'", ""))
    with pytest.raises(IntegrityError, match="append-only"):
        connection.execute("INSERT INTO erasures VALUES (1, 'x', 1, x'01', '', '', x'')")
        connection.execute("INSERT INTO candidates VALUES (1, 'k', 1, x'01', NULL, ?)", (b'{"metrics": {}}',))
        connection.execute("UPDATE candidates SET body = ?", (b'{"metrics": {"selection": {"slices": []}}}',))
    connection.execute("PRAGMA user_version=6")
    connection.close()
    with Store.open(path) as store:
        store.write(turn("a", user=ADA), candidate("k1", **{ADA: 0.6, "bob": 0.4}))
    with Eraser(path) as eraser:
        eraser.redact(ADA, "era-1")
    with Store.open(path) as store:
        assert store.get(Candidate, "k1").metrics == influences(bob=0.4)


def test_turns_that_name_nobody_are_of_the_only_user_who_reacted_to_them(store: Store) -> None:
    store.write(
        turn("a1", messages=question(WORDS)), Feedback(id="f1", turn="a1", kind="accepted", user=ADA),
        turn("b1", messages=question("two")), Feedback(id="f2", turn="b1", kind="rating", value=1.0, user=ADA),
        Feedback(id="f3", turn="b1", kind="accepted", user="bob"),
        turn("c1", messages=question("three")),
        Feedback(id="f4", turn="c1", kind="comment", text="hm", user=ADA, source="reviewer"),
        turn("d1", user="bob"), Feedback(id="f5", turn="d1", kind="comment", text="no", user=ADA),
        turn("e1", user="bob"), Feedback(id="f6", turn="e1", kind="follow_up", text=WORDS, user=ADA, next_turn="e2"),
        turn("e2", messages=(*question("x"), {"role": "assistant", "content": "y"}, *question(WORDS))),
        turn("e3", user="eve", previous="e2"),
    )  # fmt: skip
    with Eraser(store.path) as eraser:
        held = eraser.find(ADA).rows
    assert held["turns"] == ("a1", "e2", "e3") and held["feedback"] == ("f1", "f2", "f4", "f5", "f6")
    assert forget_user(store, ADA)["clean"]
    with Eraser(store.path) as eraser:
        assert not eraser.find(ADA)  # rows of the erased feedback have no JSON in them any more


def test_the_edit_that_a_retry_led_to_is_forgotten_with_its_writer(store: Store) -> None:
    asked = question("Write the note.")
    rows = [turn(f"t{n}", messages=asked, user="bob", conversation="c", created_at=float(n)) for n in (1, 2)]
    store.write(
        *rows, Feedback(id="e", turn="t2", kind="edited", final_text=WORDS, user=ADA),
        Interaction(id="i1", turn="t1", feedback=("r",), kind="retried", hindsight=f"I accepted:\n{WORDS}",
                    polarity=-1, weight=0.5, split="train", user="bob"),
        Interaction(id="i2", turn="t1", feedback=("s",), kind="retried", hindsight="I accepted:\nSomething else.",
                    polarity=-1, weight=0.5, split="train", user="bob"),
    )  # fmt: skip
    with Eraser(store.path) as eraser:
        held = eraser.find(ADA).rows
    assert held["turns"] == () and held["interactions"] == ("i1",)


def test_a_short_edit_takes_nobody_elses_rows_with_it(store: Store) -> None:
    asked = question("Is it open?")
    rows = [turn(f"t{n}", messages=asked, user="bob", conversation="c", created_at=float(n)) for n in (1, 2)]
    shown = {
        "i1": "I accepted:\nIt is open.",
        "i2": "I accepted:\nIt is open. So is the bar.",
        "i3": "I accepted:\nopen",
    }
    store.write(*rows, Feedback(id="e", turn="t2", kind="edited", final_text="It is open.", user=ADA))
    store.write(*(
        Interaction(id=name, turn="t1", feedback=(f"r{name}",), kind="retried", hindsight=words, polarity=-1,
                    weight=0.5, split="train", user="bob")
        for name, words in shown.items()
    ))  # fmt: skip
    with Eraser(store.path) as eraser:
        assert eraser.find(ADA).rows["interactions"] == ("i1",)


@pytest.mark.parametrize(("accepts", "made"), [("ada.l", 1), ("bob", 0), (None, 0)])
def test_a_retry_is_paired_with_what_its_own_user_accepted(store: Store, accepts: str | None, made: int) -> None:
    first, second = (turn(f"t{n}", conversation="c", created_at=float(n)) for n in (1, 2))
    store.write(
        first, second, Feedback(id="r", turn="t1", kind="retried", user=ADA, next_turn="t2"),
        Feedback(id="e", turn="t2", kind="edited", final_text=WORDS, user=accepts),
    )  # fmt: skip
    collect(store)
    found = list(store.rows(Interaction, turn="t1"))
    assert [row.user for row in found] == [ADA] * made and all(WORDS in row.hindsight for row in found)


def test_whose_words_some_feedback_are() -> None:
    rows = [Feedback(id=str(n), turn="t", kind="accepted", user=user) for n, user in enumerate((None, "bob"))]
    assert speaker(rows, "ada") == "ada" and speaker(rows, None) == "bob" and speaker(rows[::-1], "ada") == "bob"
    assert speaker([], None) is None and speaker([], "ada") == "ada"
