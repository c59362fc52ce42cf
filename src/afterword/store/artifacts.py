"""Adapter folders: in the data directory, and with a URL also in an object store that every machine reads.

An adapter's files lie at `URL/PATH/SHA256`; their names and hashes in `URL/PATH/files.json`, which is written last and
makes the adapter whole. The data directory holds a verified copy. URLs are those of obstore (extra `objects`): `s3://`,
`gs://`, `az://`, `file:///`; keys come from the environment of each cloud.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from afterword.errors import AdapterError, ConfigError, StoreError
from afterword.store.files import MANIFEST

_INDEX = "files.json"
_CACHED = ".from-{}"
"""Beside a folder that was downloaded: it is a copy, which may be deleted."""
_CLIENT = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=120), "allow_http": True}
_RETRIES = {"max_retries": 4, "retry_timeout": timedelta(seconds=30)}


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by its path in it."""
    found: dict[str, str] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as stream:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


class Artifacts:
    """The adapter folders of one deployment. Paths are those of Candidate and Release rows, such as "adapters/ID"."""

    def __init__(self, directory: Path, url: str | None = None) -> None:
        """
        Args:
            directory: The data directory, which holds every folder or a copy of it.
            url: The object store; None keeps folders in the data directory alone.
        """
        self.directory, self.url = directory, url.rstrip("/") if url else None

    # ---- writing

    def keep(self, path: str) -> None:
        """Upload a folder of the data directory, before the row that names it; twice is no harm.

        The manifest alone may have changed since the last time: a release writes its report's id there.

        Raises:
            AdapterError: There is no such folder, or another one has its name in the object store.
            StoreError: The object store does not answer or refuses.
        """
        if self.url is None:
            return
        folder = self.directory / path
        files = file_hashes(folder)
        if not files:
            raise AdapterError(f"there is no adapter folder {str(folder)!r}, or it is empty: it was moved or deleted")
        with self._reached() as objects:
            index = f"{path}/{_INDEX}"
            if (there := self._read(objects, index)) is None:
                for name, digest in files.items():
                    objects.put(f"{path}/{digest}", folder / name)
                with suppress(FileExistsError):  # another process was first
                    objects.put(index, json.dumps(files, sort_keys=True).encode(), mode="create")
                there = self._read(objects, index)
            changed = {name for name in {*there, *files} if there.get(name) != files.get(name)} if there else set()
            if changed == {MANIFEST}:
                objects.put(f"{path}/{files[MANIFEST]}", folder / MANIFEST)
                objects.put(index, json.dumps(files, sort_keys=True).encode())
            elif changed:
                raise AdapterError(
                    f"{self.url}/{path} holds another adapter of this name: two deployments write to one place. "
                    "Give each its own `store.artifacts`."
                )

    def remove(self, path: str) -> bool:
        """Delete a folder from the object store, its index first. The data directory's is the caller's.

        Returns:
            Whether it was there.

        Raises:
            StoreError: The object store does not answer or refuses.
        """
        if self.url is None:
            return False
        with self._reached() as objects:
            found = [one["path"] for some in objects.list(f"{path}/") for one in some]
            # The index first: without it nobody finds the adapter.
            for name in sorted(found, key=lambda name: not name.endswith(_INDEX)):
                objects.delete(name)
            return bool(found)

    def drop_copy(self, path: str) -> None:
        """Delete the data directory's folder where it is a copy from the object store."""
        mark = self._mark(path)
        if mark.exists():
            shutil.rmtree(self.directory / path, ignore_errors=True)
            mark.unlink(missing_ok=True)

    # ---- reading

    def exists(self, path: str) -> bool:
        """Is the folder here or in the object store?

        Raises:
            StoreError: The object store does not answer.
        """
        return (self.directory / path).is_dir() or self.exists_remotely(path)

    def exists_remotely(self, path: str) -> bool:
        """Is the folder in the object store?

        Raises:
            StoreError: The object store does not answer.
        """
        if self.url is None:
            return False
        with self._reached() as objects:
            return self._read(objects, f"{path}/{_INDEX}") is not None

    def folder(self, path: str, files: Mapping[str, str] | None = None) -> Path:
        """The folder in the data directory; one that is only in the object store is downloaded and verified.

        Args:
            path: As in the row.
            files: SHA-256 by file name that a download must have, as a release was signed with; None takes what the
                object store says.

        Returns:
            The folder; where neither place has it, the path at which it is missing.

        Raises:
            AdapterError: A downloaded file does not have its hash.
            StoreError: The object store does not answer.
        """
        folder = self.directory / path
        if self.url is None:
            return folder
        if folder.is_dir():
            if files is not None:
                self._refresh(path, folder, files)
            return folder
        with self._reached() as objects:
            if (named := self._read(objects, f"{path}/{_INDEX}")) is None:
                return folder
            if files is not None and dict(files) != named:
                raise AdapterError(
                    f"{self.url}/{path} is not what was released: its files changed. It is not loaded; restore them, "
                    "or roll back to another version."
                )
            folder.parent.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            try:
                for name, digest in named.items():
                    self._fetch(objects, f"{path}/{digest}", fresh / name, digest)
                self._mark(path).touch()
                with suppress(OSError):  # another process was first
                    fresh.rename(folder)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
        return folder

    def _refresh(self, path: str, folder: Path, files: Mapping[str, str]) -> None:
        """Take the manifest of the release, which may have been written on another machine."""
        here = file_hashes(folder)
        if {name for name in {*here, *files} if here.get(name) != files.get(name)} == {MANIFEST} and MANIFEST in files:
            fresh = folder.parent / f".{folder.name}.{MANIFEST}"
            with self._reached() as objects, suppress(FileNotFoundError):
                self._fetch(objects, f"{path}/{files[MANIFEST]}", fresh, files[MANIFEST])
                fresh.replace(folder / MANIFEST)

    # ---- the object store

    def _mark(self, path: str) -> Path:
        folder = self.directory / path
        return folder.parent / _CACHED.format(folder.name)

    def _fetch(self, objects: Any, source: str, target: Path, digest: str) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        found = hashlib.sha256()
        with target.open("wb") as stream:
            for chunk in objects.get(source):
                found.update(chunk)
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        if found.hexdigest() != digest:
            raise AdapterError(
                f"{self.url}/{source} ({target.name}) came with the hash {found.hexdigest()[:12]}: the object was "
                "changed or cut. The adapter is not loaded; upload it again from a machine that has it."
            )

    def _read(self, objects: Any, index: str) -> dict[str, str] | None:
        """The files that an index names; None without one."""
        try:
            files = json.loads(bytes(objects.get(index).bytes()))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise AdapterError(f"{self.url}/{index} is no JSON ({error}): delete it and upload again") from error
        named = isinstance(files, dict) and all(
            isinstance(digest, str) and not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
            for name, digest in files.items()
        )
        if not named or not files:
            raise AdapterError(f"{self.url}/{index} does not list an adapter's files: delete it and upload again")
        return dict(files)

    @contextmanager
    def _reached(self) -> Iterator[Any]:
        """The object store; its errors in our words."""
        assert self.url is not None
        try:
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        except ImportError as error:
            raise ConfigError(
                f"store.artifacts is {self.url!r}, which needs obstore: pip install 'afterword[objects]'",
                param="store.artifacts",
            ) from error
        try:
            scheme = self.url.partition(":")[0]
            options: dict[str, Any] = {"client_options": _CLIENT, "retry_config": _RETRIES}
            if scheme == "file":
                options = {"mkdir": True}
            elif scheme in ("s3", "s3a"):
                options["disable_bulk_delete"] = True  # not every server of the protocol has it
            objects: Any = from_url(self.url, **options)
        except OSError as error:
            raise StoreError(f"the object store {self.url} cannot be made: {error}. Name another folder.") from error
        except (BaseError, ValueError, TypeError) as error:
            raise ConfigError(
                f'store.artifacts is {self.url!r}: {_first_line(error)}. Examples: "s3://bucket/folder", '
                '"file:///mnt/shared/adapters".',
                param="store.artifacts",
            ) from error
        try:
            yield objects
        except BaseError as error:
            raise StoreError(
                f"the object store {self.url} failed: {_first_line(error)}. Nothing is lost: the adapter stays in the "
                "data directory. Check address, keys and bucket, then repeat the command."
            ) from error


def _first_line(error: BaseException) -> str:
    """The sentence of an error, with the code that S3 gives in XML behind it."""
    text = str(error).strip() or type(error).__name__
    code = re.search(r"<Code>(\w+)</Code>", text)
    return text.splitlines()[0].partition(": <?xml")[0][:300] + (f" ({code[1]})" if code else "")
