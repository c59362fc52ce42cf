"""Ids of the answers and votes in chats with branches, so that a newer export of a chat adds only what is new.

Never stores.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from afterword.chat.canonical import canonical
from afterword.formats.chatgpt import without_marks
from afterword.formats.naming import REMEMBERED, RowNames
from afterword.records import Feedback, Json, Turn, content_hash
from afterword.store import Store


class ImportNames(RowNames):
    """Ids for the rows of one import."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, fresh=store.count(Turn) == 0)
        self._said: OrderedDict[str, str] = OrderedDict()
        self._votes: OrderedDict[str, list[Feedback]] = OrderedDict()

    def of_chat(self, turn: Turn) -> Turn:
        """The turn under the id that its chat gives it, or, when another answer has that id (two exports whose ids are
        the same by chance, an answer that was changed since), under one that says its words too."""
        words = _words(turn)
        known = self._said.get(turn.id)
        if known is None and not self._fresh:
            stored = self._store.find(Turn, turn.id)
            plain = stored if stored is None else _without_marks(stored)
            if plain != stored and plain is not None and _words(plain) == words:
                return stored or turn  # an older version kept the citation marks of ChatGPT
            known = None if stored is None else _words(stored)
        if known is not None and known != words and known != _words(self._store.as_stored(turn)):
            return replace(turn, id=f"{turn.id}-{words[:12]}")
        self._said[turn.id] = words
        if len(self._said) > REMEMBERED:
            self._said.popitem(last=False)
        return turn

    def of_vote(self, vote: Feedback) -> Feedback:
        """The vote as it is known already: given at the same time, or the newest of its user, which still stands. One
        that was changed and changed back is a row of its own."""
        vote = self._store.as_stored(vote)
        known = [row for _, row in self._store.among(Feedback, "turn", [vote.turn]) if row.id.startswith(_VOTES)]
        ids = {row.id for row in known}
        known += [row for row in self._votes.get(vote.turn, ()) if row.id not in ids]
        known = [row for row in known if row.kind == vote.kind and row.user == vote.user]
        if known:
            newest = max(known, key=lambda row: row.occurred_at or 0.0)
            same = [row for row in known if _says(row) == _says(vote)]
            if found := next((row for row in same if row is newest or row.occurred_at == vote.occurred_at), None):
                return found
        if any(row.id == vote.id for row in known):
            vote = replace(vote, id=f"{vote.id}-{content_hash(vote.occurred_at)[:8]}")
        self._votes.setdefault(vote.turn, []).append(vote)
        if len(self._votes) > REMEMBERED:
            self._votes.popitem(last=False)
        return vote


_VOTES = "fb-imp-"
"""How the ids of votes begin that chats brought."""


def _says(vote: Feedback) -> tuple[float | None, str | None, Json]:
    return vote.value, vote.text, vote.metadata


def _without_marks(turn: Turn) -> Turn:
    """The turn as its chat is read today."""
    messages = tuple(map(_plain, turn.messages))
    return replace(turn, messages=messages, answer=_plain(turn.answer))


def _plain(message: Json) -> Json:
    content = message.get("content")
    if message.get("role") != "assistant" or not isinstance(content, str):
        return message
    plain, marks = without_marks(content)
    return {**message, "content": plain} if marks else message


def _words(turn: Turn) -> str:
    """A hash of what was asked and answered."""
    said: list[Json] = [canonical(message) for message in (*turn.messages, turn.answer)]
    return content_hash(said)
