"""The one reader of a bus: reads what is new in all topics of its subscriptions, and hands it to those that follow live."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import anyio
import anyio.lowlevel

from connector_sdk.bus.log import START, EventLog, Loss, Reading, Record
from connector_sdk.bus.outages import Outages, Patience
from connector_sdk.errors import BusUnavailableError

if TYPE_CHECKING:
    from connector_sdk.bus.broadcast import BroadcastIntake

__all__ = ["Feed", "TopicWatcher"]

logger = logging.getLogger("connector_sdk.bus")

_LIMIT: Final = 1000
_WAIT: Final = 5.0  # seconds; shorter than any time-out of a socket


class TopicWatcher(Protocol):
    """Wants to know of topics that are created."""

    def topic_created(self, topic: str) -> None:
        """*topic* is new; nothing here waits."""


class Feed:
    """
    Reads the log for all subscriptions without a group, and the catalogue of topics for those with a pattern.

    It never waits for a subscription: one that has no room is detached and reads by itself until it has caught up.
    """

    def __init__(self, log: EventLog, outages: Outages) -> None:
        self._log = log
        self._patience = Patience(outages)
        self._intakes: dict[BroadcastIntake, None] = {}
        self._watchers: dict[TopicWatcher, None] = {}
        self._routes: dict[str, list[BroadcastIntake]] = {}
        self._catalogue: str | None = None
        self._reading: anyio.CancelScope | None = None
        self._news = anyio.Event()
        #: How far it has read each topic.
        self.cursors: dict[str, str] = {}

    @property
    def intakes(self) -> Iterable[BroadcastIntake]:
        """The subscriptions that it reads for, in the order they came."""
        return self._intakes

    async def run(self) -> None:
        """Read until cancelled."""
        try:
            while True:
                if not self.cursors and self._catalogue is None:
                    self._news = anyio.Event()
                    await self._news.wait()
                    continue
                try:
                    reading = await self._read()
                    self._patience.succeeded()
                    if reading is not None:
                        self._dispatch(reading)
                        await anyio.lowlevel.checkpoint()  # handlers first, and then the next request
                except Exception as error:  # a feed that ends would silence every subscription
                    if not isinstance(error, BusUnavailableError):
                        logger.debug("the log failed", exc_info=True)
                    await self._patience.wait(error)
        finally:
            self._patience.give_up()

    async def list_topics(self) -> list[str]:
        """Return the topics that there are, and watch for others from then on."""
        while True:
            was_watching = self._catalogue is not None
            names, catalogue = await self._log.topics()
            if self._catalogue is None:
                self._catalogue = catalogue
                self._look_again()
            elif not was_watching:
                continue  # another asked meanwhile: topics created between both answers are not told of
            return names

    def join(self, intake: BroadcastIntake, ends: dict[str, str]) -> None:
        """Read for *intake* as well; *ends* says where to begin with topics that are not read yet."""
        for topic, end in ends.items():
            if topic not in self.cursors:
                # Created just now, and the catalogue is not read so far: others want it from its beginning.
                is_new = any(one.matches(topic) for one in self._intakes)
                self.cursors[topic] = START if is_new else end
        self._intakes[intake] = None
        self._routes.clear()
        self._look_again()

    def leave(self, intake: BroadcastIntake) -> None:
        """Read for it no more."""
        self._intakes.pop(intake, None)
        for topic in [topic for topic in self.cursors if not any(one.matches(topic) for one in self._intakes)]:
            del self.cursors[topic]
        self.reroute()
        self._look_again()

    def watch(self, watcher: TopicWatcher) -> None:
        """Tell *watcher* of new topics; call `list_topics` afterwards."""
        self._watchers[watcher] = None

    def unwatch(self, watcher: TopicWatcher) -> None:
        """Tell it no more."""
        self._watchers.pop(watcher, None)

    def reroute(self) -> None:
        """Find out anew who follows live."""
        self._routes.clear()

    def _look_again(self) -> None:
        """Let the reading that is under way begin anew, with the cursors of now."""
        self._news.set()
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self) -> Reading | None:
        with anyio.CancelScope() as self._reading:
            reading = await self._log.read(self.cursors, catalogue=self._catalogue, limit=_LIMIT, wait=_WAIT)
        # An answer that came in the moment of the cancellation is for cursors that may be others by now.
        return None if self._reading.cancel_called else reading

    def _dispatch(self, reading: Reading) -> None:
        if self._catalogue is not None:
            self._catalogue = reading.catalogue
        for topic in reading.topics:
            self._created(topic)
        for topic, cursor in reading.cursors.items():
            self._replace(topic, cursor)
        for loss in reading.losses:
            self._lost(loss)
        records = reading.records
        count = len(records)
        start = 0
        while start < count:
            topic = records[start].topic
            end = start + 1
            if records[-1].topic == topic and len(self.cursors) == 1:
                end = count
            else:
                while end < count and records[end].topic == topic:
                    end += 1
            self._hand_over(topic, records if end - start == count else records[start:end])
            start = end

    def _hand_over(self, topic: str, run: Sequence[Record]) -> None:
        if topic not in self.cursors:
            return  # its last subscription left while this was read
        route = self._routes.get(topic)
        if route is None:
            route = self._routes[topic] = [one for one in self._intakes if one.is_live and one.matches(topic)]
        for intake in route:
            if intake.is_live:
                intake.offer(topic, run)
        self.cursors[topic] = run[-1].position

    def _created(self, topic: str) -> None:
        if topic not in self.cursors and any(intake.matches(topic) for intake in self._intakes):
            self.cursors[topic] = START
        for watcher in list(self._watchers):
            watcher.topic_created(topic)

    def _replace(self, topic: str, cursor: str) -> None:
        if topic not in self.cursors:
            return
        order = self._log.order
        began_anew = order(cursor) < order(self.cursors[topic])
        self.cursors[topic] = cursor
        if began_anew:
            # Positions that were ahead mean nothing any more, and must not hide what comes now.
            for intake in self._intakes:
                intake.began_anew(topic, cursor)

    def _lost(self, loss: Loss) -> None:
        for intake in self._intakes:
            if intake.is_live and intake.matches(loss.topic):
                intake.lost(loss)
