"""API keys: a public id and a secret of which only the hash is kept, in DIR/keys.json.

Owns that file and the check of a request's key. A key reads `sk-aw-PUBLIC-SECRET`; it is shown once, when made.
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
    """No key, or none that is known and valid."""

    status = 401
    kind = "authentication_error"


class ScopeMissing(AfterwordError):
    """A valid key without the scope."""

    status = 403
    kind = "permission_error"


class KeysUnreadable(AfterwordError):
    """The file of keys is damaged: nobody can be told from anybody."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key without its secret."""

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
    """Where the keys of a data directory are."""
    return directory / "keys.json"


def list_keys(directory: Path) -> list[Key]:
    """All keys, oldest first; [] without a file. ConfigError when the file is damaged."""
    path = key_file(directory)
    try:
        rows = orjson.loads(path.read_bytes())
        return [Key(**{**row, "scopes": tuple(row["scopes"])}) for row in rows]
    except FileNotFoundError:
        return []
    except (orjson.JSONDecodeError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} is damaged: {error}. Restore it or mend its JSON.") from error


def create_key(
    directory: Path, scopes: Sequence[str] = ("infer", "feedback"), note: str = "", days: float | None = None
) -> tuple[str, Key]:
    """Make a key that is valid for `days` (None: for ever): its text, which is never shown again, and its row."""
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        raise UsageError(
            f"unknown scopes {unknown} of {list(scopes)}; choose from {', '.join(SCOPES)}.", param="scopes"
        )
    public = secrets.token_hex(4)
    text = f"{_PREFIX}{public}-{secrets.token_urlsafe(24)}"
    now = time.time()
    key = Key(public, _hash(text), tuple(scopes), note, now, None if days is None else now + days * 86400)
    _write(directory, [*list_keys(directory), key])
    return text, key


def revoke_key(directory: Path, public: str) -> Key:
    """Delete a key by its public id; running gateways notice. NotFoundError when there is none."""
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
    """The keys that a running gateway knows; follows changes of the file.

    Without a file everybody is let in, unless a key is `needed` or there was one before: a file that goes missing
    never opens a server.
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
        """Public id of the key that was sent; None when no key exists at all (an open server on loopback).

        Raises KeyMissing (401), ScopeMissing (403), KeysUnreadable (500).
        """
        self._look()
        if self._problem is not None:
            raise KeysUnreadable(f"no key can be checked: {self._problem}", code="keys")
        if not self._closed:
            return None
        text = _secret(authorization)
        key = self._keys.get(text.removeprefix(_PREFIX).partition("-")[0])
        if key is None or not hmac.compare_digest(key.hash, _hash(text)):
            what = "this API key is not known" if text else "an API key is needed"
            raise KeyMissing(
                f"{what}: send `Authorization: Bearer sk-aw-...`; make one with `afterword keys create`.",
                code="invalid_api_key",
            )
        if key.expires_at is not None and key.expires_at < time.time():
            raise KeyMissing(f"the API key {key.id} has expired; make a new one.", code="expired_api_key")
        if scope not in key.scopes and "admin" not in key.scopes:
            raise ScopeMissing(
                f"the API key {key.id} has the scopes {', '.join(key.scopes)}; this needs `{scope}`.", code="scope"
            )
        return key.id


def _secret(authorization: str | None) -> str:
    """The key of an Authorization header; the word Bearer may be written in any case."""
    scheme, _, rest = (authorization or "").strip().partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else scheme
