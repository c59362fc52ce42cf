"""Every error that Afterword raises on purpose, and the one JSON shape in which HTTP shows it.

    AfterwordError
    |-- UsageError (ValueError)         bad input or configuration: the user can mend it      exit 2, HTTP 422
    |   |-- ConfigError                 an unknown key, a wrong type, an impossible pair
    |   |-- AdapterError                a corrupt or foreign adapter folder                   HTTP 400
    |   `-- ModelError                  a model folder or id that cannot be loaded or trained
    |-- NotFoundError (LookupError)     a turn, candidate, release or model that is not there exit 2, HTTP 404
    |-- ConflictError                   the same id with other content                        exit 1, HTTP 409
    |-- StoreError                      the database: newer version, disk full, locked        exit 1, HTTP 500
    |-- UpstreamError                   the model server is down, slow or cut the stream      exit 1, HTTP 502/504
    |-- GateRefused                     the verdict is "no"                                   exit 3
    `-- NothingToDo                     no work for this stage, with what is missing          exit 4

A message says what is wrong (with the value), why, and what to do next. This module never imports
anything of ours and never decides how an error is printed.
"""

from __future__ import annotations

from typing import Any, ClassVar


class AfterwordError(Exception):
    """Root of the tree. `exit_code` and `status` are what the command line and HTTP answer with."""

    exit_code: ClassVar[int] = 1
    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class UsageError(AfterwordError, ValueError):
    """The caller's input or configuration is wrong."""

    exit_code = 2
    status = 422
    kind = "invalid_request_error"


class ConfigError(UsageError):
    """A configuration key or value that cannot be used."""


class AdapterError(UsageError):
    """An adapter folder that is corrupt, incomplete or made for another base model."""

    status = 400


class ModelError(UsageError):
    """A model folder or id that cannot be loaded, served or trained."""


class NotFoundError(AfterwordError, LookupError):
    """Something that was asked for by its id or name does not exist."""

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
    """The model server did not answer as it should. `status` is 502, or 504 when it was too slow."""

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
    """The verdict on a candidate is "no"; the message holds its reasons."""

    exit_code = 3
    status = 409
    kind = "gate_refused"


class NothingToDo(AfterwordError):
    """A stage found no work; the message says what is missing and how to get it."""

    exit_code = 4
    status = 409
    kind = "nothing_to_do"


def error_body(
    message: str, *, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The one JSON error shape, OpenAI's: `{"error": {"message", "type", "param", "code"}}`."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: AfterwordError) -> tuple[int, dict[str, Any]]:
    """HTTP status and body of one of our errors."""
    status = error.http_status if isinstance(error, UpstreamError) else error.status
    return status, error_body(error.message, kind=error.kind, param=error.param, code=error.code)
