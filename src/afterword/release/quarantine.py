"""Adapters that learned from a forgotten user leave: what is served falls back, their folders are put aside.

Owns the fall back to the newest clean ancestor and the folder `quarantine/`. Which adapters are meant is a query of
the store (`Store.tainted`), not a flag: an adapter whose training ends after the erasure is found by it too.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from afterword.errors import AdapterError, NotFoundError, NothingToDo
from afterword.records import Candidate, Json, Release
from afterword.release.checks import BASE
from afterword.release.publish import rollback
from afterword.store import Store
from afterword.store.channels import serving

FOLDER = "quarantine"


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
            releases.append(_back(store, channel, state.served.candidate, tainted, why))
        elif state.canary is not None and state.canary.candidate in tainted:
            releases.append(rollback(store, channel, why=why))  # everyone is served as before it
    return releases


def _back(store: Store, channel: str, served: str, tainted: Mapping[str, object], why: str) -> Release:
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
    """Move the folder of every tainted candidate to `quarantine/`, or delete it; what became of each."""
    found = []
    for name, own in store.tainted().items():
        candidate = store.get(Candidate, name)
        folder, aside = directory / candidate.path, directory / FOLDER / name
        if folder.is_dir() and not aside.exists():
            aside.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(aside)
        if delete:
            shutil.rmtree(aside, ignore_errors=True)
        versions = sorted({str(r.adapter) for r in store.rows(Release, candidate=name) if r.adapter})
        found.append({
            "candidate": name, "parent": candidate.parent, "versions": versions, "learned_from": list(own),
            "folder": str(aside.relative_to(directory)) if aside.is_dir() else None,
        })  # fmt: skip
    return found
