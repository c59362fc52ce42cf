"""Rows out of Parquet files, a few hundred at a time, and what a row of any file is.

Owns the one use of pyarrow (the extra `parquet`), which is imported when a Parquet file is opened. Never interprets
a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afterword.errors import UsageError

BATCH = 256
"""Rows that are decoded at a time."""


@dataclass(frozen=True, slots=True)
class Row:
    """One JSON value and where it was found ("line 3", "character 1200")."""

    value: Any
    where: str
    mended: bool = False
    """Its bytes were no valid UTF-8 and were read with replacement characters."""
    sound: bool = False
    """Known to be text that can be written again: nothing in it has to be replaced."""


@dataclass(frozen=True, slots=True)
class Bad:
    """A stretch of the file that is no row: a code, a sentence, and its beginning."""

    reason: str
    detail: str
    where: str
    text: str = ""
    user: str | None = None
    """Whom the row names as its user."""


class ParquetRows:
    """The rows of one file. Fields that are null are left out, as they are in JSON lines of the same schema."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise UsageError(
                f"{path} is a Parquet file, and pyarrow is not installed: pip install 'afterword[parquet]', or give "
                "JSON or JSON lines."
            ) from error
        try:
            self._file = parquet.ParquetFile(path, memory_map=True, pre_buffer=False)
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            raise UsageError(f"{path} is no whole Parquet file: {error}") from error
        self._size = path.stat().st_size
        self._done = 0

    @property
    def position(self) -> int:
        """About how many bytes of the file are behind us."""
        return self._size * self._done // max(1, int(self._file.metadata.num_rows))

    def rows(self, skip: int = 0) -> Iterator[Row | Bad]:
        """All rows but the first `skip`."""
        groups, passed = self._groups(skip)
        number = passed
        try:
            for batch in self._file.iter_batches(batch_size=BATCH, row_groups=groups):
                for value in batch.to_pylist():
                    number += 1
                    self._done = number
                    if number > skip:
                        yield Row(_without_nulls(value), f"row {number}")
        except (OSError, ValueError) as error:
            yield Bad("broken_archive", f"the file breaks off after row {number}: {error}", f"row {number + 1}")

    def _groups(self, skip: int) -> tuple[list[int], int]:
        """The row groups that are not wholly passed over, and how many rows lie before them."""
        passed = 0
        for index in range(self._file.num_row_groups):
            rows = self._file.metadata.row_group(index).num_rows
            if passed + rows > skip:
                return list(range(index, self._file.num_row_groups)), passed
            passed += rows
        return [], passed


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value]
    return value
