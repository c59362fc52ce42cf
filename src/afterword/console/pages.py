"""Shows the overview, turns, privacy, settings and the chat page, and lists the routes of all pages."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from aiohttp import web

from afterword.console import overview
from afterword.console.episode_pages import show_episode, show_episodes
from afterword.console.framework import CONSOLE, Console, Handler, form_of, redirect, render, row_number
from afterword.console.interaction_pages import (
    interaction_heatmap,
    post_requests,
    post_review,
    show_interaction,
    show_interactions,
    show_review,
)
from afterword.console.training_pages import (
    candidate_curves,
    candidate_report,
    post_rollback,
    show_canaries,
    show_candidate,
    show_candidates,
    show_forecast,
    show_releases,
)
from afterword.errors import AfterwordError, NotFoundError, UsageError
from afterword.kinds import KINDS
from afterword.records import Feedback, Interaction, Json, Skip, Turn
from afterword.store.browse import TurnFilter, consent_of, conversation_of, search_turns
from afterword.store.locks import running_work

# ---- overview


async def _overview_values(console: Console) -> Json:
    counts, learned = await console.counts.get(), await console.learned.get()
    agreement = await console.agreement.get() or {"approved": 0, "rejected": 0, "agreement": None}
    waiting, live = await console.waiting.get(), await console.live.get()
    release = await asyncio.to_thread(console.store.release)
    steps = [] if counts is None else overview.funnel(counts, learned, agreement)
    alarms = [] if live is None else live["alarms"]
    return {
        "steps": list(zip(steps, overview.widths([step.number for step in steps]), strict=True)),
        "counting": counts is None or learned is None,
        "empty": counts is not None and counts.total("turns") == 0,
        "kinds": {} if counts is None else counts.by("feedback", "kind"),
        "splits": {} if counts is None else counts.by("interactions", "split"),
        "release": release,
        "learned": learned,
        "running": await asyncio.to_thread(running_work, console.directory),
        "waiting": None if waiting is None else len(waiting),
        "person": await asyncio.to_thread(overview.for_a_person, console.store, waiting, alarms),
        "needs": await _needs(console),
        "agreement": agreement["agreement"],
        "alarms": alarms,
        "live": live,
        "live_at": console.live.at,
        "chart": None if live is None or len(live["week"]) < 2 else orjson.dumps(overview.chart(live)).decode(),
    }


async def _needs(console: Console) -> Json | None:
    """What each slice needs; None while it is computed, and where it cannot be."""
    try:
        return await console.needs.get()
    except AfterwordError:
        return None


async def show_overview(request: web.Request) -> web.Response:
    """The way from captured answers to released ones; with `?part` only what changes."""
    template = "overview_part.html" if "part" in request.query else "overview.html"
    return render(request, template, title="Overview", **await _overview_values(request.app[CONSOLE]))


# ---- turns


async def show_turns(request: web.Request) -> web.Response:
    """Search of turns."""
    console, query = request.app[CONSOLE], request.query
    wanted = TurnFilter(**{name: query.get(name, "").strip()[:500] for name in TurnFilter.__slots__})
    found = await asyncio.to_thread(search_turns, console.store, wanted, row_number(request, "before"))
    older = None if found.before is None else str(request.rel_url.update_query(before=str(found.before)))
    return render(
        request, "turns.html", title="Turns", wanted=wanted, rows=found.rows, older=older, looked_at=found.looked_at,
        kinds=list(KINDS),
    )  # fmt: skip


async def show_turn(request: web.Request) -> web.Response:
    """One conversation, with feedback in place."""
    console = request.app[CONSOLE]
    values = await asyncio.to_thread(_conversation, console, request.match_info["id"])
    return render(request, "turn.html", title="Conversation", **values)


def _conversation(console: Console, name: str) -> Json:
    turn = console.store.get(Turn, name)
    turns = conversation_of(console.store, turn)
    if turn.id not in {one.id for one in turns}:
        turns.append(turn)
    ids = [one.id for one in turns]
    about: dict[type[Any], dict[str, list[Any]]] = {}
    for kind in (Feedback, Interaction, Skip):
        rows = about[kind] = {}
        found: list[tuple[int, Any]] = console.store.among(kind, "turn", ids)
        for _, row in found:
            rows.setdefault(row.turn, []).append(row)
    depth = _depths(turns)
    shown = [
        {"turn": one, "depth": depth[one.id], "new": _new_messages(one, turns), "chosen": one.id == turn.id,
         "feedback": about[Feedback].get(one.id, []), "interactions": about[Interaction].get(one.id, []),
         "skips": {skip.feedback: skip for skip in about[Skip].get(one.id, [])}}
        for one in turns
    ]  # fmt: skip
    return {"turn": turn, "shown": shown}


def _depths(turns: list[Turn]) -> dict[str, int]:
    """Turn -> branch: the first continuation of a turn stays on its branch, others begin one."""
    depth: dict[str, int] = {}
    continued: set[str] = set()
    for turn in turns:
        before = turn.previous
        if before in depth:
            depth[turn.id] = depth[before] + (before in continued)
            continued.add(before)
        else:
            depth[turn.id] = 0
    return {name: min(number, 4) for name, number in depth.items()}


def _new_messages(turn: Turn, turns: list[Turn]) -> list[Json]:
    """The messages of a turn that the turn before it does not show already."""
    before = next((one for one in turns if one.id == turn.previous), None)
    known = 0 if before is None else len(before.messages) + 1
    return list(turn.messages[known:] if 0 < known < len(turn.messages) else turn.messages)


# ---- privacy


async def show_privacy(request: web.Request) -> web.Response:
    """Users, erasures, and what is held of one user: the dry run of an erasure."""
    return await _privacy(request, user=request.query.get("user", "").strip())


async def _privacy(request: web.Request, *, user: str, report: Json | None = None) -> web.Response:
    console = request.app[CONSOLE]
    held = await asyncio.to_thread(console.actions.held, user) if user else None
    erasures = await asyncio.to_thread(console.store.erasures)
    return render(
        request, "privacy.html", title="Privacy", user=user, held=held, report=report,
        tainted=await asyncio.to_thread(console.actions.tainted, user) if user else [],
        consent=await asyncio.to_thread(consent_of, console.store, user) if user else None,
        users=await console.users.get(),
        erasures=[(name, at, console.directory / "forget" / f"{name}.txt") for name, at, _, _ in erasures[::-1][:50]],
    )  # fmt: skip


async def show_erasure(request: web.Request) -> web.Response:
    """The report of an erasure, as text. It names rows by their ids and the user by a hash."""
    console, name = request.app[CONSOLE], request.match_info["id"]
    known = {one[0] for one in await asyncio.to_thread(console.store.erasures)}
    file = console.directory / "forget" / f"{name}.txt"
    if name not in known or not file.is_file():
        raise NotFoundError(f"no report of the erasure {name!r:.80}: the page Privacy lists all.")
    text = await asyncio.to_thread(file.read_text, "utf-8")
    return web.Response(text=text, content_type="text/plain", charset="utf-8")


async def post_forget(request: web.Request) -> web.StreamResponse:
    """Erases a user after the name was written twice."""
    console, fields = request.app[CONSOLE], await form_of(request)
    user, again = fields.get("user", "").strip(), fields.get("again", "").strip()
    if not user or user != again:
        raise UsageError("the two names differ: write the user's name again to confirm the erasure.", param="again")
    report = await asyncio.to_thread(console.actions.forget, user)
    for one in console.computed:
        one.stale()
    return await _privacy(request, user="", report=report)


# ---- settings, chat


async def show_settings(request: web.Request) -> web.Response:
    """Every setting with its source, and the API keys without their secrets."""
    actions = request.app[CONSOLE].actions
    rows, keys = await asyncio.to_thread(actions.settings), await asyncio.to_thread(actions.keys)
    sections: dict[str, list[tuple[str, Any, str]]] = {}
    for name, value, source in rows:
        section, _, key = name.partition(".")
        sections.setdefault(section, []).append((key, value, source))
    return render(request, "settings.html", title="Settings", sections=sections, keys=keys)


async def show_chat(request: web.Request) -> web.Response:
    """A chat with the served model."""
    try:
        request.app[CONSOLE].actions.check(request, None, "infer")
    except AfterwordError as error:
        needs_key = error.status == 401
        if not needs_key:
            raise
    else:
        needs_key = False
    return render(request, "chat.html", title="Chat", needs_key=needs_key)


async def to_console(request: web.Request) -> web.StreamResponse:
    """The address with a slash at its end."""
    return redirect("/console")


ROUTES: tuple[tuple[str, str, str | None, Handler], ...] = (
    ("GET", "/console", "review", show_overview),
    ("GET", "/console/", None, to_console),
    ("GET", "/console/turns", "review", show_turns),
    ("GET", "/console/turns/{id:.+}", "review", show_turn),
    ("GET", "/console/episodes", "review", show_episodes),
    ("GET", "/console/episodes/{id:.+}", "review", show_episode),
    ("GET", "/console/interactions", "review", show_interactions),
    ("GET", "/console/interactions/{id}", "review", show_interaction),
    ("GET", "/console/interactions/{id}/heatmap", "review", interaction_heatmap),
    ("POST", "/console/requests", "review", post_requests),
    ("GET", "/console/review", "review", show_review),
    ("POST", "/console/review/{id}", "review", post_review),
    ("GET", "/console/candidates", "review", show_candidates),
    ("GET", "/console/candidates/{id}", "review", show_candidate),
    ("GET", "/console/candidates/{id}/curves", "review", candidate_curves),
    ("GET", "/console/candidates/{id}/report", "review", candidate_report),
    ("GET", "/console/releases", "review", show_releases),
    ("GET", "/console/canaries", "review", show_canaries),
    ("GET", "/console/forecast", "review", show_forecast),
    ("POST", "/console/releases/rollback", "admin", post_rollback),
    ("GET", "/console/privacy", "admin", show_privacy),
    ("GET", "/console/privacy/erasures/{id}", "admin", show_erasure),
    ("POST", "/console/privacy/forget", "admin", post_forget),
    ("GET", "/console/settings", "admin", show_settings),
    ("GET", "/chat", None, show_chat),
)
"""(method, path, scope of the key, handler). `/chat` holds no data: its requests carry a key of their own."""
