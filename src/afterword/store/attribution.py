"""Attributes rows to users (when turn and feedback name different ones or only one, and for old ids), and turns to
conversations.

Caps, counts, exports, imports and erasures all ask here, so they give the same answer. Never writes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from afterword.records import Feedback, Turn
from afterword.store.schema import IMPORTED, TOMBSTONE
from afterword.store.store import Store

REVIEWER = "reviewer"
"""A reviewer's feedback says nothing of who asked."""


def speaker(feedback: Iterable[Feedback], asked: str | None) -> str | None:
    """Whose words some feedback on one turn are: the user whom the first row names, else `asked` (the turn's user),
    else whom a later row names; None when nobody is named."""
    rows = list(feedback)
    first = rows[0].user if rows else None
    return first or asked or next((row.user for row in rows if row.user), None)


ROOTS = 50_000
"""Turns whose conversation is remembered."""


class ConversationRoots:
    """Attributes turns to conversations, as the split into training and held-out interactions needs it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[str, str] = OrderedDict()

    def of(self, turn: Turn) -> str:
        """The turn's own conversation, else that of the nearest turn before it with one, else the id of the first
        turn: a conversation that is never named stays together."""
        if turn.conversation is not None:
            return turn.conversation
        root = turn.id if turn.previous is None else self._known.get(turn.previous) or self._walk(turn)
        self._known[turn.id] = root
        if len(self._known) > ROOTS:
            self._known.popitem(last=False)
        return root

    def _walk(self, turn: Turn) -> str:
        root = turn.id
        for name, conversation in self._store.ancestors(turn.id):
            root = name
            if conversation is not None:
                return conversation
        return root


_BODY = "CASE WHEN length(f.digest) > 0 THEN CAST(f.body AS TEXT) END"
_SOURCE = f"json_extract({_BODY}, '$.source')"

TURNS_OF_USER = f"""
    SELECT id FROM turns WHERE user = ?1
    UNION SELECT t.id FROM feedback f JOIN turns t ON t.id = f.turn
        WHERE f.user = ?1 AND t.user IS NULL AND {_SOURCE} != '{REVIEWER}'
        AND NOT EXISTS (SELECT 1 FROM feedback o WHERE o.turn = t.id AND o.user != ?1)
    UNION SELECT t.id FROM feedback f JOIN turns t ON t.id = json_extract({_BODY}, '$.next_turn')
        WHERE f.user = ?1 AND t.user IS NULL"""
"""Turns of the user ?1: those that name them; those that name nobody and on which only they reacted (not as a
reviewer); and those that name nobody and that their feedback names as what they did next: its words are in there."""


# ---- ids that older versions gave: hashes of what was said, which did not say whose it was

_HELD = f"turns t INDEXED BY turns_imported WHERE {IMPORTED.format('t')}"
_ERASED = f"turns t INDEXED BY turns_forgotten WHERE {TOMBSTONE.format('t')} AND t.id >= 'imp-' AND t.id < 'imp-u'"


def any_old_names(store: Store) -> bool:
    """Is there a turn of a user under such an id, or one that was erased? Not in a new database."""
    return any(True for where in (_HELD, _ERASED) for _ in store.read(f"SELECT 1 FROM {where} LIMIT 1"))


def has_old_name(store: Store, name: str, user: str) -> bool:
    """Is a turn named `name`, or `name` and a number, of this user, or was it erased (it does not say whose it was)?"""
    span = (name, name + ".")  # "." follows "-"
    held = f"SELECT 1 FROM {_HELD} AND t.id >= ? AND t.id < ? AND t.user = ? LIMIT 1"
    erased = f"SELECT 1 FROM {_ERASED} AND t.id >= ? AND t.id < ? LIMIT 1"
    return any(True for _ in store.read(held, (*span, user))) or any(True for _ in store.read(erased, span))


def any_turns_from_http(store: Store) -> bool:
    """Is there a turn that an older version made of a record sent to `POST /v1/feedback`?"""
    return any(True for _ in store.read("SELECT 1 FROM turns WHERE id >= 'turn-' AND id < 'turn.' LIMIT 1"))
