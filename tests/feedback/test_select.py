"""What a round may learn: users, scopes, contradictions, windows, slices, and the review queue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.errors import ConfigError
from afterword.feedback.select.review_queue import ReviewSettings, agreement, blocked, review_queue
from afterword.feedback.select.select import Selection, SelectSettings, _cap, select
from afterword.records import Feedback, Interaction, Record, Release, Review, SignalRatio
from afterword.store import Store
from tests.feedback.feedback_builders import turn

OPEN = SelectSettings(min_users=1, max_user_share=1.0)


def interaction(name: str, user: str | None = "ada", words: str = "No, use olive oil.", **extra: Any) -> Interaction:
    values: dict[str, Any] = {
        "id": name, "turn": f"t-{name}", "feedback": (f"f-{name}",), "kind": "follow_up", "hindsight": words,
        "polarity": -1, "weight": 1.0, "split": "train", "user": user, "category": "correction", "confidence": 0.9,
    }  # fmt: skip
    return Interaction(**{**values, **extra})


def chosen(path: Path, *rows: Record, settings: SelectSettings = SelectSettings(), **extra: Any) -> Selection:  # noqa: B008
    with Store.open(path / "afterword.db") as store:
        made = [row for row in rows if isinstance(row, Interaction)]
        adapters: dict[str, str] = extra.pop("adapters", {})
        store.write(*[turn(i.turn, user=i.user, adapter=adapters.get(i.id)) for i in made], *rows)
        return select(store, settings, **extra)


def test_with_one_user_everything_is_his(tmp_path: Path) -> None:
    rows = [interaction(f"i{n}") for n in range(4)] + [interaction("s", words="Always be brief.", scope="user")]
    found = chosen(tmp_path, *rows)
    assert set(found.weights.values()) == {1.0} and len(found.weights) == 5 and not found.left
    assert found.slices[0].influence == {"ada": 1.0} and found.slices[0].effective == pytest.approx(5)


def test_what_follows_a_turn_without_consent_is_not_learned_from(tmp_path: Path) -> None:
    """Its request would be read with the words that must not be trained on before it."""
    private = turn("p", "For you, Ada, four minutes.", user="ada", conversation="c", consent=False)
    history = (*private.messages, private.answer, {"role": "user", "content": "And hard?"})
    later = turn("t-later", "Nine.", messages=history, previous="p", user="ada", conversation="c", created_at=200.0)
    lost = turn("t-lost", "Nine.", messages=history, user="ada", created_at=201.0)  # sent as another conversation
    with Store.open(tmp_path / "afterword.db") as store:
        rows = [interaction("later"), interaction("lost"), interaction("free")]
        store.write(private, later, lost, turn("t-free", user="ada", created_at=300.0), *rows)
        found = select(store)
    assert set(found.weights) == {"free"} and found.left == {"no_consent_before": 2}


def test_who_reacts_counts_where_the_turns_name_nobody(tmp_path: Path) -> None:
    """A turn without a user is common behind one shared key: the loud commenter must not become everyone's rule."""
    rows = [interaction(f"l{n}", "loud", "Always answer in French.", scope="user") for n in range(5)]
    with Store.open(tmp_path / "afterword.db") as store:
        quiet = interaction("q", None)
        store.write(*[turn(row.turn) for row in (*rows, quiet)], *rows, quiet,
                    Feedback(id="f-q", turn=quiet.turn, kind="comment", user="quiet"))  # fmt: skip
        found = select(store)
    assert set(found.weights) == {"q"} and found.left == {"own_wish": 5}


def test_a_slice_needs_several_users_when_there_are_several(tmp_path: Path) -> None:
    rows = [interaction("a", task="code"), interaction("b", task="code"), interaction("c", "bob", task="mail"),
            interaction("d", "cy", task="mail")]  # fmt: skip
    found = chosen(tmp_path, *rows)
    assert set(found.weights) == {"c", "d"} and found.left == {"too_few_users": 2}
    assert [one.task for one in found.slices] == ["mail"]


def test_a_standing_wish_is_shared_only_when_others_want_the_same(tmp_path: Path) -> None:
    rows = [interaction("a", words="From now on always in rhymes.", scope="user"), interaction("b", "bob"),
            interaction("c", "cy", words="Please always keep it short, one sentence.", scope="user"),
            interaction("d", "dee", words="Shorter, please.")]  # fmt: skip
    found = chosen(tmp_path, *rows)
    assert set(found.weights) == {"b", "c", "d"} and found.left == {"own_wish": 1}


def test_a_channel_learns_from_its_own(tmp_path: Path) -> None:
    rows = [interaction("a", "ada", "From now on always answer in French.", scope="user", task="code"),
            interaction("b", "bob", task="code", team="legal"), interaction("c", "cleo", task="mail", team="legal"),
            interaction("d", "ada", task="mail")]  # fmt: skip
    channels: dict[str, set[str]] = {
        "user:ada": {"a", "d"}, "user:ada/task:code": {"a"}, "team:legal": {"b", "c"}, "task:mail": {"c", "d"},
        "staging": {"b", "c", "d"}, "user:eve": set(),
    }  # fmt: skip
    chosen(tmp_path, *rows)
    with Store.open(tmp_path / "afterword.db") as store:
        for channel, wanted in channels.items():
            found = select(store, OPEN, channel=channel)
            left = {"own_wish": 1} if channel == "staging" else {"other_channel": 4 - len(wanted)}
            assert set(found.weights) == wanted and found.left == left, channel


def test_users_who_contradict_each_other(tmp_path: Path) -> None:
    rows = [interaction("a", "u1", "Shorter, please."), interaction("b", "u2", "more detail please"),
            interaction("c", "u3")]  # fmt: skip
    found = chosen(tmp_path, *rows)
    assert set(found.weights) == {"c"} and found.left == {"users_disagree": 2}
    assert found.contradictions == [{"task": None, "axis": "length", "less": 1, "more": 1, "followed": 0}]
    many = [interaction(f"m{n}", f"w{n}", "Too long, shorter.") for n in range(3)]
    (tmp_path / "b").mkdir()
    found = chosen(tmp_path / "b", *rows, *many)
    assert set(found.weights) == {"a", "c", "m0", "m1", "m2"} and found.contradictions[0]["followed"] == -1


def test_a_loud_user_is_turned_down(tmp_path: Path) -> None:
    rows = [interaction(f"l{n}", "loud") for n in range(90)] + [interaction(f"q{n}", f"u{n}") for n in range(10)]
    found = chosen(tmp_path, *rows)
    influence = found.slices[0].influence
    assert influence["loud"] == pytest.approx(0.25, abs=1e-3) and found.slices[0].users == 11
    assert found.weights["q0"] == 1.0 and found.weights["l0"] == pytest.approx(10 / 3 / 90)


@given(st.lists(st.floats(0.1, 100), min_size=2, max_size=30), st.floats(0.05, 0.9))
def test_after_the_caps_nobody_is_above_the_share(sums: list[float], share: float) -> None:
    share = max(share, 1.5 / len(sums))
    if share >= 1:
        return
    capped = [min(total, _cap(sorted(sums, reverse=True), share)) for total in sums]
    assert max(capped) <= share * sum(capped) * (1 + 1e-6)
    assert max(sums) > share * sum(sums) or capped == sums


def release(number: int, adapter: str | None) -> Release:
    return Release(
        id=f"r{number}", channel="default", adapter=adapter, candidate=None, path=None, verdict=None, previous=None,
        action="publish", why="test",
    )  # fmt: skip


def test_old_versions_weigh_less_and_expire(tmp_path: Path) -> None:
    rows: list[Record] = [interaction("base"), interaction("one"), interaction("three")]
    rows += [release(n, f"a@v{n}") for n in (1, 2, 3)]
    found = chosen(tmp_path, *rows, settings=SelectSettings(max_releases=2),
                   adapters={"one": "a@v1", "three": "a@v3"})  # fmt: skip
    assert found.weights == {"one": 0.25, "three": 1.0} and found.left == {"expired": 1}


def test_slices_are_ready_by_effective_number_and_relevance(tmp_path: Path) -> None:
    rows = [interaction(f"c{n}", f"u{n}", task="code") for n in range(20)]
    rows += [interaction(f"m{n}", f"u{n}", task="mail", category="unsure", confidence=0.4) for n in range(20)]
    found = chosen(tmp_path, *rows)
    ready = {one.task: one.ready(SelectSettings()) for one in found.slices}
    assert ready == {"code": True, "mail": False}
    with Store.open(tmp_path / "afterword.db") as store:
        only = select(store, tasks=["code"])
    assert len(only.weights) == 20 and only.left == {"other_slice": 20}
    assert only.to_dict()["slices"][0]["task"] == "code"


def test_praise_alone_makes_no_slice_ready(tmp_path: Path) -> None:
    rows = [interaction(f"c{n}", f"u{n}", "", polarity=1, category="thanks") for n in range(40)]
    found = chosen(tmp_path, *rows, interaction("w", "u0"))
    (only,) = found.slices
    assert only.interactions == 41 and only.effective == pytest.approx(1.0) and not only.ready(SelectSettings())
    assert found.worded == {"w"} and len(found.weights) == 41


def test_the_models_own_measure_can_be_asked_for(tmp_path: Path) -> None:
    notes = [SignalRatio(id=f"e-{n}", interaction=n, model="m", real=real, shuffled=0.3, neutral=0.2, tokens=9)
             for n, real in (("a", 0.9), ("b", 0.2))]  # fmt: skip
    rows = [interaction("a"), interaction("b"), interaction("c")]
    found = chosen(tmp_path, *rows, *notes, settings=SelectSettings(min_signal=1.0))
    assert set(found.weights) == {"a", "c"} and found.left == {"weak_signal": 1}


def test_the_lane_is_a_share_by_chance_and_the_least_sure() -> None:
    rows = [interaction(f"i{n}", confidence=0.4 if n % 100 == 0 else 0.9) for n in range(1000)]
    found = review_queue(rows, ReviewSettings(share=0.1, strange=0.01))
    assert {row.id for row in rows if row.confidence < 0.5} <= {row.id for row in found}
    assert 80 < len(found) < 135 and found == review_queue(rows, ReviewSettings(share=0.1, strange=0.01))


@pytest.mark.parametrize(
    ("settings", "hours", "wanted"),
    [
        ({}, 1, None), ({"meanwhile": "wait"}, 1, "in_review"), ({"meanwhile": "wait"}, 100, None),
        ({"unseen": "drop"}, 100, "unreviewed"), ({"meanwhile": "wait"}, -500, "in_review"),
    ],
)  # fmt: skip
def test_what_happens_until_and_after_the_deadline(settings: dict[str, Any], hours: float, wanted: str | None) -> None:
    row = interaction("a", created_at=1e9)
    config = ReviewSettings(share=1.0, **settings)
    assert blocked([row], {}, config, 1e9 + hours * 3600).get("a") == wanted
    seen = {"a": Review(id="r", interaction="a", decision="approve")}
    assert blocked([row], seen, config, 1e9 + hours * 3600) == {}


def test_only_what_review_shows_is_held_back(tmp_path: Path) -> None:
    """The strangest are strangest among all rows: held-out ones, too, which a round does not read."""
    rows = [interaction(f"h{n}", confidence=0.31, split="holdout") for n in range(40)]
    rows += [interaction(f"i{n}") for n in range(100)]
    found = chosen(tmp_path, *rows, review=ReviewSettings(share=0.0, strange=0.05, meanwhile="wait"))
    assert len(found.weights) == 100 and not found.left


def test_agreement_with_the_automatic_decision() -> None:
    rows = [interaction(f"i{n}") for n in range(4)]
    reviews = {f"i{n}": Review(id=f"r{n}", interaction=f"i{n}", decision="reject" if n == 0 else "approve")
               for n in range(3)}  # fmt: skip
    found = agreement(rows, reviews, ReviewSettings(share=1.0)).to_dict()
    assert found == {"waiting": 1, "approved": 2, "rejected": 1, "agreement": pytest.approx(2 / 3)}
    assert agreement(rows, {}, ReviewSettings()).to_dict()["agreement"] is None


@pytest.mark.parametrize("bad", [{"share": 2.0}, {"strange": -1.0}, {"deadline_hours": float("nan")}])
def test_invalid_review_settings_are_rejected(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="review"):
        ReviewSettings(**bad)


@pytest.mark.parametrize("bad", [{"min_users": 0}, {"staleness": 0.0}, {"max_user_share": 1.5}])
def test_invalid_selections_are_rejected(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="select"):
        SelectSettings(**bad)
