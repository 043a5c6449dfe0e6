"""The storage goes away and comes back: noted once for all tasks of a bus, and waited out by each of them."""

from __future__ import annotations

import logging

import anyio

from connector_sdk.errors import BusUnavailableError
from connector_sdk.observe import Notifier, RateLimitedLogger
from connector_sdk.retries import ReconnectSchedule

__all__ = ["Outages", "Patience"]

logger = logging.getLogger("connector_sdk.bus")


class Outages:
    """Whether the storage of a bus is away, as far as its tasks have noticed."""

    def __init__(self, name: str, notifier: Notifier) -> None:
        self._name = name
        self._notifier = notifier
        self._log = RateLimitedLogger(logger)
        self._away: set[Patience] = set()
        #: Outages that ended.
        self.reconnections = 0
        #: What the last failure said, "" when all is well.
        self.error = ""

    @property
    def is_away(self) -> bool:
        """Whether a task is cut off from the storage now."""
        return bool(self._away)

    def begin(self, who: Patience, error: Exception) -> None:
        """Note that *who* got no answer."""
        self.error = str(error) if isinstance(error, BusUnavailableError) else type(error).__name__
        self._log.warning("outage", "the event bus on %s: %s; it is tried again", self._name, self.error)
        if not self._away:
            self._notifier.tell("bus_state", bus=self._name, state="unavailable")
        self._away.add(who)

    def end(self, who: Patience) -> None:
        """Note that *who* got an answer."""
        if who in self._away:
            self._away.discard(who)
            if not self._away:
                self.reconnections += 1
                self.error = ""
                logger.info("the event bus on %s is back", self._name)
                self._notifier.tell("bus_state", bus=self._name, state="available")

    def forget(self, who: Patience) -> None:
        """Note that *who* does not ask any more."""
        self._away.discard(who)


class Patience:
    """The pauses of one task between its attempts to reach the storage: up to 5 seconds, with jitter."""

    def __init__(self, outages: Outages) -> None:
        self._outages = outages
        self._schedule = ReconnectSchedule(initial=0.1, maximum=5.0, max_retries=None)
        self._failed = False

    async def wait(self, error: Exception) -> None:
        """Note the failure and pause."""
        self.failed(error)
        await anyio.sleep(max(0.02, self._schedule.failed() or 0.0))

    def succeeded(self) -> None:
        """The storage answered."""
        if self._failed:
            self._failed = False
            self._schedule.earned_reset()
            self._outages.end(self)

    def give_up(self) -> None:
        """The task ends."""
        self._failed = False
        self._outages.forget(self)

    def failed(self, error: Exception) -> None:
        """Note the failure, without a pause."""
        self._failed = True
        self._outages.begin(self, error)
