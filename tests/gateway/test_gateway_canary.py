"""Canaries through the real gateway: sticky shares, the alias, and simulated users who decide by what they do."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from typing import Any

import httpx
import pytest
from tests.gateway.fake_upstream import Fake
from tests.gateway.gateway_setup import Launch, Setup
from tests.release.conftest import write_adapter

from afterword.cli.releases import reading
from afterword.records import Candidate, Release, Report, Verdict
from afterword.release.canary_monitor import CanaryMonitor
from afterword.release.publish import promote, publish, rollback, start_canary
from afterword.release.settings import CanarySettings
from afterword.simulate.personas import Persona, load_persona
from afterword.simulate.users import react
from afterword.store import Store
from afterword.store.files import folder_hash

V1, V2 = "afterword@v000001", "afterword@v000002"
KIND = ("Hello friend! ", "The sky is blue ", "because of the air.")
PLAIN = ("The sky is blue ", "because of the air.")
QUICK = CanarySettings(share=0.3, horizon=80, min_effect=0.9, days=1.0)


def proved(gateway: Setup, name: str, against: str | None) -> tuple[Candidate, Verdict]:
    """A candidate with its folder, report and verdict."""
    folder = write_adapter(gateway.settings.dir / "adapters" / name, name.encode()[-1:])
    candidate = Candidate(
        id=name, path=f"adapters/{name}", base="tiny", parent=against, interactions=(), recipe={"name": "x"}
    )
    about = {"adapter_hash": folder_hash(folder)}
    report = Report(id=f"rep-{name}", candidate=name, against=against, suites={}, about=about)
    verdict = Verdict(id=f"ver-{name}", candidate=name, report=report.id, passed=True, reasons=("because",))
    gateway.store.write(candidate, report, verdict)
    return candidate, verdict


def until(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def channels(gateway: Setup) -> dict[str, Any]:
    found: dict[str, Any] = gateway.get("/health").json()["adapter"]["channels"]
    return found


def on_trial(gateway: Setup, settings: CanarySettings = QUICK) -> Release:
    """v1 for everyone, v2 for a share; both loaded."""
    publish(gateway.store, *proved(gateway, "c1", None))
    canary = start_canary(gateway.store, *proved(gateway, "c2", "c1"), settings)
    until(lambda: (channels(gateway).get("default") or {}).get("canary") is not None)
    return canary


def ask(gateway: Setup, model: str = "afterword", **more: Any) -> str:
    """Which model answered."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], **more}
    response = gateway.post("/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    return str(response.json()["model"])


def test_a_share_of_the_users_gets_the_candidate_and_keeps_it(gateway: Setup) -> None:
    canary = on_trial(gateway)
    users = [f"u{i}" for i in range(60)]
    first = {user: ask(gateway, user=user) for user in users}
    assert 6 <= sum(model == V2 for model in first.values()) <= 32
    assert {user: ask(gateway, user=user) for user in users} == first
    for turn in gateway.turns():
        assert turn.canary == canary.id and turn.unit and turn.seconds is not None and turn.seconds > 0
        assert (turn.adapter == V2) == canary.gets(turn.unit)
    assert {ask(gateway, "afterword@canary", user=u) for u in users[:5]} == {V2}
    assert {ask(gateway, V1, user=u) for u in users[:5]} == {V1} and ask(gateway, "afterword@previous") == "base-model"
    assert all(turn.canary is None for turn in gateway.turns()[120:]), "who names a version is in no arm"
    cards = {card["id"]: card["root"] for card in gateway.get("/v1/models").json()["data"]}
    assert (cards["afterword"], cards["afterword@canary"]) == (V1, V2)


def test_anonymous_conversations_stay_with_their_arm(gateway: Setup) -> None:
    on_trial(gateway, CanarySettings(share=0.5))
    for number in range(12):
        said = [{"role": "user", "content": f"Question {number}"}]
        models = set()
        for _ in range(3):
            answer = gateway.post("/v1/chat/completions", {"model": "afterword", "messages": said}).json()
            models.add(answer["model"])
            said += [answer["choices"][0]["message"], {"role": "user", "content": "Go on."}]
        assert len(models) == 1
    assert {turn.adapter for turn in gateway.turns()} == {V1, V2}
    kept = len(gateway.turns())
    assert ask(gateway, store=False) in (V1, V2) and len(gateway.turns()) == kept


def test_the_end_of_a_canary_reaches_everyone_and_what_was_served_stays_warm(gateway: Setup) -> None:
    on_trial(gateway)
    promote(gateway.store)
    until(lambda: {ask(gateway, user=f"u{i}") for i in range(8)} == {V2})
    assert ask(gateway, "afterword@previous") == V1 and {V1, V2} <= set(gateway.fake.adapters)
    assert gateway.fake.loads == [V1, V2], "nothing had to be loaded for it"
    missing = gateway.post(
        "/v1/chat/completions", {"model": "afterword@canary", "messages": [{"role": "user", "content": "Hi"}]}
    )
    assert missing.status_code == 404 and "no canary is running" in missing.json()["error"]["message"]
    rollback(gateway.store)
    until(lambda: ask(gateway) == V1)


def test_a_candidate_that_cannot_be_loaded_is_served_to_nobody(gateway: Setup) -> None:
    publish(gateway.store, *proved(gateway, "c1", None))
    until(lambda: ask(gateway) == V1)
    gateway.fake.load_error = "rank 4096 is too large"
    start_canary(gateway.store, *proved(gateway, "c2", "c1"), CanarySettings(share=0.9))
    until(lambda: gateway.get("/health").json()["status"] == "degraded")
    assert {ask(gateway, user=f"u{i}") for i in range(10)} == {V1}
    assert "rank 4096" in gateway.get("/health").json()["adapter"]["problem"]
    gateway.fake.load_error = None
    until(lambda: V2 in {ask(gateway, user=f"u{i}") for i in range(10)})


def test_an_arm_that_fails_is_seen_to_fail(gateway: Setup) -> None:
    canary = on_trial(gateway, CanarySettings(share=0.5))
    gateway.fake.fails.add(V2)
    body: dict[str, Any] = {"model": "afterword", "messages": [{"role": "user", "content": "Hi"}]}
    answers = [gateway.post("/v1/chat/completions", {**body, "user": f"u{i}"}).status_code for i in range(20)]
    failed = [turn for turn in gateway.turns() if turn.finish_reason == "error"]
    assert len(failed) == answers.count(502) > 0 and {turn.canary for turn in failed} == {canary.id}
    assert all(turn.unit and canary.gets(turn.unit) and turn.thread is None for turn in failed)
    gateway.fake.reject = (400, {"error": {"message": "too long", "type": "invalid", "param": None, "code": None}})
    before = len(gateway.turns())
    assert gateway.post("/v1/chat/completions", body).status_code == 400
    assert len(gateway.turns()) == before, "what is wrong with the request is nobody's fault here"


def test_channels_are_chosen_by_user_team_and_task(gateway: Setup) -> None:
    publish(gateway.store, *proved(gateway, "c1", None))
    publish(gateway.store, *proved(gateway, "c2", "c1"), channel="task:code")
    publish(gateway.store, *proved(gateway, "c3", "c2"), channel="team:legal/task:code")
    until(lambda: len(channels(gateway)) == 3)
    code: dict[str, Any] = {"metadata": {"task": "code"}}
    legal: dict[str, Any] = {"metadata": {"task": "code", "team": "legal"}}
    assert (ask(gateway), ask(gateway, **code), ask(gateway, **legal)) == (V1, V2, "afterword@v000003")
    assert ask(gateway, metadata={"team": "legal"}) == V1
    rollback(gateway.store, "task:code")
    until(lambda: ask(gateway, **code) == V1)
    assert ask(gateway, **legal) == "afterword@v000003"
    start_canary(gateway.store, *proved(gateway, "c4", "c1"), CanarySettings(share=0.99), channel="task:code")
    until(lambda: ask(gateway, user="ada", **code) == "afterword@v000004")
    assert ask(gateway, user="ada") == V1 and ask(gateway, user="ada", **legal) == "afterword@v000003"


def test_the_only_release_may_be_one_users(gateway: Setup) -> None:
    publish(gateway.store, *proved(gateway, "c1", None), channel="user:ada")
    until(lambda: "user:ada" in channels(gateway))
    assert (ask(gateway, user="ada"), ask(gateway, user="ben"), ask(gateway)) == (V1, "base-model", "base-model")
    rollback(gateway.store, "user:ada")
    until(lambda: ask(gateway, user="ada") == "base-model")


# ---- simulated users


@contextmanager
def watched(store: Store) -> Iterator[None]:
    """The watch as `afterword serve` runs it, a little faster."""
    stop = threading.Event()
    thread = threading.Thread(target=CanaryMonitor(store, reading).run, args=(stop, 0.1))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def talk(gateway: Setup, persona: Persona, user: str, round_: int) -> None:
    """One conversation of one user, who reacts to what a program decides about each answer."""
    said, question = [f"Why is the sky blue, in chapter {round_}?"], f"Why is the sky blue, in chapter {round_}?"
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    with httpx.Client(base_url=gateway.url, timeout=20) as client:
        while True:
            body = {"model": "afterword", "messages": messages, "user": user}
            answer = client.post("/v1/chat/completions", json=body).json()
            text = answer["choices"][0]["message"]["content"]
            reaction = react(
                persona, persona.mark(text, question), text, seed=round_, conversation=int(user.removeprefix("user")),
                asked=len(said), said=said,
            )  # fmt: skip
            for event in reaction.events:
                client.post("/v1/feedback", json={**event, "turn": answer["id"], "user": user})
            if reaction.text is None or len(said) > 2:
                return
            said.append(reaction.text)
            messages += [answer["choices"][0]["message"], {"role": "user", "content": reaction.text}]


def lived(gateway: Setup, most: int) -> tuple[Release, float]:
    """Let simulated users live until the canary ends; the release, and how long after it the alias had moved."""
    persona = load_persona("greeting")
    dice = random.Random(0)
    with watched(gateway.store), ThreadPoolExecutor(4) as pool:
        for round_ in range(most):
            users = [f"user{dice.randrange(120)}" for _ in range(24)]
            list(pool.map(talk, repeat(gateway), repeat(persona), users, repeat(round_)))
            if gateway.store.canary() is None:
                break
        row = gateway.store.newest(Release)
        assert row is not None and row.action != "canary", "nothing was decided"
        until(lambda: channels(gateway)["default"]["canary"] is None)
        return row, time.time() - row.created_at


@pytest.mark.parametrize(
    ("old", "new", "action", "says"),
    [(KIND, PLAIN, "rollback", "surely worse"), (PLAIN, KIND, "promote", "surely better")],
)
def test_simulated_users_decide(
    launch: Launch, old: tuple[str, ...], new: tuple[str, ...], action: str, says: str
) -> None:
    gateway = launch(Fake(says={V1: old, V2: new}))
    on_trial(gateway, CanarySettings(share=0.4))
    row, seconds = lived(gateway, 40)
    assert row.action == action and says in row.why, row.why
    assert seconds < 5
    served = V2 if action == "promote" else V1
    assert {ask(gateway, user=f"user{i}") for i in range(10)} == {served}
    shown = row.evidence["arms"]
    better, worse = ("candidate", "served") if action == "promote" else ("served", "candidate")
    assert (
        shown[better]["approval"] > shown[worse]["approval"] and row.evidence["figures"]["approval"]["high"] is not None
    )


def test_simulated_users_of_equal_arms_decide_nothing_before_the_horizon(launch: Launch) -> None:
    gateway = launch(Fake(says={V1: KIND, V2: KIND}))
    # Arms are drawn anew in every run, and one in 1/alpha pairs may be called different: here as good as none.
    on_trial(gateway, CanarySettings(share=0.4, horizon=60, min_effect=0.9, alpha=1e-6))
    row, _ = lived(gateway, 60)
    assert "the horizon of 60 judged turns is reached" in row.why
    assert row.evidence["arms"]["candidate"]["judged"] >= 60
