"""Puts the console together: the functions of other rooms that its pages call."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from aiohttp import web

from afterword.cli.context import CommandContext
from afterword.cli.forecast import predicted_section
from afterword.cli.releases import reading
from afterword.config import ServeConfig
from afterword.console.actions import Actions
from afterword.console.app import add_console
from afterword.console.live import LARGE, beside, live_metrics_beside
from afterword.evaluate.report.heatmap import heatmap_fragment, heatmap_of
from afterword.evaluate.report.pages import report_css
from afterword.evaluate.report.report_html import Section, render_report, report_fragment
from afterword.feedback.collect.corrections import CATEGORIES, Correction, correct, withdraw
from afterword.feedback.select.review_queue import (
    ReviewIndex,
    ReviewSettings,
    agreement,
    replacement,
    reviewer_agreement,
    second_opinions,
)
from afterword.feedback.select.select import SelectSettings
from afterword.feedback.select.select import select as select_interactions
from afterword.feedback.settings import CollectSettings
from afterword.forget import forget_user, held_of, tainted_by
from afterword.gateway import keys
from afterword.gateway.state import GATEWAY
from afterword.records import Candidate, Interaction, Json, Release, Review
from afterword.release.canary import Trial
from afterword.release.canary_metrics import CANARY_METRICS
from afterword.release.gate import GateThresholds
from afterword.release.held_out_forecast import held_out_forecast
from afterword.release.publish import rollback
from afterword.release.signed_chain import replay, verify
from afterword.store import Store
from afterword.store.polling import last_seq

DRAWN = 400
"""Tokens of a heat map in a page of the console."""
MOST_LOOKS = 500
"""Looks at a running canary whose intervals are kept."""


def console_of(context: CommandContext) -> Callable[[web.Application, Store], None]:
    """A function that adds the console of this data directory to the gateway's application."""

    def add(app: web.Application, store: Store) -> None:
        add_console(app, store, _actions(context, store), context.config.get(ServeConfig).name)

    return add


def _actions(context: CommandContext, store: Store) -> Actions:
    review = context.config.get(ReviewSettings)
    collect = context.config.get(CollectSettings)
    index, canaries = ReviewIndex(review), RunningCanaries(store)

    def waiting() -> list[str]:
        index.update(store)
        return index.waiting(store)

    def agreed() -> Json:
        rows = list(store.rows(Review))
        return agreement((), store.reviews(), review).to_dict() | {"reviewers": reviewer_agreement(rows)}

    def corrected(name: str, hindsight: str, polarity: int, category: str, by: str) -> str:
        told = Correction(hindsight=hindsight, polarity=polarity, category=category, by=by)
        return correct(store, name, told, collect).id

    def forget(user: str) -> Json:
        with Store.open(
            store.path, artifacts=store.artifacts.url
        ) as own:  # the erasure closes its connections; the gateway's stay open
            return forget_user(own, user)

    def sections(candidate: Candidate) -> list[Section]:
        return predicted_section(store, candidate)

    return Actions(
        check=check_key,
        waiting=waiting,
        agreement=agreed,
        second=lambda by: second_opinions(store.rows(Review), by),
        correct=corrected,
        withdraw=lambda name, by: void(withdraw(store, name, by)),
        replaced=replacement,
        categories=CATEGORIES,
        heatmap=lambda row: heatmap_fragment(heatmap_of(store, row), most=DRAWN),
        rollback=lambda channel, why: rollback(store, channel, why=why),
        verify=lambda: _verified(store),
        held=lambda user: held_of(store, user),
        tainted=lambda user: tainted_by(store, user),
        forget=forget,
        live=lambda: live_metrics_beside(store),
        report=lambda row, found, verdict: render_report(row, found, verdict, sections=sections(row)),
        report_part=lambda row, found, verdict: report_fragment(row, found, verdict, sections=sections(row)),
        report_css=report_css(),
        canaries=canaries.read,
        plan=lambda: _plan(context),
        needs=lambda: _needs(context, store),
        settings=lambda: _settings(context),
        keys=lambda: [_key(key) for key in keys.list_keys(context.dir)],
    )


def void(_: object) -> None:
    """Drops a result."""


class RunningCanaries:
    """The canaries of a store with both arms; each row is read once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._trials: dict[str, Trial] = {}
        self._sequences: dict[str, list[Json]] = {}
        """Canary -> approval's interval at each look that found new rows."""

    def read(self) -> list[Json]:
        """Reads what is new; see `Actions.canaries`."""
        running = [state.canary for state in replay(self._store).values() if state.canary is not None]
        self._trials = {row.id: self._trials.get(row.id) or Trial(self._store, row, reading) for row in running}
        return [self._shown(row) for row in running]

    def _shown(self, row: Release) -> Json:
        trial = self._trials[row.id]
        new = trial.read()
        status = trial.status()
        sequence = self._sequences.setdefault(row.id, [])
        if new or not sequence:
            sequence.append({"judged": trial.new.judged.turns, **status["figures"]["approval"]})
            del sequence[:-MOST_LOOKS]
        metrics = [{"says": metric.says, "name": metric.name, **status["figures"][metric.name]}
                   for metric in CANARY_METRICS]  # fmt: skip
        return {
            "channel": row.channel, "adapter": row.adapter, "share": row.share, "since": row.created_at,
            "terms": row.terms, "arms": status["arms"], "metrics": metrics, "sequence": list(sequence),
        }  # fmt: skip


def _overrides(context: CommandContext) -> list[str]:
    """The options of this run that decide what a stage does, for another process."""
    file = getattr(context.args, "config_file", None)
    pairs = getattr(context.args, "settings", None) or ()
    return [*(("--config", str(file)) if file else ()), *(word for pair in pairs for word in ("--set", pair))]


def _plan(context: CommandContext) -> Json:
    words = ("run", "afterword", "--dir", str(context.dir), "--json", "train", "--dry-run", *_overrides(context))
    return beside(*words, what="the plan of the next training")


def _needs(context: CommandContext, store: Store) -> Json:
    if last_seq(store, Interaction) < LARGE:
        return slice_needs(context, store)
    words = ("run", "afterword.cli.console", str(context.dir), *_overrides(context))
    return beside(*words, what="what each slice needs")


def slice_needs(context: CommandContext, store: Store) -> Json:
    """What each slice has, and needs to be trained and judged; see `Actions.needs`."""
    select, gate = context.config.get(SelectSettings), context.config.get(GateThresholds)
    chosen = select_interactions(store, select, context.config.get(ReviewSettings))
    every, slices = held_out_forecast(store, gate)
    train = [
        {"task": one.task, "interactions": one.interactions, "effective": one.effective,
         "needed": select.min_effective, "relevance": one.relevance, "ready": one.ready(select)}
        for one in chosen.slices
    ]  # fmt: skip
    return {"train": train, "held_out": [one.to_dict() for one in slices], "total": every.to_dict()}


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


def main() -> None:
    """Prints what each slice needs: `python -m afterword.cli.console DIR [--set SECTION.KEY=VALUE]`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dir")
    parser.add_argument("--config", dest="config_file")
    parser.add_argument("--set", dest="settings", action="append")
    context = CommandContext.of(parser.parse_args())
    with context.open_store() as store:
        context.emit(slice_needs(context, store))


if __name__ == "__main__":
    main()
