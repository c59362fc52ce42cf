"""Reads JSON from another product's HTTP API, with errors that name the address, the reason and the remedy."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from afterword.errors import AfterwordError, UsageError

TIMEOUT = 60.0
"""Seconds without a byte after which a request is given up."""


class BridgeError(AfterwordError):
    """The other product cannot be read now; what came before is stored."""


class BridgeRefused(UsageError):
    """The other product rejects the credentials."""


class Api:
    """One product's API.

    Args:
        url: Its address, without the path of the API.
        headers: Sent with each request; credentials among them.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"the address {url!r} is no http or https URL: write it as http://host:port.", param="url")
        self.url = url.rstrip("/")
        self._headers = dict(headers)

    def get(self, path: str, *, missing_ok: bool = False, **query: Any) -> Any:
        """The JSON behind a path; a list for JSON lines.

        Args:
            path: Begins with a slash.
            missing_ok: Return None for 401, 403, 404 and 405: the version has no such route, or switched it off.
            query: Parameters; those that are None are left out.

        Raises:
            BridgeRefused: The token is missing, expired or may not read this.
            BridgeError: The product is down, answers with an error, or with something that is no JSON.
        """
        return self._request("GET", path, query, None, missing_ok)

    def post(self, path: str, body: Any) -> Any:
        """Send JSON; the answer's JSON. Raises as `get`."""
        return self._request("POST", path, {}, body, False)

    def _request(self, method: str, path: str, query: Mapping[str, Any], body: Any, missing_ok: bool) -> Any:
        words = urllib.parse.urlencode({k: v for k, v in query.items() if v is not None}, doseq=True)
        address = f"{self.url}{path}" + (f"?{words}" if words else "")
        data = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "application/json", "Content-Type": "application/json", **self._headers}
        try:
            request = urllib.request.Request(address, data=data, headers=headers, method=method)
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                read, kind = answer.read(), answer.headers.get_content_type()
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(300).decode("utf-8", "replace").strip()
            if missing_ok and error.code in (401, 403, 404, 405):
                return None
            if error.code in (401, 403):
                raise BridgeRefused(
                    f"{address} rejects the token with {error.code} ({said or error.reason}): it is missing, expired "
                    "or lacks the right. Create another one there and pass it with --token-file."
                ) from None
            raise BridgeError(
                f"{address} answers with {error.code}: {said or error.reason}. Try again later."
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise BridgeError(f"{address} cannot be reached: {error}. Check --url and that it runs.") from error
        try:
            if kind.endswith("ndjson"):
                return [json.loads(line) for line in read.splitlines() if line.strip()]
            return json.loads(read) if read.strip() else None
        except ValueError as error:
            start = read[:60].decode("utf-8", "replace")
            raise BridgeError(
                f"{address} answers with something that is no JSON ({start!r}): check that --url names the product "
                "itself and that this version has the route."
            ) from error
