"""Defines channels: the scope of a release by user group (everyone, a team, a user) and task.

    default                 everyone, every task
    task:code               one task
    team:legal/task:code    one task of one team

Owns the names, the order of channels by scope, and the fold from release rows to the served release. Pure;
gateway, release and store agree on it here. Never reads a database.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

from afterword.errors import UsageError
from afterword.records import Release

DEFAULT = "default"
SCOPES = ("user", "team", "task")


@dataclass(frozen=True, slots=True)
class Serving:
    """State of one channel after some of its release rows."""

    served: Release | None = None
    """The row by which everyone is served."""
    before: Release | None = None
    """The row by which everyone was served with another adapter before; None is "nothing of its own"."""
    canary: Release | None = None
    """The canary that runs."""
    newest: Release | None = None

    @property
    def adapter(self) -> str | None:
        """The adapter for everyone, None when the channel has no release."""
        return self.served.adapter if self.served else None

    def after(self, row: Release) -> Serving:
        """The state after one more row."""
        if row.action == "canary":
            return replace(self, canary=row, newest=row)
        moved = self.served is not None and row.adapter != self.served.adapter
        return Serving(served=row, before=self.served if moved else self.before, newest=row)


def serving(rows: Iterable[Release]) -> Serving:
    """The fold over the rows of one channel, oldest first."""
    state = Serving()
    for row in rows:
        state = state.after(row)
    return state


def channel_name(*, user: str | None = None, team: str | None = None, task: str | None = None) -> str:
    """The channel of a scope and a task; "default" without either. A user is narrower than a team."""
    named = (("user", user), ("team", None if user else team), ("task", task))
    return "/".join(f"{scope}:{quote(value, safe='')}" for scope, value in named if value) or DEFAULT


def channels_of(user: str | None, team: str | None, task: str | None) -> tuple[str, ...]:
    """The channels that may answer a request, narrowest first, without the default."""
    found: list[str] = []
    for scope in ({"user": user}, {"team": team}, {}):
        if scope and not any(scope.values()):
            continue
        found += [channel_name(**scope, task=t) for t in (task, None) if t or scope]
    return tuple(found)


def covers(channel: str, *, user: str | None, team: str | None, task: str | None) -> bool:
    """Is what this user of this team said about this task among what the channel learns from? The default channel and
    those with a name of their own learn from everybody."""
    if ":" not in channel:
        return True
    own = {"user": user, "team": team, "task": task}
    parts = (part.partition(":") for part in channel.split("/"))
    return all(own.get(scope) == unquote(value) for scope, _, value in parts)


def wider(channel: str) -> tuple[str, ...]:
    """The channels beneath one, narrowest first. A named channel ("staging") has no wider one."""
    if ":" not in channel:
        return ()
    parts = channel.split("/")
    return (*(parts if len(parts) > 1 else ()), DEFAULT)


def check_channel(text: str) -> str:
    """`text` if it names a channel, else UsageError: "default", SCOPE:NAME, SCOPE:NAME/task:NAME, or a plain word."""
    parts = [part.partition(":") for part in text.split("/")]
    scopes = tuple(scope for scope, _, _ in parts)
    plain = len(parts) == 1 and ":" not in text and text.strip() == text != ""
    known = all(
        s in SCOPES and colon and value and quote(unquote(value), safe="") == value for s, colon, value in parts
    )
    ordered = scopes in {("user",), ("team",), ("task",), ("user", "task"), ("team", "task")}
    if plain or (known and ordered):
        return text
    raise UsageError(
        f"{text!r} is not a channel. Use `default`, `task:NAME`, `team:NAME`, `user:NAME`, or a team's or user's task "
        "as `team:NAME/task:NAME`; characters other than letters, digits and `_.-~` are written as %XX.",
        param="channel",
    )
