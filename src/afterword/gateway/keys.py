"""Creates, lists, revokes and checks API keys; stores their hashes in DIR/keys.json.

A key reads `sk-aw-PUBLIC-SECRET`. Its text is shown once, when it is created.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from afterword.errors import AfterwordError, ConfigError, NotFoundError, UsageError
from afterword.store.files import write_whole

SCOPES = ("infer", "feedback", "review", "admin")
_PREFIX = "sk-aw-"


class KeyMissing(AfterwordError):
    """The API key is missing, unknown or expired."""

    status = 401
    kind = "authentication_error"


class ScopeMissing(AfterwordError):
    """The API key is valid but lacks the required scope."""

    status = 403
    kind = "permission_error"


class KeysUnreadable(AfterwordError):
    """The key file is damaged, so no key can be checked."""


@dataclass(frozen=True, slots=True)
class Key:
    """One API key without its secret."""

    id: str
    """Public part; turns carry it."""
    hash: str
    """SHA-256 of the whole key, hex."""
    scopes: tuple[str, ...]
    """What it may do: infer, feedback, review, admin (admin may everything)."""
    note: str = ""
    """What it is for."""
    created_at: float = 0.0
    """Unix seconds."""
    expires_at: float | None = None
    """Unix seconds; None never."""


def key_file(directory: Path) -> Path:
    """Returns the path of a data directory's key file."""
    return directory / "keys.json"


def list_keys(directory: Path) -> list[Key]:
    """Reads all keys, oldest first; empty without a file.

    Raises:
        ConfigError: If the file is damaged.
    """
    path = key_file(directory)
    try:
        rows = orjson.loads(path.read_bytes())
        return [Key(**{**row, "scopes": tuple(row["scopes"])}) for row in rows]
    except FileNotFoundError:
        return []
    except (orjson.JSONDecodeError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} is damaged: {error}. Restore it from a backup or repair its JSON.") from error


def create_key(
    directory: Path, scopes: Sequence[str] = ("infer", "feedback"), note: str = "", days: float | None = None
) -> tuple[str, Key]:
    """Creates a key and stores its hash.

    Args:
        directory: Data directory.
        scopes: Any of SCOPES.
        note: Purpose of the key.
        days: Validity in days; None: unlimited.

    Returns:
        The text of the key, which is not stored, and its row.

    Raises:
        UsageError: If a scope is unknown or none is given.
        ConfigError: If the key file is damaged.
    """
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        raise UsageError(
            f"invalid scopes {unknown or list(scopes)}: use one or more of {', '.join(SCOPES)}.", param="scopes"
        )
    public = secrets.token_hex(4)
    text = f"{_PREFIX}{public}-{secrets.token_urlsafe(24)}"
    now = time.time()
    key = Key(public, _hash(text), tuple(scopes), note, now, None if days is None else now + days * 86400)
    _write(directory, [*list_keys(directory), key])
    return text, key


def revoke_key(directory: Path, public: str) -> Key:
    """Deletes a key; running gateways notice.

    Args:
        directory: Data directory.
        public: Public id of the key.

    Returns:
        The deleted key.

    Raises:
        NotFoundError: If no key has this id.
        ConfigError: If the key file is damaged.
    """
    keys = list_keys(directory)
    for key in keys:
        if key.id == public:
            _write(directory, [k for k in keys if k.id != public])
            return key
    raise NotFoundError(f"no key {public!r} in {key_file(directory)}. List them with `afterword keys list`.")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _write(directory: Path, keys: Sequence[Key]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    path = key_file(directory)
    stored = orjson.dumps([dataclasses.asdict(key) for key in keys], option=orjson.OPT_INDENT_2)
    write_whole(path, stored, private=True)


class KeyRing:
    """Checks requests against the key file of a running gateway; follows its changes.

    Without a file every request is allowed, unless `needed` is set or a file existed before: deleting the file never
    opens a server.

    Args:
        directory: Data directory.
        needed: Reject requests without a key even when no key exists.

    Raises:
        ConfigError: If the key file is damaged.
    """

    def __init__(self, directory: Path, *, needed: bool = False) -> None:
        self._directory = directory
        self._stamp: tuple[int, int] | None = None
        self._next_look = 0.0
        self._keys: dict[str, Key] = {}
        self._closed = needed
        """Nobody without a key is let in any more."""
        self._problem: str | None = None
        """Why the file cannot be read; nobody is let in until it can."""
        self._look()
        if self._problem is not None:
            raise ConfigError(self._problem)

    def _look(self) -> None:
        """Read the file again if it changed; asked at most twice a second."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + 0.5
        try:
            found = key_file(self._directory).stat()
            stamp = (found.st_mtime_ns, found.st_ino)
            if stamp != self._stamp or self._problem is not None:
                self._closed = True
                self._keys = {key.id: key for key in list_keys(self._directory)}
            self._stamp, self._problem = stamp, None
        except FileNotFoundError:
            self._keys, self._stamp, self._problem = {}, None, None
        except ConfigError as error:
            self._problem = error.message
        except OSError as error:
            self._closed = True
            self._problem = f"{key_file(self._directory)} cannot be read: {error}."

    def check(self, authorization: str | None, scope: str) -> str | None:
        """Checks the key of a request.

        Args:
            authorization: The Authorization header.
            scope: Scope that the route needs.

        Returns:
            Public id of the key; None when no key exists (an open server on loopback).

        Raises:
            KeyMissing: If the key is missing, unknown or expired (401).
            ScopeMissing: If the key lacks the scope (403).
            KeysUnreadable: If the key file is damaged (500).
        """
        self._look()
        if self._problem is not None:
            raise KeysUnreadable(f"no key can be checked: {self._problem}", code="keys")
        if not self._closed:
            return None
        text = _secret(authorization)
        key = self._keys.get(text.removeprefix(_PREFIX).partition("-")[0])
        if key is None or not hmac.compare_digest(key.hash, _hash(text)):
            what = "the API key is invalid" if text else "the API key is missing"
            raise KeyMissing(
                f"{what}: send `Authorization: Bearer sk-aw-...`; create a key with `afterword keys create`.",
                code="invalid_api_key",
            )
        if key.expires_at is not None and key.expires_at < time.time():
            raise KeyMissing(
                f"the API key {key.id} has expired: create another one with `afterword keys create`.",
                code="expired_api_key",
            )
        if scope not in key.scopes and "admin" not in key.scopes:
            raise ScopeMissing(
                f"the API key {key.id} lacks the scope `{scope}` (it has {', '.join(key.scopes)}): use another key.",
                code="scope",
            )
        return key.id


def _secret(authorization: str | None) -> str:
    """The key of an Authorization header; the word Bearer may be written in any case."""
    scheme, _, rest = (authorization or "").strip().partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else scheme
