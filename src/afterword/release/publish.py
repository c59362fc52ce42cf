"""The only writer of the pointer: which adapter a channel serves is its newest Release row.

Owns publishing, rolling back, version names, and that of two publishers at once only one wins. Never measures,
never talks to a server (the gateway watches the rows) and never imports torch.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from afterword.errors import (
    AdapterError,
    ConflictError,
    GateRefused,
    NotFoundError,
    NothingToDo,
    StoreError,
    UsageError,
)
from afterword.records import Candidate, Release, Report, Verdict, new_id
from afterword.release.manifest import check_adapter
from afterword.store import Store

BASE = "base"
"""What `rollback(to=...)` calls the base model without an adapter."""
LOCK_SECONDS = 30.0


def publish(
    store: Store, candidate: Candidate, verdict: Verdict, channel: str = "default", name: str = "afterword"
) -> Release:
    """Serve `candidate` on `channel` from now on, as version `NAME@v000001` and up.

    The verdict must be written, be about this candidate, and have passed or carry an override {by, why}; its report
    must have compared the candidate with what the channel serves at this moment, on the bytes that are in the
    folder now. Raises GateRefused, NothingToDo (already served), ConflictError (another release came in between),
    AdapterError (folder gone, corrupt or changed).
    """
    report = _checked(store, candidate, verdict)
    with _one_publisher(store):
        current = store.release(channel)
        served = current.candidate if current else None
        if served == candidate.id:
            assert current is not None
            raise NothingToDo(f"channel {channel!r} serves {candidate.id} already, as {current.adapter}")
        if report.against != served:
            raise ConflictError(
                f"{candidate.id} was compared with {report.against or 'the base model'}, but channel {channel!r} now "
                f"serves {served or 'the base model'}: another release came in between. Evaluate it again."
            )
        base = report.about.get("base_hash")
        check_adapter(_folder(store, candidate), content=_measured(report), base_hash=base)
        release = Release(
            id=new_id("rel"),
            channel=channel,
            adapter=version_of(store, candidate.id, name),
            candidate=candidate.id,
            path=candidate.path,
            verdict=verdict.id,
            previous=current.id if current else None,
            action="publish",
            why=_why(verdict),
        )
        return _written(store, release)


def rollback(store: Store, channel: str = "default", to: str | None = None, why: str = "") -> Release:
    """Serve what `channel` served before, or `to`: a version name, release id, candidate id or "base".

    A second rollback goes one further back, never forth again. Raises NothingToDo when nothing is released or `to`
    is served already, NotFoundError for an unknown `to`, AdapterError when the files of the target are gone.
    """
    with _one_publisher(store):
        current = store.release(channel)
        if current is None or (to is None and current.candidate is None):
            raise NothingToDo(f"channel {channel!r} serves the base model: there is no release to take back")
        target = _target(store, channel, to)
        if (target.candidate if target else None) == current.candidate:
            raise NothingToDo(f"channel {channel!r} serves {current.adapter or 'the base model'} already")
        if target is not None:
            _check_target(store, target)
        release = Release(
            id=new_id("rel"),
            channel=channel,
            adapter=target.adapter if target else None,
            candidate=target.candidate if target else None,
            path=target.path if target else None,
            verdict=None,
            previous=current.id,
            action="rollback",
            why=why.strip() or f"rolled back from {current.adapter or 'the base model'}",
        )
        return _written(store, release)


def served_stack(store: Store, channel: str = "default") -> list[Release]:
    """What a rollback unwinds: the released versions that the one served now was built upon, newest last.

    A publish puts its version on top; a rollback takes off everything above its target. The base model lies below.
    """
    stack: list[Release] = []
    for release in store.rows(Release, channel=channel):
        if release.action == "publish":
            stack.append(release)
            continue
        while stack and stack[-1].candidate != release.candidate:
            stack.pop()
        if release.candidate is not None and not stack:
            stack.append(release)
    return stack


def version_of(store: Store, candidate: str, name: str) -> str:
    """The immutable version name of a candidate: the one it has, else the next of `NAME@v%06d`."""
    versions: dict[str, None] = {}
    for release in store.rows(Release):
        if release.adapter is not None and release.adapter.startswith(f"{name}@v"):
            if release.candidate == candidate:
                return release.adapter
            versions[release.adapter] = None
    return f"{name}@v{len(versions) + 1:06d}"


def _checked(store: Store, candidate: Candidate, verdict: Verdict) -> Report:
    """The report behind a verdict that allows this candidate."""
    if store.find(Verdict, verdict.id) is None:
        raise NotFoundError(f"the verdict {verdict.id!r} is not in {store.path}: write it before releasing by it")
    if verdict.candidate != candidate.id:
        raise UsageError(f"the verdict {verdict.id} is about {verdict.candidate}, not about {candidate.id}")
    override = verdict.override or {}
    if not verdict.passed and not (override.get("by") and override.get("why")):
        raise GateRefused(f"the gate refused {candidate.id}: " + "; ".join(verdict.reasons))
    report = store.get(Report, verdict.report)
    if report.candidate != candidate.id:
        raise UsageError(f"the report {report.id} is about {report.candidate}, not about {candidate.id}")
    return report


def _measured(report: Report) -> str:
    content = report.about.get("adapter_hash")
    if not content:
        raise AdapterError(f"the report {report.id} does not say which bytes it measured: evaluate the candidate again")
    return str(content)


def _why(verdict: Verdict) -> str:
    if verdict.passed:
        return "the gate passed"
    assert verdict.override is not None
    return f"overridden by {verdict.override['by']}: {verdict.override['why']}"


def _target(store: Store, channel: str, to: str | None) -> Release | None:
    """The release whose adapter is served again, None for the base model."""
    if to is None:
        below = served_stack(store, channel)[:-1]
        return below[-1] if below else None
    if to == BASE or to.endswith(f"@{BASE}"):
        return None
    for release in store.rows(Release, newest=True, channel=channel):
        if to in (release.id, release.adapter, release.candidate):
            return release if release.candidate is not None else None
    raise NotFoundError(f"channel {channel!r} never served {to!r}: see `afterword releases list`, or use {BASE!r}")


def _check_target(store: Store, target: Release) -> None:
    """The files of an earlier version are there, and are those that were measured before it was released."""
    assert target.candidate is not None
    measured = None
    for release in store.rows(Release, candidate=target.candidate):
        if release.verdict is not None:
            measured = _measured(store.get(Report, store.get(Verdict, release.verdict).report))
    try:
        check_adapter(_folder(store, store.get(Candidate, target.candidate)), content=measured)
    except AdapterError as error:
        raise AdapterError(
            f"cannot roll back to {target.adapter}: {error.message}. Roll back further (`--to VERSION`) or to the base "
            f"model (`--to {BASE}`)."
        ) from error


def _folder(store: Store, candidate: Candidate) -> Path:
    return store.path.parent / candidate.path


def _written(store: Store, release: Release) -> Release:
    outcome = store.write(release)[0]
    assert outcome == "stored", outcome
    return release


@contextmanager
def _one_publisher(store: Store) -> Iterator[None]:
    """Only one process decides at a time; the lock ends with the process that holds it, however it ends."""
    path = store.path.parent / "release.lock"
    with closing(sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)) as lock:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            raise StoreError(f"another release holds {path} for {LOCK_SECONDS:.0f} s ({error}): try again") from error
        yield
