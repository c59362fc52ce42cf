"""Defines an outside format: how its rows are recognised, read and written.

Each format has one module with one `FORMAT`; `registry` lists them. Pure: reading turns parsed JSON into records,
writing turns records into JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from afterword.formats.export_filter import ExportFilter
from afterword.formats.parsing import Conversation, Hashed, Remark, Tree
from afterword.records import Json, Record

Parsed = Conversation | Tree | Remark | Hashed | list[Record]
"""What a row holds: a conversation, a chat with branches, feedback on a message of one, records that still need ids,
or records with the ids of their source."""
Reader = Callable[[Json], Parsed]
"""A row of a file or a body of `POST /v1/feedback` -> its content. Raises UsageError with a `code` that is counted."""
Writer = Callable[[ExportFilter], Iterator[Json]]
"""The rows that may leave -> JSON objects, one at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One kind of rows that a format writes."""

    what: str
    """`turns`, `feedback` or `interactions`."""
    write: Writer
    name: str = ""
    """Name of the export; the format's own when empty."""
    training: bool = False
    """Training data: redacted, without held-out conversations. Product logs are not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One outside format."""

    name: str
    read: Reader
    recognise: Callable[[Json], bool]
    """Is this row of the format? Asked in the order of `registry.ALL`."""
    exports: tuple[Export, ...] = ()
    aliases: tuple[str, ...] = ()
    """Other names on the command line."""
    linked: bool = False
    """Each row is one request that carries its history, so turns are linked to the ones that they continue."""
    events: bool = False
    """`POST /v1/feedback` takes its rows."""
