"""The local key that signs releases (Ed25519), and the public keys that are trusted here.

Owns `release.key` (readable by its owner only) and `release.pub` (one public key a line, in hex; copy it elsewhere to
verify without being able to sign). Knows nothing of releases.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from afterword.errors import ConfigError, StoreError
from afterword.store.files import write_whole

SECRET, PUBLIC = "release.key", "release.pub"


def sign(directory: Path, message: bytes) -> tuple[str, str]:
    """(public key, signature) in hex; the key is made when there is none."""
    key = _secret(directory / SECRET) or _made(directory)
    public = key.public_key().public_bytes_raw().hex()
    if public not in trusted(directory):
        _append(directory / PUBLIC, public)
    return public, key.sign(message).hex()


def signed(message: bytes, public: str, signature: str) -> bool:
    """Did the owner of this public key sign this message?"""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def trusted(directory: Path) -> frozenset[str]:
    """The public keys of this data directory."""
    path = directory / PUBLIC
    try:
        return frozenset(path.read_text(encoding="ascii").split())
    except FileNotFoundError:
        return frozenset()
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot read the public keys in {path}: {error}") from error


def _secret(path: Path) -> Ed25519PrivateKey | None:
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text(encoding="ascii")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is no signing key ({error}): restore it, or move it away to sign with a new one from now on"
        ) from error


def _made(directory: Path) -> Ed25519PrivateKey:
    """A new key, on disk before anything is signed with it. Only one publisher at a time comes here."""
    key = Ed25519PrivateKey.generate()
    write_whole(directory / SECRET, key.private_bytes_raw().hex(), private=True)
    return key


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="ascii") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
