"""The HTTP surface under fuzz: schemathesis makes requests, right and wrong ones, from our own OpenAPI document."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.gateway.gateway_setup import Setup

from afterword.gateway.routes import description
from afterword.records import Feedback

schemathesis = pytest.importorskip("schemathesis")

FUZZ = settings(
    max_examples=40,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
STATUSES = {"stored", "duplicate", "held", "rejected"}


def send(gateway: Setup, case: Any) -> httpx.Response:
    """The case as a request; what it says in headers goes along as far as HTTP can carry it."""
    body = case.body if isinstance(case.body, dict | list | str | int | float | bool | None) else None
    content = json.dumps(body).encode("utf-8", "surrogatepass")
    path = case.formatted_path
    return httpx.request(
        case.method, gateway.url + path, content=content, headers={"content-type": "application/json"}, timeout=20
    )


def check(response: httpx.Response, answers: dict[str, Any]) -> None:
    """A documented status, in the documented shape, and never a fault of ours."""
    assert response.status_code < 500, response.text
    assert str(response.status_code) in answers, f"{response.status_code} is not documented: {response.text:.300}"
    if response.status_code >= 400:
        error = response.json()["error"]
        assert error["message"] and {"type", "param", "code"} <= error.keys()


@pytest.fixture(scope="module")
def schema() -> Any:
    return schemathesis.openapi.from_dict(description())


def test_the_events_api_survives_what_its_own_schema_makes(gateway: Setup, schema: Any) -> None:
    operation = schema["/v1/feedback"]["POST"]
    answers = description()["paths"]["/v1/feedback"]["post"]["responses"]
    turn = gateway.chat("Hi")["id"]

    @FUZZ
    @given(case=operation.as_strategy(), known=st.booleans())
    def positive(case: Any, known: bool) -> None:
        if known and isinstance(case.body, dict) and "turn" in case.body:
            case.body["turn"] = turn
        response = send(gateway, case)
        check(response, answers)
        if response.status_code == 202:
            found = response.json()
            results = found.get("results", [found])
            assert {result["status"] for result in results} <= STATUSES
            assert all(result.get("why") for result in results if result["status"] == "rejected")

    positive()
    still_alive(gateway)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted(description()["components"]["schemas"]["Event"]["properties"])
WRONG = st.dictionaries(
    st.sampled_from([*FIELDS, "inference_id", "traceId", "user_action", "draft"]), ANYTHING, max_size=6
)


@FUZZ
@given(body=WRONG | st.fixed_dictionaries({"events": st.lists(WRONG | ANYTHING, max_size=4)}) | ANYTHING)
def test_the_events_api_survives_what_its_schema_forbids(gateway: Setup, body: Any) -> None:
    """Schemathesis takes minutes to negate a `oneOf`; these are the same fields with values of any type."""
    answers = description()["paths"]["/v1/feedback"]["post"]["responses"]
    content = json.dumps(body).encode("utf-8", "surrogatepass")
    check(httpx.post(gateway.url + "/v1/feedback", content=content, timeout=20), answers)


def test_chat_survives_what_its_own_schema_makes(gateway: Setup, schema: Any) -> None:
    operation = schema["/v1/chat/completions"]["POST"]
    answers = description()["paths"]["/v1/chat/completions"]["post"]["responses"]

    @FUZZ
    @given(case=operation.as_strategy(), known=st.booleans())
    def positive(case: Any, known: bool) -> None:
        if known and isinstance(case.body, dict):
            case.body["model"] = "afterword"
        check(send(gateway, case), answers)

    positive()
    still_alive(gateway)


ASKED = {
    *description()["components"]["schemas"]["Chat"]["properties"],
    "stream_options",
    "n",
    "logprobs",
    "tools",
    "stop",
}
ASKED -= {"model", "messages"}
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]) | ANYTHING, "content": ANYTHING},
    optional={"tool_calls": ANYTHING, "name": ANYTHING},
)
CHAT = st.fixed_dictionaries(
    {"model": st.just("afterword") | ANYTHING, "messages": st.lists(MESSAGE, min_size=1, max_size=3) | ANYTHING},
    optional=dict.fromkeys(ASKED, ANYTHING),
)


HEADER = st.lists(st.integers(0x21, 0xFF).filter(lambda byte: byte != 0x7F), max_size=8).map(bytes)


@FUZZ
@given(body=CHAT, user=HEADER)
def test_chat_survives_what_its_schema_forbids(gateway: Setup, body: Any, user: bytes) -> None:
    """The same fields with values of any type, and a header of any bytes."""
    answers = description()["paths"]["/v1/chat/completions"]["post"]["responses"]
    content = json.dumps(body).encode("utf-8", "surrogatepass")
    headers = [(b"x-afterword-user", user)]
    check(httpx.post(gateway.url + "/v1/chat/completions", content=content, headers=headers, timeout=20), answers)


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/v1/feedback/{id}"), ("GET", "/v1/models/{id}")])
def test_paths_survive_any_id(gateway: Setup, schema: Any, method: str, path: str) -> None:
    operation = schema[path][method]
    answers = description()["paths"][path][method.lower()]["responses"]

    @FUZZ
    @given(case=operation.as_strategy())
    def any_id(case: Any) -> None:
        check(send(gateway, case), answers)

    any_id()
    still_alive(gateway)


def still_alive(gateway: Setup) -> None:
    """It answers, keeps, and every row that it kept can be read."""
    turn = gateway.chat("Still there?")["id"]
    event = {"turn": turn, "kind": "accepted"}
    assert gateway.post("/v1/feedback", event).json()["status"] == "stored"
    assert all(isinstance(row, Feedback) for row in gateway.store.rows(Feedback))
    assert gateway.get("/health").status_code == 200
