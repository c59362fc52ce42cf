"""Chooses the number of CPU threads of a step.

Reading prompts is arithmetic and takes all cores. Writing is hundreds of short operations bound by memory, whose
threads wait for each other after each one: on an idle machine all cores win, beside a busy gateway or a
training run half of them are up to three times as fast. No rule knows which, so both are tried now and then.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch

_FEW = 64
"""A step of at most so many tokens is short enough that threads may cost more by waiting than they do."""
_PERIOD, _TRIAL, _WARM = 256, 10, 5
"""Of so many writing steps the first `_TRIAL` run as they are and the next as many the other way; the first `_WARM` of
each are not compared, for threads that were asleep take some steps to be as fast as they will be."""


class Cores:
    """`threads`: all that the process may use."""

    def __init__(self, threads: int) -> None:
        self._all = threads
        self._now, self._other = max(1, threads // 2), threads
        self._step = 0
        self._times: tuple[dict[int, list[float]], dict[int, list[float]]] = ({}, {})
        """Of both ways: tokens of a step -> seconds. Only steps of as many tokens can be compared."""

    @contextmanager
    def share(self, tokens: int) -> Iterator[None]:
        """Run a step of so many tokens on the threads that suit it. Threads belong to the calling thread."""
        if tokens > _FEW or self._now == self._other:
            _use(self._all)
            yield
            return
        trying = _TRIAL <= self._step < 2 * _TRIAL
        _use(self._other if trying else self._now)
        began = time.perf_counter()
        yield
        self._record(tokens, time.perf_counter() - began, trying)

    def _record(self, tokens: int, seconds: float, trying: bool) -> None:
        if self._step < 2 * _TRIAL and self._step % _TRIAL >= _WARM:
            self._times[trying].setdefault(tokens, []).append(seconds)
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
