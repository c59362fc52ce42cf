"""Cleans files that may hold the words of an erased user: caches, runs, exports, rejects, pages.

Also searches all bytes at the end. Never touches the database, adapters, keys or settings.
"""

from __future__ import annotations

import mmap
import re
import shutil
from contextlib import closing
from pathlib import Path

import orjson

from afterword.errors import UsageError
from afterword.feedback.importing.files import FileRow, Source
from afterword.forget.plan import ErasurePlan
from afterword.formats.containers import container
from afterword.records import Json, content_hash
from afterword.release.publish import QUARANTINE
from afterword.store import Store
from afterword.store.erasure.erase import Eraser
from afterword.store.erasure.erasure_search import Words, files_below, name_pattern, search, thinned
from afterword.train.run_state import run_interactions

_OPERATORS = ("keys.json", "afterword.toml")
"""Never changed; they are searched all the same."""
_PAGES = (".html", ".txt", ".log", ".md", ".pt")
"""Files that are no rows: one with their words in it is deleted as a whole, it can be made again."""


class Finder:
    """Searches files for the words of a user; words that another user wrote too do not count."""

    def __init__(self, eraser: Eraser, needles: list[bytes]) -> None:
        self._eraser = eraser
        self.needles = needles
        self._living: dict[bytes, bool] = {}

    def hits(self, file: Path) -> list[bytes]:
        """The needles that are in a file and in no row that is left."""
        return [needle for needle in search(file, self.needles) if not self._shared(needle)]

    def _shared(self, needle: bytes) -> bool:
        if needle not in self._living:
            self._living[needle] = self._eraser.living(needle.decode())
        return self._living[needle]

    @property
    def shared(self) -> int:
        """Needles that were found, and are in rows that are left."""
        return sum(self._living.values())


def clean(eraser: Eraser, store: Store, directory: Path, plan: ErasurePlan) -> None:
    """Delete caches and the runs that saw their interactions, take their rows out of every other file.

    The rows in the database are redacted by now: what is still in it are the words of others.
    """
    words = plan.words()
    finder = Finder(eraser, words.needles())
    for folder in _folders(store, directory, words):
        plan.did(folder, "deleted")
        shutil.rmtree(folder)
    out = exported(store)
    for file in _others(store, directory, [*out, *map(Path, plan.exports)]):
        if str(file) in plan.exports:
            plan.did(file, "deleted")
            file.unlink()
        elif file in out:
            _filter(file, words, finder.hits(file), plan)
        elif (hits := finder.hits(file)) or _names(file, directory, plan):
            _filter(file, words, hits, plan, named=_below(file, directory))


_NAMED = ("rejects", "runs", "cache")
"""Folders in which the name alone is a trace of the user; so it is in exports."""


def _below(file: Path, directory: Path) -> bool:
    return file.is_relative_to(directory) and file.relative_to(directory).parts[0] in _NAMED


def _names(file: Path, directory: Path, plan: ErasurePlan) -> bool:
    """Is this a file below `_NAMED` in which the user's name stands (or, in rejects, one that has a row of theirs)?"""
    if not _below(file, directory):
        return False
    return file.relative_to(directory).parts[0] == "rejects" or says(file, plan.user)


def says(file: Path, user: str) -> bool:
    """Does the name stand in the file as a whole word?"""
    pattern = name_pattern(user)
    if pattern is None or not file.is_file() or file.stat().st_size == 0:
        return False
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return pattern.search(data) is not None


def exported(store: Store) -> list[Path]:
    """Where exports were written that are still known."""
    return sorted({path for _, _, path, _, _ in store.exports()})


def _folders(store: Store, directory: Path, words: Words) -> list[Path]:
    """`cache`, which can be made again, and the runs that saw their interactions, finished or not."""
    tainted = store.tainted()
    found = [directory / "cache"]
    for run in sorted(f for f in (directory / "runs").glob("*") if f.is_dir()):
        if run.name in tainted or run_interactions(run) & words.ids:
            found.append(run)
    return [folder for folder in found if folder.is_dir()]


def _others(store: Store, directory: Path, outside: list[Path]) -> list[Path]:
    database = {store.path.name + end for end in ("", "-wal", "-shm")}
    inside = [
        f
        for f in files_below(directory)
        if f.name not in database
        and f.name not in _OPERATORS
        and f.relative_to(directory).parts[0] not in ("adapters", QUARANTINE, "forget")
    ]
    return sorted({*inside, *(f for f in outside if f.is_file())})


def _filter(file: Path, words: Words, needles: list[bytes], plan: ErasurePlan, *, named: bool = False) -> None:
    """Take their rows out of a file of rows; delete one that is no such file."""
    if file.suffix.lower() not in _PAGES:
        try:
            with closing(Source(file)) as source:
                _rewrite(file, source, words, needles, plan, name_pattern(plan.user) if named else None)
            return
        except UsageError:
            pass  # it cannot be read as rows
    plan.did(file, "deleted")
    file.unlink()


def _rewrite(
    file: Path, source: Source, words: Words, needles: list[bytes], plan: ErasurePlan, name: re.Pattern[bytes] | None
) -> None:
    kept = dropped = 0
    fresh = file.with_name(f".{file.stem.split('.')[0]}.forget{''.join(file.suffixes)}")
    with container(fresh) as out:
        for item in source.rows():
            line = orjson.dumps(item.value) if isinstance(item, FileRow) else item.text.encode()
            theirs = any(n in line for n in needles) or (name is not None and name.search(line) is not None)
            if theirs or (isinstance(item, FileRow) and words.match(item.value)):
                dropped += 1
            elif isinstance(item, FileRow):
                kept += 1
                out.write(line + b"\n")
    if dropped:
        plan.did(file, f"{dropped} rows taken out, {kept} left" if kept else "deleted")
    if dropped and kept:
        fresh.replace(file)
        return
    fresh.unlink()
    if dropped:
        file.unlink()


def searched(eraser: Eraser, directory: Path, plan: ErasurePlan, outside: list[Path]) -> Json:
    """Look for their words in every byte: of the database and its log, of all files beside it, of known exports."""
    files = [f for f in files_below(directory) if f.relative_to(directory).parts[0] != "forget"]
    files += [f for f in outside if f.is_file() and f not in files]
    everything = plan.words().needles()
    finder = Finder(eraser, thinned(everything, files))
    found = [{"file": str(f), "needle": content_hash(hit.decode())} for f in files for hit in finder.hits(f)]
    found += [{"file": f"{table} {name}", "needle": "a quotation"} for table, name in eraser.quoted(plan.user.__eq__)]
    if not eraser.living(plan.user):
        places = [f for f in files if _below(f, directory) or f in outside]
        found += [{"file": str(f), "needle": "the user's name"} for f in places if says(f, plan.user)]
    return {
        "files": len(files),
        "bytes": sum(f.stat().st_size for f in files if f.is_file()),
        "needles": len(finder.needles),
        "needles_left_out": len(everything) - len(finder.needles),
        "texts_too_short_to_search": sum(not Words(set(), {text}).needles() for text in plan.texts),
        "also_in_rows_of_others": finder.shared,
        "found": found,
    }
