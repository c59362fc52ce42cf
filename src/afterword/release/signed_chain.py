"""Signs every release (Ed25519) and verifies the chain: nothing was changed or left out.

A manifest holds the SHA-256 of every file of the adapter, of the report and the verdict, and of the release written
before it (of any channel); the signature covers it and the whole row. Rows cut off at the end are not found: compare
the newest id with a copy kept elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from afterword.errors import AdapterError, ConfigError, StoreError
from afterword.records import Json, Record, Release, Report, Verdict
from afterword.store import Store
from afterword.store.artifacts import file_hashes
from afterword.store.channels import Serving
from afterword.store.files import write_whole

SECRET, PUBLIC = "release.key", "release.pub"
"""The signing key, readable by its owner only, and the trusted public keys: one a line, in hex. A copy of the second
verifies without being able to sign."""
UNSIGNED = ("key", "signature")


@dataclass(frozen=True, slots=True)
class Checked:
    """Result of `verify`."""

    releases: int
    problems: tuple[str, ...]
    """Sentences; none when everything is as it was released."""
    notes: tuple[str, ...]
    """What is no fault: versions whose files are gone and that nobody is served."""
    serving: dict[str, Serving]
    """Channel -> what the replay of its rows ends with."""


def manifest_of(store: Store, release: Release) -> Json:
    """The signed manifest of a release that is about to be written."""
    directory = store.path.parent
    verdict = store.find(Verdict, release.verdict) if release.verdict else None
    report = store.find(Report, verdict.report) if verdict else None
    before = store.newest(Release)
    manifest: Json = {
        "files": file_hashes(store.artifacts.folder(release.path)) if release.path else {},
        "verdict": verdict and row_hash(verdict),
        "report": report and row_hash(report),
        "before": before and row_hash(before),
    }
    public, signature = sign(directory, _message(release, manifest))
    return {**manifest, "key": public, "signature": signature}


def row_hash(record: Record) -> str:
    """SHA-256 of a row's canonical JSON, its signature included where it has one. The examples of a report are left
    out: they quote users, who may ask to be forgotten."""
    data = {name: value for name, value in record.to_dict().items() if name != "examples"}
    return hashlib.sha256(_canonical(data)).hexdigest()


def verify(store: Store, *, key: str | None = None) -> Checked:
    """Check every release, oldest first, and replay the channels.

    `key` is a public key that was kept elsewhere; without it those in the data directory are trusted.
    """
    directory = store.path.parent
    keys = frozenset((key,)) if key else trusted(directory)
    states: dict[str, Serving] = {}
    problems: list[str] = []
    before: Release | None = None
    rows = list(store.rows(Release))
    for row in rows:
        faults = [*_signature(row, keys), *_links(store, row, before), *_step(row, states.get(row.channel, Serving()))]
        problems += [f"{row.id}: {fault}" for fault in faults]
        states[row.channel] = states.get(row.channel, Serving()).after(row)
        before = row
    used = {r.candidate for s in states.values() for r in (s.served, s.before, s.canary) if r is not None}
    used -= set(store.tainted())  # put aside, because a user was forgotten
    notes: list[str] = []
    for row in {r.candidate: r for r in reversed(rows) if r.path}.values():  # by its first release
        wrong = [*_files(store, row)]
        gone = not store.artifacts.exists(str(row.path)) and row.candidate not in used
        (notes if gone else problems).extend(f"{row.id}: {fault}" for fault in wrong)
    return Checked(len(rows), tuple(problems), tuple(notes), states)


def replay(store: Store) -> dict[str, Serving]:
    """Channel -> its state after replaying its rows."""
    states: dict[str, Serving] = {}
    for row in store.rows(Release):
        states[row.channel] = states.get(row.channel, Serving()).after(row)
    return states


def _message(release: Release, manifest: Json) -> bytes:
    row = {name: value for name, value in release.to_dict().items() if name != "manifest"}
    return _canonical({"release": row, "manifest": {k: v for k, v in manifest.items() if k not in UNSIGNED}})


def _canonical(data: Json) -> bytes:
    return json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _signature(row: Release, keys: frozenset[str]) -> Iterator[str]:
    key, signature = row.manifest.get("key"), row.manifest.get("signature")
    if not key or not signature:
        yield "it is not signed: it was not written by `afterword release`, or its manifest was taken away"
    elif key not in keys:
        yield f"it is signed with the unknown key {key[:16]}"
    elif not signed(_message(row, row.manifest), key, signature):
        yield "its signature does not fit: the row was changed after it was written"


def _links(store: Store, row: Release, before: Release | None) -> Iterator[str]:
    """Report, verdict and the release before it are the ones that it was signed with."""
    verdict = store.find(Verdict, row.verdict) if row.verdict else None
    report = store.find(Report, verdict.report) if verdict else None
    for name, found in (("verdict", verdict), ("report", report), ("before", before)):
        wanted = row.manifest.get(name)
        if wanted != (found and row_hash(found)):
            what = "the release before it" if name == "before" else f"its {name}"
            yield f"{what} is not the one that it was signed with: it was changed, added or taken out"


def _step(row: Release, state: Serving) -> Iterator[str]:
    """Does the row follow from the channel's rows before it?"""
    if row.previous != (state.newest.id if state.newest else None):
        yield f"it follows {row.previous}, but the channel's row before it is {state.newest and state.newest.id}"
    if row.action in ("publish", "canary") and state.canary is not None:
        yield f"it begins while the canary {state.canary.id} runs"
    if row.action == "promote" and (state.canary is None or state.canary.candidate != row.candidate):
        yield "it promotes what was no canary"
    if row.action != "rollback" and not row.verdict:
        yield "nothing says why: it has no verdict"


def _files(store: Store, row: Release) -> Iterator[str]:
    """The adapter's files against their hashes."""
    wanted = row.manifest.get("files") or {}
    try:
        folder = store.artifacts.folder(str(row.path), wanted)
    except AdapterError as error:
        yield error.message
        return
    if not folder.is_dir():
        yield f"the folder {row.path} of {row.adapter} is gone"
        return
    found = file_hashes(folder)
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            what = "is gone" if name not in found else "was added" if name not in wanted else "was changed"
            yield f"{row.path}/{name} of {row.adapter} {what} after the release"


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
