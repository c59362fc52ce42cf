"""The driver: streaming, idempotence, splits, peers, the funnel."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from afterword.feedback import CollectSettings
from afterword.feedback.collect import workers
from afterword.feedback.collect.collect import collect
from afterword.feedback.collect.decide import split_of
from afterword.records import Feedback, Interaction, Record, Skip, Turn
from afterword.store import Store
from afterword.store.attribution import ConversationRoots
from tests.feedback.feedback_builders import decided, feedback, turn

module = importlib.import_module("afterword.feedback.collect.collect")
"""The package exports the function under the module's name."""
PATIENT = CollectSettings(wait_seconds=1e12)
TEXTS = ("Shorter, please.", "Thanks!", "Who invented the telephone?", "Why six minutes?", "go on", "That's wrong.")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "afterword.db"


def fill(store: Store, turns: int, seed: int = 0) -> None:
    dice = random.Random(seed)
    rows: list[Record] = [
        turn(f"t{i}", f"Boil {i} eggs for {i} minutes, cool {i}.", conversation=f"c{i // 3}") for i in range(turns)
    ]
    later: list[Record] = []
    for i in range(turns):
        rows.append(feedback("follow_up", f"f{i}", f"t{i}", text=dice.choice(TEXTS)))
        if i % 4 == 0:  # far away from the first one of its turn
            later.append(feedback("rating", f"r{i}", f"t{i}", value=dice.choice((-1.0, 1.0))))
    store.write(*rows, *later)


def contents(store: Store) -> tuple[list[Interaction], list[Skip]]:
    return list(store.rows(Interaction)), list(store.rows(Skip))


def test_every_row_is_decided_once_and_the_funnel_sums_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 7)
    seen: list[int] = []
    with Store.open(path) as store:
        fill(store, 100)
        funnel = collect(store, progress=seen.append)
        made, skips = contents(store)
    assert funnel.captured == funnel.paired == 100 and funnel.feedback == 125
    assert funnel.feedback == funnel.kept + sum(funnel.skipped.values()) + sum(funnel.waiting.values())
    assert funnel.interactions == funnel.train + funnel.holdout == len(made)
    assert funnel.stored == len(made) + len(skips) and funnel.known == 0
    decided = [f for i in made for f in i.feedback] + [s.feedback for s in skips]
    assert len(decided) == len(set(decided)) == 125
    assert seen == sorted(seen) and seen[-1] == 125
    plain = funnel.to_dict()
    assert sum(sum(counts.values()) for counts in plain["kinds"].values()) == 125
    assert list(plain["skipped"].values()) == sorted(plain["skipped"].values(), reverse=True)


def test_running_it_again_changes_nothing(path: Path) -> None:
    with Store.open(path) as store:
        fill(store, 40)
        collect(store)
        before = contents(store)
        again = collect(store)
        assert contents(store) == before
    assert (again.feedback, again.stored, again.paired) == (0, 0, 0)


def test_the_size_of_a_page_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for size in (3, 1000):
        monkeypatch.setattr(module, "PAGE", size)
        with Store.open(tmp_path / f"{size}.db") as store:
            fill(store, 60)
            collect(store)
            found.append(({(i.id, i.feedback, i.hindsight) for i in store.rows(Interaction)},
                          {s.id for s in store.rows(Skip)}))  # fmt: skip
    assert found[0] == found[1]


def _many_kinds(store: Store, turns: int) -> None:
    """Turns with everything that a child is not sent, and feedback of most kinds."""
    fill(store, turns)
    said: list[tuple[str, dict[str, Any]]] = [
        ("edited", {"final_text": "Boil them for six."}), ("comment", {"text": "Call me at 030 1234567."}),
        ("tests", {"exit_code": 1, "output": "E  assert 1 == 2"}), ("accepted", {}), ("abandoned", {}),
        ("follow_up", {"text": "From now on always answer in German."}), ("stopped", {}),
    ]  # fmt: skip
    rows: list[Record] = []
    for i in range(turns):
        name, (kind, more) = f"k{i}", said[i % len(said)]
        rows.append(
            Turn(
                id=name, messages=({"role": "system", "content": "Be kind."}, {"role": "user", "content": f"Egg {i}?"}),
                answer={"role": "assistant", "content": f"Boil it for {i} minutes, then cool it at once."},
                prompt_ids=(1, 2), completion_ids=(3,) if i % 2 else (), logprobs=(-0.1,), user=f"u{i % 5}",
                tools=({"type": "function", "function": {"name": "cook"}},), consent=i % 11 > 0, task="food",
            )
        )  # fmt: skip
        rows.append(feedback(kind, f"g{i}", name, user=f"u{i % 5}", **more))
        if i % 6 == 0:
            rows.append(Feedback(id=f"x{i}", turn=name, kind="retraction", retracts=f"g{i}"))
    store.write(*rows)


def _decided(path: Path, processes: int) -> tuple[dict[str, Any], list[Record]]:
    with Store.open(path) as store:
        _many_kinds(store, 150)
        funnel = collect(store, processes=processes)
        made, skips = contents(store)
        return funnel.to_dict(), [replace(row, created_at=0.0) for row in (*made, *skips)]


def test_children_decide_what_one_process_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 20)
    alone, shared = _decided(tmp_path / "one.db", 1), _decided(tmp_path / "three.db", 3)
    assert shared == alone
    assert len(alone[1]) > 200 and alone[0]["interactions"] > 60 and len(alone[0]["skipped"]) > 3


def test_a_lost_child_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "PAGE", 20)
    given, processes = workers._WorkerProcess.give, []

    def killed_at_its_second(self: Any, page: Any) -> None:
        processes.append(self._process)
        if processes.count(self._process) == 2:
            self._process.kill()
            self._process.wait()
        given(self, page)

    alone = _decided(tmp_path / "one.db", 1)
    monkeypatch.setattr(workers._WorkerProcess, "give", killed_at_its_second)
    assert _decided(tmp_path / "two.db", 2) == alone
    assert "is decided by this one" in caplog.text
    assert all(process.poll() is not None for process in processes), "none is left behind"


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_system_that_starts_no_more_processes_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, allowed: int
) -> None:
    monkeypatch.setattr(module, "PAGE", 20)
    alone, start = _decided(tmp_path / "one.db", 1), subprocess.Popen
    started: list[Any] = []

    def limited(*args: Any, **more: Any) -> Any:
        if len(started) == allowed:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(start(*args, **more))
        return started[-1]

    monkeypatch.setattr("afterword.feedback.collect.workers.subprocess.Popen", limited)
    assert _decided(tmp_path / "three.db", 3) == alone
    assert f"{allowed} of 3 collecting processes" in caplog.text and len(started) == allowed
    assert all(process.poll() is not None for process in started)


def test_a_child_ends_with_its_collector(tmp_path: Path) -> None:
    code = (
        "import sys; from afterword.feedback import CollectSettings\n"
        "from afterword.feedback.collect.workers import _WorkerProcess\n"
        "child = _WorkerProcess(CollectSettings()); print(child._process.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdin is not None and parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.kill()
    parent.communicate()
    end = time.monotonic() + 20
    while _alive(child):
        assert time.monotonic() < end, "it outlived its collector"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _collect_in_process(path: Path, barrier: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    with Store.open(path) as store:
        collect(store)


def test_two_collectors_at_once_write_what_one_writes(tmp_path: Path) -> None:
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    for path in (one, two):
        with Store.open(path) as store:
            fill(store, 400)
    with Store.open(one) as store:
        collect(store)
        wanted = ({i.id for i in store.rows(Interaction)}, {s.id for s in store.rows(Skip)})
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    workers = [context.Process(target=_collect_in_process, args=(two, barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    with Store.open(two) as store:
        assert ({i.id for i in store.rows(Interaction)}, {s.id for s in store.rows(Skip)}) == wanted


def test_late_feedback_of_a_decided_turn(path: Path) -> None:
    with Store.open(path) as store:
        store.write(turn(), feedback("follow_up", "f1", text="Shorter, please."))
        collect(store)
        store.write(feedback("comment", "f2", text="too long"), feedback("rating", "f3", value=-1.0))
        collect(store)
        made, skips = contents(store)
    assert [(i.feedback, i.hindsight) for i in made] == [(("f1",), "Shorter, please."), (("f2",), "too long")]
    assert [(s.feedback, s.reason) for s in skips] == [("f3", "confirmed")]


def test_a_collector_that_saw_less_does_not_double_the_interaction(path: Path) -> None:
    few, more = feedback("follow_up", "f1", text="Shorter, please."), feedback("comment", "f2", text="too long")
    with Store.open(path) as store:
        store.write(turn(), few, more)
        first, second = decided(few).interaction, decided(few, more).interaction
        assert first is not None and second is not None
        assert store.write(first, second) == ["stored", "conflict"]
        assert collect(store).interactions == 1, "the row that the loser had seen is still undecided"
        assert [i.feedback for i in store.rows(Interaction)] == [("f1",), ("f2",)]


def test_feedback_before_its_turn_is_held_and_joined_later(path: Path) -> None:
    with Store.open(path) as store:
        store.write(feedback("accepted", "f1", of="late"))
        first = collect(store)
        assert (first.held, first.feedback, first.interactions) == (1, 0, 0)
        store.write(turn("late"))
        second = collect(store)
        assert (second.held, second.interactions, second.without_hindsight) == (0, 1, 1)


def test_retractions_before_and_after_collection(path: Path) -> None:
    with Store.open(path) as store:
        store.write(
            turn("t1"), turn("t2"), feedback("comment", "f1", "t1", text="too long"),
            feedback("comment", "f2", "t2", text="too long"), feedback("retraction", "x1", "t1", retracts="f1"),
        )  # fmt: skip
        funnel = collect(store)
        assert funnel.skipped == {"retracted": 1} and funnel.interactions == 1
        kept = next(store.rows(Interaction))
        store.write(feedback("retraction", "x2", "t2", retracts="f2"))
        assert store.usable(kept.split) == []
        store.write(feedback("accepted", "f3", "t2"))
        assert collect(store).interactions == 1, "what was taken back does not contradict"


def test_the_split_is_a_hash_of_the_conversation() -> None:
    splits = [split_of(f"c{i}", 0.25) for i in range(4000)]
    assert 0.22 < splits.count("holdout") / 4000 < 0.28
    assert split_of("c1", 0.0) == "train" and split_of("c1", 1.0) == "holdout"
    assert [split_of(f"c{i}", 0.25) for i in range(50)] == splits[:50]


def test_a_conversation_that_is_never_named_stays_on_one_side(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afterword.store.attribution.ROOTS", 2)
    monkeypatch.setattr(module, "PAGE", 2)
    with Store.open(path) as store:
        for chain in range(12):
            for i in range(5):
                name = f"t{chain}-{i}"
                store.write(turn(name, f"Answer {name}.", previous=f"t{chain}-{i - 1}" if i else None),
                            feedback("accepted", f"f{chain}-{i}", name))  # fmt: skip
        collect(store, CollectSettings(holdout=0.5))
        sides = [{i.split for i in store.rows(Interaction) if i.turn.startswith(f"t{chain}-")} for chain in range(12)]
    assert all(len(side) == 1 for side in sides)
    assert set().union(*sides) == {"train", "holdout"}


def test_a_chain_takes_the_name_of_the_nearest_named_turn_and_survives_a_circle(path: Path) -> None:
    with Store.open(path) as store:
        store.write(turn("a", conversation="named"), turn("b", previous="a"), turn("c", previous="b"),
                    turn("x", previous="y"), turn("y", previous="x"), turn("z", previous="gone"))  # fmt: skip
        roots = ConversationRoots(store)
        assert roots.of(store.get(Turn, "c")) == "named"
        assert roots.of(store.get(Turn, "x")) in {"x", "y"}
        assert roots.of(store.get(Turn, "z")) == "z"


def attempts(store: Store, *last: Record, second: Turn | None = None, linked: bool = True) -> None:
    store.write(turn("t1", user="ada", created_at=100.0), second or turn("t2", "Six.", user="ada", created_at=150.0),
                feedback("retried", "f1", "t1", next_turn="t2" if linked else None), *last)  # fmt: skip


@pytest.mark.parametrize("linked", [True, False])
def test_a_retry_is_paired_with_the_accepted_attempt(path: Path, linked: bool) -> None:
    with Store.open(path) as store:
        attempts(store, feedback("accepted", "f2", "t2"), linked=linked)
        collect(store, CollectSettings(wait_seconds=0))
        made = {i.turn: i for i in store.rows(Interaction)}
    assert made["t1"].hindsight.endswith("Six.") and made["t1"].polarity == -1
    assert made["t2"].polarity == 1


@pytest.mark.parametrize("change", [{"messages": ({"role": "user", "content": "Who won?"},)}, {"created_at": 50.0}])
def test_a_named_attempt_at_something_else_is_no_peer(path: Path, change: dict[str, Any]) -> None:
    with Store.open(path) as store:
        attempts(store, feedback("accepted", "f2", "t2"),
                 second=turn("t2", "Six.", **{"user": "ada", "created_at": 150.0, **change}))  # fmt: skip
        collect(store, CollectSettings(wait_seconds=0))
        assert [i.turn for i in store.rows(Interaction)] == ["t2"]


def test_a_chain_of_retries_and_an_edited_attempt(path: Path) -> None:
    with Store.open(path) as store:
        attempts(store, feedback("regenerated", "f2", "t2", next_turn="t3"),
                 turn("t3", "Ten.", user="ada", created_at=170.0),
                 feedback("edited", "f3", "t3", final_text="Seven."))  # fmt: skip
        collect(store)
        made = {i.turn: i.hindsight for i in store.rows(Interaction)}
    assert made["t1"].endswith("Seven.") and made["t2"].endswith("Seven.")


@pytest.mark.parametrize(
    "last",
    [
        (feedback("rating", "f2", "t2", value=-1.0), feedback("copied", "f3", "t2")),
        (feedback("accepted", "f2", "t2"), feedback("retraction", "f3", "t2", retracts="f2")),
        (),
    ],
)
def test_an_attempt_that_was_not_accepted_is_no_peer(path: Path, last: tuple[Feedback, ...]) -> None:
    with Store.open(path) as store:
        attempts(store, *last)
        funnel = collect(store, PATIENT)
        assert funnel.waiting == {"no_accepted_attempt_yet": 1}
        again = collect(store, CollectSettings(wait_seconds=0))
    assert again.skipped["no_hindsight"] >= 1 and not again.waiting


@pytest.mark.parametrize(
    "second",
    [turn("t2", "Six.", user="bob"), turn("t2", "Six.", user="ada", consent=False),
     turn("t2", "Six.", user="ada", key="other")],
)  # fmt: skip
def test_a_peer_is_of_the_same_user_and_may_be_trained_on(path: Path, second: Turn) -> None:
    with Store.open(path) as store:
        attempts(store, feedback("accepted", "f2", "t2"), second=second)
        assert collect(store, PATIENT).waiting == {"no_accepted_attempt_yet": 1}


def test_a_retry_without_any_scope_waits(path: Path) -> None:
    with Store.open(path) as store:
        store.write(turn("t1"), turn("t2"), feedback("retried", "f1", "t1"), feedback("accepted", "f2", "t2"))
        assert collect(store, PATIENT).waiting == {"no_accepted_attempt_yet": 1}


def test_a_waiting_row_on_a_later_page_is_counted_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 1)
    with Store.open(path) as store:
        store.write(turn("t1"), feedback("retried", "f1", "t1"), feedback("retried", "f2", "t1"))
        funnel = collect(store, PATIENT)
    assert funnel.paired == 1 and funnel.waiting == {"no_accepted_attempt_yet": 2}


def test_an_interaction_that_the_user_denies_later_is_not_used(path: Path) -> None:
    with Store.open(path) as store:
        store.write(turn("denied"), feedback("saved", "yes", "denied"))
        collect(store)
        (made,) = store.rows(Interaction)
        assert made.id in {i.id for split in ("train", "holdout") for i in store.usable(split)}
        store.write(feedback("copied", "weak", "denied"), feedback("comment", "no", "denied", text="That is wrong."))
        funnel = collect(store)
        assert funnel.skipped["contradictory"] == 1
        assert [i for split in ("train", "holdout") for i in store.usable(split)] == []
        store.write(feedback("retraction", "back", "denied", retracts="no"))
        assert [i.id for split in ("train", "holdout") for i in store.usable(split)] == [made.id]
