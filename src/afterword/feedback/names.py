"""The ids of imported records: hashes of what a row says and of whose it is, so that a file may be imported again.

Owns the way from a row's hash to its name. Two users with the same chat are two names; without a user, and for what was
imported before the user was a part of it, the hash of the words alone is the name. Never stores.
"""

from __future__ import annotations

from functools import cached_property

from afterword.records import content_hash
from afterword.store import Store
from afterword.store.imported import any_old_names, has_old_name


class Names:
    """Names for the rows of one import."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def of(self, digest: str, user: str | None) -> str:
        """What stands behind `imp-`: the digest, made to say whose it is."""
        if user is None or (self._old and has_old_name(self._store, f"imp-{digest}", user)):
            return digest
        return "u" + content_hash(digest, user)

    @cached_property
    def _old(self) -> bool:
        return any_old_names(self._store)
