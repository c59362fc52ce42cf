"""Whose a row is, when the turn and the feedback on it do not name the same user, or only one of them names any.

Owns that question, for records in memory and for rows in the database, so that caps, counts, exports and erasures all
give the same answer. Never reads the database by itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from afterword.records import Feedback

REVIEWER = "reviewer"
"""A reviewer's feedback says nothing of who asked."""


def speaker(feedback: Iterable[Feedback], asked: str | None) -> str | None:
    """Whose words some feedback on one turn are: the user whom the first row names, else `asked` (the turn's user),
    else whom a later row names; None when nobody is named."""
    rows = list(feedback)
    first = rows[0].user if rows else None
    return first or asked or next((row.user for row in rows if row.user), None)


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
