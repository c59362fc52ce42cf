"""The drift monitor: falls after a release are seen, ups and equal windows are not; the way back skips what is gone."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest

from afterword.records import Alarm, Feedback, Record, Release, Turn
from afterword.release.canary_monitor import SLOW, CanaryMonitor
from afterword.release.channel_status import channel_status
from afterword.release.publish import publish, rollback
from afterword.release.settings import DriftSettings
from afterword.store import Store

from .conftest import Ready

QUICK = DriftSettings(window=100, settle=0.0)


def nobody(turn: Turn, feedback: Feedback) -> int:
    return 0


def served(store: Store, adapter: str | None, turns: int, accepted: float, seed: int = 0) -> None:
    """Turns of 40 users who accept or retry."""
    dice = random.Random(f"{adapter}/{seed}")
    rows: list[Record] = []
    for number in range(turns):
        name = f"{adapter}-{seed}-{number}"
        user = f"u{dice.randrange(40)}"
        rows.append(Turn(id=name, messages=(), answer={}, user=user, unit=user, adapter=adapter, finish_reason="stop"))
        kind = "accepted" if dice.random() < accepted else "retried"
        rows.append(Feedback(id=f"fb-{name}", turn=name, kind=kind))
    store.write(*rows)


def looked(watch: CanaryMonitor) -> list[Release]:
    return [row for _ in range(SLOW) for row in watch.tick()]


def test_a_release_that_does_worse_than_the_one_before_is_seen(store: Store, ready: Ready) -> None:
    publish(store, *ready("c1"))
    served(store, "afterword@v000001", 100, 0.8)
    second = publish(store, *ready("c2", "c1"))
    watch = CanaryMonitor(store, nobody, QUICK)
    served(store, "afterword@v000002", 99, 0.2)
    assert looked(watch) == [] and store.count(Alarm) == 0, "a window has to be complete"
    served(store, "afterword@v000002", 1, 0.2, seed=1)
    assert looked(watch) == [], "an alarm alone changes nothing"
    alarm = store.newest(Alarm)
    assert alarm is not None and (alarm.release, alarm.adapter) == (second.id, "afterword@v000002")
    assert alarm.against == "afterword@v000001" and "does worse than afterword@v000001" in alarm.why
    assert alarm.evidence["figures"]["approval"]["high"] < -0.1
    looked(watch)
    looked(CanaryMonitor(store, nobody, QUICK))
    assert store.count(Alarm) == 1, "said once"
    (shown,) = channel_status(store, nobody)["channels"]["default"]["alarms"]
    assert shown["id"] == alarm.id


def test_a_version_that_falls_is_compared_with_its_own_beginning(store: Store, ready: Ready) -> None:
    publish(store, *ready("c1"))
    watch = CanaryMonitor(store, nobody, QUICK)
    for seed in range(3):
        served(store, "afterword@v000001", 100, 0.8, seed)
    looked(watch)
    assert store.count(Alarm) == 0
    served(store, "afterword@v000001", 100, 0.2, seed=3)
    looked(watch)
    alarm = store.newest(Alarm)
    assert alarm is not None and alarm.against == "its first turns"


def test_a_rise_and_no_change_raise_no_alarm(store: Store, ready: Ready) -> None:
    served(store, None, 200, 0.3)
    publish(store, *ready("c1"))
    watch = CanaryMonitor(store, nobody, QUICK)
    for seed, share in enumerate((0.5, 0.5, 0.8, 0.8, 0.5, 0.5)):
        served(store, "afterword@v000001", 100, share, seed)
    looked(watch)
    assert store.count(Alarm) == 0


def test_users_get_time_to_react(store: Store, ready: Ready) -> None:
    publish(store, *ready("c1"))
    served(store, "afterword@v000001", 100, 0.9)
    publish(store, *ready("c2", "c1"))
    served(store, "afterword@v000002", 100, 0.1)
    patient = DriftSettings(window=100, settle=600.0)
    looked(CanaryMonitor(store, nobody, patient))
    assert store.count(Alarm) == 0
    looked(CanaryMonitor(store, nobody, patient, clock=lambda: time.time() + 601))
    assert store.count(Alarm) == 1


def fallen(store: Store, ready: Ready) -> CanaryMonitor:
    """v1, v2, v3 were published and v3 falls."""
    before: str | None = None
    for number in (1, 2, 3):
        publish(store, *ready(f"c{number}", before))
        before = f"c{number}"
        served(store, f"afterword@v00000{number}", 100, 0.1 if number == 3 else 0.8)
    return CanaryMonitor(store, nobody, DriftSettings(window=100, settle=0.0, rollback=True))


def test_where_it_is_wanted_the_version_before_is_served_again(store: Store, ready: Ready) -> None:
    watch = fallen(store, ready)
    (row,) = looked(watch)
    assert (row.action, row.adapter) == ("rollback", "afterword@v000002") and "drift monitor" in row.why
    assert row.evidence["figures"]["approval"]["high"] < 0
    assert looked(watch) == []


def test_a_version_whose_files_are_gone_is_passed_over(store: Store, ready: Ready, tmp_path: Path) -> None:
    watch = fallen(store, ready)
    shutil.rmtree(tmp_path / "adapters/c2")
    (row,) = looked(watch)
    assert row.adapter == "afterword@v000001"


def test_the_base_model_is_always_there(store: Store, ready: Ready, tmp_path: Path) -> None:
    watch = fallen(store, ready)
    for name in ("c1", "c2"):
        shutil.rmtree(tmp_path / "adapters" / name)
    (row,) = looked(watch)
    assert row.adapter is None


def test_someone_else_was_faster(store: Store, ready: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = fallen(store, ready)
    real = store.write

    def late(*rows: Record) -> object:
        monkeypatch.setattr(store, "write", real)
        written = real(*rows)
        rollback(store, why="by hand")
        return written

    monkeypatch.setattr(store, "write", late)
    assert looked(watch) == []
    newest = store.release()
    assert newest is not None and newest.why == "by hand"


def test_false_alarms_stay_rare_over_a_long_life(store: Store, ready: Ready) -> None:
    publish(store, *ready("c1"))
    watch = CanaryMonitor(store, nobody, DriftSettings(window=20, settle=0.0, min_effect=0.0001))
    served(store, "afterword@v000001", 3000, 0.5)
    looked(watch)
    assert store.count(Alarm) == 0


def test_live_figures_by_version(store: Store, ready: Ready) -> None:
    served(store, None, 50, 0.2)
    publish(store, *ready("c1"))
    served(store, "afterword@v000001", 50, 0.9)
    channel = channel_status(store, nobody)["channels"]["default"]
    new, old = channel["versions"]
    assert (new["version"], old["version"]) == ("afterword@v000001", "base") and new["turns"] == old["turns"] == 50
    assert new["approval"] > 0.4 > -0.3 > old["approval"] and channel["canary"] is None
