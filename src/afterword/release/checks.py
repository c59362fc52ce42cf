"""Checks a candidate before anyone is served: its verdict and report, and the adapter folder byte by byte.

Reads rows, bytes and JSON, never imports torch, and writes only the ids of report and verdict into the adapter's
`afterword.json`, before its first release. `adapter_model.safetensors` is checked from its header.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from afterword.errors import AdapterError, ConflictError, GateRefused, NotFoundError, NothingToDo, UsageError
from afterword.records import Candidate, Json, Release, Report, Verdict
from afterword.store import Store
from afterword.store.files import MANIFEST, folder_hash, write_whole

BASE = "base"
"""What `rollback(to=...)` calls the base model without an adapter."""
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def allowed(store: Store, candidate: Candidate, verdict: Verdict) -> Report:
    """The report behind a verdict that allows this candidate."""
    if store.find(Verdict, verdict.id) is None:
        raise NotFoundError(f"the verdict {verdict.id!r} is not in {store.path}: write it before releasing by it")
    if verdict.candidate != candidate.id:
        raise UsageError(f"the verdict {verdict.id} is about {verdict.candidate}, not about {candidate.id}")
    override = verdict.override or {}
    if not verdict.passed and not (override.get("by") and override.get("why")):
        raise GateRefused(f"the gate rejected {candidate.id}: " + "; ".join(verdict.reasons))
    report = store.get(Report, verdict.report)
    if report.candidate != candidate.id:
        raise UsageError(f"the report {report.id} is about {report.candidate}, not about {candidate.id}")
    return report


def check_current(store: Store, candidate: Candidate, report: Report, channel: str) -> None:
    """Checks that the report compared the candidate with the channel's current release, and that no canary runs."""
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
    """Raises AdapterError for a candidate trained on a forgotten user."""
    if candidate in store.tainted():
        raise AdapterError(
            f"{candidate} is in quarantine: it was trained on data of an erased user. Train again: `afterword cycle`"
        )


def folder_of(store: Store, candidate: Candidate) -> Path:
    """The candidate's adapter folder."""
    return store.artifacts.folder(candidate.path)


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
    store.artifacts.keep(candidate.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Contents of `afterword.json`. More keys are allowed and ignored, so that newer writers stay readable."""

    base: str
    """The base model as it was named."""
    base_hash: str
    """Hash of its weights."""
    tokenizer_hash: str
    """Hash of what turns text into ids."""
    template_hash: str
    """Hash of the chat template."""
    parent: str | None
    """Candidate whose adapter it started from."""
    interactions_hash: str
    """Hash of the ids of the interactions that it was trained on."""
    recipe: dict[str, Any]
    """The resolved recipe."""
    metrics: dict[str, Any]
    """Final metrics of the run."""
    code_version: str
    """Version of Afterword that wrote it."""


_KINDS: dict[str, tuple[type, ...]] = {"parent": (str, type(None)), "recipe": (dict,), "metrics": (dict,)}


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an adapter folder. AdapterError when it is missing, no JSON, or lacks a field."""
    if not folder.is_dir():
        raise AdapterError(f"there is no adapter folder {str(folder)!r}: it was moved or deleted")
    path = folder / MANIFEST
    if not path.is_file():
        raise AdapterError(
            f"{str(folder)!r} has no {MANIFEST}: it is a foreign adapter. Afterword releases only what it trained "
            "and measured itself."
        )
    data = _json(path)
    for field in fields(Manifest):
        if field.name not in data:
            raise AdapterError(f"{path} lacks {field.name!r}: the folder is incomplete; train the candidate again")
        if not isinstance(data[field.name], _KINDS.get(field.name, (str,))):
            raise AdapterError(f"{path}: {field.name!r} is {data[field.name]!r:.80}, which has the wrong type")
    return Manifest(**{field.name: data[field.name] for field in fields(Manifest)})


def check_adapter(folder: Path, *, content: str | None = None, base_hash: str | None = None) -> Manifest:
    """The manifest of a folder that is whole, made for `base_hash`, and has the content hash `content`.

    Either expectation may be None, which leaves it out. Raises AdapterError with the fault.
    """
    manifest = read_manifest(folder)
    _json(folder / CONFIG)
    _check_weights(folder / WEIGHTS)
    if base_hash is not None and manifest.base_hash != base_hash:
        raise AdapterError(
            f"{str(folder)!r} was trained on another base model ({manifest.base}, weights {manifest.base_hash[:12]}, "
            f"served weights {base_hash[:12]}): serve that base, or train again"
        )
    if content is not None and (found := folder_hash(folder)) != content:
        raise AdapterError(
            f"{str(folder)!r} changed after it was measured (content {found[:12]}, in the report {content[:12]}): "
            "evaluate it again"
        )
    return manifest


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise AdapterError(f"{str(path.parent)!r} has no {path.name}: the adapter folder is incomplete") from error
    except (ValueError, OSError) as error:
        raise AdapterError(f"{path} cannot be read as JSON ({error}): the adapter folder is corrupt") from error
    if not isinstance(data, dict):
        raise AdapterError(f"{path} holds {data!r:.60} instead of an object: the adapter folder is corrupt")
    return data


def _check_weights(path: Path) -> None:
    """A safetensors file is 8 bytes of header length, a JSON header, and tensors that fill the rest exactly."""
    if not path.is_file():
        raise AdapterError(f"{str(path.parent)!r} has no {path.name}: the adapter folder is incomplete")
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(length) if 0 < length <= size - 8 else b""
    try:
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        end = max(entry["data_offsets"][1] for entry in tensors.values())
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise AdapterError(
            f"{path} is no safetensors file with tensors in it: the adapter folder is corrupt"
        ) from error
    if 8 + length + end != size:
        raise AdapterError(f"{path} has {size} bytes where its header says {8 + length + end}: it was cut or changed")
