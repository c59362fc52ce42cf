"""The only writer of releases: the fold over a channel's Release rows is the release that it serves.

Publishes, begins and ends canaries, rolls back, names versions, and falls back from adapters that learned from a
forgotten user. A release is one row, so a kill leaves all of it or nothing; of two publishers at once one wins. Never
measures, never talks to a server (the gateway follows the rows) and never imports torch.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from afterword.errors import AdapterError, NotFoundError, NothingToDo
from afterword.records import Candidate, Feedback, Json, Release, Turn, Verdict, new_id
from afterword.release.checks import BASE, allowed, check_bytes, check_current, check_target, name_proof
from afterword.release.settings import CanarySettings
from afterword.release.signed_chain import manifest_of
from afterword.store import Store
from afterword.store.channels import check_channel, serving
from afterword.store.locks import RELEASE, alone
from afterword.store.polling import last_seq

LOCK_SECONDS = 30.0
QUARANTINE = "quarantine"
"""Folder below the data directory for adapters that learned from a forgotten user."""


def publish(
    store: Store, candidate: Candidate, verdict: Verdict, channel: str = "default", name: str = "afterword"
) -> Release:
    """Serve a candidate on a channel from now on, as version `NAME@v000001` and up.

    Args:
        store: Where the rows are.
        candidate: The candidate.
        verdict: Written, about this candidate, and passed or with an override {by, why}. Its report must have compared
            the candidate with what the channel serves at this moment, on the bytes that are in the folder now.
        channel: The channel.
        name: Of the versions.

    Returns:
        The release row; the gateway follows it.

    Raises:
        GateRefused: The verdict neither passed nor carries an override.
        NothingToDo: The channel serves the candidate already.
        ConflictError: Another release came in between, or a canary runs.
        AdapterError: The folder is gone, corrupt or changed.
    """
    return _begun(store, candidate, verdict, channel, name, None)


def start_canary(
    store: Store,
    candidate: Candidate,
    verdict: Verdict,
    settings: CanarySettings | None = None,
    channel: str = "default",
    name: str = "afterword",
) -> Release:
    """Serve `candidate` to a share of the users, under the conditions of `publish`. The canary monitor ends it.

    Its row keeps the terms by which it will be decided, and from which rows on its turns are counted.
    """
    return _begun(store, candidate, verdict, channel, name, settings or CanarySettings())


def promote(
    store: Store, channel: str = "default", why: str = "", *, expect: str | None = None, evidence: Json | None = None
) -> Release:
    """End a canary by serving its candidate to everyone.

    Args:
        store: Where the rows are.
        channel: The channel of the canary.
        why: For the row; "promoted by hand" without it.
        expect: The canary that must still run.
        evidence: Evidence of the decision.

    Raises:
        NothingToDo: No canary runs, or another one.
        AdapterError: Its folder is gone or changed since it was measured.
    """
    with _one_publisher(store):
        running = store.canary(channel)
        if running is None or expect not in (None, running.id):
            raise NothingToDo(
                f"{'the' if expect else 'a'} canary {expect or ''} does not run on channel {channel!r}: start one with "
                "`afterword release publish --canary 10%`, or see `afterword release status`"
            )
        candidate = store.get(Candidate, str(running.candidate))
        check_bytes(store, candidate, allowed(store, candidate, store.get(Verdict, str(running.verdict))))
        release = replace(
            running, id=new_id("rel"), previous=running.id, action="promote", share=None, terms=_rows(store),
            why=why.strip() or "promoted by hand", evidence=evidence or {}, manifest={}, created_at=time.time(),
        )  # fmt: skip
        return _written(store, release)


def rollback(
    store: Store,
    channel: str = "default",
    to: str | None = None,
    why: str = "",
    *,
    expect: str | None = None,
    evidence: Json | None = None,
) -> Release:
    """End the canary of a channel; without one return to its previous release.

    A second rollback goes one further back, never forth again.

    Args:
        store: Where the rows are.
        channel: Which channel.
        to: The release to serve instead: a version name, release id, candidate id or "base".
        why: For the row.
        expect: The release that must still be the channel's newest.
        evidence: Evidence of the decision.

    Raises:
        NothingToDo: Nothing is released, `to` is served already, or something newer than `expect` is there.
        NotFoundError: The channel never served `to`.
        AdapterError: The files of the target are gone or changed.
    """
    with _one_publisher(store):
        newest = store.newest(Release, channel=channel)
        if expect is not None and (newest is None or newest.id != expect):
            raise NothingToDo(f"channel {channel!r} moved on: its newest release is {newest and newest.id}")
        running = store.canary(channel)
        served = _own(store, channel)
        if running is None and (served is None or (to is None and served.candidate is None)):
            raise NothingToDo(f"channel {channel!r} serves the base model: there is no release to take back")
        target = _back(store, channel, to, running, served)
        left = running.adapter if running else served.adapter if served else None
        release = Release(
            id=new_id("rel"),
            channel=channel,
            adapter=target.adapter if target else None,
            candidate=target.candidate if target else None,
            path=target.path if target else None,
            verdict=None,
            previous=newest.id if newest else None,
            action="rollback",
            why=why.strip() or f"rolled back from {left or 'the base model'}",
            terms=_rows(store),
            evidence=evidence or {},
        )
        return _written(store, release)


def fall_back(store: Store, why: str) -> list[Release]:
    """For each channel that serves a tainted adapter, a release of the newest clean ancestor, or of what lies beneath;
    a canary of a tainted adapter ends.

    Doing it again changes nothing: a channel with clean adapters is left alone.
    """
    tainted = store.tainted()
    releases = []
    for channel in sorted(store.tally(Release, "channel")):
        state = serving(store.rows(Release, channel=channel))
        if state.served is not None and state.served.candidate in tainted:
            releases.append(_clean_ancestor(store, channel, state.served.candidate, tainted, why))
        elif state.canary is not None and state.canary.candidate in tainted:
            releases.append(rollback(store, channel, why=why))  # everyone is served as before it
    return releases


def _clean_ancestor(store: Store, channel: str, served: str, tainted: Mapping[str, object], why: str) -> Release:
    ancestor = store.get(Candidate, served).parent
    while ancestor is not None:
        if ancestor not in tainted:
            try:
                return rollback(store, channel, to=ancestor, why=why)
            except (AdapterError, NotFoundError, NothingToDo):
                pass  # its files are gone, or it was never served here: further back
        ancestor = store.get(Candidate, ancestor).parent
    return rollback(store, channel, to=BASE, why=why)


def put_aside(store: Store, directory: Path, *, delete: bool = False) -> list[Json]:
    """Move the folder of every tainted candidate to `quarantine/`, or delete it; returns the result for each."""
    found = []
    for name, own in store.tainted().items():
        candidate = store.get(Candidate, name)
        folder, aside = directory / candidate.path, directory / QUARANTINE / name
        if folder.is_dir() and not aside.exists():
            aside.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(aside)
        store.artifacts.remove(candidate.path)
        if delete:
            shutil.rmtree(aside, ignore_errors=True)
        versions = sorted({str(r.adapter) for r in store.rows(Release, candidate=name) if r.adapter})
        found.append({
            "candidate": name, "parent": candidate.parent, "versions": versions, "learned_from": list(own),
            "folder": str(aside.relative_to(directory)) if aside.is_dir() else None,
        })  # fmt: skip
    return found


def served_stack(store: Store, channel: str = "default") -> list[Release]:
    """The releases that a rollback unwinds: the versions that the current one was built upon, newest last.

    A publish or promotion puts its version on top; a rollback takes off everything above its target. The base model
    lies below.
    """
    stack: list[Release] = []
    for release in store.rows(Release, channel=channel):
        if release.action in ("publish", "promote"):
            stack.append(release)
        elif release.action == "rollback":
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


def _begun(
    store: Store, candidate: Candidate, verdict: Verdict, channel: str, name: str, canary: CanarySettings | None
) -> Release:
    """The row by which a candidate is served for the first time: everything is checked under the lock."""
    check_channel(channel)
    report = allowed(store, candidate, verdict)
    with _one_publisher(store):
        check_current(store, candidate, report, channel)
        check_bytes(store, candidate, report)
        name_proof(store, candidate, verdict)
        newest = store.newest(Release, channel=channel)
        release = Release(
            id=new_id("rel"),
            channel=channel,
            adapter=version_of(store, candidate.id, name),
            candidate=candidate.id,
            path=candidate.path,
            verdict=verdict.id,
            previous=newest.id if newest else None,
            action="canary" if canary else "publish",
            why=_why(verdict) + (f"; {100 * canary.share:g} % of the users try it" if canary else ""),
            share=canary.share if canary else None,
            terms={**(canary.terms() if canary else {}), **_rows(store)},
        )
        return _written(store, release)


def _rows(store: Store) -> Json:
    """From which rows on the metrics of a release are counted."""
    return {"after": {"turns": last_seq(store, Turn), "feedback": last_seq(store, Feedback)}}


def _why(verdict: Verdict) -> str:
    if verdict.passed:
        return "the gate passed"
    assert verdict.override is not None
    return f"overridden by {verdict.override['by']}: {verdict.override['why']}"


def _back(
    store: Store, channel: str, to: str | None, running: Release | None, served: Release | None
) -> Release | None:
    """What a rollback serves; None is what lies beneath the channel, or the base model."""
    if running is not None and to is None:
        return served if served is not None and served.candidate is not None else None
    target = _target(store, channel, to)
    if running is None and served is not None and (target.candidate if target else None) == served.candidate:
        raise NothingToDo(f"channel {channel!r} serves {served.adapter or 'the base model'} already")
    if target is not None:
        check_target(store, target)
    return target


def _own(store: Store, channel: str) -> Release | None:
    """By which row of its own the channel serves everyone."""
    return next((r for r in store.rows(Release, newest=True, channel=channel) if r.action != "canary"), None)


def _target(store: Store, channel: str, to: str | None) -> Release | None:
    """The release whose adapter is served again, None for what lies beneath (the base model)."""
    if to is None:
        tainted = store.tainted()
        below = [r for r in served_stack(store, channel)[:-1] if r.candidate not in tainted]
        return below[-1] if below else None
    if to == BASE or to.endswith(f"@{BASE}"):
        return None
    for release in store.rows(Release, newest=True, channel=channel):
        if to in (release.id, release.adapter, release.candidate):
            return release if release.candidate is not None else None
    raise NotFoundError(f"channel {channel!r} never served {to!r}: see `afterword releases list`, or use {BASE!r}")


def _written(store: Store, release: Release) -> Release:
    """Sign and write; from here on it is served."""
    release = replace(release, manifest=manifest_of(store, release))
    outcome = store.write(release)[0]
    assert outcome == "stored", outcome
    return release


@contextmanager
def _one_publisher(store: Store) -> Iterator[None]:
    """Only one process decides at a time; the lock ends with the process that holds it, however it ends."""
    with alone(store.path.parent, RELEASE, "another release", patience=LOCK_SECONDS):
        yield
