"""Decides pages of cases in child processes while the collector reads the next ones; keeps the order of the pages.

A lost child costs time only: its page is decided here. A child ends with its parent, whose pipe it reads. A pool of
`concurrent.futures` was slower, survives a killed parent, and needs a main guard in scripts (dev/LOG.md, 2026-11-30).
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import fields
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO

from afterword.feedback.collect.decide import CaseDecision, decide
from afterword.feedback.collect.signals import FeedbackCase
from afterword.feedback.settings import CollectSettings
from afterword.records import Feedback, Interaction, Skip, Turn
from afterword.sharing import BACKGROUND

log = logging.getLogger("afterword.feedback")

ALONE = 2
"""Pages that are decided here first: a child needs half a second to start, and most collections are small."""
MOST = 4
"""Children at most: one collector reads for about three."""

_LARGE = ("messages", "prompt_ids", "completion_ids", "logprobs", "sampled_logprobs", "tools")
"""Fields of a turn that no decision reads: what was asked is in the case, and of the ids it matters that they exist."""
_OF_TURN = tuple(f.name for f in fields(Turn) if f.name not in _LARGE)
_OF_FEEDBACK = tuple(f.name for f in fields(Feedback))
_turn_values, _feedback_values = attrgetter(*_OF_TURN), attrgetter(*_OF_FEEDBACK)


def processes() -> int:
    """Children that are worth it here: one for each core that this process may use, at most `MOST`."""
    return min(MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


Sent = tuple[Any, ...]
"""A case as plain values."""
Answered = tuple[Interaction | None, list[int], list[tuple[int, Skip]], list[tuple[int, str]]]
"""A decision, its feedback rows by their number in the case."""


def decided(
    pages: Iterator[list[FeedbackCase]], settings: CollectSettings, children: int
) -> Iterator[list[CaseDecision]]:
    """The decisions of each page, in order; by child processes from the third page on when `children` is over 1."""
    for page in islice(pages, ALONE) if children > 1 else pages:
        yield [decide(case, settings) for case in page]
    first = next(pages, None)
    if first is None:
        return
    workers = _started(settings, children)
    busy: deque[_WorkerProcess] = deque()
    try:
        for number, page in enumerate(chain((first,), pages)):
            if not workers:
                yield [decide(case, settings) for case in page]
                continue
            if len(busy) == len(workers):  # the oldest is the one whose turn it is
                yield busy.popleft().take()
            worker = workers[number % len(workers)]
            worker.give(page)
            busy.append(worker)
        while busy:
            yield busy.popleft().take()
    finally:
        for worker in workers:
            worker.close()


def _started(settings: CollectSettings, children: int) -> list[_WorkerProcess]:
    """Up to `children` processes, as many as the system allows."""
    found: list[_WorkerProcess] = []
    try:
        while len(found) < children:
            found.append(_WorkerProcess(settings))
    except OSError as error:
        log.warning("%d of %d collecting processes could be started (%s): it takes longer", len(found), children, error)
    return found


class _WorkerProcess:
    """One child process with at most one page, so that neither side blocks on a write to a blocked writer."""

    def __init__(self, settings: CollectSettings) -> None:
        self._settings = settings
        self._page: list[FeedbackCase] = []
        package = str(Path(__file__).parents[3])
        paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        # A session of its own: Ctrl-C is for the collector, at whose end the pipe ends and with it the child.
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, start_new_session=True, env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self._send(settings)

    def give(self, page: list[FeedbackCase]) -> None:
        """Send a page of cases."""
        self._page = page
        self._send([_sent(case) for case in page])

    def take(self) -> list[CaseDecision]:
        """Receive the decisions of the page."""
        try:
            answers: list[Answered] = pickle.load(self._from)
        except (EOFError, pickle.UnpicklingError) as error:
            log.warning("a collecting process was lost (%s); its page is decided by this one", str(error) or "it ended")
            return [decide(case, self._settings) for case in self._page]
        return [_decision(case, answer) for case, answer in zip(self._page, answers, strict=True)]

    def close(self) -> None:
        """End it, even within a page: the parent has all of its data."""
        self._process.kill()
        for pipe in (self._to, self._from):
            with contextlib.suppress(OSError):
                pipe.close()
        self._process.wait()

    def _send(self, what: object) -> None:
        with contextlib.suppress(OSError):  # a lost one is noticed when its answer is read
            pickle.dump(what, self._to, pickle.HIGHEST_PROTOCOL)
            self._to.flush()


def _sent(case: FeedbackCase) -> Sent:
    feedback = [_feedback_values(row) for row in case.feedback]
    ids = case.turn.on_policy
    return (
        _turn_values(case.turn), ids, feedback, case.retracted, case.earlier, case.conversation, case.peer, case.now,
        case.request, case.answer,
    )  # fmt: skip


def _received(sent: Sent) -> FeedbackCase:
    turn, ids, feedback, retracted, earlier, conversation, peer, now, request, answer = sent
    known = (0,) if ids else None
    case = FeedbackCase(
        turn=Turn(**dict(zip(_OF_TURN, turn, strict=True)), messages=(), prompt_ids=known, completion_ids=known),
        feedback=tuple(Feedback(**dict(zip(_OF_FEEDBACK, row, strict=True))) for row in feedback),
        retracted=retracted, earlier=earlier, conversation=conversation, peer=peer, now=now,
    )  # fmt: skip
    object.__setattr__(case, "request", request)
    object.__setattr__(case, "answer", answer)
    return case


def _answered(case: FeedbackCase, decision: CaseDecision) -> Answered:
    place = {id(row): number for number, row in enumerate(case.feedback)}
    return (
        decision.interaction, [place[id(row)] for row in decision.kept],
        [(place[id(row)], skip) for row, skip in decision.skips],
        [(place[id(row)], reason) for row, reason in decision.waiting],
    )  # fmt: skip


def _decision(case: FeedbackCase, answer: Answered) -> CaseDecision:
    made, kept, skips, waiting = answer
    rows = case.feedback
    return CaseDecision(
        interaction=made, said=(case.request, case.answer),
        kept=[rows[n] for n in kept], skips=[(rows[n], skip) for n, skip in skips],
        waiting=[(rows[n], reason) for n, reason in waiting],
    )  # fmt: skip


def serve(given: BinaryIO, answers: BinaryIO) -> None:
    """Main loop of a child: reads the settings, then pages until the end of the pipe."""
    settings: CollectSettings = pickle.load(given)
    while True:
        try:
            page = [_received(sent) for sent in pickle.load(given)]
        except EOFError:
            return
        made = [_answered(case, decide(case, settings)) for case in page]
        pickle.dump(made, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


def main() -> None:
    """Entry point of a child process."""
    BACKGROUND.step_back()
    with contextlib.suppress(BrokenPipeError):  # the collector ended first
        serve(sys.stdin.buffer, sys.stdout.buffer)
    os._exit(0)  # what is left in the pipe's buffer nobody reads
