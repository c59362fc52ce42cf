"""Puts the console together: the functions of other rooms that its pages call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from afterword.cli.context import CommandContext
from afterword.cli.forecast import predicted_section
from afterword.config import ServeConfig
from afterword.console.actions import Actions
from afterword.console.app import add_console
from afterword.console.live import live_metrics_beside
from afterword.evaluate.report.report_html import render_report
from afterword.feedback.select.review_queue import ReviewIndex, ReviewSettings, agreement
from afterword.forget import forget_user, held_of
from afterword.gateway import keys
from afterword.gateway.state import GATEWAY
from afterword.records import Candidate, Json, Release, Report, Verdict
from afterword.release.publish import rollback
from afterword.release.signed_chain import verify
from afterword.store import Store


def console_of(context: CommandContext) -> Callable[[web.Application, Store], None]:
    """A function that adds the console of this data directory to the gateway's application."""

    def add(app: web.Application, store: Store) -> None:
        add_console(app, store, _actions(context, store), context.config.get(ServeConfig).name)

    return add


def _actions(context: CommandContext, store: Store) -> Actions:
    review = context.config.get(ReviewSettings)

    index = ReviewIndex(review)

    def waiting() -> list[str]:
        index.update(store)
        return index.waiting(store)

    def forget(user: str) -> Json:
        with Store.open(store.path) as own:  # the erasure closes its connections; the gateway's stay open
            return forget_user(own, user)

    def back(channel: str, why: str) -> Release:
        return rollback(store, channel, why=why)

    def report(candidate: Candidate, found: Report, verdict: Verdict) -> str:
        return render_report(candidate, found, verdict, sections=predicted_section(store, candidate))

    return Actions(
        check=check_key,
        waiting=waiting,
        agreement=lambda: agreement((), store.reviews(), review).to_dict(),
        rollback=back,
        verify=lambda: _verified(store),
        held=lambda user: held_of(store, user),
        forget=forget,
        live=lambda: live_metrics_beside(store),
        report=report,
        settings=lambda: _settings(context),
        keys=lambda: [_key(key) for key in keys.list_keys(context.dir)],
    )


def check_key(request: web.Request, authorization: str | None, scope: str) -> str | None:
    """As the gateway checks a request: the key, and without keys the origin."""
    gateway = request.app[GATEWAY]
    key = gateway.keys.check(authorization, scope)
    if key is None:
        gateway.origin_policy.check(request.headers)
    return key


def _verified(store: Store) -> Json:
    found = verify(store)
    return {"releases": found.releases, "problems": found.problems, "notes": found.notes}


def _settings(context: CommandContext) -> list[tuple[str, Any, str]]:
    return [
        (name, "••••" if value and name.endswith(("_key", "password", "secret")) else value, source)
        for name, value, source in context.config.rows()
    ]


def _key(key: keys.Key) -> Json:
    return {name: getattr(key, name) for name in ("id", "note", "scopes", "created_at", "expires_at")}
