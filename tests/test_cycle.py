"""The policy of rounds: a failed one is remembered in the store, and a running one is shown by `status`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import afterword.cli.stages  # noqa: F401  (it binds the stages by name: loaded later, it would keep the replaced ones)
from afterword import cycle
from afterword.cli import main
from afterword.config import CycleConfig, TrainConfig
from afterword.errors import AfterwordError, ConflictError, ModelError, StoreError, UpstreamError
from afterword.feedback.select.select import SelectSettings
from afterword.records import Candidate, Feedback, Release, RoundAttempt, TrainingPlan, Turn
from afterword.store import Store
from afterword.train.run_state import write_run

WHEN = CycleConfig(interval=0.001, min_new=4)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "afterword.db") as store:
        _fill(store, range(12))
        yield store


def _fill(store: Store, numbers: range) -> None:
    """One complaint a turn, each of a conversation of its own."""
    for n in numbers:
        asked = {"role": "user", "content": f"What is {n} times 7?"}
        answer = {"role": "assistant", "content": f"It is a number near {n * 7 + 1}."}
        store.write(
            Turn(id=f"t{n}", messages=(asked,), answer=answer, user=f"u{n % 3}", conversation=f"c{n}"),
            Feedback(
                id=f"f{n}", turn=f"t{n}", kind="follow_up", text=f"That's wrong, it is {n * 7}.", user=f"u{n % 3}"
            ),
        )


def _settings(store: Store, **train: Any) -> cycle.Settings:
    return cycle.Settings(
        directory=store.path.parent,
        select=SelectSettings(min_effective=1, min_users=1),
        train=TrainConfig(off_policy=True, **train),
    )


def _watch(store: Store, **train: Any) -> list[cycle.Event]:
    """What one look leads to: a new `watch`, as after a restart."""
    events = cycle.watch(store, lambda *, model: _settings(store, **train), WHEN, cycle.Progress())
    found = [next(events)]
    assert isinstance(found[0], cycle.WatchStatus)
    if found[0].new >= found[0].needed and found[0].canary is None:
        found.append(next(events))
    return found


def _failing(monkeypatch: pytest.MonkeyPatch, error: AfterwordError) -> None:
    def train(store: Store, settings: cycle.Settings, progress: cycle.Progress, *_: object) -> None:
        with progress.bar("training", "steps"):
            raise error

    monkeypatch.setattr(cycle, "train_stage", train)


def test_a_failed_round_is_not_tried_again_after_a_restart(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, ModelError("no template"))
    first = _watch(store)
    assert isinstance(first[0], cycle.WatchStatus) and first[0].new >= WHEN.min_new
    assert isinstance(first[1], cycle.Failed) and first[1].attempt == store.newest(RoundAttempt)
    assert (first[1].attempt.stage, first[1].attempt.error) == ("training", "invalid_request_error")
    assert _watch(store) == [cycle.WatchStatus(0, 4, 0, None)]

    assert isinstance(_watch(store, seed=1)[1], cycle.Failed)  # other settings may fare better
    _fill(store, range(20, 32))
    assert isinstance(_watch(store)[1], cycle.Failed)  # and so may new interactions


def test_a_round_that_failed_for_its_surroundings_is_tried_again_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _failing(monkeypatch, UpstreamError("the engine did not start"))
    assert isinstance(_watch(store)[1], cycle.Failed)
    assert len(_watch(store)) == 1
    monkeypatch.setattr(cycle, "RETRY_AFTER", 0.0)
    assert isinstance(_watch(store)[1], cycle.Failed)


def test_a_failure_that_cannot_be_stored_does_not_end_the_watch(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, StoreError("the disk is full"))
    events = cycle.watch(store, lambda *, model: _settings(store), WHEN, cycle.Progress())
    first = next(events)
    assert isinstance(first, cycle.WatchStatus) and first.new >= WHEN.min_new

    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", full)
        assert isinstance(next(events), cycle.Failed)
    assert next(events) == cycle.WatchStatus(0, 4, 0, None) and store.count(RoundAttempt) == 0


def test_a_round_that_meets_another_process_is_tried_at_the_next_look(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _failing(monkeypatch, ConflictError("a training run works here"))
    assert isinstance(_watch(store)[1], cycle.Postponed)
    assert isinstance(_watch(store)[1], cycle.Postponed) and store.count(RoundAttempt) == 0


def test_interactions_that_the_training_excluded_start_no_second_round(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = Candidate(id="c", path="adapters/c", base="m", parent=None, interactions=(), recipe={})

    def learn(store: Store, *_: object) -> Any:
        store.write(candidate)
        return dataclasses.make_dataclass("Made", ["candidate"])(candidate)

    monkeypatch.setattr(cycle, "_learn", learn)
    assert len(_watch(store)) == 2 and len(_watch(store)) == 1
    # An erased user's candidate does not count: the interactions of the others are learned again.
    monkeypatch.setattr(Store, "tainted", lambda _: {"c": ()})
    assert len(_watch(store)) == 2


def test_a_round_that_finishes_a_killed_run_leaves_the_other_interactions_new(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = TrainingPlan(candidate="c", interactions=("older",), parent=None, model="m", settings={})
    write_run(store.path.parent, plan, "running")
    candidate = Candidate(id="c", path="adapters/c", base="m", parent=None, interactions=("older",), recipe={})

    def learn(store: Store, *_: object) -> Any:
        store.write(candidate)
        return dataclasses.make_dataclass("Made", ["candidate"])(candidate)

    monkeypatch.setattr(cycle, "_learn", learn)
    assert len(_watch(store)) == 2 and len(_watch(store)) == 2


def test_no_round_begins_while_a_canary_runs_and_its_interactions_stay_new(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _failing(monkeypatch, ModelError("no template"))
    running = Release(
        id="r", channel="default", adapter="a@v000002", path="adapters/c", previous=None, candidate="c", verdict=None,
        action="canary", why="",
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(Store, "canary", lambda *_: running)
        [waiting] = _watch(store)
    assert isinstance(waiting, cycle.WatchStatus) and waiting.canary == "a@v000002" and waiting.new >= WHEN.min_new
    assert isinstance(_watch(store)[1], cycle.Failed)


def test_status_shows_a_running_cycle_and_its_stage(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []
    home = str(store.path.parent)

    def train(store: Store, settings: cycle.Settings, progress: cycle.Progress, *_: object) -> None:
        with progress.bar("training", "steps"):
            assert main(["status", "--dir", home]) == 0
            shown.append(capsys.readouterr().out)
            assert main(["status", "--dir", home, "--json"]) == 0
            shown.append(capsys.readouterr().out)
        raise ModelError("enough")

    monkeypatch.setattr(cycle, "train_stage", train)
    _watch(store)
    assert "running a cycle, training since 20" in " ".join(shown[0].split())
    [work] = json.loads(shown[1])["running"]
    assert work["doing"] == "a cycle" and work["stage"] == "training" and work["since"] <= work["stage_since"]
    assert main(["status", "--dir", home, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["running"] == []
