"""Ends canaries, and raises alarms when the served version does worse, beside a running server.

The rules are in `canary` and `drift`, the rows are written by `publish`. A monitor keeps nothing that it could not read
again: one that was killed begins anew and comes to the same end. Two on one data directory do no harm: the second finds
the canary ended.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from afterword.errors import AdapterError, AfterwordError, NothingToDo
from afterword.records import Alarm, Release
from afterword.release.canary import CanaryDecision, Trial
from afterword.release.canary_metrics import Reader
from afterword.release.checks import BASE
from afterword.release.drift import Drift
from afterword.release.publish import promote, rollback, served_stack
from afterword.release.settings import DriftSettings
from afterword.store import Store
from afterword.store.channels import Serving
from afterword.store.polling import releases_after

log = logging.getLogger("afterword.release")
INTERVAL = 0.5
"""Seconds between looks at a canary."""
SLOW = 20
"""The drift monitor looks at every so many-th tick."""


class CanaryMonitor:
    """Call `tick` again and again, or `run` it in a thread."""

    def __init__(
        self,
        store: Store,
        reader: Reader,
        drift: DriftSettings | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._reader, self._clock = store, reader, clock
        self._drift = drift or DriftSettings()
        self._states: dict[str, Serving] = {}
        self._seq = 0
        self._ticks = 0
        self.trials: dict[str, Trial] = {}
        """Channel -> the canary that runs there."""
        self._drifts: dict[str, Drift] = {}

    def run(self, stop: threading.Event, interval: float = INTERVAL) -> None:
        """Look until `stop` is set. Errors are logged once and the step is retried."""
        said = ""
        while not stop.wait(interval):
            try:
                self.tick()
                said = ""
            except AfterwordError as error:
                if error.message != said:
                    log.warning("the release monitor could not look: %s", error.message)
                said = error.message

    def tick(self) -> list[Release]:
        """One look; the releases that it wrote."""
        for seq, row in releases_after(self._store, self._seq):
            self._states[row.channel] = self._states.get(row.channel, Serving()).after(row)
            self._seq = seq
        now = self._clock()
        written = [r for channel, state in list(self._states.items()) for r in self._canary(channel, state, now)]
        if self._ticks % SLOW == 0:
            written += [r for channel, state in list(self._states.items()) for r in self._drifted(channel, state, now)]
        self._ticks += 1
        return written

    def _canary(self, channel: str, state: Serving, now: float) -> list[Release]:
        if state.canary is None or "horizon" not in state.canary.terms:
            self.trials.pop(channel, None)
            return []
        trial = self.trials.get(channel)
        if trial is None or trial.canary.id != state.canary.id:
            trial = self.trials[channel] = Trial(self._store, state.canary, self._reader)
        trial.read()
        decision = trial.look(now)
        return [] if decision is None else self._end(channel, state.canary, decision)

    def _end(self, channel: str, canary: Release, decision: CanaryDecision) -> list[Release]:
        """Carry a decision out. A canary whose files are gone cannot be promoted and is taken back."""
        end = promote if decision.action == "promote" else rollback
        try:
            try:
                row = end(self._store, channel, why=decision.why, expect=canary.id, evidence=decision.evidence)
            except AdapterError as error:
                why = f"{decision.why}; it cannot be promoted: {error.message}"
                row = rollback(self._store, channel, why=why, expect=canary.id, evidence=decision.evidence)
        except NothingToDo:
            return []  # somebody else ended it
        log.info("%s %s on channel %s: %s", row.action, canary.adapter, channel, row.why)
        return [row]

    def _drifted(self, channel: str, state: Serving, now: float) -> list[Release]:
        served = state.served
        if served is None or "after" not in served.terms:
            return []
        drift = self._drifts.get(channel)
        if drift is None or drift.served.id != served.id:
            drift = self._drifts[channel] = Drift(self._store, served, state.before, self._drift, self._reader)
        alarms = drift.look(now)
        fresh = [a for a in alarms if self._store.write(a)[0] == "stored"]
        for alarm in fresh:
            log.warning("channel %s: %s", channel, alarm.why)
        if not fresh or not self._drift.rollback or state.canary is not None or served.candidate is None:
            return []
        return self._step_back(channel, served, fresh[-1])

    def _step_back(self, channel: str, served: Release, alarm: Alarm) -> list[Release]:
        """Serve the newest earlier version whose files are still those that were released, at last the base model."""
        why = f"rolled back by the drift monitor: {alarm.why}"
        for to in [*(r.id for r in reversed(served_stack(self._store, channel)[:-1])), BASE]:
            try:
                return [rollback(self._store, channel, to, why, expect=served.id, evidence=alarm.evidence)]
            except AdapterError as error:
                log.warning("%s", error.message)
            except NothingToDo:
                return []
        return []
