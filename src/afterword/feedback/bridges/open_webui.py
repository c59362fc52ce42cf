"""Open WebUI: ratings with reasons and comments, and the chats with their branches and edits, by an admin's token.

Tried with the version that docs/guides/open-webui.md names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from afterword.feedback.bridges.bridge import SourceRow
from afterword.feedback.bridges.http import Api, BridgeError
from afterword.formats.parsing import unix_time
from afterword.records import Json

_FEEDBACK = ("/api/v1/evaluations/feedbacks/all/export", "/api/v1/evaluations/feedbacks/all")
"""All feedback, by version: the first carries the chat as it was."""
_CHATS = "/api/v1/chats/all/db"
"""All chats of all users; an admin may switch this off (`ENABLE_ADMIN_EXPORT`)."""
_OWN = "/api/v1/chats/all"
"""The chats of the token's owner."""


class OpenWebUI:
    """One installation of Open WebUI.

    Args:
        url: Its address.
        token: API key of an admin (Settings, Account), or a session's token.
    """

    name = "open-webui"
    format = "open-webui"

    def __init__(self, url: str, token: str) -> None:
        self._api = Api(url, {"Authorization": f"Bearer {token}"})
        self.where = self._api.url
        self._present: set[str] | None = None

    def rows(self, mark: Json) -> Iterator[SourceRow]:
        """Chats first, so that feedback finds its answer; then the feedback. A chat comes along with new feedback on
        it: which turn a message is can only be told from the whole chat."""
        chats = self._api.get(_CHATS, missing_ok=True)
        if chats is None:
            chats = self._api.get(_OWN)
        path, votes = _FEEDBACK[0], self._api.get(_FEEDBACK[0], missing_ok=True)
        if votes is None:
            path, votes = _FEEDBACK[1], self._api.get(_FEEDBACK[1])
        new = _changed(_listed(votes, path), mark.get("feedback", 0.0))
        about = {_chat(row.value) for row in new}
        since = mark.get("chats", 0.0)
        for row in _changed(_listed(chats, _CHATS), 0.0):
            if row.changed_at is None or row.changed_at >= since or row.id in about:
                yield row
                mark["chats"] = max(row.changed_at or 0.0, since)
        self._present = {_id(row) for row in votes}
        for row in new:
            yield row._replace(feedback=True)
            mark["feedback"] = row.changed_at or mark.get("feedback", 0.0)

    def present(self) -> set[str] | None:
        """Ids of all feedback, as the last `rows` saw it."""
        return self._present


def _changed(rows: list[Any], since: float) -> list[SourceRow]:
    """Rows with a change since then, oldest first. Those of that second come again: more may have changed in it."""
    found = [SourceRow(_id(row), row, _moment(row)) for row in rows]
    found = [row for row in found if row.changed_at is None or row.changed_at >= since]
    return sorted(found, key=lambda row: row.changed_at or 0.0)


def _id(row: Any) -> str:
    return str(row.get("id") or "") if isinstance(row, dict) else ""


def _chat(vote: Any) -> str:
    meta = vote.get("meta") if isinstance(vote, dict) else None
    return str(meta.get("chat_id") or "") if isinstance(meta, dict) else ""


def _moment(row: Any) -> float | None:
    return unix_time(row.get("updated_at")) or unix_time(row.get("created_at")) if isinstance(row, dict) else None


def _listed(found: Any, path: str) -> list[Any]:
    if not isinstance(found, list):
        raise BridgeError(
            f"{path} answers with {type(found).__name__}, where a list was expected: this version of Open WebUI has "
            "another schema. Export chats and feedback there and use `afterword import`."
        )
    return found
