"""The error tree and its one JSON shape."""

from __future__ import annotations

import pytest

from afterword.errors import (
    AdapterError,
    AfterwordError,
    ConfigError,
    ConflictError,
    GateRefused,
    ModelError,
    NotFoundError,
    NothingToDo,
    StoreError,
    UpstreamError,
    UsageError,
    error_body,
    error_response,
)


@pytest.mark.parametrize(
    ("error", "exit_code", "status"),
    [
        (AfterwordError("m"), 1, 500), (UsageError("m"), 2, 422), (ConfigError("m"), 2, 422),
        (AdapterError("m"), 2, 400),
        (ModelError("m"), 2, 422), (NotFoundError("m"), 2, 404), (ConflictError("m"), 1, 409),
        (StoreError("m"), 1, 500),
        (UpstreamError("m"), 1, 502), (UpstreamError("m", timed_out=True), 1, 504), (GateRefused("m"), 3, 409),
        (NothingToDo("m"), 4, 409),
    ],
)  # fmt: skip
def test_exit_codes_and_statuses(error: AfterwordError, exit_code: int, status: int) -> None:
    found, body = error_response(error)
    assert (error.exit_code, found) == (exit_code, status)
    assert body == {"error": {"message": "m", "type": error.kind, "param": None, "code": None}}
    assert str(error) == error.message == "m"


def test_errors_of_users_are_value_and_lookup_errors() -> None:
    assert isinstance(ConfigError("m"), ValueError) and isinstance(NotFoundError("m"), LookupError)
    assert not isinstance(StoreError("m"), ValueError)


def test_the_shape_names_the_parameter_and_the_code() -> None:
    _, body = error_response(UsageError("m", param="messages", code="empty"))
    assert body["error"] == {"message": "m", "type": "invalid_request_error", "param": "messages", "code": "empty"}
    assert error_body("m", kind="k", param="p", code="c")["error"] == {
        "message": "m",
        "type": "k",
        "param": "p",
        "code": "c",
    }
