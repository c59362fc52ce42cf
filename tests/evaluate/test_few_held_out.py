"""Few held-out interactions: substitutes, requests without a reaction, later looks, and the forecast of `status`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afterword import cycle
from afterword.config import EvaluateConfig
from afterword.evaluate.comparison.answers import Arm
from afterword.evaluate.comparison.heldout import silent_prompts
from afterword.evaluate.comparison.substitutes import Substitute, from_earlier_round, from_folds
from afterword.evaluate.run import evaluate_candidate
from afterword.evaluate.stats.control_variate import LEAST, Substitutes, adjusted_mean
from afterword.evaluate.stats.group_sequential import level_of_look
from afterword.evaluate.stats.statistics import mean
from afterword.records import Candidate, Feedback, Interaction, Json, Report, Turn
from afterword.release.gate import GateThresholds, decide, undecided
from afterword.release.held_out_forecast import held_out_forecast
from afterword.store import Store
from afterword.store.files import folder_hash

from .conftest import FakeServer, Reply, candidate, held

DAY = 86400.0


def _adjusted(shift: float, n: int = 16, k: int = 48, seed: int = 1, **changes: Any) -> Json:
    """The candidate has 0.2 on every interaction, the substitutes 0.2 + shift, and both move with the interaction."""
    rng = np.random.default_rng(seed)
    moves = 0.1 * rng.standard_normal(n + k)
    names = [str(i // 2) for i in range(n + k)]
    given = {"own": list(moves[:n] + 0.2 + shift), "unseen": list(moves[n:] + 0.2 + shift), "clusters": names[n:]}
    found = adjusted_mean(list(moves[:n] + 0.2), names[:n], Substitutes(**{**given, **changes}))
    assert found is not None
    return found


def test_substitutes_narrow_the_interval_and_their_own_level_does_not_count() -> None:
    shares = []
    for seed in range(5):  # eight conversations: one draw alone says little
        moves = 0.1 * np.random.default_rng(seed).standard_normal(64)
        alone, both = mean(list(moves[:16] + 0.2), [str(i // 2) for i in range(16)]), _adjusted(0.0, seed=seed)
        shares.append((both["high"] - both["low"]) / (alone["high"] - alone["low"]))
    assert sorted(shares)[2] < 0.6 and max(shares) < 0.9
    alike, better = _adjusted(0.0), _adjusted(0.5)
    assert alike["low"] < 0.2 < alike["high"] and alike["n"] == 64
    assert better["value"] == pytest.approx(alike["value"]) and better["low"] == pytest.approx(alike["low"])


def test_few_conversations_on_both_sides_are_not_adjusted() -> None:
    values = [0.1] * 6
    few = Substitutes([0.1] * 6, [0.1] * 20, [str(i) for i in range(20)])
    assert adjusted_mean(values, ["a", "b", "c"] * 2, few) is None
    assert adjusted_mean(values, list("abcdef"), few) is not None and LEAST == 4
    assert adjusted_mean(values, list("abcdef"), Substitutes([0.1] * 3 + [None] * 3, [0.1] * 20, few.clusters)) is None


def test_a_conversation_on_both_sides_counts_once() -> None:
    """Of users who talk on both sides, the errors add up and do not cancel as independent ones."""
    rng = np.random.default_rng(2)
    user = [str(i % 10) for i in range(20)]
    moved = {name: 0.1 * float(rng.standard_normal()) for name in map(str, range(10))}
    values = [0.2 + moved[name] for name in user]
    apart = [0.2 + 0.02 * float(rng.standard_normal()) for _ in user]
    both = adjusted_mean(values, user, Substitutes(apart, values, user))
    split = adjusted_mean(values, user, Substitutes(apart, values, [f"x{name}" for name in user]))
    assert both is not None and split is not None
    assert both["high"] - both["low"] > 1.2 * (split["high"] - split["low"])


def test_all_looks_together_err_less_than_twice_as_often_as_one() -> None:
    assert level_of_look(1) == 0.95
    assert sum((1 - level_of_look(number)) / 2 for number in range(1, 50)) <= 0.05 + 1e-12


def _plain(arm: str, question: str) -> tuple[str, str]:
    return f"Here is what I know of {question.lower()} It is a number.", "stop"


def test_the_holdout_suite_reads_substitutes(
    tiny: str, adapters: dict[str, Path], serve: Callable[[Reply], FakeServer]
) -> None:
    serve(_plain)
    items = [held(i, created_at=10.0 + i) for i in range(10)]
    later = [held(i, created_at=20.0 + i) for i in range(10, 26)]
    arm = Arm("substitute-1", adapters["large"], folder_hash(adapters["large"]))

    def measured(substitutes: list[Substitute]) -> Json:
        report = evaluate_candidate(
            candidate=candidate(), candidate_path=adapters["small"], served_path=None, served_candidate=None,
            interactions=items, model=tiny, upstream="http://127.0.0.1:1", suites=["holdout"], substitutes=substitutes,
        )  # fmt: skip
        assert "error" not in report.suites["holdout"]
        found: Json = report.suites["holdout"]
        return found

    alone, found = measured([]), measured([Substitute(arm, later, since=9.0)])
    assert "unseen" not in alone and found["drop_alone"] == alone["hindsight_kl_drop"]
    assert found["unseen"]["value"] == 16 and found["interactions"]["value"] == 26
    assert found["conversations"]["value"] == 13 and found["hindsight_kl_drop"]["n"] == 26
    # What was held out before the substitutes' time is no comparison for them: too few conversations are left.
    assert "unseen" not in measured([Substitute(arm, later, since=15.5)])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Twelve training conversations on days 1 to 12, four held out, one that nobody reacted to."""
    with Store.open(tmp_path / "afterword.db") as opened:
        for n in range(1, 13):
            opened.write(*_row(n, "train", day=n))
        for n in range(20, 24):
            opened.write(*_row(n, "holdout", day=n - 18))
        opened.write(*_row(30, None, day=3), *_row(31, None, day=4, conversation="c1"))
        yield opened


def _row(n: int, split: Any, *, day: float, conversation: str | None = None, task: str | None = None) -> list[Any]:
    asked = {"role": "user", "content": f"What is {n}?"}
    turn = Turn(id=f"t{n}", messages=(asked,), answer={"role": "assistant", "content": "Nothing."}, task=task,
                conversation=conversation or f"c{n}", created_at=day * DAY)  # fmt: skip
    if split is None:
        return [turn]
    said = Feedback(id=f"f{n}", turn=turn.id, kind="comment", text="Shorter.")
    row = Interaction(id=f"i{n}", turn=turn.id, feedback=(said.id,), kind="comment", hindsight="Shorter.", polarity=-1,
                      weight=1.0, split=split, task=task)  # fmt: skip
    return [turn, said, row]


def _candidate(name: str, numbers: range, at: float = 100.0, parent: str | None = None) -> Candidate:
    return Candidate(id=name, path=f"adapters/{name}", base="b", parent=parent, recipe={}, created_at=at,
                     interactions=tuple(f"i{n}" for n in numbers))  # fmt: skip


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(path.name, encoding="utf-8")
    return path


def test_each_conversation_is_judged_by_a_fold_that_has_not_seen_it(store: Store, tmp_path: Path) -> None:
    whole = _candidate("whole", range(3, 11))  # selection left out 1, 2, 11 and 12
    odd, even = (tuple(f"i{n}" for n in range(3, 11) if n % 2 == rest) for rest in (1, 0))
    folds = {_folder(tmp_path / "odd"): odd, _folder(tmp_path / "even"): even}
    found = from_folds(store, whole, folds, 100, "default", lambda item: True)
    items = {one.arm.path: {item.interaction.id for item in one.items} for one in found}
    assert not set(odd) & items[tmp_path / "odd"] and not set(even) & items[tmp_path / "even"]
    # All training conversations of the time are there, whatever selection chose: it might choose by what is judged.
    assert set(itertools.chain(*items.values())) == {f"i{n}" for n in range(1, 13)}


def test_what_the_parent_learned_is_no_witness(store: Store, tmp_path: Path) -> None:
    store.write(_candidate("parent", range(1, 5)))
    child = _candidate("child", range(5, 13), parent="parent")
    folds = {_folder(tmp_path / "one"): (), _folder(tmp_path / "two"): ()}
    found = from_folds(store, child, folds, 100, "default", lambda item: True)
    assert {item.interaction.id for one in found for item in one.items} == {f"i{n}" for n in range(5, 13)}
    assert all(one.since == 4 * DAY for one in found)


def test_the_candidate_of_an_earlier_round_is_a_witness_for_what_came_later(store: Store, tmp_path: Path) -> None:
    _folder(tmp_path / "adapters/old")
    store.write(_candidate("old", range(1, 7), at=50.0))
    store.write(_candidate("gone", range(1, 9), at=60.0), _candidate("other", range(1, 3), at=70.0, parent="old"))
    [found] = from_earlier_round(store, _candidate("new", range(1, 13)), 100, "default", lambda item: True)
    assert found.arm.path == tmp_path / "adapters/old"
    assert {item.interaction.id for item in found.items} == {f"i{n}" for n in range(7, 13)}


def test_guards_ask_what_nobody_reacted_to(store: Store) -> None:
    trained = _candidate("new", range(1, 13))
    assert [prompt.messages[-1]["content"] for prompt in silent_prompts(
        store, trained, 9, "default", lambda turn: True)] == ["What is 30?"]  # fmt: skip
    assert not silent_prompts(store, trained, 9, "default", lambda turn: False)


def test_the_forecast_names_what_is_missing_and_when_it_is_there(store: Store) -> None:
    for n in range(40, 44):
        store.write(*_row(n, "train", day=8, task="mail"))
    every, slices = held_out_forecast(store, GateThresholds(), now=9 * DAY)
    assert (every.interactions, every.conversations, every.needed, every.missing) == (4, 4, 12, 8)
    assert every.per_day == pytest.approx(4 / 7) and every.ready_at == pytest.approx((9 + 14) * DAY)
    assert [(one.task, one.missing, one.ready_at is None) for one in slices] == [("mail", 12, True), (None, 8, False)]
    later, _ = held_out_forecast(store, GateThresholds(), now=90 * DAY)
    assert later.per_day == 0 and later.ready_at is None


def _report(drop: tuple[float, float, float], *, interactions: int = 30, **about: Any) -> Report:
    value, low, high = drop
    shown = {"value": value, "low": low, "high": high, "n": interactions}
    count = dict.fromkeys(("value", "low", "high", "n"), interactions)
    good = {"value": 0.1, "low": 0.05, "high": 0.2, "n": interactions}
    suites = {"holdout": {"interactions": count, "conversations": count, "hindsight_kl_drop": shown, "gain": good}}
    return Report(id="r1", candidate="new", against=None, suites=suites, about=about)


def test_only_the_want_of_data_leaves_a_candidate_undecided() -> None:
    limits = GateThresholds(required=("holdout",))
    assert undecided(_report((0.1, -0.05, 0.2)), limits)
    assert undecided(_report((0.1, 0.05, 0.2), interactions=9), limits)
    assert not undecided(_report((-0.1, -0.3, 0.2)), limits)
    assert not undecided(_report((0.1, 0.05, 0.2)), limits)  # it passes
    assert not undecided(_report((0.1, -0.05, 0.2)), GateThresholds())  # suites are missing
    lost = _report((0.1, -0.05, 0.2))
    lost.suites["collapse"] = {"empty": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 64}}
    assert not undecided(lost, limits)


def test_an_undecided_candidate_is_judged_again_when_more_is_held_out(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = cycle.Settings(directory=tmp_path, gate=GateThresholds(required=("holdout",)))
    store.write(_candidate("new", range(1, 13)))
    assert cycle.undecided_candidate(store, settings) is None
    report = _report((0.1, -0.05, 0.2), held_out=["i20", "i21", "i22"], look=1)
    store.write(report, decide(report, settings.gate))
    again = cycle.undecided_candidate(store, settings)
    assert again is not None and again.id == "new"  # a fourth is held out, 33 % more
    looks: list[str] = []

    def judge(store: Store, settings: Any, progress: Any, funnel: Any, waiting: Candidate) -> None:
        looks.append(waiting.id)

    monkeypatch.setattr(cycle, "_judge", judge)
    cycle.run_cycle(store, settings)
    assert looks == ["new"]
    monkeypatch.setattr(cycle, "LOOKS", 1)
    assert cycle.undecided_candidate(store, settings) is None


def test_defaults_train_no_folds() -> None:
    assert (EvaluateConfig().folds, EvaluateConfig().borrow) == (0, True)
