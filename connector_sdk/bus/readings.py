"""What a bus can be asked about itself."""

from __future__ import annotations

import logging
from typing import Final

from connector_sdk.bus.health import check_health
from connector_sdk.bus.log import EventLog, TopicInfo
from connector_sdk.bus.outages import Outages
from connector_sdk.bus.publishing import Publisher
from connector_sdk.bus.stats import BusHealth, BusStats
from connector_sdk.bus.subscription import Subscription
from connector_sdk.bus.tallying import Totals
from connector_sdk.bus.topics import check_topic
from connector_sdk.errors import BusClosedError, ConfigurationError
from connector_sdk.forks import start_empty_after_fork
from connector_sdk.observe import Notifier
from connector_sdk.options import check_seconds

__all__ = ["LEFT_TO_THE_PARENT", "BusReadings"]

logger = logging.getLogger("connector_sdk.bus")

#: The state of a bus that was in use, in the child of a fork.
LEFT_TO_THE_PARENT: Final = "left to the parent process"


class BusReadings:
    """The part of an `EventBus` that changes nothing."""

    def __init__(self, log: EventLog, observer: object | None) -> None:
        if not isinstance(getattr(log, "keeps_objects", None), bool):
            # Not what it is: an address may have a password.
            allowed = (
                "an EventLog, such as MemoryLog(), RedisLog(url) or PostgresLog(dsn); see create_event_bus for settings"
            )
            raise ConfigurationError("log", type(log), allowed)
        self._log = log
        self._notifier = Notifier(observer, logger)
        self._outages = Outages(log.name, self._notifier)
        self._subscriptions: dict[str, Subscription] = {}
        self._totals = Totals()
        self._publisher: Publisher | None = None
        self._state = "new"
        start_empty_after_fork(self)

    def after_fork_in_child(self) -> None:
        """Leave all to the parent, whose tasks and subscriptions are not here. What was not connected yet can be used."""
        if self._state == "new":
            return
        self._state = LEFT_TO_THE_PARENT
        subscriptions, self._subscriptions = self._subscriptions, {}
        for subscription in subscriptions.values():
            subscription.leave_to_parent()

    @property
    def is_connected(self) -> bool:
        """Whether it is open, and no task of it is cut off from the storage."""
        return self._state == "open" and not self._outages.is_away

    def stats(self) -> BusStats:
        """One reading of the account; cheap enough for once a second."""
        publisher = self._publisher
        return self._totals.stats(
            self._subscriptions.values(),
            published=publisher.published if publisher else 0,
            publish_failures=publisher.failures if publisher else 0,
            reconnections=self._outages.reconnections,
            observer_errors=self._notifier.errors,
        )

    async def info(self, topic: str) -> TopicInfo | None:
        """
        Return what the log knows of *topic* and its groups, None when it does not exist.

        Raises BusUnavailableError when the storage is away.
        """
        self._check_open()
        return await self._log.info(check_topic(topic))

    async def topics(self) -> list[str]:
        """Return the topics that exist, sorted. BusUnavailableError without storage."""
        self._check_open()
        return (await self._log.topics())[0]

    def subscriber_count(self, topic: str | None = None) -> int:
        """How many subscriptions of this bus would get an event of *topic*, or how many there are."""
        active = [one for one in self._subscriptions.values() if one.is_active]
        return len(active) if topic is None else sum(one.matches(topic) for one in active)

    def wildcard_subscriber_count(self) -> int:
        """How many subscriptions of this bus are for every topic."""
        return sum(one.is_active and one.pattern == "*" for one in self._subscriptions.values())

    async def health(self, timeout: float = 5.0) -> BusHealth:
        """Answer a probe within *timeout* seconds; never raises for a storage that is away."""
        check_seconds("timeout", timeout)
        if self._state != "open":
            return BusHealth(healthy=False, connected=False, consuming=False, error=f"the bus is {self._state}")
        return await check_health(self._log, self._outages, list(self._subscriptions.values()), timeout)

    def _check_open(self) -> None:
        if self._state != "open":
            said = "was closed: make a new one"
            if self._state in ("new", "connecting"):
                said = "is not connected yet: use `async with bus`, or connect()"
            elif self._state == LEFT_TO_THE_PARENT:
                said = "is the parent's, this process is the child of a fork: make a new one here"
            raise BusClosedError(f"the event bus on {self._log.name} {said}")
