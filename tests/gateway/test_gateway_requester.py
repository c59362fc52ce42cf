"""Who asks and in which conversation, as clients and front ends name them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from multidict import CIMultiDict
from tests.gateway.gateway_setup import Launch, Setup

from afterword.config import BUILT_IN, resolve
from afterword.errors import ConfigError
from afterword.gateway.requester import NameSources
from afterword.gateway.wire.request import parse_chat

MESSAGES = [{"role": "user", "content": "Hi"}]


def names(headers: dict[str, str], sources: NameSources | None = None, **body: Any) -> tuple[str | None, str | None]:
    data = orjson.dumps({"model": "m", "messages": MESSAGES, **body})
    more = () if sources is None else (sources,)
    chat = parse_chat(data, CIMultiDict(headers), None, *more)
    return chat.user, chat.conversation


@pytest.mark.parametrize(
    ("headers", "body", "found"),
    [
        ({"X-OpenWebUI-User-Id": "7f3c", "X-OpenWebUI-Chat-Id": "chat-9"}, {}, ("7f3c", "chat-9")),
        ({"x-litellm-end-user-id": "u", "x-litellm-session-id": "s"}, {}, ("u", "s")),
        ({"Helicone-User-Id": "u", "Helicone-Session-Id": "s"}, {}, ("u", "s")),
        ({}, {"metadata": {"langfuse_user_id": "u", "langfuse_session_id": "s"}}, ("u", "s")),
        ({}, {"metadata": {"user_id": 7, "thread_id": " t "}, "litellm_session_id": ""}, ("7", "t")),
        ({}, {"safety_identifier": "h", "prompt_cache_key": "app"}, ("h", None)),
        ({}, {"user": "ada", "safety_identifier": "h"}, ("ada", None)),
        ({"X-OpenWebUI-User-Id": "7f3c"}, {"user": "app"}, ("7f3c", None)),
        ({"x-afterword-user": "ada", "X-OpenWebUI-User-Id": "7f3c"}, {"user": "app"}, ("ada", None)),
        ({"x-afterword-user": "{{LIBRECHAT_USER_ID}}", "x-afterword-conversation": "null"}, {}, (None, None)),
        ({"x-afterword-user": "undefined"}, {"user": "ada"}, ("ada", None)),
        ({"X-OpenWebUI-User-Id": "x" * 600, "X-OpenWebUI-Chat-Id": " "}, {}, (None, None)),
        ({"X-OpenWebUI-User-Id": "\udcff"}, {}, (None, None)),
        ({}, {"metadata": {"user_id": ["u"], "session_id": True, "chat_id": {"a": 1}}}, (None, None)),
    ],
)
def test_names_of_other_products(headers: dict[str, str], body: Any, found: tuple[str | None, str | None]) -> None:
    assert names(headers, **body) == found


def test_the_lists_are_settings() -> None:
    none = NameSources((), ())
    assert names({"X-OpenWebUI-User-Id": "u"}, none, safety_identifier="h", user="ada") == ("ada", None)
    own = NameSources(("x-sso-user",), ("body.prompt_cache_key", "body.a.b"))
    assert names({"X-SSO-User": "u"}, own, prompt_cache_key="c") == ("u", "c")
    assert names({}, own, a={"b": "c"}) == (None, "c") and names({}, own, a=["b"]) == (None, None)


@pytest.mark.parametrize("wrong", ['["a b"]', '["body."]', '["body.x..y"]', '[""]'])
def test_a_source_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"serve\.user_from"):
        resolve(BUILT_IN, environ={"AFTERWORD_SERVE_USER_FROM": wrong})


def test_front_ends_are_known_at_the_gateway(launch: Launch, gateway: Setup) -> None:
    headers = {"X-OpenWebUI-User-Id": "7f3c", "X-OpenWebUI-Chat-Id": "chat-9"}
    body = {"model": "afterword", "messages": MESSAGES}
    assert gateway.post("/v1/chat/completions", body, headers=headers).status_code == 200
    other = launch(user_from=("x-sso-user",), conversation_from=())
    assert other.post("/v1/chat/completions", body, headers={**headers, "X-SSO-User": "ada"}).status_code == 200
    assert [(t.user, t.conversation) for t in gateway.turns()] == [("7f3c", "chat-9"), ("ada", None)]


def test_neither_a_clock_nor_retrieved_text_changes_the_arm(gateway: Setup) -> None:
    held = {"role": "user", "content": "<context>Ways to greet.</context>\n<query>Hi</query>"}
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}
    clocks = ({"role": "system", "content": f"It is 10:0{n}."} for n in range(2))
    for messages in (*([clock, *MESSAGES] for clock in clocks), MESSAGES, [held], [image]):
        gateway.post("/v1/chat/completions", {"model": "afterword", "messages": messages})
    units = [turn.unit for turn in gateway.turns()]
    assert len(set(units[:4])) == 1 and units[4] not in units[:4] and all(units)
