"""Canaries over rows: what counts as what, the rule, the horizon, and the watch that carries it out."""

from __future__ import annotations

import itertools
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from afterword.errors import ConflictError, NothingToDo, StoreError
from afterword.records import Feedback, Release, Turn
from afterword.release.canary import Trial, judge
from afterword.release.canary_metrics import ArmOutcomes, ArmTracker
from afterword.release.canary_monitor import CanaryMonitor
from afterword.release.checks import BASE
from afterword.release.publish import promote, publish, rollback, served_stack, start_canary
from afterword.release.settings import CanarySettings, parse_share
from afterword.store import Store
from afterword.store.polling import LiveTurn, feedback_after, turns_of_canary

from .canary_users import Crowd, Habits, settle
from .conftest import Ready

QUICK = CanarySettings(share=0.3, horizon=400, days=1.0)
BAD, GOOD, SAME = Habits(accepted=0.05, edited=0.6), Habits(accepted=0.8, edited=0.02), Habits()


@pytest.fixture(autouse=True)
def numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Releases with the same ids in every run: a canary's id says who is in its share."""
    numbers = itertools.count(1)
    monkeypatch.setattr("afterword.release.publish.new_id", lambda prefix: f"{prefix}-{next(numbers):03d}")


def nobody(turn: Turn, feedback: Feedback) -> int:
    return 0


def by_word(turn: Turn, feedback: Feedback) -> int:
    """Users who say yes or no."""
    return {"yes": 1, "no": -1}.get((feedback.text or feedback.final_text or "").split()[0], 0)


def begun(store: Store, ready: Ready, settings: CanarySettings = QUICK) -> Release:
    """v1 for everyone, v2 for a share."""
    publish(store, *ready("c1"))
    return start_canary(store, *ready("c2", "c1"), settings)


def until_decided(
    store: Store, watch: CanaryMonitor, crowd: Crowd, most: int, step: int = 100
) -> tuple[list[Release], int]:
    for turns in range(step, most + 1, step):
        settle(store, crowd.talk(step))
        if done := watch.tick():
            return done, turns
    return [], most


def test_a_bad_candidate_is_taken_back(store: Store, ready: Ready) -> None:
    canary = begun(store, ready)
    crowd = Crowd(canary, BAD, SAME, "afterword@v000001")
    (row,), turns = until_decided(store, CanaryMonitor(store, nobody), crowd, 3000)
    assert row.action == "rollback" and row.adapter == "afterword@v000001" and row.previous == canary.id
    assert "surely worse" in row.why and turns < 1500
    assert row.evidence["figures"]["approval"]["high"] < 0 and row.evidence["rows"]["turns"] == turns
    assert store.canary() is None and store.release() == row
    with pytest.raises(NothingToDo):
        promote(store)


def test_a_good_one_is_promoted_and_can_be_taken_back(store: Store, ready: Ready) -> None:
    canary = begun(store, ready)
    (row,), _ = until_decided(store, CanaryMonitor(store, nobody), Crowd(canary, GOOD, SAME, "afterword@v000001"), 3000)
    assert (row.action, row.adapter, row.verdict) == ("promote", "afterword@v000002", "ver-c2")
    assert "surely better" in row.why and row.evidence["figures"]["approval"]["low"] > 0
    assert row.evidence["arms"]["candidate"]["approval"] > row.evidence["arms"]["served"]["approval"]
    assert [r.candidate for r in served_stack(store)] == ["c1", "c2"]
    assert rollback(store).candidate == "c1"


def test_an_equal_one_is_decided_at_its_horizon_and_not_before(store: Store, ready: Ready) -> None:
    canary = begun(store, ready, CanarySettings(share=0.3, horizon=400, min_effect=0.3))
    watch = CanaryMonitor(store, nobody)
    crowd = Crowd(canary, SAME, SAME, "afterword@v000001")
    (row,), _ = until_decided(store, watch, crowd, 6000)
    assert row.action == "promote", row.why
    assert "the horizon of 400 judged turns is reached" in row.why
    judged = row.evidence["arms"]["candidate"]["judged"]
    assert 400 <= judged < 460, "neither before its horizon nor long after it"


@pytest.mark.parametrize(("judges", "decided"), [(19, False), (20, True)])
def test_approval_decides_when_enough_users_judged_however_many_talk(judges: int, decided: bool) -> None:
    new, old = ArmOutcomes(), ArmOutcomes()
    for side, value in ((new, -1.0), (old, 1.0)):
        for user in range(60):
            for _ in range(4):
                side.turns.turn(f"u{user}")
                if user < judges:
                    side.judged.turn(f"u{user}")
                    side.judged.count(f"u{user}", "approval", value if user else 0.0)
    decision = judge(new, old, CanarySettings().terms())
    assert (decision is not None) is decided
    if decision is not None:
        assert decision.action == "rollback" and decision.why.startswith("surely worse: approval")
    at_the_end = judge(new, old, CanarySettings().terms(), "7 days are over")
    assert at_the_end is not None and at_the_end.action == "rollback"


def test_what_is_not_shown_at_the_end_is_taken_back(store: Store, ready: Ready) -> None:
    canary = begun(store, ready)
    settle(store, Crowd(canary, SAME, SAME, "afterword@v000001").talk(60))
    assert CanaryMonitor(store, nobody).tick() == []
    (row,) = CanaryMonitor(store, nobody, clock=lambda: time.time() + 86_401).tick()
    assert row.action == "rollback" and "1 days are over, and nothing shows" in row.why
    assert row.evidence["figures"]["approval"]["low"] is not None


def test_without_any_reaction_nothing_is_promoted(store: Store, ready: Ready) -> None:
    canary = begun(store, ready)
    silent = Habits(accepted=-1, edited=-1)
    settle(store, Crowd(canary, silent, silent, "afterword@v000001").talk(500))
    (row,) = CanaryMonitor(store, nobody, clock=lambda: time.time() + 86_401).tick()
    assert row.action == "rollback" and row.evidence["figures"]["approval"]["low"] is None


@pytest.mark.parametrize(("habits", "figure"), [(Habits(errors=0.5), "errors"), (Habits(pace=0.06), "latency")])
def test_guards_take_back_what_users_did_not_complain_about(
    store: Store, ready: Ready, habits: Habits, figure: str
) -> None:
    canary = begun(store, ready)
    (row,), _ = until_decided(store, CanaryMonitor(store, nobody), Crowd(canary, habits, SAME), 3000)
    assert row.action == "rollback" and row.evidence["figures"][figure]["worse"]


def test_a_decision_can_be_replayed_from_its_rows(store: Store, ready: Ready) -> None:
    canary = begun(store, ready)
    (row,), _ = until_decided(store, CanaryMonitor(store, nobody), Crowd(canary, BAD, SAME, "afterword@v000001"), 3000)
    settle(store, Crowd(canary, GOOD, SAME, "afterword@v000001", seed=9).talk(50))
    new, old = ArmOutcomes(), ArmOutcomes()
    again = ArmTracker(store, lambda t: new if canary.gets(t.unit) else old, nobody)
    upto = row.evidence["rows"]
    again.turns(t for t in turns_of_canary(store, canary.id, 0, 10**6) if t.seq <= upto["turns"])
    again.feedback([f for f in feedback_after(store, 0, 10**6) if f.seq <= upto["feedback"]])
    decision = judge(new, old, canary.terms)
    assert decision is not None and decision.action == "rollback" and decision.why == row.why
    assert {k: row.evidence[k] for k in ("arms", "figures")} == decision.evidence


def test_a_watch_that_was_killed_comes_to_the_same_end(store: Store, ready: Ready) -> None:
    canary = begun(store, ready)
    crowd = Crowd(canary, BAD, SAME, "afterword@v000001")
    first = CanaryMonitor(store, nobody)
    settle(store, crowd.talk(30))
    assert first.tick() == []
    settle(store, crowd.talk(1500))
    (row,) = CanaryMonitor(store, nobody).tick()
    assert row.action == "rollback"
    assert first.tick() == [], "two watches do no harm"
    assert store.count(Release) == 3


def test_only_what_was_routed_by_the_share_counts(store: Store, ready: Ready) -> None:
    canary = begun(store, ready)
    strangers = [
        Turn(id=f"x{i}", messages=(), answer={}, user=f"u{i}", adapter=canary.adapter, finish_reason="error")
        for i in range(300)
    ]
    store.write(*strangers)
    trial = Trial(store, canary, nobody)
    assert trial.read() == 0 and trial.new.turns.turns == trial.old.turns.turns == 0


def test_while_a_canary_runs_nothing_else_is_released(store: Store, ready: Ready) -> None:
    canary = begun(store, ready)
    three = ready("c3", "c1")
    for release in (publish, start_canary):
        with pytest.raises(ConflictError, match=r"canary of afterword@v000002 runs.*promote"):
            release(store, *three)
    assert publish(store, *ready("d1", "c1"), channel="task:code").channel == "task:code"
    assert promote(store).why == "promoted by hand"
    assert rollback(store).candidate == "c1"
    with pytest.raises(NothingToDo, match="does not run"):
        promote(store, expect=canary.id)


def test_a_person_may_end_it(store: Store, ready: Ready) -> None:
    begun(store, ready)
    row = rollback(store, why="the phone rings")
    assert (row.candidate, row.action, row.why) == ("c1", "rollback", "the phone rings")
    assert rollback(store).candidate is None


def test_a_canary_over_the_base_model(store: Store, ready: Ready) -> None:
    canary = start_canary(store, *ready("c1"), QUICK)
    assert store.release() is None and store.spent() == set()
    settle(store, Crowd(canary, BAD, SAME).talk(1500))
    (row,) = CanaryMonitor(store, nobody).tick()
    assert (row.action, row.adapter, row.candidate) == ("rollback", None, None)
    assert rollback_is_over(store)


def rollback_is_over(store: Store) -> bool:
    with pytest.raises(NothingToDo):
        rollback(store)
    return True


def test_a_canary_whose_files_changed_is_not_promoted(store: Store, ready: Ready, tmp_path: Path) -> None:
    canary = begun(store, ready)
    settle(store, Crowd(canary, GOOD, SAME, "afterword@v000001").talk(1500))
    shutil.rmtree(tmp_path / "adapters/c2")
    (row,) = CanaryMonitor(store, nobody).tick()
    assert row.action == "rollback" and "cannot be promoted" in row.why and row.candidate == "c1"


def test_a_store_that_fails_is_tried_again(store: Store, ready: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    canary = begun(store, ready)
    settle(store, Crowd(canary, BAD, SAME, "afterword@v000001").talk(1500))
    stop, watch = threading.Event(), CanaryMonitor(store, nobody)
    real, failures = watch.tick, iter([1, 1])

    def flaky() -> list[Release]:
        if next(failures, None):
            raise StoreError("disk on fire")
        stop.set()
        return real()

    monkeypatch.setattr(watch, "tick", flaky)
    watch.run(stop, 0.001)
    assert store.canary() is None


# ---- what counts as what


def side_of(store: Store, *rows: Any) -> ArmOutcomes:
    """One arm with the turn "t" and this feedback."""
    side = ArmOutcomes()
    tracker = ArmTracker(store, lambda turn: side, by_word)
    store.write(Turn(id="t", messages=(), answer={"content": "Hi"}, user="u"), *rows)
    tracker.feedback(feedback_after(store, 0, 100))
    tracker.turns([LiveTurn(1, "t", 0.0, "u", None, "stop", None, None)])
    return side


def said(kind: str, **more: Any) -> Feedback:
    return Feedback(id=more.pop("id", f"fb-{kind}"), turn="t", kind=kind, **more)


@pytest.mark.parametrize(
    ("feedback", "figure", "approval"),
    [
        (said("accepted"), "acceptance", 1), (said("copied"), "acceptance", 1),
        (said("rating", value=0.5), "acceptance", 1), (said("rating", value=-1.0), "complaints", -1),
        (said("executed", exit_code=0), "acceptance", 1), (said("tests", exit_code=2), "complaints", -1),
        (said("follow_up", text="no way"), "complaints", -1), (said("comment", text="yes"), "acceptance", 1),
        (said("edited", final_text="no"), "edits", -1), (said("edited", final_text="yes"), "acceptance", 1),
        (said("regenerated"), "retries", -1), (said("reverted"), "complaints", -1),
        (said("abandoned"), "abandonment", 0), (said("stopped"), "abandonment", 0),
    ],
)  # fmt: skip
def test_every_kind_counts_for_its_figure(store: Store, feedback: Feedback, figure: str, approval: int) -> None:
    side = side_of(store, feedback)
    shown = side.to_dict()
    counted = {n for n in ("acceptance", "edits", "retries", "complaints", "abandonment", "errors") if shown[n]}
    assert counted == {figure} and shown[figure] == 1.0
    assert shown["approval"] == (approval or None) and shown["judged"] == abs(approval)


@pytest.mark.parametrize(("then", "gone"), [("accepted", 0.0), ("follow_up", 0.0), ("stopped", 1.0)])
def test_who_comes_back_has_not_given_up(store: Store, then: str, gone: float) -> None:
    shown = side_of(store, said("abandoned"), said(then, text="and then?")).to_dict()
    assert (shown["abandonment"] or 0.0, shown["turns"]) == (gone, 1)
    store.write(said("abandoned", id="again"))
    side = ArmOutcomes()
    tracker = ArmTracker(store, lambda turn: side, by_word)
    tracker.turns([LiveTurn(1, "t", 0.0, "u", None, "stop", None, None)])
    for row in feedback_after(store, 0, 100):  # one by one, as they come
        tracker.feedback([row])
    assert side.to_dict()["abandonment"] == 1.0


@pytest.mark.parametrize(
    "feedback", [said("rating", value=0.0), said("tests"), said("follow_up", text="and then?"), said("unheard_of")]
)
def test_what_says_neither_yes_nor_no_counts_nowhere(store: Store, feedback: Feedback) -> None:
    shown = side_of(store, feedback).to_dict()
    assert shown["judged"] == 0 and shown["turns"] == 1 and not any(shown[n] for n in ("acceptance", "complaints"))


@pytest.mark.parametrize("one_by_one", [True, False])
def test_the_newest_vote_of_a_user_counts(store: Store, one_by_one: bool) -> None:
    store.write(Turn(id="t", messages=(), answer={"content": "Hi"}, user="u"))
    side = ArmOutcomes()
    tracker = ArmTracker(store, lambda turn: side, by_word)
    tracker.turns([LiveTurn(1, "t", 0.0, "u", None, "stop", None, None, "u")])
    steps = (
        (said("rating", id="a", value=1.0), (1.0, 0.0)), (said("rating", id="b", value=-1.0, user="u"), (0.0, 1.0)),
        (said("rating", id="c", value=1.0, user="other"), (1.0, 1.0)),
        (said("rating", id="b", value=1.0, user="u"), (1.0, 0.0)),
        (said("rating", id="b", value=-1.0, user="u"), (1.0, 1.0)),
        (said("retraction", id="r", retracts="b#v3"), (1.0, 0.0)),
    )  # fmt: skip
    last = 0
    for row, expected in steps:
        store.submit([row], live=True).result()
        if not one_by_one:
            continue
        rows = feedback_after(store, last, 100)
        last = rows[-1].seq
        tracker.feedback(rows)
        shown = side.to_dict()
        assert (shown["acceptance"], shown["complaints"]) == expected, row.id
    if not one_by_one:
        tracker.feedback(feedback_after(store, 0, 100))
    shown = side.to_dict()
    assert (shown["acceptance"], shown["complaints"], shown["approval"]) == (1.0, 0.0, 1.0)


def test_a_turn_counts_once_and_a_correction_outweighs(store: Store) -> None:
    side = side_of(store, said("accepted"), said("copied"), said("retried"))
    assert side.to_dict()["acceptance"] == 1.0 and side.to_dict()["approval"] == -1.0


def test_what_is_taken_back_does_not_count(store: Store) -> None:
    back = Feedback(id="r1", turn="t", kind="retraction", retracts="fb-retried")
    side = side_of(store, said("accepted"), said("retried"), back)
    assert side.to_dict()["retries"] == 0.0 and side.to_dict()["approval"] == 1.0
    twice = Feedback(id="r2", turn="t", kind="retraction", retracts="fb-retried")
    assert side_of(store, twice).to_dict()["retries"] == 0.0


@pytest.mark.parametrize(("text", "share"), [("10%", 0.1), ("0.25", 0.25), (" 5 % ".strip(), 0.05)])
def test_shares_as_people_write_them(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "0", "100%", "1", "-5%", "many", "nan"])
def test_shares_that_are_none(text: str) -> None:
    from afterword.errors import ConfigError

    with pytest.raises(ConfigError, match="share of users"):
        parse_share(text)


@pytest.mark.parametrize("field", [{"alpha": 0.0}, {"share": 1.0}, {"min_users": 1}, {"horizon": -5}])
def test_settings_that_cannot_be(field: dict[str, Any]) -> None:
    from afterword.errors import ConfigError

    with pytest.raises(ConfigError):
        CanarySettings(**field)


def test_rolling_back_elsewhere_ends_a_canary_too(store: Store, ready: Ready) -> None:
    begun(store, ready)
    row = rollback(store, to=BASE)
    assert row.candidate is None and store.canary() is None
