"""Which pages and names get in when no key protects the gateway, and what browsers are told."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tests.gateway.gateway_setup import Launch, Setup

from afterword.errors import ConfigError
from afterword.gateway import GatewaySettings, create_key, run_gateway
from afterword.gateway.origin_policy import OriginPolicy

CHAT, FEEDBACK = "/v1/chat/completions", "/v1/feedback"
HI = {"model": "afterword", "messages": [{"role": "user", "content": "Hi"}]}


def send(gateway: Setup, path: str = FEEDBACK, body: Any = None, **headers: str) -> httpx.Response:
    body = {"turn": "t", "kind": "copied"} if body is None else body
    return httpx.post(gateway.url + path, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


@pytest.mark.parametrize("path", [FEEDBACK, CHAT])
@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Origin": "http://evil.example"}, "origin"),
        ({"Origin": "https://127.0.0.1.evil.example"}, "origin"),
        ({"Origin": "null"}, "origin"),
        ({"Host": "evil.example"}, "host"),
        ({"Host": "evil.example:8400"}, "host"),
        ({"Host": "[::1"}, "host"),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, "host"),
    ],
)
def test_other_pages_and_names_write_nothing(gateway: Setup, path: str, headers: dict[str, str], code: str) -> None:
    for content_type in ("application/json", "text/plain"):
        refused = send(gateway, path, HI if path == CHAT else None, content_type=content_type, **headers)
        error = refused.json()["error"]
        assert refused.status_code == 403 and error["code"] == code and "allow_origins" in error["message"]
    assert gateway.turns() == [] and gateway.feedback() == []
    assert gateway.fake.requests == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "localhost:8400"},
        {"Host": "[::1]:8400"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "http://app.localhost"},
        {"Origin": "https://chat.example", "Host": "chat.example"},
        {"Origin": "HTTPS://Chat.Example"},
    ],
)
def test_this_machine_and_what_the_settings_name_come_in(launch: Launch, headers: dict[str, str]) -> None:
    gateway = launch(allow_origins=("https://chat.example/",))
    assert send(gateway, **headers).status_code == 202
    assert send(gateway, **headers).json()["status"] == "duplicate"


def test_a_star_lets_everybody_in(launch: Launch) -> None:
    gateway = launch(allow_origins=("*",))
    response = send(gateway, Host="any.example", Origin="http://any.example")
    assert response.status_code == 202 and response.headers["access-control-allow-origin"] == "http://any.example"


def test_behind_a_key_the_key_decides(launch: Launch) -> None:
    gateway = launch()
    text, _ = create_key(gateway.settings.dir)
    again = launch(gateway.fake, directory=gateway.settings.dir)
    foreign = {"Host": "chat.example", "Origin": "https://chat.example", "Authorization": f"Bearer {text}"}
    assert send(again, **foreign).status_code == 202


def test_a_browser_is_told_what_it_may(launch: Launch) -> None:
    gateway = launch(allow_origins=("https://chat.example",))
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-afterword-user"}
    told = httpx.options(gateway.url + CHAT, headers={"Origin": "https://chat.example", **asks})
    assert told.status_code == 204 and told.headers["access-control-allow-origin"] == "https://chat.example"
    assert "POST" in told.headers["access-control-allow-methods"]
    assert told.headers["access-control-allow-headers"] == "content-type,x-afterword-user"
    assert httpx.options(gateway.url + CHAT, headers={"Origin": "https://evil.example", **asks}).status_code == 403
    assert httpx.options(gateway.url + CHAT).status_code == 405
    for stream in (True, False):
        answer = send(gateway, CHAT, {**HI, "stream": stream}, Origin="https://chat.example")
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"
        assert "x-afterword-turn" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in send(gateway).headers


@pytest.mark.parametrize("origin", ["chat.example", "ftp://chat.example", "https://chat.example/path", "https://"])
def test_an_origin_that_is_none(tmp_path: Any, origin: str) -> None:
    with pytest.raises(ConfigError, match="allow_origins"):
        run_gateway(GatewaySettings(dir=tmp_path, upstream="http://127.0.0.1:9", port=0, allow_origins=(origin,)))


def test_what_was_let_in_is_remembered_within_bounds() -> None:
    origin_policy = OriginPolicy(())
    for number in range(2000):
        origin_policy.check({"Host": f"127.0.0.1:{number}"})
    assert len(origin_policy._known) == 1000
    with pytest.raises(Exception, match="evil"):
        origin_policy.check({"Host": "evil.example"})
