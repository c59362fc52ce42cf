"""Reports every channel: its release, canary, live metrics by version, and alarms. Writes nothing."""

from __future__ import annotations

from afterword.records import Alarm, Json, Turn
from afterword.release.canary import Trial
from afterword.release.canary_metrics import Reader
from afterword.release.drift import measure
from afterword.release.signed_chain import replay
from afterword.store import Store
from afterword.store.channels import Serving
from afterword.store.polling import last_seq, turns_of_adapter

TURNS = 1000
"""Newest turns of a version that its live metrics are taken from."""


def channel_status(store: Store, reader: Reader) -> Json:
    """Every channel that had a release, as JSON."""
    return {"channels": {name: _channel(store, name, state, reader) for name, state in replay(store).items()}}


def _channel(store: Store, name: str, state: Serving, reader: Reader) -> Json:
    served, canary = state.served, state.canary
    adapters = [state.adapter, state.before.adapter if state.before else None, canary.adapter if canary else None]
    shown: Json = {
        "serves": state.adapter,
        "release": served.id if served else None,
        "why": served.why if served else "only a canary runs",
        "versions": [live_figures(store, adapter, reader) for adapter in dict.fromkeys(adapters)],
        "canary": None,
        "alarms": [alarm.to_dict() for alarm in store.rows(Alarm, newest=True, limit=5, channel=name)],
    }
    if canary is not None:
        trial = Trial(store, canary, reader)
        trial.read()
        about = {"release": canary.id, "adapter": canary.adapter, "share": canary.share, "since": canary.created_at}
        shown["canary"] = {**about, "terms": canary.terms, **trial.status()}
    return shown


def live_figures(store: Store, adapter: str | None, reader: Reader) -> Json:
    """Live metrics of the newest turns of a version."""
    turns = turns_of_adapter(store, adapter, 0, last_seq(store, Turn), TURNS, newest=True)
    return {"version": adapter or "base", **measure(store, turns, reader).to_dict()}
