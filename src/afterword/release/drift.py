"""Compares windows of turns: does a version that is served still do as well as before?

A window of the served version is compared with the last window of the
version before it, and with its own first one. Windows do not overlap, the k-th gets 6 / (pi k)^2 of alpha, and both
comparisons share that: over the whole life of a version a false alarm comes with probability alpha at most. A window
is judged when its users had time to react. Never writes a row.
"""

from __future__ import annotations

import math

from afterword.records import Alarm, Release, Turn, content_hash
from afterword.release.always_valid import compare
from afterword.release.canary import Finding, evidence
from afterword.release.canary_metrics import CANARY_METRICS, ArmOutcomes, ArmTracker, Reader
from afterword.release.settings import DriftSettings
from afterword.store import Store
from afterword.store.polling import LiveTurn, feedback_on, last_seq, turns_of_adapter

MIN_USERS = 10
"""Users in a window, or it says nothing."""
LOOK_BACK = 10
"""Windows that a restarted monitor reads again at most."""


def measure(store: Store, turns: list[LiveTurn], reader: Reader) -> ArmOutcomes:
    """Live metrics of these turns, from all feedback on them."""
    side = ArmOutcomes()
    tracker = ArmTracker(store, lambda turn: side, reader)
    tracker.turns(turns)
    tracker.feedback(list(feedback_on(store, [turn.id for turn in turns])))
    return side


class Drift:
    """Monitors one release."""

    def __init__(
        self, store: Store, served: Release, before: Release | None, settings: DriftSettings, reader: Reader
    ) -> None:
        self.served = served
        self._store, self._settings, self._reader = store, settings, reader
        self._before = before
        self._first = int(served.terms["after"]["turns"])
        self._at: int | None = None
        """Row number after which the next window begins."""
        self._number = 1
        self._references: list[tuple[str | None, ArmOutcomes]] = []

    def look(self, now: float) -> list[Alarm]:
        """Alarms of the windows that are complete by now."""
        if self._at is None and not self._begin(now):
            return []
        alarms: list[Alarm] = []
        while (window := self._complete(self._at or 0, now)) is not None:
            self._at = window[-1].seq
            self._number += 1
            side = measure(self._store, window, self._reader)
            for against, reference in self._references:
                alarm = self._compared(window, side, against, reference)
                if alarm is not None:
                    alarms.append(alarm)
                    break
        return alarms

    def _begin(self, now: float) -> bool:
        """Settle the references: the end of the version before, and the first window of this one."""
        own = self._complete(self._first, now)
        if own is None:
            return False
        before = self._before.adapter if self._before else None
        size = self._settings.window
        past = turns_of_adapter(self._store, before, 0, self._first, size, newest=True)
        self._references = [(before or "the base model", measure(self._store, past, self._reader))]
        self._references.append(("its first turns", measure(self._store, own, self._reader)))
        until = last_seq(self._store, Turn)
        recent = turns_of_adapter(self._store, self.served.adapter, self._first, until, LOOK_BACK * size, newest=True)
        start = recent[-1].seq - 1
        self._at = self._first if start <= own[-1].seq else start
        self._number = 1 + max(0, self._at - self._first) // size
        return True

    def _complete(self, after: int, now: float) -> list[LiveTurn] | None:
        """The next whole window whose users had time to react."""
        size = self._settings.window
        turns = turns_of_adapter(self._store, self.served.adapter, after, last_seq(self._store, Turn), size)
        if len(turns) < size or now - turns[-1].at < self._settings.settle:
            return None
        return turns

    def _compared(
        self, window: list[LiveTurn], side: ArmOutcomes, against: str | None, reference: ArmOutcomes
    ) -> Alarm | None:
        if min(len(side.judged.units), len(reference.judged.units)) < MIN_USERS:
            return None
        alpha = self._settings.alpha * 6 / (math.pi * (self._number - 1)) ** 2 / 2
        approval = CANARY_METRICS[0]
        interval = compare(side.arm(approval), reference.arm(approval), approval.name, alpha)
        finding = Finding(approval, interval, self._settings.min_effect)
        if not finding.worse:
            return None
        served = self.served
        return Alarm(
            id="al-" + content_hash(served.id, window[-1].id),
            created_at=window[-1].at,
            channel=served.channel,
            release=served.id,
            adapter=served.adapter,
            against=against,
            why=f"{served.adapter or 'the base model'} does worse than {against}: {finding.sentence()} on "
            f"{side.judged.turns} judged turns",
            evidence={**evidence(side, reference, [finding]), "turns": [window[0].id, window[-1].id]},
        )
