"""Publishing and rolling back: names, races, what is refused."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import afterword.release.publish as module
from afterword.errors import (
    AdapterError,
    AfterwordError,
    ConflictError,
    GateRefused,
    NotFoundError,
    NothingToDo,
    UsageError,
)
from afterword.records import Candidate, Release, Report, Verdict
from afterword.release.gate import overridden
from afterword.release.publish import publish, rollback, served_stack
from afterword.store import Store
from afterword.store.locks import alone

from .conftest import Ready


def test_publish_names_versions_and_links_releases(store: Store, ready: Ready) -> None:
    first = publish(store, *ready("c1"))
    second = publish(store, *ready("c2", "c1"))
    assert (first.adapter, first.previous, first.candidate, first.path) == (
        "afterword@v000001",
        None,
        "c1",
        "adapters/c1",
    )
    assert (second.adapter, second.previous, second.verdict) == ("afterword@v000002", first.id, "ver-c2")
    assert (second.action, second.why) == ("publish", "the gate passed")
    assert store.release() == second


def test_a_candidate_keeps_its_version(store: Store, ready: Ready) -> None:
    one, two = ready("c1"), ready("c2", "c1")
    publish(store, *one)
    publish(store, *two)
    rollback(store, to="base")
    assert publish(store, *one).adapter == "afterword@v000001"
    other = publish(store, *ready("c3"), channel="support")
    assert other.adapter == "afterword@v000003"
    assert publish(store, *ready("d1"), channel="x", name="bot").adapter == "bot@v000001"


def test_what_is_served_already_is_nothing_to_do(store: Store, ready: Ready) -> None:
    one = ready("c1")
    publish(store, *one)
    with pytest.raises(NothingToDo, match="serves c1 already, as afterword@v000001"):
        publish(store, *one)
    assert store.count(Release) == 1


def test_a_stale_comparison_is_refused(store: Store, ready: Ready) -> None:
    one, two = ready("c1"), ready("c2")
    publish(store, *one)
    with pytest.raises(ConflictError, match="compared with the base model, but channel 'default' now serves c1"):
        publish(store, *two)
    rollback(store)
    three = ready("c3", "c1")
    with pytest.raises(ConflictError, match=r"compared with c1, but .* serves the base model"):
        publish(store, *three)


def test_the_gate_is_obeyed_unless_a_person_signs(store: Store, ready: Ready) -> None:
    candidate, refused = ready("c1", passed=False)
    with pytest.raises(GateRefused, match="because"):
        publish(store, candidate, refused)
    signed = overridden(refused, by="ada", why="a demo")
    with pytest.raises(NotFoundError, match="write it before"):
        publish(store, candidate, signed)
    store.write(signed)
    assert publish(store, candidate, signed).why == "overridden by ada: a demo"


def test_verdict_and_report_must_be_about_the_candidate(store: Store, ready: Ready) -> None:
    one, (other, _) = ready("c1"), ready("c2")
    with pytest.raises(UsageError, match="is about c1, not about c2"):
        publish(store, other, one[1])
    mixed = Verdict(id="ver-x", candidate="c2", report="rep-c1", passed=True, reasons=())
    silent = Report(id="rep-silent", candidate="c2", against=None, suites={})
    unmeasured = Verdict(id="ver-y", candidate="c2", report="rep-silent", passed=True, reasons=())
    store.write(mixed, silent, unmeasured)
    with pytest.raises(UsageError, match="rep-c1 is about c1"):
        publish(store, other, mixed)
    with pytest.raises(AdapterError, match="does not say which bytes"):
        publish(store, other, unmeasured)


def test_a_folder_that_changed_or_went_is_refused(store: Store, ready: Ready, tmp_path: Path) -> None:
    one, two = ready("c1"), ready("c2")
    (tmp_path / "adapters/c1/adapter_config.json").write_text("{}")
    with pytest.raises(AdapterError, match="changed after it was measured"):
        publish(store, *one)
    shutil.rmtree(tmp_path / "adapters/c2")
    with pytest.raises(AdapterError, match="moved or deleted"):
        publish(store, *two)
    assert store.release() is None


def test_a_candidate_of_another_base_than_was_measured_is_refused(store: Store, ready: Ready) -> None:
    candidate, verdict = ready("c1")
    about = store.get(Report, verdict.report).about | {"base_hash": "0" * 32}
    report = Report(id="rep-other", candidate="c1", against=None, suites={}, about=about)
    other = Verdict(id="ver-other", candidate="c1", report="rep-other", passed=True, reasons=())
    store.write(report, other)
    with pytest.raises(AdapterError, match="another base model"):
        publish(store, candidate, other)
    assert store.release() is None


def test_rollback_goes_further_back_each_time(store: Store, ready: Ready) -> None:
    for name, against in (("c1", None), ("c2", "c1"), ("c3", "c2")):
        publish(store, *ready(name, against))
    served = [rollback(store, why="worse").candidate for _ in range(3)]
    assert served == ["c2", "c1", None]
    last = store.release()
    assert last is not None and (last.adapter, last.path, last.verdict, last.action) == (None, None, None, "rollback")
    with pytest.raises(NothingToDo, match="no release to take back"):
        rollback(store)


@pytest.mark.parametrize("to", ["afterword@v000001", "c1", "release id"])
def test_rollback_to_a_named_version(store: Store, ready: Ready, to: str) -> None:
    first = publish(store, *ready("c1"))
    publish(store, *ready("c2", "c1"))
    publish(store, *ready("c3", "c2"))
    back = rollback(store, to=first.id if to == "release id" else to)
    assert (back.candidate, back.adapter, back.path) == ("c1", "afterword@v000001", "adapters/c1")
    assert back.why == "rolled back from afterword@v000003"
    with pytest.raises(NothingToDo, match="already"):
        rollback(store, to="c1")
    forward = rollback(store, to="afterword@v000003")
    assert forward.candidate == "c3"
    assert rollback(store).candidate is None


def test_rollback_refuses_the_unknown_and_the_empty(store: Store, ready: Ready) -> None:
    with pytest.raises(NothingToDo, match="no release to take back"):
        rollback(store)
    publish(store, *ready("c1"))
    with pytest.raises(NotFoundError, match="never served 'c9'"):
        rollback(store, to="c9")
    base = rollback(store, to="afterword@base")
    assert base.candidate is None
    with pytest.raises(NothingToDo, match="serves the base model already"):
        rollback(store, to="base")


def test_rollback_to_missing_or_changed_files(store: Store, ready: Ready, tmp_path: Path) -> None:
    publish(store, *ready("c1"))
    publish(store, *ready("c2", "c1"))
    (tmp_path / "adapters/c1/adapter_config.json").write_text("{}")
    with pytest.raises(AdapterError, match=r"cannot roll back to afterword@v000001: .*changed after"):
        rollback(store)
    shutil.rmtree(tmp_path / "adapters/c1")
    with pytest.raises(AdapterError, match=r"cannot roll back to afterword@v000001: .*moved or deleted.*--to base"):
        rollback(store)
    assert rollback(store, to="base").candidate is None


def test_a_held_lock_is_a_clear_error(
    store: Store, ready: Ready, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.05)
    one = ready("c1")
    with (
        pytest.raises(ConflictError, match="another release works on"),
        ThreadPoolExecutor(1) as beside,
        alone(tmp_path, "release", "another release"),
    ):
        beside.submit(publish, store, *one).result()
    assert publish(store, *one).candidate == "c1"


def _race(path: Path, name: str, start: Callable[[], object], out: multiprocessing.Queue) -> None:
    with Store.open(path) as store:
        candidate, verdict = store.get(Candidate, name), store.get(Verdict, f"ver-{name}")
        start()
        try:
            out.put((name, publish(store, candidate, verdict).adapter))
        except AfterwordError as error:
            out.put((name, type(error).__name__))


@pytest.mark.parametrize("names", [("c1", "c2"), ("c1", "c1")])
def test_of_two_processes_one_wins(store: Store, ready: Ready, tmp_path: Path, names: tuple[str, str]) -> None:
    for name in set(names):
        ready(name)
    context = multiprocessing.get_context("spawn")
    barrier, out = context.Barrier(2), context.Queue()
    workers = [
        context.Process(target=_race, args=(tmp_path / "afterword.db", name, barrier.wait, out)) for name in names
    ]
    for worker in workers:
        worker.start()
    found = sorted(out.get(timeout=60)[1] for _ in workers)
    for worker in workers:
        worker.join(60)
    assert found == sorted(["afterword@v000001", "NothingToDo" if names[0] == names[1] else "ConflictError"])
    assert store.count(Release) == 1


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["publish", "rollback", "base"]), max_size=12))
def test_the_stack_is_what_a_rollback_unwinds(ready: Ready, store: Store, actions: list[str]) -> None:
    """Against a plain list: publish pushes, rollback pops, base empties."""
    channel = f"ch{store.count(Release)}-{len(actions)}-{store.count(Candidate)}"
    model: list[str] = []
    for action in actions:
        if action == "publish":
            name = f"c{store.count(Candidate)}"
            publish(store, *ready(name, model[-1] if model else None), channel=channel)
            model.append(name)
        elif model:
            rollback(store, channel, to="base" if action == "base" else None)
            model = [] if action == "base" else model[:-1]
        served = store.release(channel)
        assert (served.candidate if served else None) == (model[-1] if model else None)
        assert [release.candidate for release in served_stack(store, channel)] == model
