"""When a job runs, pure: times are arguments, in seconds of any clock that only goes forward."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

__all__ = ["Schedule"]


class Schedule:
    """
    The times of a periodic job: `start`, `start + interval`, `start + 2 * interval`, ..., so that nothing drifts.

    Each time but the first is put off by a random part of the interval, from 0 to *jitter* (0 or more, below 1), chosen
    anew for each; the times after it do not move. With an interval of 30 and a jitter of 0.1 the third run begins 60 to 63
    seconds after the first. However long runs take, there is one time for each interval.
    """

    def __init__(
        self,
        *,
        interval: float,
        jitter: float,
        start: float,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._interval = interval
        self._spread = interval * jitter
        self._start = start
        self._uniform = uniform
        self._number = 0
        #: When the next run is due.
        self.due = start
        #: Times that passed while a run was under way, and had no run of their own.
        self.missed = 0

    def begin(self, now: float) -> None:
        """
        A run for the time that is due begins now. The next one is the first that has not passed.

        Times that have passed besides the one that is due are missed: this run is for all of them.
        """
        passed = max(math.floor((now - self._start) / self._interval), self._number)
        self.missed += passed - self._number
        self._number = passed + 1
        offset = self._uniform(0.0, self._spread) if self._spread else 0.0
        self.due = self._start + self._number * self._interval + offset

    def skip(self, now: float) -> None:
        """Nobody was to run until now: times that have passed are neither due nor missed."""
        self._number = max(math.ceil((now - self._start) / self._interval), 0)
        self.due = max(self._start + self._number * self._interval, now)
