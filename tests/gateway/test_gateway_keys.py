"""API keys: kept hashed, checked with scope and expiry, needed on open addresses."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import openai
import pytest
from tests.gateway.fake_upstream import Fake
from tests.gateway.gateway_setup import Launch
from tests.serving import until

from afterword.errors import ConfigError, NotFoundError, UsageError
from afterword.gateway import GatewaySettings, create_key, list_keys, revoke_key, run_gateway
from afterword.gateway.keys import KeyMissing, KeyRing, ScopeMissing, key_file


def test_only_the_hash_is_kept(tmp_path: Path) -> None:
    text, key = create_key(tmp_path, ("infer",), note="laptop", days=1)
    assert text.startswith(f"sk-aw-{key.id}-") and key.expires_at is not None
    assert text.removeprefix(f"sk-aw-{key.id}-") not in key_file(tmp_path).read_text("utf-8")
    assert key_file(tmp_path).stat().st_mode & 0o777 == 0o600
    assert list_keys(tmp_path) == [key]
    other = create_key(tmp_path)[1]
    assert revoke_key(tmp_path, other.id) == other and list_keys(tmp_path) == [key]
    assert revoke_key(tmp_path, key.id) == key and list_keys(tmp_path) == []
    with pytest.raises(NotFoundError, match="keys list"):
        revoke_key(tmp_path, key.id)


def test_bad_scopes_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fly"):
        create_key(tmp_path, ("infer", "fly"))
    with pytest.raises(UsageError):
        create_key(tmp_path, ())
    key_file(tmp_path).write_text("[{", "utf-8")
    with pytest.raises(ConfigError, match="damaged"):
        list_keys(tmp_path)


def test_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = KeyRing(tmp_path)
    assert ring.check(None, "infer") is None
    text, key = create_key(tmp_path, ("infer",))
    admin, admin_key = create_key(tmp_path, ("admin",))
    old, _ = create_key(tmp_path, days=-1)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 1)
    assert ring.check(f"Bearer {text}", "infer") == key.id
    assert ring.check(f"Bearer {admin}", "review") == admin_key.id
    with pytest.raises(ScopeMissing, match="lacks the scope `feedback`"):
        ring.check(f"Bearer {text}", "feedback")
    for wrong, why in (
        (None, "missing"),
        ("Bearer none", "invalid"),
        (f"Bearer sk-aw-{key.id}-guess", "invalid"),
        (f"Bearer {old}", "expired"),
    ):
        with pytest.raises(KeyMissing, match=why):
            ring.check(wrong, "infer")


def test_keys_close_a_running_server(launch: Launch) -> None:
    gateway = launch()
    gateway.chat("Hi")
    text, key = create_key(gateway.settings.dir, ("infer",))
    body = {"model": "afterword", "messages": [{"role": "user", "content": "Hi"}]}
    deadline = time.monotonic() + 5
    while (closed := gateway.post("/v1/chat/completions", body)).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert closed.status_code == 401 and closed.headers["www-authenticate"] == "Bearer"
    with pytest.raises(openai.AuthenticationError):
        gateway.openai("wrong").models.list()
    answer = gateway.openai(text).chat.completions.create(model="afterword", messages=body["messages"], user="ada")
    assert gateway.store.get(type(gateway.turns()[0]), answer.id).key == key.id
    refused = httpx.post(f"{gateway.url}/v1/feedback", json={}, headers={"Authorization": f"Bearer {text}"})
    assert refused.status_code == 403 and refused.json()["error"]["type"] == "permission_error"
    for path in ("/health", "/metrics", "/openapi.json", "/"):
        assert gateway.get(path).status_code == 200, "probes need no key"
    revoke_key(gateway.settings.dir, key.id)
    time.sleep(0.6)
    assert gateway.post("/v1/chat/completions", body).status_code == 401, "without any key left it stays closed"


def test_a_file_that_goes_missing_opens_nothing(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = launch()
    text, _ = create_key(gateway.settings.dir)
    time.sleep(0.6)
    assert gateway.get("/v1/models").status_code == 401
    key_file(gateway.settings.dir).unlink()
    time.sleep(0.6)
    assert gateway.get("/v1/models").status_code == 401
    with pytest.raises(openai.AuthenticationError):
        gateway.openai(text).models.list()


def test_an_open_address_without_a_file_is_closed(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path, needed=True)
    with pytest.raises(KeyMissing, match="missing"):
        ring.check(None, "infer")


def test_a_damaged_file_is_one_error_until_it_is_mended(launch: Launch) -> None:
    gateway = launch()
    text, _ = create_key(gateway.settings.dir)
    time.sleep(0.6)
    client = gateway.openai(text)
    assert list(client.models.list())
    file = key_file(gateway.settings.dir)
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    time.sleep(0.6)
    for _ in range(3):
        broken = httpx.get(f"{gateway.url}/v1/models", headers={"Authorization": f"Bearer {text}"})
        assert broken.status_code == 500 and "damaged" in broken.json()["error"]["message"]
        assert "delete" not in broken.json()["error"]["message"]
    with pytest.raises(ConfigError, match="damaged"):
        run_gateway(gateway.settings)
    file.write_bytes(whole)
    time.sleep(0.6)
    assert list(client.models.list())


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  ", ""])
def test_the_scheme_may_be_written_in_any_case(tmp_path: Path, scheme: str) -> None:
    text, key = create_key(tmp_path)
    assert KeyRing(tmp_path).check(scheme + text, "infer") == key.id
    with pytest.raises(KeyMissing):
        KeyRing(tmp_path).check(f"Basic {text}", "infer")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "gateway.example"])
def test_an_open_address_needs_a_key(tmp_path: Path, host: str) -> None:
    settings = GatewaySettings(dir=tmp_path, upstream="http://127.0.0.1:9", host=host, port=0)
    with pytest.raises(ConfigError, match="keys create"):
        run_gateway(settings)
    assert not settings.database.exists()


def test_health_quotes_a_failure_to_an_administrator_only(launch: Launch) -> None:
    setup = launch(Fake(reject=(500, {"message": "cannot read 'my PIN is 4711'"})))
    admin, _ = create_key(setup.settings.dir, ("admin",))
    infer, _ = create_key(setup.settings.dir, ("infer",))
    body = {"model": "afterword", "messages": [{"role": "user", "content": "my PIN is 4711"}], "store": False}

    def health(key: str | None) -> str:
        return httpx.get(f"{setup.url}/health", headers={"Authorization": f"Bearer {key}"} if key else {}).text

    def closed() -> bool:
        return httpx.get(f"{setup.url}/v1/models").status_code == 401

    until(closed)
    for _ in range(3):
        assert setup.post("/v1/chat/completions", body, headers={"Authorization": f"Bearer {infer}"}).status_code == 502
    assert "4711" not in health(None) + health(infer) and '"last_failure":"500"' in health(infer)
    assert "my PIN is 4711" in health(admin)
