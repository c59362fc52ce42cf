"""A frozen teacher's hidden states on disk, by content: another run over the same interactions reads them.

Owns a bounded folder of files named by the hash of (weights, prompt ids, completion ids). It is a cache: a file that
cannot be read or written is computed again, the oldest go first. What is in it derives from what users wrote, so
whoever erases a user empties it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from afterword.records import content_hash

MOST_BYTES = 1 << 30


class KeptStates:
    """Hidden states [n, H] by content. `folder` None keeps nothing."""

    folder: Path | None

    def __init__(self, folder: Path | None, most: int = MOST_BYTES) -> None:
        self.folder, self.most = folder, most
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError:  # a cache that cannot be kept costs time, never the run
                self.folder = None

    @staticmethod
    def key(weights: str, prompt: Sequence[int], completion: Sequence[int]) -> str:
        """32 hex digits. `weights` stands for everything that scores: base, update, dtype."""
        return content_hash(weights, list(prompt), list(completion))

    def get(self, keys: Sequence[str]) -> list[Tensor] | None:
        """All of them, or None when one is missing: what is packed together is computed together, so that a run
        gives the same bits whether it reads or computes."""
        if self.folder is None:
            return None
        files = [self.folder / f"{key}.safetensors" for key in keys]
        if not all(file.is_file() for file in files):
            return None
        try:
            found = [load_file(file)["states"] for file in files]
        except (SafetensorError, OSError, KeyError):
            return None
        for file in files:
            os.utime(file)
        return found

    def put(self, keys: Sequence[str], states: Sequence[Tensor]) -> None:
        """Keep them; over the bound, the files that were not read for longest go."""
        if self.folder is None:
            return
        for key, one in zip(keys, states, strict=True):
            fresh = self.folder / f".{key}.{os.getpid()}"
            try:
                save_file({"states": one.cpu().contiguous()}, fresh)
                fresh.replace(self.folder / f"{key}.safetensors")
            except (SafetensorError, OSError):  # a full disk, say: the run goes on without its cache
                with suppress(OSError):
                    fresh.unlink(missing_ok=True)
                self.folder = None
                return

    def trim(self) -> None:
        """Keep within the bound."""
        if self.folder is None:
            return
        files = sorted(self.folder.glob("*.safetensors"), key=lambda f: f.stat().st_mtime, reverse=True)
        total = 0
        for file in files:
            total += file.stat().st_size
            if total > self.most:
                file.unlink(missing_ok=True)
