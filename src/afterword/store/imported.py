"""Imported turns that have their old names: hashes of what was said, which did not say whose it was.

Owns two named queries, by which a file that was imported then is known again. Never writes.
"""

from __future__ import annotations

from afterword.store.schema import IMPORTED, TOMBSTONE
from afterword.store.store import Store

_HELD = f"turns t INDEXED BY turns_imported WHERE {IMPORTED.format('t')}"
_ERASED = f"turns t INDEXED BY turns_forgotten WHERE {TOMBSTONE.format('t')} AND t.id >= 'imp-' AND t.id < 'imp-u'"


def any_old_names(store: Store) -> bool:
    """Is there a turn of a user under such a name, or one that was erased? Not in a new database."""
    return any(True for where in (_HELD, _ERASED) for _ in store.read(f"SELECT 1 FROM {where} LIMIT 1"))


def has_old_name(store: Store, name: str, user: str) -> bool:
    """Is a turn named `name`, or `name` and a number, of this user, or was it erased (it does not say whose it was)?"""
    span = (name, name + ".")  # "." follows "-"
    held = f"SELECT 1 FROM {_HELD} AND t.id >= ? AND t.id < ? AND t.user = ? LIMIT 1"
    erased = f"SELECT 1 FROM {_ERASED} AND t.id >= ? AND t.id < ? LIMIT 1"
    return any(True for _ in store.read(held, (*span, user))) or any(True for _ in store.read(erased, span))
