"""Defines every error that Afterword raises on purpose, and its JSON shape for HTTP.

    AfterwordError
    |-- UsageError (ValueError)         invalid input or configuration: the user can fix it     exit 2, HTTP 422
    |   |-- ConfigError                 an unknown key, a wrong type, an impossible pair
    |   |-- AdapterError                a corrupt or foreign adapter folder                   HTTP 400
    |   `-- ModelError                  a model folder or id that cannot be loaded or trained
    |-- NotFoundError (LookupError)     a turn, candidate, release or model does not exist    exit 2, HTTP 404
    |-- ConflictError                   the same id with other content                        exit 1, HTTP 409
    |-- StoreError                      the database: newer version, disk full, locked        exit 1, HTTP 500
    |-- UpstreamError                   the model server is down, slow or cut the stream      exit 1, HTTP 502/504
    |-- GateRefused                     the gate rejects the candidate                        exit 3
    `-- NothingToDo                     no work for this stage; names the missing input       exit 4

A message names the value, the reason and the remedy. This module imports nothing of ours and never prints.
"""

from __future__ import annotations

from typing import Any, ClassVar


class AfterwordError(Exception):
    """Root of all errors that Afterword raises on purpose.

    Args:
        message: The value, the reason and the remedy.
        param: The invalid field or setting.
        code: Short code for programs.

    `exit_code` is the command line's exit status, `status` the HTTP status.
    """

    exit_code: ClassVar[int] = 1
    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class UsageError(AfterwordError, ValueError):
    """The caller's input or configuration is invalid."""

    exit_code = 2
    status = 422
    kind = "invalid_request_error"


class ConfigError(UsageError):
    """A configuration key or value is invalid."""


class AdapterError(UsageError):
    """An adapter folder is corrupt, incomplete or made for another base model."""

    status = 400


class ModelError(UsageError):
    """A model folder or id cannot be loaded, served or trained."""


class NotFoundError(AfterwordError, LookupError):
    """No object has the requested id or name."""

    exit_code = 2
    status = 404
    kind = "not_found_error"


class ConflictError(AfterwordError):
    """The same id arrived with other content."""

    status = 409
    kind = "conflict_error"


class StoreError(AfterwordError):
    """The database cannot be opened, read or written."""

    kind = "store_error"


class UpstreamError(AfterwordError):
    """The model server failed. `status` is 502, or 504 when it was too slow."""

    status = 502
    kind = "upstream_error"

    def __init__(self, message: str, *, timed_out: bool = False, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.timed_out = timed_out

    @property
    def http_status(self) -> int:
        """502 for a broken upstream, 504 for a slow one."""
        return 504 if self.timed_out else self.status


class GateRefused(AfterwordError):
    """The gate rejects a candidate; the message holds its reasons."""

    exit_code = 3
    status = 409
    kind = "gate_refused"


class NothingToDo(AfterwordError):
    """A stage has no work; the message names the missing input and how to get it."""

    exit_code = 4
    status = 409
    kind = "nothing_to_do"


def error_body(
    message: str, *, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Builds the JSON error shape, OpenAI's: `{"error": {"message", "type", "param", "code"}}`."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: AfterwordError) -> tuple[int, dict[str, Any]]:
    """Converts an error to HTTP.

    Returns:
        Status and body.
    """
    status = error.http_status if isinstance(error, UpstreamError) else error.status
    return status, error_body(error.message, kind=error.kind, param=error.param, code=error.code)
