"""Shows interactions, their token advantages and the review queue; writes reviews, corrections and requests as rows."""

from __future__ import annotations

import asyncio
import difflib
import time
from typing import Any, Literal, cast
from urllib.parse import quote

from aiohttp import web
from markupsafe import Markup

from afterword.console.framework import CONSOLE, Console, form_of, inside, redirect, render, row_number
from afterword.errors import UsageError
from afterword.records import (
    AnswerAdvantages,
    Interaction,
    Json,
    Review,
    Revision,
    SignalRatio,
    Turn,
    WorkRequest,
    content_hash,
    new_id,
)
from afterword.store.browse import details, newest_rows, reviewed, why_unused

SHOWN = 30
"""Further interactions of the queue that the review page lists."""
MOST_SENT = 200
"""Interactions that one form may send to the queue."""
NAME_CHARS, WHY_CHARS = 100, 2000


# ---- interactions


async def show_interactions(request: web.Request) -> web.Response:
    """The newest interactions, of one category, sign or split where the query names it."""
    store = request.app[CONSOLE].store
    rows = await asyncio.to_thread(newest_rows, store, Interaction, row_number(request, "before"))
    older = str(request.rel_url.update_query(before=str(rows[-1][0]))) if len(rows) == 50 else None
    sent = request.query.get("sent", "")
    return render(
        request, "interactions.html", title="Interactions", rows=[row for _, row in rows], older=older,
        sent=int(sent) if sent.isascii() and sent.isdigit() and len(sent) < 4 else 0,
    )  # fmt: skip


async def show_interaction(request: web.Request) -> web.Response:
    """One interaction: what was asked, answered and said next, how it was read, which candidates used it."""
    values = await asyncio.to_thread(_interaction, request.app[CONSOLE], request.match_info["id"])
    return render(request, "interaction.html", title="Interaction", **values)


async def interaction_heatmap(request: web.Request) -> web.Response:
    """The part of the page with the token advantages."""
    console = request.app[CONSOLE]

    def values() -> Json:
        row = console.store.get(Interaction, request.match_info["id"])
        return {"row": row, "heat": _heat(console, row)}

    return render(request, "heat_part.html", **await asyncio.to_thread(values))


def _interaction(console: Console, name: str) -> Json:
    store = console.store
    row = store.get(Interaction, name)
    found = details(store, row)
    edited = next((one.final_text for one in found["feedback"] if one.final_text), None)
    answer = _answer_of(found["turn"])
    reviews = list(store.rows(Review, interaction=row.id))
    return {
        "row": row,
        **found,
        "diff": None if edited is None else word_diff(answer, edited),
        "reviews": reviews,
        "replaced": console.actions.replaced(reviews),
        "categories": dict.fromkeys([*console.actions.categories, row.category or row.kind]),
        "ratio": store.newest(SignalRatio, interaction=row.id),
        "revision": store.newest(Revision, interaction=row.id),
        "barred": why_unused(store, row),
        "queued": store.newest(WorkRequest, interaction=row.id, kind="review") is not None,
        "heat": _heat(console, row),
    }


def _heat(console: Console, row: Interaction) -> Json:
    """The drawing of the newest scores; else whether somebody asked for them, and what went wrong."""
    scored = console.store.newest(AnswerAdvantages, interaction=row.id)
    asked = console.store.newest(WorkRequest, interaction=row.id, kind="heatmap")
    drawn: Markup | None = None
    if scored is not None and not scored.error:
        drawn = console.actions.heatmap(scored)
    waits = asked is not None and (scored is None or scored.created_at < asked.created_at)
    return {"drawn": drawn, "waits": waits, "error": scored.error if scored else "", "scored": scored}


def _answer_of(turn: Turn) -> str:
    content = turn.answer.get("content")
    return content if isinstance(content, str) else ""


def word_diff(before: str, after: str) -> list[tuple[str, str]]:
    """Words as (mark, text): `same`, `del` or `ins`, in reading order."""
    a, b = before.split(" "), after.split(" ")
    found: list[tuple[str, str]] = []
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(a=a, b=b, autojunk=False).get_opcodes():
        if tag == "equal":
            found.append(("same", " ".join(a[i1:i2])))
            continue
        if i2 > i1:
            found.append(("del", " ".join(a[i1:i2])))
        if j2 > j1:
            found.append(("ins", " ".join(b[j1:j2])))
    return found


# ---- the review queue


async def show_review(request: web.Request) -> web.Response:
    """The first interaction of the queue, or the one after `?after`; with `?second` those that another decided."""
    console = request.app[CONSOLE]
    by = request.query.get("second", "").strip()[:NAME_CHARS]
    agreement = await console.agreement.get()
    shared = {"title": "Review", "second": by, "agreement": agreement, "last": request.query.get("last", ""),
              "last_by": request.query.get("by", "")[:NAME_CHARS]}  # fmt: skip
    if by:
        queue = await asyncio.to_thread(console.actions.second, by)
    else:
        waiting = await console.waiting.get()
        if waiting is None:
            return render(request, "review.html", current=None, number=None, queue=[], **shared)
        queue = await asyncio.to_thread(_unreviewed, console, waiting)
    skipped = request.query.get("after", "")
    place = next((i + 1 for i, name in enumerate(queue) if name == skipped), 0)
    current = queue[place % len(queue)] if queue else None
    values = None if current is None else await asyncio.to_thread(_interaction, console, current)
    shown = [name for name in queue[place : place + SHOWN] if name != current]
    rows = await asyncio.to_thread(console.store.among, Interaction, "id", shown)
    return render(
        request, "review.html", current=values, number=len(queue), queue=[row for _, row in rows], **shared
    )  # fmt: skip


def _unreviewed(console: Console, waiting: list[str]) -> list[str]:
    """Those of the queue that nobody reviewed since it was made."""
    done = reviewed(console.store)
    return [name for name in waiting if name not in done]


async def post_review(request: web.Request) -> web.StreamResponse:
    """Writes a review, or a correction, or takes the reviewer's decision back."""
    console, fields = request.app[CONSOLE], await form_of(request)
    decision, why, by = (fields.get(name, "").strip() for name in ("decision", "why", "by"))
    by = by[:NAME_CHARS] or "console"
    if decision not in ("approve", "reject", "correct", "withdraw"):
        raise UsageError(
            f"the decision {decision!r:.40} is invalid: use approve, reject, correct or withdraw.", param="decision"
        )
    if decision == "reject" and not why:
        raise UsageError("a rejection needs a reason: write it and send the form again.", param="why")
    row = await asyncio.to_thread(console.store.get, Interaction, request.match_info["id"])
    if decision == "withdraw":
        await asyncio.to_thread(console.actions.withdraw, row.id, by)
    elif decision == "correct":
        await asyncio.to_thread(_correct, console, row, fields, by)
    else:
        await asyncio.to_thread(_review, console, row, decision, why[:WHY_CHARS], by)
    console.agreement.stale()
    console.waiting.stale()
    if fields.get("stay"):
        return redirect(f"/console/interactions/{row.id}")
    second = f"&second={quote(fields['second'], safe='')}" if fields.get("second") else ""
    if decision == "withdraw":
        return redirect("/console/review" + second.replace("&", "?", 1))
    return redirect(f"/console/review?last={row.id}&by={quote(by, safe='')}{second}")


def _review(console: Console, row: Interaction, decision: str, why: str, by: str) -> None:
    before = console.store.newest(Review, interaction=row.id)
    if before is not None and (before.decision, before.by, before.why) == (decision, by, why):
        return
    name = content_hash("review", row.id, decision, by, why, before.id if before else None)
    decided = cast(Literal["approve", "reject"], decision)
    console.store.write(Review(id=name, interaction=row.id, decision=decided, by=by, why=why, created_at=time.time()))


def _correct(console: Console, row: Interaction, fields: dict[str, str], by: str) -> None:
    polarity = {"1": 1, "0": 0, "-1": -1}.get(fields.get("polarity", ""))
    if polarity is None:
        raise UsageError("the correction needs a polarity: choose one and send the form again.", param="polarity")
    console.actions.correct(
        row.id, fields.get("hindsight", "").replace("\r\n", "\n"), polarity, fields.get("category", ""), by
    )


async def post_requests(request: web.Request) -> web.StreamResponse:
    """Writes requests: interactions for the review queue, or a heat map. Another process does the work."""
    console, form = request.app[CONSOLE], await request.post()
    fields = await form_of(request)
    kind, by = fields.get("kind", ""), fields.get("by", "").strip()[:NAME_CHARS] or "console"
    if kind not in ("review", "heatmap"):
        raise UsageError(f"the request {kind!r:.40} is unknown: use review or heatmap.", param="kind")
    names = list(dict.fromkeys(str(name) for name in form.getall("interaction", ())))
    if not names:
        raise UsageError("nothing is marked: mark rows and send the form again.", param="interaction")
    if len(names) > MOST_SENT:
        raise UsageError(f"{len(names)} rows are marked, at most {MOST_SENT} are allowed at once.", param="interaction")

    def write() -> int:
        found = [row.id for _, row in console.store.among(Interaction, "id", names)]
        known = {name for name in found if _asked(console, name, kind)}
        rows: list[Any] = [
            WorkRequest(id=new_id("req"), interaction=name, kind=cast(Literal["review", "heatmap"], kind), by=by)
            for name in found
            if name not in known
        ]
        console.store.write(*rows)
        return len(rows)

    number = await asyncio.to_thread(write)
    console.waiting.stale()
    to = inside(fields.get("next", ""), "/console/interactions")
    return redirect(f"{to}{'&' if '?' in to else '?'}sent={number}" if kind == "review" else to)


def _asked(console: Console, name: str, kind: str) -> bool:
    """True while an earlier request for the same is not done yet."""
    asked = console.store.newest(WorkRequest, interaction=name, kind=kind)
    if asked is None or kind == "review":
        return asked is not None
    scored = console.store.newest(AnswerAdvantages, interaction=name)
    return scored is None or scored.created_at < asked.created_at
