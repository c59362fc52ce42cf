"""The alias follows the release rows: load, move, keep the previous one warm, unload; never a failed request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.gateway.fake_upstream import Fake, fake_upstream
from tests.gateway.gateway_setup import Launch, Setup

from afterword.errors import StoreError
from afterword.gateway.keys import create_key
from afterword.records import Candidate, Interaction, Release, Turn
from afterword.store import Store
from afterword.store.erasure.erase import Eraser

HI = {"model": "afterword", "messages": [{"role": "user", "content": "Hi"}]}


def release(store: Store, number: int | None, previous: str | None = None, **more: Any) -> Release:
    """Write a release row; None is the base model."""
    name = None if number is None else f"afterword@v{number:06d}"
    row = Release(
        id=more.pop("id", f"rel-{time.monotonic_ns()}"),
        channel=more.pop("channel", "default"),
        adapter=name,
        candidate=None if name is None else f"cand-{number}",
        path=None if name is None else f"adapters/cand-{number}",
        verdict=None,
        previous=previous,
        action="publish",
        why="test",
        **more,
    )
    store.write(row)
    return row


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def serves(gateway: Setup) -> str:
    return str(gateway.get("/health").json()["adapter"]["serves"])


def test_a_release_row_moves_the_alias(gateway: Setup) -> None:
    assert gateway.chat("Hi")["model"] == "base-model"
    one = release(gateway.store, 1)
    until(lambda: serves(gateway) == "afterword@v000001")
    response = gateway.post("/v1/chat/completions", HI)
    assert response.json()["model"] == response.headers["x-afterword-adapter"] == "afterword@v000001"
    turn = gateway.turns()[-1]
    assert turn.adapter == "afterword@v000001" and turn.model == "base-model"
    assert gateway.fake.adapters["afterword@v000001"] == str(gateway.settings.dir / "adapters/cand-1")
    assert gateway.chat("Hi", model="afterword@base")["model"] == "base-model"
    assert gateway.chat("Hi", model="base-model")["model"] == "base-model"
    assert gateway.chat("Hi", model="afterword@previous")["model"] == "base-model"
    two = release(gateway.store, 2, one.id)
    until(lambda: serves(gateway) == "afterword@v000002")
    assert gateway.chat("Hi", model="afterword@previous")["model"] == "afterword@v000001"
    release(gateway.store, None, two.id)
    until(lambda: serves(gateway) == "base")
    assert gateway.chat("Hi")["model"] == "base-model"
    metrics = gateway.get("/metrics").text
    assert 'afterword_active_adapter_info{adapter="base"} 1.0' in metrics
    assert "afterword_swap_seconds_count 3.0" in metrics
    assert gateway.fake.loads == ["afterword@v000001", "afterword@v000002"]


def test_models_are_listed(gateway: Setup) -> None:
    one = release(gateway.store, 1)
    release(gateway.store, 2, one.id)
    until(lambda: serves(gateway) == "afterword@v000002")
    client = gateway.openai()
    cards = {card.id: card for card in client.models.list()}
    assert list(cards) == [
        "base-model", "afterword@v000001", "afterword@v000002", "afterword", "afterword@base", "afterword@previous",
    ]  # fmt: skip
    assert cards["afterword@v000001"].parent == "base-model" and cards["afterword@v000001"].root == "adapters/cand-1"
    assert cards["afterword"].root == "afterword@v000002" and cards["afterword@previous"].root == "afterword@v000001"
    assert cards["base-model"].parent is None
    assert all(abs(card.created - time.time()) < 100 for card in cards.values()), "each says since when it is there"
    assert client.models.retrieve("afterword@v000002").id == "afterword@v000002"
    missing = gateway.get("/v1/models/org/nothing")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"


def test_no_request_fails_while_adapters_come_and_go(launch: Launch) -> None:
    gateway = launch(Fake(delay=0.01), adapter_idle=0.0)
    models: list[str] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            models.append(gateway.chat("Hi")["model"])

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    previous = None
    for number in range(1, 6):
        previous = release(gateway.store, number, previous).id
        until(lambda number=number: serves(gateway) == f"afterword@v{number:06d}")  # type: ignore[misc]
    until(lambda: models[-1] == "afterword@v000005")
    stop.set()
    for thread in threads:
        thread.join()
    until(lambda: set(gateway.fake.adapters) == {"afterword@v000004", "afterword@v000005"})
    assert gateway.fake.unloads == ["afterword@v000001", "afterword@v000002", "afterword@v000003"]
    assert all(status == "200" for status in _statuses(gateway)), "not one request failed"
    assert len(gateway.turns()) == len(models)


def test_a_candidate_answers_by_its_id_to_reviewers_alone(launch: Launch) -> None:
    gateway = launch(Fake())
    gateway.store.write(
        Candidate(id="cand-1", path="adapters/cand-1", base="m", parent=None, interactions=(), recipe={})
    )
    asked = {**HI, "model": "afterword@cand-1"}
    assert gateway.post("/v1/chat/completions", asked).status_code == 200  # without keys: this machine alone
    keys = {scope: create_key(gateway.settings.dir, ("infer", scope))[0] for scope in ("feedback", "review")}
    until(lambda: gateway.post("/v1/chat/completions", HI).status_code == 401)
    codes = {
        scope: gateway.post("/v1/chat/completions", asked, headers={"Authorization": f"Bearer {key}"}).status_code
        for scope, key in keys.items()
    }
    assert codes == {"feedback": 403, "review": 200}


def test_many_channels_share_a_few_places(launch: Launch) -> None:
    gateway = launch(Fake(), max_adapters=4)
    release(gateway.store, 1)
    until(lambda: serves(gateway) == "afterword@v000001")
    users = range(2, 22)
    for number in users:
        release(gateway.store, number, channel=f"user:u{number}")
    until(lambda: _served(gateway, "u21") == "afterword@v000021")
    for _ in range(2):
        for number in users:
            assert _served(gateway, f"u{number}") == f"afterword@v{number:06d}"
            assert len(gateway.fake.adapters) <= 4 and "afterword@v000001" in gateway.fake.adapters
    assert gateway.chat("Hi")["model"] == "afterword@v000001"
    assert gateway.fake.loads.count("afterword@v000001") == 1
    loaded = len(gateway.fake.loads)
    for _ in range(5):  # who is there is not loaded again
        assert _served(gateway, "u21") == "afterword@v000021"
    assert len(gateway.fake.loads) == loaded
    assert all(status == "200" for status in _statuses(gateway))


def _served(gateway: Setup, user: str) -> str:
    response = gateway.post("/v1/chat/completions", {**HI, "user": user})
    assert response.status_code == 200, response.text
    return str(response.headers["x-afterword-adapter"])


def _statuses(gateway: Setup) -> list[str]:
    lines = gateway.get("/metrics").text.splitlines()
    return [line.split('status="')[1].split('"')[0] for line in lines if line.startswith("afterword_requests_total{")]


def test_an_answer_in_flight_keeps_its_adapter(launch: Launch) -> None:
    gateway = launch(Fake(words=("a",) * 30, delay=0.02), adapter_idle=0.0)
    one = release(gateway.store, 1)
    until(lambda: serves(gateway) == "afterword@v000001")
    stream = gateway.stream("Hi")
    next(stream)
    two = release(gateway.store, 2, one.id)
    release(gateway.store, 3, two.id)
    until(lambda: serves(gateway) == "afterword@v000003")
    time.sleep(0.1)
    assert "afterword@v000001" in gateway.fake.adapters, "in use, so not unloaded"
    assert {chunk.model for chunk in stream} == {"afterword@v000001"}
    assert gateway.turns()[0].adapter == "afterword@v000001"
    until(lambda: "afterword@v000001" not in gateway.fake.adapters)


def test_older_versions_are_loaded_when_asked_for(launch: Launch) -> None:
    gateway = launch(adapter_idle=0.2)
    previous = None
    for number in (1, 2, 3):
        previous = release(gateway.store, number, previous).id
    until(lambda: serves(gateway) == "afterword@v000003")
    assert gateway.chat("Hi", model="afterword@v000001")["model"] == "afterword@v000001"
    until(lambda: set(gateway.fake.adapters) == {"afterword@v000002", "afterword@v000003"})


def test_a_version_that_was_just_released_is_known(launch: Launch) -> None:
    gateway = launch(poll_ms=60_000.0)
    release(gateway.store, 1)
    assert gateway.chat("Hi", model="afterword@v000001")["model"] == "afterword@v000001"
    assert gateway.chat("Hi")["model"] == "base-model", "the alias has not moved yet"


def test_both_are_loaded_before_the_server_is_ready(launch: Launch) -> None:
    fake = Fake()
    before = launch(fake)
    one = release(before.store, 1)
    release(before.store, 2, one.id)
    after = launch(fake, poll_ms=60_000.0)
    assert serves(after) == "afterword@v000002"
    assert set(fake.adapters) == {"afterword@v000001", "afterword@v000002"}
    assert "afterword_swap_seconds_count 0.0" in after.get("/metrics").text


def test_adapters_that_the_engine_has_already_are_fine(launch: Launch) -> None:
    fake = Fake()
    gateway = launch(fake)
    fake.adapters["afterword@v000001"] = str(gateway.settings.dir / "adapters/cand-1")
    release(gateway.store, 1)
    until(lambda: serves(gateway) == "afterword@v000001")
    assert gateway.chat("Hi")["model"] == "afterword@v000001" and gateway.get("/health").json()["status"] == "ok"
    assert list(fake.adapters) == ["afterword@v000001"]


@pytest.mark.parametrize("shows_roots", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_another_directorys_adapter_of_the_same_name_is_never_taken_for_ours(
    launch: Launch, shows_roots: bool, stream: bool
) -> None:
    """A model server that two data directories share, or that outlives one: it knows the name already."""
    fake = Fake(adapters={"afterword@v000001": "/old/adapters/cand-9"}, shows_roots=shows_roots)
    fake.says["afterword@v000001"] = ("I am the old one",)
    gateway = launch(fake)
    release(gateway.store, 1)
    until(lambda: serves(gateway) == "afterword@v000001")
    body = {**HI, "stream": stream}
    response = gateway.post("/v1/chat/completions", body)
    assert "The " in response.text and "old one" not in response.text
    assert '"model":"afterword@v000001"' in response.text, "clients see the version's own name"
    assert response.headers["x-afterword-adapter"] == gateway.turns()[0].adapter == "afterword@v000001"
    (ours,) = [name for name, root in fake.adapters.items() if root.endswith("data/adapters/cand-1")]
    assert fake.requests[-1]["model"] == ours != "afterword@v000001"
    assert fake.adapters["afterword@v000001"] == "/old/adapters/cand-9", "it may be in use: it is left alone"


@pytest.mark.parametrize("shows_roots", [True, False])
def test_a_gateway_that_starts_again_finds_its_own_adapter(launch: Launch, shows_roots: bool) -> None:
    fake = Fake(adapters={"afterword@v000001": "/old/adapters/cand-9"}, shows_roots=shows_roots)
    release(launch(fake).store, 1)
    until(lambda: len(fake.adapters) == 2)
    attempts = len(fake.loads)
    again = launch(fake)
    assert again.chat("Hi")["model"] == "afterword@v000001"
    assert len(fake.loads) == attempts and fake.requests[-1]["model"] != "afterword@v000001"
    fake.adapters.clear()
    assert again.chat("Hi")["model"] == "afterword@v000001"
    assert list(fake.adapters) == ["afterword@v000001"], "the name is free now"


def test_an_adapter_under_a_name_of_its_own_is_unloaded_by_it(launch: Launch) -> None:
    fake = Fake(adapters={"afterword@v000001": "/old/adapters/cand-9"})
    gateway = launch(fake, adapter_idle=0.1)
    previous = None
    for number in (1, 2, 3):
        previous = release(gateway.store, number, previous).id
        until(lambda number=number: serves(gateway) == f"afterword@v{number:06d}")  # type: ignore[misc]
    until(lambda: set(fake.adapters) == {"afterword@v000001", "afterword@v000002", "afterword@v000003"})
    assert fake.adapters["afterword@v000001"] == "/old/adapters/cand-9" and len(fake.unloads) == 1


def test_an_adapter_that_does_not_load_changes_nothing(gateway: Setup) -> None:
    one = release(gateway.store, 1)
    until(lambda: serves(gateway) == "afterword@v000001")
    gateway.fake.load_error = "rank 4096 is too large"
    two = release(gateway.store, 2, one.id)
    until(lambda: gateway.get("/health").json()["status"] == "degraded")
    health = gateway.get("/health")
    assert health.status_code == 200 and "rank 4096 is too large" in health.json()["adapter"]["problem"]
    assert gateway.chat("Hi")["model"] == "afterword@v000001"
    assert gateway.get("/health/ready").status_code == 200
    attempts = len(gateway.fake.loads)
    time.sleep(0.2)
    assert len(gateway.fake.loads) <= attempts + 1, "it is tried again with patience"
    gateway.fake.load_error = None
    release(gateway.store, 3, two.id)
    until(lambda: serves(gateway) == "afterword@v000003", 0.4)
    assert gateway.get("/health").json()["status"] == "ok"


def test_the_first_release_that_does_not_load_is_tried_again(launch: Launch) -> None:
    gateway = launch(Fake(load_error="not yet"))
    release(gateway.store, 1)
    until(lambda: gateway.get("/health").json()["status"] == "degraded")
    assert gateway.chat("Hi")["model"] == "base-model"
    gateway.fake.load_error = None
    until(lambda: serves(gateway) == "afterword@v000001")


def test_at_the_start_the_one_before_stands_in(launch: Launch) -> None:
    fake = Fake()
    before = launch(fake)
    one = release(before.store, 1)
    until(lambda: serves(before) == "afterword@v000001")
    release(before.store, 2, one.id, id="rel-bad")
    until(lambda: "afterword@v000002" in fake.adapters)
    del fake.adapters["afterword@v000002"]
    fake.load_error = "corrupt"
    after = launch(fake)
    assert serves(after) == "afterword@v000001" and after.get("/health").json()["status"] == "degraded"
    assert after.chat("Hi")["model"] == "afterword@v000001"


def test_at_the_start_the_base_model_stands_in_and_a_release_needs_a_folder(launch: Launch) -> None:
    fake = Fake()
    before = launch(fake)
    base = release(before.store, None)
    until(lambda: before.get("/metrics").text.count("afterword_swap_seconds_count 1.0") == 1)
    nowhere = Release(
        id="rel-nowhere", channel="default", adapter="afterword@v000007", candidate="c", path=None, verdict=None,
        previous=base.id, action="publish", why="test",
    )  # fmt: skip
    before.store.write(nowhere)
    after = launch(fake)
    for gateway in (before, after):
        until(lambda gateway=gateway: gateway.get("/health").json()["status"] == "degraded")  # type: ignore[misc]
        assert "has no folder" in gateway.get("/health").json()["adapter"]["problem"]
        assert gateway.chat("Hi")["model"] == "base-model"
    release(before.store, 1, nowhere.id)
    until(lambda: serves(before) == serves(after) == "afterword@v000001")


def test_a_base_model_with_our_name_is_listed_once(launch: Launch) -> None:
    gateway = launch(Fake(base="afterword"))
    assert [card["id"] for card in gateway.get("/v1/models").json()["data"]] == ["afterword", "afterword@base"]


def test_requests_go_on_while_an_adapter_loads_and_it_is_loaded_once(launch: Launch) -> None:
    gateway = launch(Fake(load_delay=0.5))
    release(gateway.store, 1)
    until(lambda: bool(gateway.fake.loads))
    start = time.monotonic()
    assert gateway.chat("Hi")["model"] == "base-model"
    assert time.monotonic() - start < 0.4
    assert gateway.chat("Hi", model="afterword@v000001")["model"] == "afterword@v000001"
    assert gateway.fake.loads == ["afterword@v000001"]


def test_a_server_without_models(launch: Launch) -> None:
    gateway = launch(Fake(lists_nothing=True))
    response = gateway.post("/v1/chat/completions", HI)
    assert response.status_code == 502 and "lists no model" in response.json()["error"]["message"]


def test_the_engine_was_restarted(launch: Launch) -> None:
    fake = Fake()
    with fake_upstream(fake):
        gateway = launch(fake)
        release(gateway.store, 1)
        until(lambda: serves(gateway) == "afterword@v000001")
        fake.adapters.clear()
        assert gateway.chat("Hi")["model"] == "afterword@v000001", "loaded again and asked once more"
        assert fake.loads == ["afterword@v000001"] * 2
        fake.base = "other-base"
        assert gateway.chat("Hi", model="afterword@base")["model"] == "other-base"
        fake.adapters.clear()
        fake.load_error = "gone"
        body = HI
        assert gateway.post("/v1/chat/completions", body).status_code == 502


def test_the_adapter_is_what_the_upstream_reports(launch: Launch) -> None:
    gateway = launch(Fake(reports="base-model"))
    release(gateway.store, 1)
    until(lambda: serves(gateway) == "afterword@v000001")
    body = HI
    assert gateway.post("/v1/chat/completions", body).headers["x-afterword-adapter"] == "base"
    assert gateway.turns()[0].adapter is None


def test_the_base_model_may_be_chosen(launch: Launch) -> None:
    gateway = launch(upstream_model="base-model")
    assert gateway.chat("Hi")["model"] == "base-model"
    wrong = launch(upstream_model="other")
    assert wrong.get("/health/ready").status_code == 503
    response = wrong.post("/v1/chat/completions", HI)
    assert response.status_code == 502 and "model 'other' is missing" in response.json()["error"]["message"]


def test_other_channels_do_not_matter(gateway: Setup) -> None:
    release(gateway.store, 1, channel="staging")
    time.sleep(0.2)
    assert serves(gateway) == "base"


def test_a_store_that_fails_for_a_while_is_survived(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = launch()

    def broken(store: Store, after: int) -> None:
        raise StoreError("disk on fire")

    with monkeypatch.context() as patch:
        patch.setattr("afterword.gateway.release_follower.releases_after", broken)
        until(lambda: gateway.get("/health").json()["adapter"].get("problem") == "disk on fire")
        assert gateway.chat("Hi")["model"] == "base-model"
    until(lambda: gateway.get("/health").json()["status"] == "ok")


def test_an_adapter_that_learned_from_a_forgotten_user_is_unloaded_and_gone(gateway: Setup) -> None:
    store = gateway.store
    turn = Turn(id="t1", messages=(), answer={"role": "assistant", "content": "Hi"}, user="ada")
    made = Interaction(id="i1", turn="t1", feedback=("f1",), kind="follow_up", hindsight="x", polarity=-1, weight=1.0,
                       split="train")  # fmt: skip
    store.write(turn, made)
    for name, parent, learned in (("cand-1", None, ()), ("cand-2", "cand-1", ("i1",))):
        store.write(Candidate(id=name, path=name, base="m", parent=parent, interactions=learned, recipe={}))
    one = release(store, 1)
    until(lambda: serves(gateway) == "afterword@v000001")
    two = release(store, 2, one.id)
    until(lambda: serves(gateway) == "afterword@v000002")
    with Eraser(store.path) as eraser:
        eraser.redact("ada", "era-1")
    release(store, 1, two.id)
    until(lambda: serves(gateway) == "afterword@v000001")
    until(lambda: "afterword@v000002" not in gateway.fake.adapters)
    names = [card["id"] for card in gateway.get("/v1/models").json()["data"]]
    assert "afterword@v000002" not in names and "afterword@v000001" in names
    gone = gateway.post("/v1/chat/completions", {**HI, "model": "afterword@v000002"})
    assert gone.status_code == 404
    assert gateway.chat("Hi", model="afterword@previous")["model"] == "base-model"
