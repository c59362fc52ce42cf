"""Chooses the number of CPU threads of a step.

Reading prompts is arithmetic and takes all cores. Writing is hundreds of short operations bound by memory, whose
threads wait for each other after each one. `machine_load` bounds both by the cores that other processes leave. Within
that bound no rule knows whether all or half of them write faster, so both are tried now and then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch

from afterword.model.generation.machine_load import LoadFollower, RunQueue, longest_wait, read_usage, usable_cores

_FEW = 64
"""A step of at most so many tokens is short enough that threads may cost more by waiting than they do."""
_PERIOD, _TRIAL, _WARM = 256, 10, 5
"""Of so many writing steps the first `_TRIAL` run as they are and the next as many the other way; the first `_WARM` of
each are not compared, for threads that were asleep take some steps to be as fast as they will be."""


class Cores:
    """`threads`: all that the process may use. `load`: cores that other processes leave free. `allowed`: cores that it
    may use now, for background work leaves some to a server at times (`sharing`)."""

    def __init__(
        self, threads: int, load: LoadFollower | None = None, allowed: Callable[[], int] = usable_cores
    ) -> None:
        self._allowed = allowed
        self._load = load or LoadFollower(threads, read_usage)
        self._queue = RunQueue()
        self._writing = Trials(threads)

    @contextmanager
    def share(self, tokens: int, reading: bool = False) -> Iterator[None]:
        """Run a step of so many tokens on the threads that suit it. Threads belong to the calling thread.

        Args:
            tokens: Of the step.
            reading: Whether a prompt is among them, on which the first token waits.
        """
        limits, reading, allowed = self._load.look(), reading or tokens > _FEW, self._allowed()
        self._writing.bound(min(limits.writing, allowed))
        threads = min(limits.reading, allowed) if reading else self._writing.threads
        _use(threads)
        waits = self._queue.read() if threads > 1 else {}
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        if not reading:
            self._writing.record(tokens, seconds)
        if threads > 1:
            self._load.record(threads, seconds, longest_wait(waits, self._queue.read()))
            self._queue.find_threads()


class Trials:
    """All or half of the threads that writing may use: both are timed now and then, and the faster is kept."""

    def __init__(self, threads: int) -> None:
        self._bound = 0
        self.bound(threads)

    def bound(self, threads: int) -> None:
        """Sets the most threads; another number than before starts anew with all of them."""
        if threads == self._bound:
            return
        self._bound = threads
        self._now, self._other = threads, max(1, threads // 2)
        self._step = 0
        self._times: tuple[dict[int, list[float]], dict[int, list[float]]] = ({}, {})
        """Of both ways: tokens of a step -> seconds. Only steps of as many tokens can be compared."""

    @property
    def threads(self) -> int:
        """Of the next step."""
        return self._other if self._trying else self._now

    @property
    def _trying(self) -> bool:
        return _TRIAL <= self._step < 2 * _TRIAL

    def record(self, tokens: int, seconds: float) -> None:
        """Notes a step."""
        if self._now == self._other:
            return
        if self._step < 2 * _TRIAL and self._step % _TRIAL >= _WARM:
            self._times[self._trying].setdefault(tokens, []).append(seconds)
        self._step = (self._step + 1) % _PERIOD
        if self._step == 2 * _TRIAL:
            self._decide()

    def _decide(self) -> None:
        now, other = self._times
        both = now.keys() & other.keys()
        if not both:  # requests came and went all the time: soon once more
            self._step = _PERIOD - 2 * _TRIAL
        elif sum(median(other[n]) for n in both) < sum(median(now[n]) for n in both):
            self._now, self._other = self._other, self._now
        self._times = ({}, {})


def _use(threads: int) -> None:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
