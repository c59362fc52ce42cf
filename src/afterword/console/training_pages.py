"""Shows candidates, their trainings and releases, and what the next training would be; rolls back."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from aiohttp import web

from afterword.console.framework import (
    CONSOLE,
    REPORT_POLICY,
    Console,
    form_of,
    json_page,
    redirect,
    render,
    row_number,
)
from afterword.errors import AfterwordError, NotFoundError, UsageError
from afterword.records import (
    Alarm,
    Candidate,
    Interaction,
    Json,
    Prediction,
    PredictionOutcome,
    Release,
    Report,
    Verdict,
)
from afterword.store.browse import newest_rows
from afterword.store.channels import check_channel
from afterword.store.locks import running_work

CURVE_POINTS = 400
"""Points of a curve that are sent to a page; longer runs are thinned."""
LEARNED_SHOWN = 100
"""Interactions of a candidate that its page lists."""


# ---- candidates


async def show_candidates(request: web.Request) -> web.Response:
    """All candidates with their verdicts, and trainings that run."""
    console = request.app[CONSOLE]
    rows = await asyncio.to_thread(_candidates, console, row_number(request, "before"))
    older = str(request.rel_url.update_query(before=str(rows[-1]["seq"]))) if len(rows) == 50 else None
    running = await asyncio.to_thread(running_work, console.directory)
    runs = await asyncio.to_thread(_runs, console)
    return render(request, "candidates.html", title="Candidates", rows=rows, older=older, running=running, runs=runs)


def _candidates(console: Console, before: int | None) -> list[Json]:
    store = console.store
    served = {row.candidate for row in store.rows(Release)}
    found: list[Json] = []
    for seq, row in newest_rows(store, Candidate, before):
        verdict = store.newest(Verdict, candidate=row.id)
        report = store.find(Report, verdict.report) if verdict else None
        found.append({"seq": seq, "row": row, "verdict": verdict, "served": row.id in served, "drop": _drop(report)})
    return found


def _drop(report: Report | None) -> Json | None:
    """The target metric of a report: how much less correction the candidate needs, with its interval."""
    holdout = report.suites.get("holdout", {}) if report else {}
    found = holdout.get("hindsight_kl_drop") or holdout.get("need_drop")
    return found if isinstance(found, dict) and "low" in found else None


def _runs(console: Console) -> list[Json]:
    """Trainings without a candidate row yet: they run, or were stopped. Newest first."""
    found: list[Json] = []
    for file in (console.directory / "runs").glob("*/metrics.jsonl"):
        if console.store.find(Candidate, file.parent.name) is None:
            found.append({"id": file.parent.name, "at": file.stat().st_mtime})
    return sorted(found, key=lambda run: -float(run["at"]))[:5]


async def show_candidate(request: web.Request) -> web.Response:
    """One candidate: its report with the verdict in sentences and the answers side by side, its curves and alerts."""
    console, name = request.app[CONSOLE], request.match_info["id"]
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
    report = store.find(Report, verdict.report) if verdict else None
    part = console.actions.report_part(row, report, verdict) if verdict and report else None
    learned = [one for _, one in store.among(Interaction, "id", list(row.interactions[:LEARNED_SHOWN]))]
    return {
        "id": row.id, "row": row, "verdict": verdict, "report": part,
        "releases": list(store.rows(Release, candidate=row.id)), "interactions": learned,
    }  # fmt: skip


def _plain_name(name: str) -> bool:
    return bool(name) and all(c.isalnum() or c in "-_" for c in name)


async def candidate_curves(request: web.Request) -> web.Response:
    """Steps of a training as JSON: loss, signal, entropy, gradient norm, and the warnings of each step."""
    console, name = request.app[CONSOLE], request.match_info["id"]
    if not _plain_name(name):
        raise NotFoundError(f"no training {name!r:.80}: the list of candidates has all.")
    found = await asyncio.to_thread(_curves, console, name)
    return json_page(found)


CURVES = {
    "loss": "Loss",
    "signal": "Signal (nats a token)",
    "entropy_student": "Entropy of the student (nats)",
    "grad_norm": "Gradient norm",
    "overlap": "Overlap of student and teacher",
    "drift": "Drift from the start (nats)",
}
"""Fields of a step that are drawn -> their names."""


def _curves(console: Console, name: str) -> Json:
    file, steps = console.directory / "runs" / name / "metrics.jsonl", []
    if file.is_file():
        for line in file.read_text(encoding="utf-8").split("\n")[:-1]:  # the last part is cut or empty
            steps.append(orjson.loads(line))
    every = max(len(steps) // CURVE_POINTS, 1)
    shown = [step for i, step in enumerate(steps) if i % every == 0 or i == len(steps) - 1]
    alerts = [
        {"step": step["step"], "says": f"{what}: {says}" if isinstance(says, str) else str(what)}
        for step in steps
        for what, says in (step.get("warnings") or {}).items()
    ]
    return {
        "steps": steps[-1]["steps"] if steps else 0,
        "done": console.store.find(Candidate, name) is not None,
        "x": [step["step"] for step in shown],
        "curves": [{"name": title, "y": [step.get(name) for step in shown]} for name, title in CURVES.items()],
        "alerts": alerts[-20:],
        "seconds": sum(step.get("seconds") or 0.0 for step in steps),
    }


async def candidate_report(request: web.Request) -> web.Response:
    """The stored report as its own page."""
    console = request.app[CONSOLE]

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
    console = request.app[CONSOLE]
    rows = await asyncio.to_thread(lambda: list(console.store.rows(Release, newest=True, limit=200)))
    alarms = await asyncio.to_thread(lambda: list(console.store.rows(Alarm, newest=True, limit=20)))
    checked = await asyncio.to_thread(console.actions.verify) if "verify" in request.query else None
    channels = list(dict.fromkeys(["default", *(row.channel for row in rows)]))
    return render(
        request, "releases.html", title="Releases", rows=rows, alarms=alarms, checked=checked, channels=channels,
        canaries=await _drawn_canaries(console),
    )  # fmt: skip


async def show_canaries(request: web.Request) -> web.Response:
    """The part of the page with the running canaries."""
    return render(request, "canary_part.html", canaries=await _drawn_canaries(request.app[CONSOLE]))


async def _drawn_canaries(console: Console) -> list[Json] | None:
    """The canaries with every metric's interval on a scale from 0 to 100 around no difference."""
    found = await console.canaries.get()
    return None if found is None else [{**one, "metrics": [_scaled(row) for row in one["metrics"]]} for one in found]


def _scaled(row: Json) -> Json:
    reach = max([abs(row[end]) for end in ("value", "low", "high") if _finite(row[end])] + [row["limit"], 1e-6])
    places = {end: 50 + 48 * max(min(row[end] / reach, 1.0), -1.0) for end in ("value", "low", "high")}
    return {**row, "x": places, "known": _finite(row["low"]) and _finite(row["high"])}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e9


async def post_rollback(request: web.Request) -> web.StreamResponse:
    """Takes the newest release of a channel back."""
    console, fields = request.app[CONSOLE], await form_of(request)
    why = fields.get("why", "").strip()
    if not why:
        raise UsageError("a rollback needs a reason: write it and send the form again.", param="why")
    channel = check_channel(fields.get("channel", "default"))
    await asyncio.to_thread(console.actions.rollback, channel, why[:2000])
    console.canaries.stale()
    return redirect("/console/releases")


# ---- forecast


async def show_forecast(request: web.Request) -> web.Response:
    """What would be trained now, the predicted gain, and what earlier predictions came to."""
    console = request.app[CONSOLE]
    problem, plan, needs = "", None, None
    try:
        plan, needs = await console.plan.get(), await console.needs.get()
    except AfterwordError as error:
        problem = error.message
    past = await asyncio.to_thread(_predictions, console)
    return render(
        request, "forecast.html", title="Forecast", plan=plan, plan_at=console.plan.at, needs=needs, problem=problem,
        past=past, newest=past[0] if past else None,
    )  # fmt: skip


def _predictions(console: Console) -> list[Json]:
    """The newest predictions with their outcomes."""
    store = console.store
    return [
        {"row": row, "outcome": store.newest(PredictionOutcome, prediction=row.id)}
        for row in store.rows(Prediction, newest=True, limit=20)
    ]
