"""The store: what goes in comes out, twice is once, and nothing is ever changed."""

from __future__ import annotations

import dataclasses
import math
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afterword.errors import NotFoundError, StoreError, UsageError
from afterword.records import NOTES, RECORDS, Candidate, Feedback, Interaction, Record, Release, Review, Skip, Turn
from afterword.store import Store
from afterword.store.codec import ARRAYS, SEARCHED, encode
from afterword.store.erasure.erase import Eraser
from afterword.store.schema import MIGRATIONS, connect, migrate, open_database
from afterword.store.writer import Writer
from tests.store.store_rows import BESIDE, SPINE, interaction, turn


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "afterword.db"


@pytest.fixture
def store(path: Path) -> Any:
    with Store.open(path) as opened:
        yield opened


def test_every_kind_comes_back_as_it_was(store: Store) -> None:
    every = [*SPINE, *BESIDE]
    assert store.write(*every) == ["stored"] * len(every)
    assert [store.get(type(row), row.id) for row in every] == every
    assert [type(row) for row in SPINE] == list(RECORDS)
    assert store.counts() == {kind.TABLE: 1 for kind in RECORDS}


def test_a_turn_keeps_the_order_of_keys_that_its_client_sent(store: Store) -> None:
    """Templates write tools as they come; the same in another order is the same turn."""
    tool = {"type": "function", "function": {"name": "f", "description": "d"}}
    assert store.write(turn(tools=(tool,))) == ["stored"]
    found = store.get(Turn, "t1").tools
    assert found is not None and list(found[0]) == ["type", "function"] and next(iter(found[0]["function"])) == "name"
    assert store.write(turn(tools=({key: tool[key] for key in reversed(tool)},))) == ["duplicate"]


def test_the_same_row_twice_is_a_duplicate_and_another_one_a_conflict(store: Store) -> None:
    first = turn()
    assert store.write(first) == ["stored"]
    assert store.write(first, dataclasses.replace(first, created_at=5.0)) == ["duplicate", "duplicate"]
    assert store.write(dataclasses.replace(first, user="eve")) == ["conflict"]
    assert store.write(dataclasses.replace(first, prompt_ids=(1,))) == ["conflict"]
    assert list(store.rows(Turn)) == [first]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
IDS = st.none() | st.lists(st.integers(-(2**31), 2**31 - 1), max_size=8).map(tuple)
TURNS = st.builds(
    Turn, id=TEXT.filter(bool), created_at=st.floats(0, 1e11),
    messages=st.lists(st.fixed_dictionaries({"role": TEXT, "content": JSON}), max_size=3).map(tuple),
    answer=st.fixed_dictionaries({"content": JSON}), prompt_ids=IDS, completion_ids=IDS,
    logprobs=st.none() | st.lists(st.none() | st.floats(allow_nan=False), max_size=8).map(tuple),
    user=st.none() | TEXT, conversation=st.none() | TEXT, usage=st.dictionaries(TEXT, JSON, max_size=2),
    tools=st.none() | st.lists(st.fixed_dictionaries({"type": TEXT}), max_size=2).map(tuple), consent=st.booleans(),
)  # fmt: skip
FEEDBACK = st.builds(
    Feedback, id=TEXT.filter(bool), created_at=st.floats(0, 1e11), turn=TEXT, kind=TEXT,
    text=st.none() | TEXT, value=st.none() | st.floats(-1, 1),
    exit_code=st.none() | st.integers(-(2**31), 2**31), metadata=st.dictionaries(TEXT, JSON, max_size=2),
)  # fmt: skip


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=TURNS | FEEDBACK)
def test_any_record_goes_round(row: Turn | Feedback, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert type(row).from_dict(row.to_dict()) == row
    with Store.open(tmp_path_factory.mktemp("round") / "a.db") as store:
        assert store.write(row, row) == ["stored", "duplicate"]
        assert store.find(type(row), row.id) == row


@pytest.mark.parametrize(
    "row",
    [
        turn("\ud800"), turn(""), Turn(id=5, messages=(), answer={}),  # type: ignore[arg-type]
        turn(created_at=math.nan), turn(created_at="now"), turn(user={}),
        turn(answer={"content": "\ud800"}), turn(completion_ids=(2**40,)), turn(prompt_ids=("a",)),
        turn(logprobs=("x",)),
        Feedback(id="f", turn=None, kind="rating"), Feedback(id="f", turn="t", kind="tests", exit_code=2**70),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_stored_is_refused_and_harms_nobody(store: Store, row: Record) -> None:
    with pytest.raises(UsageError, match="cannot be stored"):
        store.submit([row])
    assert store.submit([turn("next")]).result(timeout=5) == ["stored"]


def test_a_row_that_the_database_refuses_fails_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(path) as store:
        bad = turn("bad")
        rows = [[turn("a")], [bad], [turn("b")]]
        from afterword.store import codec

        encoded = [[codec.encode(row) for row in group] for group in rows]
        encoded[1][0] = encoded[1][0]._replace(values=(None, *encoded[1][0].values[1:]))
        writer = Writer(path)
        gate = threading.Event()
        commit = writer._commit
        monkeypatch.setattr(writer, "_commit", lambda group: (gate.wait(5), commit(group))[1])
        futures = [writer.submit(group) for group in encoded]
        gate.set()
        assert futures[0].result(5) == futures[2].result(5) == ["stored"]
        with pytest.raises(StoreError, match="NOT NULL"):
            futures[1].result(5)
        writer.close()
        assert {t.id for t in store.rows(Turn)} == {"a", "b"}


def test_rows_are_never_changed_or_deleted(store: Store, path: Path) -> None:
    store.write(*SPINE, *BESIDE)
    with sqlite3.connect(path) as connection:
        for kind in (*RECORDS, *NOTES):
            for change in (f"UPDATE {kind.TABLE} SET created_at = 0", f"DELETE FROM {kind.TABLE}"):
                with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                    connection.execute(change)
    connection.close()
    assert store.counts() == {kind.TABLE: 1 for kind in RECORDS}


def test_records_are_found_by_a_unique_beginning(store: Store) -> None:
    store.write(turn("abc1"), turn("abd1"), turn("a_x"))
    assert store.get(Turn, "abc").id == "abc1" and store.get(Turn, "a_").id == "a_x"
    for name, why in (("ab", "more than one"), ("zz", "there is none"), ("", "more than one"), ("a%", "there is none")):
        with pytest.raises(NotFoundError, match=why):
            store.get(Turn, name)
    assert store.find(Turn, "abc") is None


def test_rows_are_filtered_ordered_and_limited(store: Store) -> None:
    store.write(*(turn(f"t{i}", user="ada" if i % 2 else None) for i in range(6)))
    assert [t.id for t in store.rows(Turn, user="ada")] == ["t1", "t3", "t5"]
    assert [t.id for t in store.rows(Turn, user=None, newest=True, limit=2)] == ["t4", "t2"]
    assert store.count(Turn, user="ada") == 3
    assert store.tally(Turn, "user") == {"None": 3, "ada": 3}
    with pytest.raises(AssertionError, match="no searched column"):
        store.rows(Turn, mood="good")


def test_named_queries_of_turns(store: Store) -> None:
    store.write(turn("a", thread="h"), turn("b", thread="h", previous="a"), turn("c", thread="h", previous="b"))
    assert store.turns_of_thread("h") == ["a", "b"] and store.turns_of_thread("x") == []
    assert [t.id for t in store.leaves()] == ["c"]
    assert [name for name, _ in store.ancestors("c")] == ["c", "b", "a"]
    assert [t.id for _, t in store.among(Turn, "id", ["b", "a", "zz"])] == ["a", "b"]
    assert len(store.among(Turn, "id", [f"x{i}" for i in range(1200)] + ["a"])) == 1


def test_undecided_held_and_retracted(store: Store) -> None:
    rows = [Feedback(id=f"f{i}", turn="t1" if i < 5 else "gone", kind="accepted") for i in range(6)]
    store.write(turn(), *rows, Feedback(id="x", turn="t1", kind="retraction", retracts="f4"))
    assert [f.id for f in store.undecided()] == ["f0", "f1", "f2", "f3", "f4"]
    store.write(interaction(feedback=("f0", "f1")), Skip(id="s", feedback="f2", turn="t1", reason="r", detail="d"))
    assert [f.id for f in store.undecided()] == ["f3", "f4"]
    page = store.undecided_after(0, 1)
    assert [turn_id for _, turn_id in page] == ["t1"]
    assert len(store.undecided_after(page[0][0], 10)) == 1
    assert store.held() == 1 and store.retracted() == {"f4"}


def test_usable_leaves_out_what_was_taken_back(store: Store) -> None:
    store.write(interaction("i1", feedback=("f1",)), interaction("i2", feedback=("f2", "f3")),
                Feedback(id="x", turn="t1", kind="retraction", retracts="f3"))  # fmt: skip
    assert [i.id for i in store.usable("train")] == ["i1"] and store.usable("holdout") == []


def test_spent_is_the_ancestry_of_what_is_served(store: Store) -> None:
    def candidate(name: str, parent: str | None, *made: str) -> Candidate:
        return Candidate(id=name, path=name, base="m", parent=parent, interactions=made, recipe={})

    release = next(r for r in SPINE if isinstance(r, Release))
    assert store.spent() == set() and store.release() is None
    store.write(candidate("k1", None, "i1"), candidate("k2", "k1", "i2"), candidate("rejected", "k2", "i3"))
    store.write(release, dataclasses.replace(release, id="l2", candidate="k2"))
    assert store.spent() == {"i1", "i2"} and store.spent("canary") == set()
    store.write(dataclasses.replace(release, id="l3", candidate=None, adapter=None, action="rollback"))
    served = store.release()
    assert store.spent() == set() and served is not None and served.id == "l3"
    newest = store.newest(Release, channel="default")
    assert newest == served and store.newest(Skip) is None


def test_lineage_holds_everything_that_came_of_a_turn(store: Store) -> None:
    other = Candidate(id="k9", path="p", base="m", parent=None, interactions=("i9",), recipe={})
    store.write(*SPINE, turn("t9"), interaction("i9", of="t9", feedback=("f9",)), other)
    assert {table: [r.id for r in rows] for table, rows in store.lineage("t1").items()} == {
        row.TABLE: [row.id] for row in SPINE
    }


def test_a_database_of_a_newer_version_is_refused(path: Path) -> None:
    Store.open(path).close()
    connection = connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(StoreError, match=r"schema 99.*newer version.*another --dir"):
        Store.open(path)


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"certainly not a database" * 100)
    with pytest.raises(StoreError, match="cannot open the database"):
        Store.open(path)
    assert path.read_bytes().startswith(b"certainly not")
    for place in (tmp_path, path / "below" / "a.db"):
        with pytest.raises(StoreError, match="cannot open the database"):
            Store.open(place)


def read_only(place: Path) -> sqlite3.Connection:
    """What `connect` meets in a folder that cannot be written; permissions do not hold for root."""
    connection = sqlite3.connect(f"file:{place}?mode=ro", uri=True, isolation_level=None)
    connection.execute("PRAGMA user_version=0")
    return connection


def test_a_database_that_cannot_be_written_can_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(path) as store:
        store.write(turn())
    monkeypatch.setattr("afterword.store.schema.connect", read_only)
    monkeypatch.setattr("afterword.store.store.connect", read_only)
    monkeypatch.setattr("afterword.store.writer.connect", read_only)
    with Store.open(path) as store:
        assert store.get(Turn, "t1") == turn(created_at=store.get(Turn, "t1").created_at)
        with pytest.raises(StoreError, match=r"readonly.*Nothing was stored; make the data directory writable"):
            store.write(turn("t2"))
        with pytest.raises(StoreError, match=r"readonly.*Nothing was exported"):
            store.note_export(path, "turns", "openai", None)
        assert store.counts()["turns"] == 1


def test_rows_in_a_log_that_cannot_be_read_are_never_passed_over(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(path) as store:
        store.write(turn())
        copy = path.parent / "copy"
        copy.mkdir()
        for name in ("afterword.db", "afterword.db-wal"):
            (copy / name).write_bytes((path.parent / name).read_bytes())
    monkeypatch.setattr("afterword.store.schema.connect", read_only)
    real = sqlite3.connect

    def no_index(place: str, **options: Any) -> sqlite3.Connection:
        if "mode=ro" in place and "immutable" not in place:  # nothing can be made in that folder
            raise sqlite3.OperationalError("unable to open database file")
        connection: sqlite3.Connection = real(place, **options)
        return connection

    monkeypatch.setattr("sqlite3.connect", no_index)
    with pytest.raises(StoreError, match="unable to open"):
        Store.open(copy / "afterword.db")


def test_migrations_are_applied_in_order_and_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open(path).close()
    monkeypatch.setattr("afterword.store.schema.MIGRATIONS", (*MIGRATIONS, "CREATE TABLE later (x);"))
    for _ in range(2):
        connection = open_database(path)
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
        assert connection.execute("SELECT count(*) FROM later").fetchone() == (0,)
        connection.close()


def _write_as_before(connection: sqlite3.Connection, record: Turn) -> None:
    """A turn as a version wrote it whose table has fewer columns."""
    columns = [str(row[1]) for row in connection.execute("PRAGMA table_info(turns)")][1:]
    row = encode(record)
    named = dict(zip(("id", "created_at", "digest", *SEARCHED["turns"], *ARRAYS, "body"), row.values, strict=True))
    marks = ", ".join("?" * len(columns))
    connection.execute(f"INSERT INTO turns ({', '.join(columns)}) VALUES ({marks})", [named[name] for name in columns])


def test_migration_9_keeps_old_turns_and_counts_what_was_not_linked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afterword.store.schema.MIGRATIONS", MIGRATIONS[:8])
    connection = open_database(path)
    _write_as_before(connection, turn("t1", user="ada", thread="0123456789abcdef0123456789abcdef"))
    connection.close()
    monkeypatch.undo()
    with Store.open(path) as store:
        assert store.write(turn("t1", user="ada", thread="0123456789abcdef0123456789abcdef")) == ["duplicate"]
        store.write(*(turn(f"n{n}", unlinked=("ambiguous", "unmatched")[n > 0]) for n in range(3)))
        assert store.unlinked() == {"unmatched": 2, "ambiguous": 1}
        with Eraser(path) as eraser:
            eraser.redact("ada", "era-1")
        assert store.find(Turn, "t1") is None and store.unlinked() == {"unmatched": 2, "ambiguous": 1}
        plan = store.read("EXPLAIN QUERY PLAN SELECT unlinked FROM turns t WHERE t.unlinked IS NOT NULL")
        assert "turns_unlinked" in str(list(plan))


def test_migration_6_leaves_empty_values_out_of_indexes_and_every_query_finds_its_index(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afterword.store.schema.MIGRATIONS", MIGRATIONS[:5])
    connection = open_database(path)
    for record in (turn("t1", user="ada", thread="x"), turn("t2", previous="t1"), turn("t3")):
        _write_as_before(connection, record)
    connection.close()
    monkeypatch.undo()
    with Store.open(path) as store:
        assert [row.id for row in store.rows(Turn, user="ada")] == ["t1"]
        assert [row.id for row in store.rows(Turn, previous=None)] == ["t1", "t3"]
        assert [row.id for row in store.leaves()] == ["t2", "t3"] and store.turns_of_thread("x") == ["t1"]
        assert (store.count(Turn, user="ada"), store.count(Turn, user=None), store.count(Turn)) == (1, 2, 3)
        for table, column in (("turns", "user"), ("turns", "previous"), ("turns", "thread"), ("feedback", "retracts")):
            for condition in (f"{column} = ?", f"{column} IN (?)"):
                plan = store.read(f"EXPLAIN QUERY PLAN SELECT id FROM {table} t WHERE t.{condition}", ("x",))
                assert f"{table}_{column}" in str(list(plan)), (table, column, condition)


def test_a_bulk_writer_waits_longer_to_copy_its_log_and_empties_it_at_the_end(path: Path) -> None:
    with Store.open(path) as store:
        store.write(turn("before"))
        with store.bulk():
            for n in range(200):
                store.write(
                    *(turn(f"t{n}-{i}", answer={"role": "assistant", "content": "x" * 4000}) for i in range(10))
                )
            copied = path.stat().st_size
        assert copied < 2_000_000 < path.stat().st_size
        store.write(turn("after"))
        assert store.count(Turn) == 2002


def test_two_that_migrate_at_once_do_it_once(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.db" for i in range(5)]
    for path in paths:
        connections = [connect(path) for _ in range(4)]
        threads = [threading.Thread(target=migrate, args=(c, path)) for c in connections]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for connection in connections:
            assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
            connection.close()


def test_a_failed_read_says_where(store: Store, path: Path) -> None:
    store.write(turn())
    connection = connect(path)
    connection.execute("DROP TABLE skips")
    connection.close()
    with pytest.raises(StoreError, match=r"cannot read .*afterword\.db"):
        store.count(Skip)


def test_closing_writes_what_is_queued(path: Path) -> None:
    store = Store.open(path)
    assert store.pending == 0
    futures = [store.submit([turn(f"t{i}")]) for i in range(200)]
    store.close()
    store.close()
    assert store.pending == 0
    assert all(future.done() for future in futures)
    with Store.open(path) as again:
        assert again.count(Turn) == 200


def test_a_closed_writer_refuses(path: Path) -> None:
    Store.open(path).close()
    writer = Writer(path)
    writer.close()
    writer.close()
    with pytest.raises(StoreError, match="is closed"):
        writer.submit([]).result(1)


def test_a_cancelled_submission_is_not_written(path: Path) -> None:
    with Store.open(path) as store:
        blocker = connect(path)
        blocker.execute("BEGIN IMMEDIATE")
        first = store.submit([turn("a")])
        while store.pending:
            pass
        second = store.submit([turn("b")])
        cancelled = second.cancel()
        blocker.execute("COMMIT")
        blocker.close()
        assert first.result(10) == ["stored"] and cancelled
        store.write(turn("c"))
        assert store.find(Turn, "b") is None


def test_readers_see_every_commit_while_rows_are_written(store: Store) -> None:
    faults: list[str] = []
    stop = threading.Event()

    def read() -> None:
        last = 0
        while not stop.is_set():
            number = store.count(Turn)
            seen = [t.id for t in store.rows(Turn, newest=True, limit=3)]
            if number < last or (number and seen[0] < f"t{number - 1:05d}"):
                faults.append(f"{number} after {last}, newest {seen}")
            last = number

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for i in range(150):
        store.write(turn(f"t{i:05d}"))
        assert store.find(Turn, f"t{i:05d}") is not None
    stop.set()
    for reader in readers:
        reader.join()
    assert faults == []


def test_split_and_kind_are_searched_columns_of_interactions(store: Store) -> None:
    store.write(interaction("i1"), interaction("i2", feedback=("f2",), split="holdout"))
    assert store.tally(Interaction, "split") == {"holdout": 1, "train": 1}


def test_what_a_reviewer_rejected_is_not_usable_until_approved_again(store: Store) -> None:
    store.write(interaction("i1"), interaction("i2", feedback=("f2",)), Review(id="w1", interaction="i1",
                decision="reject", why="a quotation"))  # fmt: skip
    assert [i.id for i in store.usable("train")] == ["i2"]
    store.write(Review(id="w2", interaction="i1", decision="approve"))
    assert [i.id for i in store.usable("train")] == ["i1", "i2"]
    assert store.reviews()["i1"].id == "w2"


def test_what_later_feedback_contradicted_is_not_usable(store: Store) -> None:
    def skip(name: str, feedback: str, at: float) -> Skip:
        return Skip(id=name, feedback=feedback, turn="t1", reason="contradictory", detail="d", created_at=at)

    store.write(interaction("i1", created_at=10.0), interaction("i2", of="t2", feedback=("f2",), created_at=10.0))
    store.write(skip("s0", "f8", 5.0))
    assert [i.id for i in store.usable("train")] == ["i1", "i2"]  # what was contradictory before is another matter
    store.write(skip("s1", "f9", 20.0))
    assert [i.id for i in store.usable("train")] == ["i2"]
    store.write(Feedback(id="x", turn="t1", kind="retraction", retracts="f9"))
    assert [i.id for i in store.usable("train")] == ["i1", "i2"]
