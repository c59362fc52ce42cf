"""Signed manifests: a changed byte is found wherever it lies, and so is a release that was taken out."""

from __future__ import annotations

import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from afterword.errors import ConfigError, StoreError
from afterword.records import Release
from afterword.release.publish import promote, publish, rollback, start_canary
from afterword.release.signed_chain import PUBLIC, SECRET, replay, signed, trusted, verify
from afterword.store import Store

from .conftest import Ready, write_adapter


@pytest.fixture
def history(store: Store, ready: Ready) -> Store:
    """Published, tried, promoted, rolled back, and a second channel."""
    publish(store, *ready("c1"))
    start_canary(store, *ready("c2", "c1"))
    promote(store)
    publish(store, *ready("d1", "c2"), channel="task:code")
    rollback(store, why="worse")
    return store


def force(path: Path, *statements: str) -> None:
    """Change the database as its own triggers would not allow."""
    with sqlite3.connect(path) as database:
        for table in ("releases", "reports", "verdicts"):
            for event in ("update", "delete"):
                database.execute(f"DROP TRIGGER IF EXISTS {table}_no_{event}")
        for statement in statements:
            database.execute(statement)
    database.close()


def test_an_untouched_history_is_whole_and_replays(history: Store) -> None:
    found = verify(history)
    assert found.releases == 5 and found.problems == () == found.notes
    assert {c: s.adapter for c, s in found.serving.items()} == {
        "default": "afterword@v000001", "task:code": "afterword@v000003",
    }  # fmt: skip
    assert found.serving == replay(history)
    for channel, state in found.serving.items():
        served = history.release(channel)
        assert served is not None and served == state.served


def test_the_key_is_its_owners_alone_and_the_public_one_is_enough(history: Store, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / SECRET).stat().st_mode) == 0o600
    (public,) = trusted(tmp_path)
    (tmp_path / SECRET).unlink()
    assert verify(history, key=public).problems == ()
    other = verify(history, key="ab" * 32).problems
    assert len(other) == 5 and all("unknown key" in p for p in other)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("adapter_model.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1])),
        ("adapter_config.json", lambda b: b + b" "),
        ("afterword.json", lambda b: b.replace(b"tiny", b"tint")),
        ("extra.txt", lambda b: b"new"),
        ("afterword.json", None),
    ],
)
def test_a_changed_byte_in_a_file_is_found(
    history: Store, tmp_path: Path, name: str, change: Callable[[bytes], bytes] | None
) -> None:
    path = tmp_path / "adapters/c2" / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes() if path.exists() else b""))
    (problem,) = verify(history).problems
    assert f"adapters/c2/{name} of afterword@v000002" in problem


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE releases SET body = replace(CAST(body AS TEXT), 'worse', 'wurse') WHERE seq = 5", "was changed after"),
        ("UPDATE releases SET body = replace(CAST(body AS TEXT), '0.1,', '0.9,') WHERE seq = 2", "was changed after"),
        ("UPDATE releases SET created_at = created_at + 1 WHERE seq = 3", "was changed after"),
        ("DELETE FROM releases WHERE seq = 3", "was changed, added or taken out"),
        ("DELETE FROM releases WHERE seq = 1", "follows rel-"),
        ("UPDATE reports SET body = replace(CAST(body AS TEXT), '{}', '{\"x\": 1}') WHERE id = 'rep-c2'", "its report"),
        ("UPDATE verdicts SET body = replace(CAST(body AS TEXT), 'because', 'becausf')", "its verdict"),
    ],
)
def test_a_changed_row_is_found(history: Store, tmp_path: Path, statement: str, says: str) -> None:
    force(tmp_path / "afterword.db", statement)
    problems = verify(history).problems
    assert problems and any(says in problem for problem in problems), problems


def test_a_row_that_nobody_signed_is_found(history: Store) -> None:
    last = history.newest(Release, channel="default")
    assert last is not None
    history.write(
        Release(
            id="rel-zzz",
            channel="default",
            adapter="afterword@v000009",
            candidate="c9",
            path="adapters/c9",
            verdict=None,
            previous=last.id,
            action="publish",
            why="trust me",
        )
    )
    problems = " ".join(verify(history).problems)
    assert "it is not signed" in problems and "it has no verdict" in problems and "adapters/c9" in problems


def test_files_that_went_matter_only_while_they_may_be_served(history: Store, tmp_path: Path) -> None:
    for name in ("c3", "c4"):
        against = history.release()
        assert against is not None
        write_adapter(tmp_path / "unused" / name)
    shutil.rmtree(tmp_path / "adapters/d1")
    (problem,) = verify(history).problems
    assert "the folder adapters/d1 of afterword@v000003 is gone" in problem
    rollback(history, "task:code")
    rollback(history)
    found = verify(history)
    assert "adapters/d1" in " ".join(found.notes + found.problems)


def test_a_folder_never_changes_after_its_first_release(history: Store, ready: Ready, tmp_path: Path) -> None:
    note = (tmp_path / "adapters/c1/afterword.json").read_text()
    assert '"verdict": "ver-c1"' in note and '"report": "rep-c1"' in note
    rollback(history)
    rollback(history, to="c1")
    assert (tmp_path / "adapters/c1/afterword.json").read_text() == note
    assert verify(history).problems == ()


def test_a_lost_key_means_a_new_one_and_old_releases_stay_proved(history: Store, ready: Ready, tmp_path: Path) -> None:
    (tmp_path / SECRET).unlink()
    rollback(history)
    assert len(trusted(tmp_path)) == 2 and verify(history).problems == ()


def test_a_broken_key_is_no_reason_to_sign_with_another(history: Store, tmp_path: Path) -> None:
    (tmp_path / SECRET).write_text("not a key")
    before = history.count(Release)
    with pytest.raises(ConfigError, match="is no signing key"):
        rollback(history)
    assert history.count(Release) == before
    (tmp_path / PUBLIC).write_bytes(b"\xff")
    with pytest.raises(StoreError, match="public keys"):
        verify(history)


@pytest.mark.parametrize(("key", "signature"), [("zz", "00"), ("00" * 32, "00" * 64), ("00", "00")])
def test_nonsense_is_no_signature(key: str, signature: str) -> None:
    assert not signed(b"message", key, signature)
