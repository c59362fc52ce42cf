"""Capture: on disk before the last chunk, late after the bound, counted when lost, and never in an answer's way."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import httpx
import pytest
from tests.gateway.fake_upstream import Fake, fake_upstream
from tests.gateway.gateway_setup import Launch, Setup

from afterword.errors import StoreError
from afterword.gateway import GatewaySettings, serve_in_thread
from afterword.records import Turn
from afterword.store import Outcome, Store
from afterword.store import writer as writer_module
from afterword.store.schema import connect
from afterword.store.writer import Writer


def test_a_turn_is_on_disk_before_its_last_chunk(gateway: Setup) -> None:
    for _ in range(20):
        with httpx.stream(
            "POST",
            gateway.url + "/v1/chat/completions",
            json={"model": "afterword", "messages": [{"role": "user", "content": "Hi"}], "stream": True},
        ) as response:
            turn = response.headers["x-afterword-turn"]
            for line in response.iter_lines():
                if '"finish_reason":"stop"' in line or line == "data: [DONE]":
                    with Store.open(gateway.settings.database) as other:
                        assert other.find(Turn, turn) is not None
                    break
    assert gateway.get("/health").json()["capture"] == {"pending": 0, "late": 0, "dropped": 0}


class Slow(Writer):
    """A disk that takes its time."""

    delay = 0.5

    def _commit(self, group: list[tuple[list[object], Future[list[Outcome]]]]) -> None:  # type: ignore[override]
        time.sleep(self.delay)
        super()._commit(group)  # type: ignore[arg-type]


def test_an_answer_does_not_wait_for_a_slow_disk(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afterword.store.store.Writer", Slow)
    gateway = launch(capture_wait_ms=20.0)
    start = time.perf_counter()
    answer = gateway.chat("Hi", user="ada")
    took = time.perf_counter() - start
    said = answer["choices"][0]["message"]["content"]
    gateway.chat("Hi", said, "Shorter!", user="ada")
    assert took < 0.4, "the bound is 20 ms"
    assert gateway.get("/health").json()["capture"]["late"] == 2
    deadline = time.monotonic() + 5
    while len(gateway.turns()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert gateway.turns()[1].previous == answer["id"], "a reply that outran the writer was linked"
    assert "afterword_turns_late_total 2.0" in gateway.get("/metrics").text


def test_too_many_waiting_turns_are_dropped_and_counted(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afterword.store.store.Writer", Slow)
    gateway = launch(max_pending=1, capture_wait_ms=20.0)
    for _ in range(3):
        gateway.chat("Hi")
    capture = gateway.get("/health").json()["capture"]
    assert capture["late"] == 1 and capture["dropped"] == 2
    assert 'afterword_turns_dropped_total{reason="full"} 2.0' in gateway.get("/metrics").text


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[sqlite3.Connection]]:
    """Writers whose database may not grow; the test may lift the bound."""
    made: list[sqlite3.Connection] = []

    def limited(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")
        made.append(connection)
        return connection

    monkeypatch.setattr(writer_module, "connect", limited)
    yield made


def test_a_full_disk_breaks_no_answer(launch: Launch, small_disk: list[sqlite3.Connection]) -> None:
    gateway = launch()
    big = "x" * 200_000
    answer = gateway.chat(big)
    assert answer["choices"][0]["message"]["content"] == "The sky is blue."
    assert gateway.turns() == []
    health = gateway.get("/health")
    assert health.status_code == 200, "answers still leave"
    body = health.json()
    assert body["status"] == "degraded" and "full" in body["store"]["problem"] and body["capture"]["dropped"] == 1
    assert 'afterword_turns_dropped_total{reason="store"} 1.0' in gateway.get("/metrics").text
    said = answer["choices"][0]["message"]["content"]
    gateway.chat(big, said, "Shorter!")
    event = {"turn": answer["id"], "kind": "comment", "text": big}
    refused = gateway.post("/v1/feedback", event)
    assert refused.status_code == 500 and refused.json()["error"]["type"] == "store_error"
    small_disk[0].execute("PRAGMA max_page_count=1000000")
    kept = gateway.chat("Hi again")
    assert [turn.id for turn in gateway.turns()] == [kept["id"]]
    assert gateway.turns()[0].previous is None
    assert gateway.get("/health").json()["status"] == "ok"
    assert gateway.post("/v1/feedback", event).json()["status"] == "held"


def test_a_lost_turn_is_forgotten_by_the_links(launch: Launch, small_disk: list[sqlite3.Connection]) -> None:
    gateway = launch()
    big = "x" * 200_000
    said = gateway.chat(big)["choices"][0]["message"]["content"]
    small_disk[0].execute("PRAGMA max_page_count=1000000")
    gateway.chat(big, said, "Shorter!")
    (turn,) = gateway.turns()
    assert turn.previous is None and gateway.feedback() == [], "no feedback on a turn that is not there"


def test_a_store_that_refuses_breaks_no_answer(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = launch()

    def refuse(*_: object) -> Future[list[Outcome]]:
        raise StoreError("the database is gone")

    monkeypatch.setattr(Store, "submit", refuse)
    gateway.chat("Hi")
    monkeypatch.undo()
    body = gateway.get("/health").json()
    assert body["store"]["problem"] == "the database is gone" and body["capture"]["dropped"] == 1


def test_a_store_that_cannot_be_read_is_an_outage(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = launch()

    def broken(self: Store) -> int:
        raise StoreError("disk on fire")

    monkeypatch.setattr(Store, "held", broken)
    response = gateway.get("/health")
    assert response.status_code == 503 and response.json()["store"] == {"status": "down", "problem": "disk on fire"}


def test_the_client_leaves_while_the_disk_is_slow(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afterword.store.store.Writer", Slow)
    gateway = launch(Fake(), capture_wait_ms=2000.0)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            gateway.url + "/v1/chat/completions",
            json={"model": "afterword", "messages": [{"role": "user", "content": "Hi"}]},
            timeout=0.2,
        )
    deadline = time.monotonic() + 5
    while not gateway.turns():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert gateway.turns()[0].finish_reason == "stop", "it was complete, only not delivered"


def test_many_clients_at_once(launch: Launch) -> None:
    gateway = launch(Fake(delay=0.002))
    answers: list[str] = []

    def client(number: int) -> None:
        for turn in range(5):
            answers.append(gateway.chat(f"Hi {number}.{turn}")["id"])

    threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(answers)) == 40 and {turn.id for turn in gateway.turns()} == set(answers)


def test_what_waits_when_the_server_stops_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afterword.store.store.Writer", Slow)
    with fake_upstream(Fake()) as fake:
        settings = GatewaySettings(dir=tmp_path, upstream=fake.url, port=0)
        with serve_in_thread(settings) as url:
            body = {"model": "afterword", "messages": [{"role": "user", "content": "Hi"}]}
            answer = httpx.post(f"{url}/v1/chat/completions", json=body).json()
    with Store.open(settings.database) as store:
        assert [turn.id for turn in store.rows(Turn)] == [answer["id"]]


def test_one_request_that_is_refused_with_ids_leaves_the_others_on_policy(launch: Launch) -> None:
    gateway = launch(Fake(refuses={"return_token_ids": "not with this one"}, only_refuses="odd"))
    for text in ("even", "odd", "even again"):
        gateway.chat(text)
    before, odd, after = gateway.turns()
    assert odd.missing_ids == "the upstream refuses return_token_ids" and not odd.on_policy
    assert before.on_policy and after.on_policy and after.logprobs is not None


@pytest.mark.parametrize(
    ("server", "metadata", "header", "consent"),
    [
        (True, {}, None, True),
        (True, {"train": False}, None, False),
        (True, {"train": "false"}, None, False),
        (True, {"train": True}, "false", False),
        (False, {}, None, False),
        (False, {"train": "true"}, None, True),
        (False, {}, "True", True),
    ],
)
def test_consent_to_train_is_said_with_the_request(
    launch: Launch, server: bool, metadata: dict[str, object], header: str | None, consent: bool
) -> None:
    gateway = launch(train=server)
    body = {"model": "afterword", "messages": [{"role": "user", "content": "Hi"}], "metadata": metadata}
    headers = {} if header is None else {"x-afterword-train": header}
    assert gateway.post("/v1/chat/completions", body, headers=headers).status_code == 200
    (turn,) = gateway.turns()
    assert turn.consent is consent
    assert "metadata" not in gateway.fake.requests[0]


def test_words_said_without_consent_are_not_learned_from(gateway: Setup) -> None:
    gateway.chat("Hi", user="ada")
    for train in (False, True):
        gateway.chat("Hi", "The sky is blue.", f"Shorter! {train}", user="ada", metadata={"train": train})
    assert [turn.consent for turn in gateway.turns()] == [True, False, True]
    assert [event.text for event in gateway.feedback(kind="follow_up")] == ["Shorter! True"]
