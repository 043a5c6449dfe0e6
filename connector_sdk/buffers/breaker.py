"""The circuit breaker before a store: pure, time is an argument."""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["Breaker"]


class Breaker:
    """
    Closed while the store is in service, open from the first failure until the store answers a probe.

    Open, nothing is asked of the store but probes, after pauses of up to `first_pause` seconds that double up to
    `longest_pause`, with half of each left to chance so that processes do not knock all at once.

    An *era* is the time between two closings. An operation notes the era it started in: one that fails after the store
    came back, because it was sent before, says nothing about the present and does not open the breaker again.
    """

    __slots__ = ("_chance", "_first", "_longest", "_pause", "era", "is_open", "opened_at", "reason")

    def __init__(
        self,
        *,
        first_pause: float = 0.05,
        longest_pause: float = 0.5,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._first = first_pause
        self._longest = longest_pause
        self._chance = chance
        self._pause = first_pause
        self.is_open = False
        #: Grows with each closing.
        self.era = 0
        #: When it opened, on the clock of the caller.
        self.opened_at = 0.0
        #: Why it opened last.
        self.reason = ""

    @property
    def state(self) -> str:
        """Return "open" or "closed", the words of `Observer.store_state`."""
        return "open" if self.is_open else "closed"

    def failed(self, now: float, era: int, reason: str) -> bool:
        """Note that an operation of *era* failed; return whether that opened the breaker."""
        if self.is_open or era != self.era:
            return False
        self.is_open = True
        self.opened_at = now
        self.reason = reason
        self._pause = self._first
        return True

    def next_pause(self) -> float:
        """Return the seconds to wait before the next probe."""
        pause = self._pause
        self._pause = min(2 * pause, self._longest)
        return pause * (0.5 + 0.5 * self._chance())

    def answered(self, now: float) -> float | None:
        """Note that a probe was answered; return the length of the outage in seconds, None when there was none."""
        if not self.is_open:
            return None
        self.is_open = False
        self.era += 1
        return now - self.opened_at
