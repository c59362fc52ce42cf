"""Is this folder an adapter of ours, whole and unchanged? Reads `afterword.json`, which training writes.

Owns the checks before anything is released; reads bytes and JSON only and never imports torch. The shape of
`adapter_model.safetensors` is checked from its header: its length, and where the last tensor ends.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from afterword.errors import AdapterError
from afterword.store.files import MANIFEST, folder_hash

__all__ = ["MANIFEST", "Manifest", "check_adapter", "folder_hash", "read_manifest"]

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What `afterword.json` must say. More keys are allowed and ignored, so that newer writers stay readable."""

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
    """Final figures of the run."""
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
            raise AdapterError(f"{path}: {field.name!r} is {data[field.name]!r:.80}, which is not what it should be")
    return Manifest(**{field.name: data[field.name] for field in fields(Manifest)})


def check_adapter(folder: Path, *, content: str | None = None, base_hash: str | None = None) -> Manifest:
    """The manifest of a folder that is whole, made for `base_hash`, and has the content hash `content`.

    Either expectation may be None, which leaves it out. Raises AdapterError with what is wrong.
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
