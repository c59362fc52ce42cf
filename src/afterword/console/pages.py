"""The pages of the console: reads of the store, one handler a page, and the forms that write rows."""

from __future__ import annotations

import asyncio
import difflib
import time
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from afterword.console import overview
from afterword.console.framework import (
    CONSOLE,
    REPORT_POLICY,
    Console,
    Handler,
    form_of,
    json_page,
    redirect,
    render,
)
from afterword.errors import AfterwordError, NotFoundError, UsageError
from afterword.kinds import KINDS
from afterword.records import (
    Alarm,
    Candidate,
    Feedback,
    Interaction,
    Json,
    Release,
    Report,
    Review,
    Revision,
    SignalRatio,
    Skip,
    Turn,
    Verdict,
    content_hash,
)
from afterword.store.browse import TurnFilter, conversation_of, details, newest_rows, reviewed, search_turns, why_unused
from afterword.store.channels import check_channel
from afterword.store.locks import running_work

SHOWN = 30
"""Further interactions of the queue that the review page lists."""
CURVE_POINTS = 400
"""Points of a curve that are sent to a page; longer runs are thinned."""


def _console(request: web.Request) -> Console:
    return request.app[CONSOLE]


def _number(request: web.Request, name: str) -> int | None:
    """A row number of the query.

    Raises:
        UsageError: It is no whole number.
    """
    text = request.query.get(name, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise UsageError(f"`{name}` is {text!r:.40}: it must be a row number. Follow the links of the page.")
    return int(text)


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
        "agreement": agreement["agreement"],
        "alarms": alarms,
        "live": live,
        "live_at": console.live.at,
        "chart": None if live is None or len(live["week"]) < 2 else orjson.dumps(overview.chart(live)).decode(),
    }


async def show_overview(request: web.Request) -> web.Response:
    """Shows the funnel from captured to released answers; with `?part` only its changing part."""
    template = "overview_part.html" if "part" in request.query else "overview.html"
    return render(request, template, title="Overview", **await _overview_values(_console(request)))


# ---- turns


async def show_turns(request: web.Request) -> web.Response:
    """Search of turns."""
    console, query = _console(request), request.query
    wanted = TurnFilter(**{name: query.get(name, "").strip()[:500] for name in TurnFilter.__slots__})
    found = await asyncio.to_thread(search_turns, console.store, wanted, _number(request, "before"))
    older = None if found.before is None else str(request.rel_url.update_query(before=str(found.before)))
    return render(
        request, "turns.html", title="Turns", wanted=wanted, rows=found.rows, older=older, looked_at=found.looked_at,
        kinds=list(KINDS),
    )  # fmt: skip


async def show_turn(request: web.Request) -> web.Response:
    """One conversation, with feedback in place."""
    console = _console(request)
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


# ---- interactions and reviews


async def show_interactions(request: web.Request) -> web.Response:
    """The newest interactions."""
    store = _console(request).store
    rows = await asyncio.to_thread(newest_rows, store, Interaction, _number(request, "before"))
    older = str(request.rel_url.update_query(before=str(rows[-1][0]))) if len(rows) == 50 else None
    return render(request, "interactions.html", title="Interactions", rows=[row for _, row in rows], older=older)


async def show_interaction(request: web.Request) -> web.Response:
    """Shows one interaction: request, answer, follow-up, detections, and the candidates that used it."""
    values = await asyncio.to_thread(_interaction, _console(request), request.match_info["id"])
    return render(request, "interaction.html", title="Interaction", **values)


def _interaction(console: Console, name: str) -> Json:
    store = console.store
    row = store.get(Interaction, name)
    found = details(store, row)
    edited = next((one.final_text for one in found["feedback"] if one.final_text), None)
    answer = _answer_of(found["turn"])
    return {
        "row": row,
        **found,
        "diff": None if edited is None else word_diff(answer, edited),
        "reviews": list(store.rows(Review, interaction=row.id)),
        "ratio": store.newest(SignalRatio, interaction=row.id),
        "revision": store.newest(Revision, interaction=row.id),
        "barred": why_unused(store, row),
    }


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


async def show_review(request: web.Request) -> web.Response:
    """The first interaction of the review queue, or the one after `?after`."""
    console = _console(request)
    waiting = await console.waiting.get()
    if waiting is None:
        return render(request, "review.html", title="Review", current=None, number=None, queue=[], last="")
    queue = await asyncio.to_thread(_unreviewed, console, waiting)
    skipped = request.query.get("after", "")
    place = next((i + 1 for i, name in enumerate(queue) if name == skipped), 0)
    current = queue[place % len(queue)] if queue else None
    values = None if current is None else await asyncio.to_thread(_interaction, console, current)
    shown = [name for name in queue[place : place + SHOWN] if name != current]
    rows = await asyncio.to_thread(console.store.among, Interaction, "id", shown)
    return render(
        request, "review.html", title="Review", current=values, number=len(queue), queue=[row for _, row in rows],
        last=request.query.get("last", ""),
    )  # fmt: skip


def _unreviewed(console: Console, waiting: list[str]) -> list[str]:
    """Those of the queue that nobody reviewed since it was made."""
    done = reviewed(console.store)
    return [name for name in waiting if name not in done]


async def post_review(request: web.Request) -> web.StreamResponse:
    """Writes a review."""
    console, fields = _console(request), await form_of(request)
    decision, why, by = (fields.get(name, "").strip() for name in ("decision", "why", "by"))
    if decision not in ("approve", "reject"):
        raise UsageError(f"the decision {decision!r:.40} is invalid: use approve or reject.", param="decision")
    if decision == "reject" and not why:
        raise UsageError("a rejection needs a reason: write it and send the form again.", param="why")
    row = await asyncio.to_thread(console.store.get, Interaction, request.match_info["id"])
    before = await asyncio.to_thread(console.store.newest, Review, interaction=row.id)
    by = by[:100] or "console"
    name = content_hash("review", row.id, decision, by, why, before.id if before else None)
    if before is None or (before.decision, before.by, before.why) != (decision, by, why):
        review = Review(id=name, interaction=row.id, decision=decision, by=by, why=why[:2000], created_at=time.time())  # type: ignore[arg-type]
        await asyncio.to_thread(console.store.write, review)
    console.agreement.stale()
    if fields.get("stay"):
        return redirect(f"/console/interactions/{row.id}")
    return redirect(f"/console/review?last={row.id}")


# ---- candidates


async def show_candidates(request: web.Request) -> web.Response:
    """All candidates with their verdicts, and trainings that run."""
    console = _console(request)
    rows = await asyncio.to_thread(_candidates, console, _number(request, "before"))
    older = str(request.rel_url.update_query(before=str(rows[-1]["seq"]))) if len(rows) == 50 else None
    running = await asyncio.to_thread(running_work, console.directory)
    runs = await asyncio.to_thread(_runs, console)
    return render(request, "candidates.html", title="Candidates", rows=rows, older=older, running=running, runs=runs)


def _candidates(console: Console, before: int | None) -> list[Json]:
    store = console.store
    served = {row.candidate for row in store.rows(Release)}
    return [
        {"seq": seq, "row": row, "verdict": store.newest(Verdict, candidate=row.id), "served": row.id in served}
        for seq, row in newest_rows(store, Candidate, before)
    ]


def _runs(console: Console) -> list[Json]:
    """Trainings without a candidate row yet: they run, or were stopped. Newest first."""
    found: list[Json] = []
    for file in (console.directory / "runs").glob("*/metrics.jsonl"):
        if console.store.find(Candidate, file.parent.name) is None:
            found.append({"id": file.parent.name, "at": file.stat().st_mtime})
    return sorted(found, key=lambda run: -float(run["at"]))[:5]


async def show_candidate(request: web.Request) -> web.Response:
    """One candidate: its verdict in sentences, its curves, its report."""
    console, name = _console(request), request.match_info["id"]
    values = await asyncio.to_thread(_candidate, console, name)
    return render(request, "candidate.html", title="Candidate", **values)


def _candidate(console: Console, name: str) -> Json:
    store = console.store
    row = store.find(Candidate, name)
    run = console.directory / "runs" / name
    if row is None and not (_plain_name(name) and (run / "metrics.jsonl").is_file()):
        row = store.get(Candidate, name)
    if row is None:
        return {"id": name, "row": None, "verdict": None, "report": None, "releases": [], "interactions": []}
    verdict = store.newest(Verdict, candidate=row.id)
    report = store.find(Report, verdict.report) if verdict else store.newest(Report, candidate=row.id)
    return {
        "id": row.id, "row": row, "verdict": verdict, "report": report,
        "releases": list(store.rows(Release, candidate=row.id)), "interactions": list(row.interactions[:100]),
    }  # fmt: skip


def _plain_name(name: str) -> bool:
    return bool(name) and all(c.isalnum() or c in "-_" for c in name)


async def candidate_curves(request: web.Request) -> web.Response:
    """Steps of a training as JSON: loss, signal, entropy, gradient norm."""
    console, name = _console(request), request.match_info["id"]
    if not _plain_name(name):
        raise NotFoundError(f"no training {name!r:.80}: the list of candidates has all.")
    return json_page(await asyncio.to_thread(_curves, console.directory / "runs" / name / "metrics.jsonl"))


CURVES = {
    "loss": "Loss",
    "signal": "Signal (nats a token)",
    "entropy_student": "Entropy of the student (nats)",
    "grad_norm": "Gradient norm",
}
"""Fields of a step that are drawn -> their names."""


def _curves(file: Path) -> Json:
    steps = []
    if file.is_file():
        for line in file.read_text(encoding="utf-8").split("\n")[:-1]:  # the last part is cut or empty
            steps.append(orjson.loads(line))
    every = max(len(steps) // CURVE_POINTS, 1)
    shown = [step for i, step in enumerate(steps) if i % every == 0 or i == len(steps) - 1]
    return {
        "steps": steps[-1]["steps"] if steps else 0,
        "x": [step["step"] for step in shown],
        "curves": [{"name": title, "y": [step.get(name) for step in shown]} for name, title in CURVES.items()],
    }


async def candidate_report(request: web.Request) -> web.Response:
    """The stored report as its own page."""
    console = _console(request)

    def rendered() -> str:
        row = console.store.get(Candidate, request.match_info["id"])
        verdict = console.store.newest(Verdict, candidate=row.id)
        if verdict is None:
            raise NotFoundError(f"{row.id} has no verdict yet: run `afterword evaluate {row.id}`.")
        return console.actions.report(row, console.store.get(Report, verdict.report), verdict)

    text = await asyncio.to_thread(rendered)
    return web.Response(text=text, content_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})


# ---- releases


async def show_releases(request: web.Request) -> web.Response:
    """The chain of releases, canaries, alarms; `?verify` also checks signatures and files."""
    console = _console(request)
    rows = await asyncio.to_thread(lambda: list(console.store.rows(Release, newest=True, limit=200)))
    alarms = await asyncio.to_thread(lambda: list(console.store.rows(Alarm, newest=True, limit=20)))
    checked = await asyncio.to_thread(console.actions.verify) if "verify" in request.query else None
    channels = list(dict.fromkeys(["default", *(row.channel for row in rows)]))
    return render(
        request, "releases.html", title="Releases", rows=rows, alarms=alarms, checked=checked, channels=channels,
        live=await console.live.get(),
    )  # fmt: skip


async def post_rollback(request: web.Request) -> web.StreamResponse:
    """Takes the newest release of a channel back."""
    console, fields = _console(request), await form_of(request)
    why = fields.get("why", "").strip()
    if not why:
        raise UsageError("a rollback needs a reason: write it and send the form again.", param="why")
    channel = check_channel(fields.get("channel", "default"))
    await asyncio.to_thread(console.actions.rollback, channel, why[:2000])
    return redirect("/console/releases")


# ---- privacy


async def show_privacy(request: web.Request) -> web.Response:
    """Shows erasures and the stored data of a user."""
    console, user = _console(request), request.query.get("user", "").strip()
    held = await asyncio.to_thread(console.actions.held, user) if user else None
    erasures = await asyncio.to_thread(console.store.erasures)
    return render(
        request, "privacy.html", title="Privacy", user=user, held=held, erasures=erasures[::-1][:50], report=None
    )


async def post_forget(request: web.Request) -> web.StreamResponse:
    """Erases a user after the name was written twice."""
    console, fields = _console(request), await form_of(request)
    user, again = fields.get("user", "").strip(), fields.get("again", "").strip()
    if not user or user != again:
        raise UsageError("the two names differ: write the user's name again to confirm the erasure.", param="again")
    report = await asyncio.to_thread(console.actions.forget, user)
    for one in (console.counts, console.learned, console.live, console.waiting):
        one.stale()
    erasures = await asyncio.to_thread(console.store.erasures)
    return render(
        request, "privacy.html", title="Privacy", user="", held=None, erasures=erasures[::-1][:50], report=report
    )


# ---- settings, chat


async def show_settings(request: web.Request) -> web.Response:
    """Every setting with its source, and the API keys without their secrets."""
    actions = _console(request).actions
    rows, keys = await asyncio.to_thread(actions.settings), await asyncio.to_thread(actions.keys)
    sections: dict[str, list[tuple[str, Any, str]]] = {}
    for name, value, source in rows:
        section, _, key = name.partition(".")
        sections.setdefault(section, []).append((key, value, source))
    return render(request, "settings.html", title="Settings", sections=sections, keys=keys)


async def show_chat(request: web.Request) -> web.Response:
    """A chat with the served model."""
    try:
        _console(request).actions.check(request, None, "infer")
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
    ("GET", "/console/interactions", "review", show_interactions),
    ("GET", "/console/interactions/{id}", "review", show_interaction),
    ("GET", "/console/review", "review", show_review),
    ("POST", "/console/review/{id}", "review", post_review),
    ("GET", "/console/candidates", "review", show_candidates),
    ("GET", "/console/candidates/{id}", "review", show_candidate),
    ("GET", "/console/candidates/{id}/curves", "review", candidate_curves),
    ("GET", "/console/candidates/{id}/report", "review", candidate_report),
    ("GET", "/console/releases", "review", show_releases),
    ("POST", "/console/releases/rollback", "admin", post_rollback),
    ("GET", "/console/privacy", "admin", show_privacy),
    ("POST", "/console/privacy/forget", "admin", post_forget),
    ("GET", "/console/settings", "admin", show_settings),
    ("GET", "/chat", None, show_chat),
)
"""(method, path, scope of the key, handler). `/chat` holds no data: its requests carry a key of their own."""
