"""Episodes in the store: read with their ends, rewards and turns; migrated, erased, exported and imported."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from afterword.cli import main
from afterword.feedback.importing.imports import import_file
from afterword.forget import forget_user
from afterword.records import Episode, EpisodeEnd, Feedback, Record, Turn
from afterword.store import Store, codec
from afterword.store.episodes import AFTER_END, current, episode_view, statuses
from afterword.store.schema import MIGRATIONS
from tests.store.store_rows import SPINE, turn


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "data" / "afterword.db")


def within(name: str, index: int, previous: str | None = None, **extra: object) -> Turn:
    return turn(name, episode_id="ep", episode_index=index, previous=previous, **extra)


def reward(name: str, value: float | None, on: str = "ep", **metadata: object) -> Feedback:
    return Feedback(id=name, turn=on, kind="outcome", value=value, metadata={"episode": "ep", **metadata})


def test_the_newest_reward_counts_and_earlier_ones_are_kept(store: Store) -> None:
    store.write(
        Episode(id="ep", task_id="t"), within("a", 0), reward("r1", 1.0, rubric={"tone": 0.5}, metrics={"steps": 3}),
        reward("r2", 0.25, rubric={"facts": None}), reward("r3", None, unset=["value"], rubric={"tone": 1.0}),
        reward("r4", 2.0, on="a"), reward("r5", -1.0, on="a"),
    )  # fmt: skip
    view = episode_view(store, "ep")
    assert (view.episode.outcome, view.episode.rubric) == (0.25, {"tone": 1.0, "facts": None})
    assert view.episode.metrics == {"steps": 3} and [row.id for row in view.rewards] == ["r1", "r2", "r3"]
    assert view.turns[0].reward == -1.0 and view.episode.status == "finished"
    store.write(reward("r6", None))
    assert episode_view(store, "ep").episode.outcome is None, "a reward of None cannot be scored"
    store.write(Feedback(id="x", turn="ep", kind="retraction", retracts="r6"))
    assert current(store, [store.get(Episode, "ep")])[0].outcome == 0.25
    assert store.held() == 0


def test_the_newest_end_counts(store: Store) -> None:
    store.write(
        Episode(id="ep"), Episode(id="other"), within("a", 0, created_at=50.0), within("b", 1, "a", created_at=150.0),
        EpisodeEnd(id="e1", episode="ep", status="truncated", reason="turns", ended_at=100.0),
    )  # fmt: skip
    view = episode_view(store, "ep")
    assert (view.episode.status, view.episode.reason) == ("truncated", "turns")
    assert [one.outside for one in view.turns] == [None, AFTER_END]
    store.write(EpisodeEnd(id="e2", episode="ep", status="failed", ended_at=200.0, metrics={"cost": 1}))
    view = episode_view(store, "ep")
    assert (view.episode.status, view.episode.reason, view.episode.metrics) == ("failed", None, {"cost": 1})
    assert [one.outside for one in view.turns] == [None, None] and statuses(store) == {"failed": 1, "running": 1}


def test_turns_are_a_tree(store: Store) -> None:
    store.write(
        Episode(id="ep"), within("a", 0), within("b", 1, "a", adapter="v1"), within("title", 2, automated="task"),
        within("c", 3, "a", adapter="v1"), within("d", 4, "c"), within("elsewhere", 5, "of-another-episode"),
    )  # fmt: skip
    view = episode_view(store, "ep")
    assert [[one.turn.id for one in branch] for branch in view.branches()] == [
        ["a", "b"],
        ["a", "c", "d"],
        ["elsewhere"],
    ]
    assert view.versions == ("base", "v1") and [one.turn.id for one in view.turns if one.outside] == ["title"]


def test_a_database_of_schema_12_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "old.db"
    old = turn("old", user="ada")
    with monkeypatch.context() as before:
        before.setattr("afterword.store.schema.MIGRATIONS", MIGRATIONS[:12])
        Store.open(path).close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (12,)
        row = codec.encode(old)
        columns = ("id", "created_at", "digest", *(c for c in codec.SEARCHED["turns"] if c != "episode_id"),
                   *codec.ARRAYS, "body")  # fmt: skip
        at = codec._columns("turns").index("episode_id")
        values = (*row.values[:at], *row.values[at + 1 :])
        connection.execute(f"INSERT INTO turns ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})", values)
    connection.close()
    with Store.open(path) as store:
        assert store.get(Turn, "old") == old and store.write(old) == ["duplicate"]
        assert store.write(Episode(id="ep"), within("a", 0)) == ["stored", "stored"]
        assert [one.turn.id for one in episode_view(store, "ep").turns] == ["a"]


def test_forgetting_a_user_takes_arguments_and_observations_of_their_episodes(tmp_path: Path) -> None:
    home = tmp_path / "data"
    secret = "the cat is called Bartholomew the Third"
    call = {"id": "c1", "type": "function", "function": {"name": "ask", "arguments": f'{{"q": "{secret}"}}'}}
    rows: list[Record] = [
        Episode(id="ep", user="ada", metadata={"about": secret}),
        within("a", 0, answer={"role": "assistant", "content": None, "tool_calls": [call]}),
        within("b", 1, messages=({"role": "tool", "tool_call_id": "c1", "content": secret},)),
        reward("r", 1.0, note=secret), EpisodeEnd(id="e", episode="ep", status="finished", ended_at=1.0),
        Episode(id="below", parent_id="ep"),
        turn("c", episode_id="below", messages=({"role": "user", "content": secret},)),
        Episode(id="bobs", user="bob"), turn("d", episode_id="bobs", user="bob"),
    ]  # fmt: skip
    with Store.open(home / "afterword.db") as store:
        assert set(store.write(*rows)) == {"stored"}
        assert forget_user(store, "ada")["clean"]
        assert [row.id for row in store.rows(Episode)] == ["bobs"] and [row.id for row in store.rows(Turn)] == ["d"]
        assert not list(store.rows(EpisodeEnd)) and not list(store.rows(Feedback))
        assert store.write(within("late", 2), reward("late", 1.0)) == ["forgotten", "forgotten"]
    assert all(secret.encode() not in file.read_bytes() for file in home.rglob("*") if file.is_file())


def test_export_and_import_keep_episodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, copy = tmp_path / "a", tmp_path / "b"
    with Store.open(source / "afterword.db") as store:
        store.write(
            *(row for row in SPINE if isinstance(row, Episode)), turn("t", episode_id="ep1", episode_index=0),
            Feedback(id="r", turn="ep1", kind="outcome", value=0.5, metadata={"episode": "ep1"}),
            EpisodeEnd(id="e", episode="ep1", status="finished", ended_at=3.0),
        )  # fmt: skip
        wanted = episode_view(store, "ep1")
    for what in ("episodes", "turns", "feedback"):
        file = tmp_path / f"{what}.jsonl"
        assert main(["export", what, "--output", str(file), "--dir", str(source)]) == 0
        with Store.open(copy / "afterword.db") as store:
            assert import_file(store, file).rejected == {}
    with Store.open(copy / "afterword.db") as store:
        assert episode_view(store, "ep1") == wanted
    capsys.readouterr()
    assert main(["episodes", "list", "--dir", str(copy)]) == 0
    assert "walk/7" in capsys.readouterr().out
    assert main(["episodes", "show", "ep", "--dir", str(copy)]) == 0
    shown = capsys.readouterr().out
    assert "turn 0" in shown and "reward 0.5" in shown and "seed 7" in shown
