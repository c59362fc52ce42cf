"""What must hold before a candidate is served to anyone: its verdict, its report, its bytes.

Owns the refusals of `publish`; reads rows and folders and writes only the names of report and verdict into the
adapter's `afterword.json`, before its first release.
"""

from __future__ import annotations

import json
from pathlib import Path

from afterword.errors import AdapterError, ConflictError, GateRefused, NotFoundError, NothingToDo, UsageError
from afterword.records import Candidate, Json, Release, Report, Verdict
from afterword.release.manifest import MANIFEST, check_adapter
from afterword.store import Store
from afterword.store.files import write_whole

BASE = "base"
"""What `rollback(to=...)` calls the base model without an adapter."""


def allowed(store: Store, candidate: Candidate, verdict: Verdict) -> Report:
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


def check_current(store: Store, candidate: Candidate, report: Report, channel: str) -> None:
    """The report compared the candidate with what the channel serves now, and no canary runs."""
    running = store.canary(channel)
    if running is not None:
        raise ConflictError(
            f"the canary of {running.adapter} runs on channel {channel!r}: wait for its decision, or end it with "
            "`afterword release promote` or `afterword release rollback`"
        )
    current = store.release(channel)
    served = current.candidate if current else None
    if current is not None and served == candidate.id:
        raise NothingToDo(f"channel {channel!r} serves {candidate.id} already, as {current.adapter}")
    if report.against != served:
        raise ConflictError(
            f"{candidate.id} was compared with {report.against or 'the base model'}, but channel {channel!r} now "
            f"serves {served or 'the base model'}: another release came in between. Evaluate it again."
        )


def check_bytes(store: Store, candidate: Candidate, report: Report) -> None:
    """The folder is whole, holds the bytes that were measured, and nothing of a forgotten user."""
    refuse_tainted(store, candidate.id)
    check_adapter(folder_of(store, candidate), content=measured(report), base_hash=report.about.get("base_hash"))


def check_target(store: Store, target: Release) -> None:
    """The files of an earlier version are there, and are those that were measured before it was released."""
    assert target.candidate is not None
    content = None
    for release in store.rows(Release, candidate=target.candidate):
        if release.verdict is not None:
            content = measured(store.get(Report, store.get(Verdict, release.verdict).report))
    try:
        refuse_tainted(store, target.candidate)
        check_adapter(folder_of(store, store.get(Candidate, target.candidate)), content=content)
    except AdapterError as error:
        raise AdapterError(
            f"cannot roll back to {target.adapter}: {error.message}. Roll back further (`--to VERSION`) or to the base "
            f"model (`--to {BASE}`)."
        ) from error


def refuse_tainted(store: Store, candidate: str) -> None:
    """AdapterError for a candidate that learned from a user who was forgotten."""
    if candidate in store.tainted():
        raise AdapterError(
            f"{candidate} is in quarantine: it learned from a user who was forgotten. Train again: `afterword cycle`"
        )


def folder_of(store: Store, candidate: Candidate) -> Path:
    """The candidate's adapter folder."""
    return store.path.parent / candidate.path


def measured(report: Report) -> str:
    """Content hash of the bytes that the report is about."""
    content = report.about.get("adapter_hash")
    if not content:
        raise AdapterError(f"the report {report.id} does not say which bytes it measured: evaluate the candidate again")
    return str(content)


def name_proof(store: Store, candidate: Candidate, verdict: Verdict) -> None:
    """Write the ids of report and verdict into `afterword.json`. After its first release a folder never changes."""
    if next(store.rows(Release, candidate=candidate.id, limit=1), None) is not None:
        return
    path = folder_of(store, candidate) / MANIFEST
    data: Json = json.loads(path.read_bytes())
    data |= {"report": verdict.report, "verdict": verdict.id}
    try:
        write_whole(path, json.dumps(data, indent=2) + "\n")
    except OSError as error:
        raise AdapterError(f"cannot write {path} ({error.strerror}): the folder must be writable once") from error
