"""A request that a client sends again by itself is one turn and no judgement; neither are comparisons of models."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest
from tests.gateway.fake_upstream import Fake
from tests.gateway.gateway_setup import Launch, Setup

from afterword.gateway import retries
from afterword.records import Feedback

KEY = {"Idempotency-Key": "k-1"}


def ask(setup: Setup, headers: dict[str, str], text: str = "Why?", **more: Any) -> httpx.Response:
    body = {"model": "afterword", "messages": [{"role": "user", "content": text}], "user": "ada", **more}
    return setup.post("/v1/chat/completions", body, headers=headers)


def regenerated(setup: Setup) -> list[Feedback]:
    return setup.feedback(kind="regenerated")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (KEY, KEY),
        ({**KEY, "x-stainless-retry-count": "0"}, {**KEY, "x-stainless-retry-count": "1"}),
        ({"x-stainless-retry-count": "0"}, {"x-stainless-retry-count": "1"}),
        ({"X-Idempotency-Key": "k"}, {"X-Idempotency-Key": "k"}),
    ],
)
def test_a_retry_gets_the_same_answer_from_one_turn(
    gateway: Setup, first: dict[str, str], second: dict[str, str], stream: bool
) -> None:
    one, two, three = (ask(gateway, headers, stream=stream) for headers in (first, second, second))
    assert one.content == two.content == three.content and two.status_code == 200
    assert two.headers["content-type"] == one.headers["content-type"]
    assert two.headers["x-afterword-turn"] == one.headers["x-afterword-turn"]
    assert "x-afterword-replayed" not in one.headers and two.headers["x-afterword-replayed"] == "true"
    assert len(gateway.turns()) == 1 and len(gateway.fake.requests) == 1 and gateway.feedback() == []
    assert 'afterword_retries_total{outcome="replayed"} 2.0' in gateway.get("/metrics").text


def test_a_retry_while_the_first_still_runs_waits_for_its_answer(launch: Launch) -> None:
    setup = launch(Fake(delay=0.1))
    found: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: found.append(ask(setup, KEY, stream=True))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer.content for answer in found}) == 1 and len(setup.turns()) == 1
    assert len(setup.fake.requests) == 1


def test_a_key_with_another_request_is_refused_and_other_users_have_keys_of_their_own(gateway: Setup) -> None:
    assert ask(gateway, KEY).status_code == 200
    reused = ask(gateway, KEY, "Something else")
    assert reused.status_code == 422 and reused.json()["error"]["code"] == "idempotency_key_reused"
    assert ask(gateway, KEY, "Something else", user="grace").status_code == 200
    assert ask(gateway, {"Idempotency-Key": "k" * 300}).status_code == 422
    assert ask(gateway, {"Idempotency-Key": "k-2", "x-stainless-retry-count": "many"}).status_code == 200


def test_a_failed_request_is_asked_anew(launch: Launch) -> None:
    setup = launch(Fake(reject=(500, {"message": "busy"})))
    assert ask(setup, KEY).status_code >= 500
    setup.fake.reject = None
    again = ask(setup, {**KEY, "x-stainless-retry-count": "1"})
    assert again.status_code == 200 and "x-afterword-replayed" not in again.headers
    assert regenerated(setup) == []


def test_a_stream_that_broke_off_is_not_given_again(launch: Launch) -> None:
    setup = launch(Fake(cut_after=2))
    ask(setup, KEY, stream=True)
    setup.fake.cut_after = None
    again = ask(setup, KEY, stream=True)
    assert "x-afterword-replayed" not in again.headers and b"[DONE]" in again.content and b"blue" in again.content
    assert regenerated(setup) == []


def test_a_retry_whose_answer_is_gone_is_no_judgement_and_a_user_who_asks_again_is(launch: Launch) -> None:
    fake = Fake()
    first = ask(launch(fake), {"x-stainless-retry-count": "0"}, metadata={"conversation": "c"})
    after = launch(fake)  # what it kept in memory is gone
    ask(after, {"x-stainless-retry-count": "2"}, metadata={"conversation": "c"})
    assert regenerated(after) == [] and len(after.turns()) == 2
    ask(after, {"x-stainless-retry-count": "0"}, metadata={"conversation": "c"})
    (event,) = regenerated(after)
    assert event.turn != first.headers["x-afterword-turn"], "it is about the newest answer"


def test_what_must_not_be_kept_is_not_kept_for_a_retry_either(gateway: Setup) -> None:
    for _ in range(2):
        assert "x-afterword-replayed" not in ask(gateway, KEY, store=False).headers
    assert len(gateway.fake.requests) == 2 and gateway.turns() == []


def test_old_and_large_answers_leave_the_memory(monkeypatch: pytest.MonkeyPatch, launch: Launch) -> None:
    monkeypatch.setattr(retries, "MAX_ANSWER", 10)
    setup = launch(Fake())
    for _ in range(2):
        assert "x-afterword-replayed" not in ask(setup, KEY).headers
    kept = retries.Retries(seconds=0.0, max_bytes=10)
    for n in range(3):
        attempt = kept._attempts[("key", str(n))] = retries.Attempt(("key", str(n)), "")
        monkeypatch.setattr(retries, "MAX_ANSWER", 100)
        kept.end(attempt, retries.Saved(b"x" * 8, {}, "text/plain"))
    assert kept._bytes == 8 and len(kept._attempts) == 1
    many = retries.Retries()
    monkeypatch.setattr(retries, "MOST_KEPT", 5)
    for n in range(9):
        attempt = many._attempts[("key", str(n))] = retries.Attempt(("key", str(n)), "")
        many.end(attempt, retries.Saved(b"", {}, "text/plain"))
    assert [name for _, name in many._attempts] == ["4", "5", "6", "7", "8"]
    assert kept._known(("key", "2")) is None and kept._bytes == 0


def test_another_model_and_another_window_are_no_judgement(gateway: Setup) -> None:
    ask(gateway, {}, metadata={"conversation": "c1"})
    ask(gateway, {}, metadata={"conversation": "c1"}, model="afterword@base")
    ask(gateway, {}, metadata={"conversation": "c1"}, model=gateway.fake.base)
    ask(gateway, {}, metadata={"conversation": "c2"})
    assert regenerated(gateway) == []
    first, compared, _, other = gateway.turns()
    ask(gateway, {}, metadata={"conversation": "c1"}, model="afterword@base")
    ask(gateway, {}, metadata={"conversation": "c1"})
    ask(gateway, {}, metadata={"conversation": "c2"})
    assert [event.turn for event in regenerated(gateway)] == [compared.id, first.id, other.id], "each with its own"
