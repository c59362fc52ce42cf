"""Shows episodes, the runs of an agent: a list, and one by turn with its rewards."""

from __future__ import annotations

import asyncio

from aiohttp import web

from afterword.console.framework import CONSOLE, Console, render, row_number
from afterword.records import Episode, Json
from afterword.store.browse import newest_rows
from afterword.store.episodes import current, episode_view

TURNS_SHOWN = 150
"""Turns of an episode in a page; a longer one is cut, and says so."""


async def show_episodes(request: web.Request) -> web.Response:
    """The newest episodes with their status and outcome."""
    console = request.app[CONSOLE]
    before = row_number(request, "before")
    rows = await asyncio.to_thread(newest_rows, console.store, Episode, before)
    shown = await asyncio.to_thread(current, console.store, [row for _, row in rows])
    older = str(request.rel_url.update_query(before=str(rows[-1][0]))) if len(rows) == 50 else None
    return render(request, "episodes.html", title="Episodes", rows=shown, older=older)


async def show_episode(request: web.Request) -> web.Response:
    """One episode by turn: what the agent was told, what it answered, and its rewards."""
    values = await asyncio.to_thread(_episode, request.app[CONSOLE], request.match_info["id"])
    return render(request, "episode.html", title="Episode", **values)


def _episode(console: Console, name: str) -> Json:
    view = episode_view(console.store, name)
    parents = {one.turn.id: one.turn for one in view.turns}
    shown = []
    for one in view.turns[:TURNS_SHOWN]:
        before = parents.get(one.parent or "")
        known = 0 if before is None else len(before.messages) + 1
        new = one.turn.messages[known:] if 0 < known <= len(one.turn.messages) else one.turn.messages[-1:]
        shown.append({"one": one, "new": new, "begins": one.parent is None and one.index > 0})
    return {"view": view, "row": view.episode, "shown": shown, "left_out": max(len(view.turns) - TURNS_SHOWN, 0)}
