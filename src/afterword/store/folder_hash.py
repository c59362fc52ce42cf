"""The content hash of an adapter folder: how a report, a cache and a release say "these very bytes".

Owns only that hash, because training, measuring and releasing must agree on it; never reads tensors.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from afterword.errors import AdapterError

MANIFEST = "afterword.json"
"""Left out of the hash: it may carry the hash itself, and later a report and a verdict."""


def folder_hash(folder: Path) -> str:
    """32 hex digits over the names and bytes of all files below `folder` but its manifest.

    Raises AdapterError when there is no such folder or it holds no file.
    """
    if not folder.is_dir():
        raise AdapterError(f"there is no adapter folder {str(folder)!r}: it was moved or deleted")
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f != folder / MANIFEST)
    if not files:
        raise AdapterError(f"the adapter folder {str(folder)!r} is empty")
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        with file.open("rb") as stream:
            inner = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + inner.digest())
    return digest.hexdigest()
