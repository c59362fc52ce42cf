"""Finds turns that must not be trained on: without consent, or with the text of such a turn in their history.

Clients send the history again with each request, so a turn with consent may carry text without it. Reads the store,
never writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import orjson

from afterword.records import Json, Turn
from afterword.store.store import Store

_NOT_SAID = ("system", "developer")


class ConsentFilter:
    """The turns of a store that may not be trained on, and where their words stand again."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def reason(self, turn: Turn) -> str | None:
        """`no_consent` for a turn that may not be trained on, `no_consent_before` for one whose history carries the
        text of such a turn, None for all others.

        The turns before it are known by `previous`. A history that was shortened, or sent under another name, is known
        by its texts: what was asked or answered without consent, and nowhere with it.
        """
        if not turn.consent:
            return "no_consent"
        after, texts = self._known
        carries = turn.id in after or (texts and not texts.isdisjoint(_marks(turn.messages[: _asked(turn)])))
        return "no_consent_before" if carries else None

    def among(self, names: Sequence[str]) -> dict[str, str]:
        """Those of the turns that have a reason, with it."""
        if not any(self._known):  # everybody consented, the usual case: no turn needs to be read
            return {}
        reasons = ((turn.id, self.reason(turn)) for _, turn in self._store.among(Turn, "id", names))
        return {name: reason for name, reason in reasons if reason is not None}

    @cached_property
    def _known(self) -> tuple[set[str], set[int]]:
        """Turns that continue one without consent; and what was said in those without, and in none with it."""
        names: list[str] = []
        texts: set[int] = set()
        for turn in self._store.without_consent():
            names.append(turn.id)
            texts.update(_own(turn))
        if texts:
            for turn in self._store.rows(Turn):
                if turn.consent:
                    texts.difference_update(_own(turn))
        return self._store.following(names), texts


def _asked(turn: Turn) -> int:
    """Where the request itself begins in the messages: behind the last answer."""
    answers = [i for i, message in enumerate(turn.messages) if message.get("role") == "assistant"]
    return answers[-1] + 1 if answers else 0


def _own(turn: Turn) -> Iterator[int]:
    """What was said for the first time in this turn: the request and the answer."""
    return _marks((*turn.messages[_asked(turn) :], turn.answer))


def _marks(messages: Iterable[Json]) -> Iterator[int]:
    """A hash of what each message says; the operator's system message, and what says nothing, have none."""
    for message in messages:
        if message.get("role") in _NOT_SAID:
            continue
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(
                part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
            )
        said = (content or "").strip() or message.get("tool_calls")
        if said:
            body = said.encode("utf-8", "replace") if isinstance(said, str) else orjson.dumps(said)
            yield int.from_bytes(hashlib.blake2b(body, digest_size=8).digest())
