"""Channels: names, what lies beneath, and what the rows of one add up to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from afterword.errors import UsageError
from afterword.records import Release
from afterword.store import Store
from afterword.store.channels import Serving, channel_name, channels_of, check_channel, serving, wider


def row(id: str, number: int | None, action: str = "publish", channel: str = "default", **more: Any) -> Release:
    name = None if number is None else f"a@v{number:06d}"
    folder = name and f"adapters/{number}"
    return Release(id=id, channel=channel, adapter=name, candidate=name, path=folder, verdict=None, previous=None,
                   action=action, why="test", **more)  # type: ignore[arg-type]  # fmt: skip


def test_names_go_from_narrow_to_wide() -> None:
    assert channels_of("ada", "legal", "code") == (
        "user:ada/task:code", "user:ada", "team:legal/task:code", "team:legal", "task:code",
    )  # fmt: skip
    assert channels_of(None, None, "code") == ("task:code",) and channels_of(None, None, None) == ()
    assert channel_name() == "default" and channel_name(user="a/b", task="ü:1") == "user:a%2Fb/task:%C3%BC%3A1"
    assert wider("team:legal/task:code") == ("team:legal", "task:code", "default")
    assert wider("task:code") == ("default",) and wider("staging") == () == wider("default")


@pytest.mark.parametrize("name", ["default", "staging", "task:code", "user:a%2Fb/task:c", "team:x/task:y"])
def test_names_that_are_channels(name: str) -> None:
    assert check_channel(name) == name


@pytest.mark.parametrize("name", ["", " ", "task:", "task:a b", "task:a/user:b", "group:x", "user:a/team:b", "a/b"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UsageError, match="is not a channel"):
        check_channel(name)


def test_the_rows_of_a_channel_add_up() -> None:
    one, two, try3 = row("1", 1), row("2", 2), row("3", 3, "canary", share=0.1)
    assert serving([]) == Serving() and serving([]).adapter is None
    assert serving([one]).before is None and serving([one]).adapter == "a@v000001"
    assert serving([one, two, try3]) == Serving(two, one, try3, try3)
    back = row("4", 2, "rollback")
    assert serving([one, two, try3, back]) == Serving(back, one, None, back)
    up = row("5", 3, "promote")
    assert serving([one, two, try3, up]) == Serving(up, two, None, up)
    assert serving([try3, row("6", None, "rollback")]).before is None


def test_a_share_is_sticky_and_as_large_as_it_says() -> None:
    canary, other = row("rel-1", 1, "canary", share=0.25), row("rel-2", 1, "canary", share=0.25)
    units = [f"u{i}" for i in range(4000)]
    inside = [u for u in units if canary.gets(u)]
    assert 0.22 < len(inside) / 4000 < 0.28 and inside == [u for u in units if canary.gets(u)]
    both = [u for u in inside if other.gets(u)]
    assert 0.18 < len(both) / len(inside) < 0.32, "another canary draws anew"
    assert not any(row("r", 1).gets(u) for u in units)


def test_what_a_channel_serves(tmp_path: Path) -> None:
    with Store.open(tmp_path / "afterword.db") as store:
        assert store.release("task:code") is None and store.canary() is None
        store.write(row("1", 1), row("2", 2, "canary", share=0.5))
        canary = store.canary()
        assert canary is not None and canary.id == "2" and store.canary("task:code") is None
        for channel, served in (("default", "1"), ("task:code", "1"), ("user:ada/task:code", "1")):
            found = store.release(channel)
            assert found is not None and found.id == served
        assert store.release("staging") is None
        store.write(row("3", 3, channel="task:code"))
        narrow = store.release("user:ada/task:code")
        assert narrow is not None and narrow.id == "3"
        store.write(row("4", None, "rollback", channel="task:code"))
        back = store.release("task:code")
        assert back is not None and back.id == "1"
