"""The table of all outside formats. Add a format: one module with a `FORMAT`, and one line in `ALL`."""

from __future__ import annotations

from typing import Any

from afterword.formats import (
    agents_sdk,
    atif,
    chatgpt,
    claude,
    events,
    langfuse,
    librechat,
    lmsys,
    native,
    open_webui,
    openai,
    otel,
    sharegpt,
    tensorzero,
    triples,
    trl,
    wildchat,
    wildfeedback,
)
from afterword.formats.format import Export, Format

ALL: tuple[Format, ...] = (
    atif.FORMAT,
    agents_sdk.FORMAT,
    otel.FORMAT,
    chatgpt.FORMAT,
    claude.FORMAT,
    open_webui.FORMAT,
    librechat.FORMAT,
    lmsys.FORMAT,
    wildchat.FORMAT,
    native.FORMAT,
    events.FORMAT,
    triples.FORMAT,
    wildfeedback.FORMAT,
    sharegpt.FORMAT,
    openai.FORMAT,
    openai.ANTHROPIC,
    trl.FORMAT,
    tensorzero.FORMAT,
    langfuse.FORMAT,
)
"""In the order in which rows are recognised: the first one that recognises a row is its format."""

FORMATS: dict[str, Format] = {one.name: one for one in ALL}
ALIASES: dict[str, str] = {alias: one.name for one in ALL for alias in one.aliases}
"""Other names of a format."""

EXPORTS: dict[tuple[str, str], Export] = {
    (export.what, export.name or one.name): export for one in ALL for export in one.exports
}
"""(what, name) -> how its rows are written."""
TRAINING = frozenset(pair for pair, export in EXPORTS.items() if export.training)
"""Exports of training data: redacted, without held-out conversations."""


def detect_format(row: Any) -> str | None:
    """The name of the format of a row; None when no format recognises it."""
    if not isinstance(row, dict):
        return None
    return next((one.name for one in ALL if one.recognise(row)), None)
