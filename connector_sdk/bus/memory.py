"""A log in memory, for buses of one process: what it holds dies with it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Final

import anyio
from anyio.lowlevel import checkpoint

from connector_sdk.bus.bounds import check_kept, check_lifetime, check_retention
from connector_sdk.bus.log import START, Body, Loss, Reading, Record, Reserved, StoredLetter, TopicInfo
from connector_sdk.bus.memory_letters import MemoryLetters
from connector_sdk.bus.memory_member import MemoryMember
from connector_sdk.bus.memory_reservations import MemoryReservations
from connector_sdk.bus.memory_topic import MemoryTopic, Retention, number_of, position_of
from connector_sdk.forks import start_empty_after_fork
from connector_sdk.options import check_integer

__all__ = ["MemoryLog"]

#: After so many events a call lets other tasks run: publishers that never wait would starve their readers.
_FAIR_SHARE: Final = 100
_WEEK: Final = 604_800.0


class MemoryLog:
    """
    An `EventLog` within one process and one event loop, asyncio's or trio's.

    Several buses may share one: give each the same object; `aclose` leaves everything in place. Not for several threads.
    Events are kept as the objects they are, and nothing is written anywhere: use another log for what must survive the
    process. Topics are never forgotten; an empty one takes about a kilobyte.

    Args:
        max_events: how many events of each topic are kept, 10 to 100,000.
        ttl_seconds: how long, 60 to 604,800 seconds (a week).
        max_backlog: how many events of a topic are kept at most for groups that have not finished them; at least
            *max_events*. Beyond it the oldest are lost, and the group is told. Both may be passed by a tenth of *max_events*.
        max_backlog_seconds: how long at most; at least *ttl_seconds*.
        retention: (max_events, ttl_seconds) of topics that have others.
        max_dead_letters: how many dead letters of each topic are kept, 1 or more; the oldest go.

    Raises:
        ConfigurationError: an option has a value that cannot work.
    """

    def __init__(
        self,
        *,
        max_events: int = 1000,
        ttl_seconds: float = 3600.0,
        max_backlog: int = 100_000,
        max_backlog_seconds: float = _WEEK,
        retention: Mapping[str, tuple[int, float]] | None = None,
        max_dead_letters: int = 10_000,
    ) -> None:
        check_kept(max_events, ttl_seconds)
        check_integer("max_backlog", max_backlog, minimum=max_events)
        check_lifetime("max_backlog_seconds", max_backlog_seconds, minimum=ttl_seconds)
        check_integer("max_dead_letters", max_dead_letters, minimum=1)

        def rules(events: int, seconds: float) -> Retention:
            return Retention(events, seconds, max(max_backlog, events), max(max_backlog_seconds, seconds))

        self._retention = rules(max_events, ttl_seconds)
        self._special = {topic: rules(*bounds) for topic, bounds in check_retention(retention).items()}
        self._max_dead_letters = max_dead_letters
        self._start_empty()
        start_empty_after_fork(self)

    def _start_empty(self) -> None:
        self.letters = MemoryLetters(self._max_dead_letters)
        self._reservations = MemoryReservations()
        self._topics: dict[str, MemoryTopic] = {}
        self._catalogue: list[str] = []  # names in the order in which topics were created
        self._watchers: set[_Reader] = set()
        self._fellowships: dict[str, dict[str, MemoryMember]] = {}
        self._debt = 0
        self._turn = 0

    def after_fork_in_child(self) -> None:
        """Begin empty: what the parent has would be handled twice."""
        self._start_empty()

    @property
    def name(self) -> str:
        """See `EventLog.name`."""
        return "memory"

    @property
    def keeps_objects(self) -> bool:
        """See `EventLog.keeps_objects`."""
        return True

    def __repr__(self) -> str:
        return f"<MemoryLog of {len(self._topics)} topics>"

    async def connect(self) -> None:
        """See `EventLog.connect`."""
        await checkpoint()

    async def ping(self) -> None:
        """See `EventLog.ping`."""
        await checkpoint()

    async def aclose(self) -> None:
        """See `EventLog.aclose`. What is kept stays: other buses may use it."""
        await checkpoint()

    # -- entries

    async def append(self, entries: Sequence[tuple[str, Body]]) -> list[str]:
        """See `EventLog.append`."""
        if self._debt > _FAIR_SHARE:
            await self.be_fair()  # first: a call that is cancelled here stored nothing
        self._debt += len(entries) + 1
        now = time.time()
        if len(entries) == 1:
            ((name, body),) = entries
            return [(self._topics.get(name) or self.topic(name)).append_one(body, now)]
        positions: list[str] = []
        for topic, some in groupby(entries, itemgetter(0)):
            positions += self.topic(topic).append([body for _, body in some], now)
        return positions

    async def read(
        self, cursors: Mapping[str, str], *, catalogue: str | None = None, limit: int = 1000, wait: float = 0.0
    ) -> Reading:
        """See `EventLog.read`."""
        await self.be_fair()
        known = len(self._catalogue) if catalogue == START else int(catalogue or 0)
        seen = None if catalogue is None else known
        reading = self._look(cursors, seen, limit)
        if reading is None and wait > 0:
            with anyio.move_on_after(wait):
                reading = await self._look_again_and_again(cursors, seen, limit)
        if reading is None:
            await checkpoint()
            reading = Reading(catalogue=START if seen is None else str(seen))
        self.owe(len(reading.records))
        return reading

    async def _look_again_and_again(self, cursors: Mapping[str, str], seen: int | None, limit: int) -> Reading:
        reader = _Reader()
        topics: list[MemoryTopic] = []
        try:
            while True:
                if len(topics) < len(cursors):  # some were not there yet
                    topics = [topic for name in cursors if (topic := self._topics.get(name)) is not None]
                    for topic in topics:
                        topic.waiters[reader] = None
                if seen is not None or len(topics) < len(cursors):
                    self._watchers.add(reader)
                await reader.news.wait()
                reader.news = anyio.Event()
                reader.is_awake = False
                reading = self._look(cursors, seen, limit)
                if reading is not None:
                    return reading
        finally:
            self._watchers.discard(reader)
            for topic in topics:
                topic.waiters.pop(reader, None)

    def _look(self, cursors: Mapping[str, str], seen: int | None, limit: int) -> Reading | None:
        found = [
            (topic, number)
            for name, cursor in cursors.items()
            if (topic := self._topics.get(name)) is not None and topic.last > (number := number_of(cursor))
        ]
        created = [] if seen is None else self._catalogue[seen:]
        if not found and not created:
            return None
        self._turn += 1
        start = self._turn % len(found) if found else 0
        records: list[Record] = []
        losses: list[Loss] = []
        jumps: dict[str, str] = {}
        for done, (topic, number) in enumerate(found[start:] + found[:start]):
            # Each has its share, so that a busy topic does not starve the others.
            share = -(-(limit - len(records)) // (len(found) - done))
            if share <= 0:
                break
            topic.expire(self.now())
            if 0 < number < topic.first - 1:
                losses.append(Loss(topic=topic.name, reason="trimmed", count=topic.first - 1 - number))
            some = topic.after(number, share)
            records += some
            if not some:
                jumps[topic.name] = position_of(topic.last)
        return Reading(
            records=records,
            topics=created,
            catalogue=START if seen is None else str(seen + len(created)),
            cursors=jumps,
            losses=losses,
        )

    async def topics(self) -> tuple[list[str], str]:
        """See `EventLog.topics`."""
        await checkpoint()
        return sorted(self._catalogue), str(len(self._catalogue))

    async def end(self, topic: str) -> str:
        """See `EventLog.end`."""
        await checkpoint()
        known = self._topics.get(topic)
        return START if known is None else position_of(known.last)

    async def position_at(self, topic: str, time: datetime) -> str:
        """See `EventLog.position_at`."""
        await checkpoint()
        known = self._topics.get(topic)
        return START if known is None else known.position_at(time)

    def order(self, position: str) -> tuple[int, ...]:
        """See `EventLog.order`."""
        return (number_of(position),)

    async def info(self, topic: str) -> TopicInfo | None:
        """See `EventLog.info`."""
        await checkpoint()
        known = self._topics.get(topic)
        if known is None:
            return None
        now = self.now()
        known.expire(now)
        return known.info(now, time.monotonic(), self.letters.count(topic))

    # -- groups and dead letters

    def member(self, group: str, consumer: str, *, hold: float) -> MemoryMember:
        """See `EventLog.member`."""
        return MemoryMember(self, group, consumer, hold, self._fellowships.setdefault(group, {}))

    async def bury(self, topic: str, position: str, body: Body, evidence: bytes) -> str:
        """See `EventLog.bury`."""
        await checkpoint()
        return self.letters.add(topic, None, position, body, evidence)

    async def dead_letters(
        self, topic: str | None, limit: int, *, cursor: str = START
    ) -> tuple[list[StoredLetter], str]:
        """See `EventLog.dead_letters`."""
        await checkpoint()
        return self.letters.page(topic, limit, cursor)

    async def dead_letter(self, letter: str) -> StoredLetter | None:
        """See `EventLog.dead_letter`."""
        await checkpoint()
        return self.letters.get(letter)

    async def redrive(self, letter: str) -> bool:
        """See `EventLog.redrive`."""
        await checkpoint()
        found = self.letters.take(letter)
        if found is None:
            return False
        topic = self.topic(found.topic)
        if found.group is None:
            topic.append((found.body,), self.now())
        else:
            group, _ = topic.group(found.group, found.position)
            group.redrive(found.position, found.body, found.evidence, time.monotonic(), self.now())
        return True

    async def purge(self, letters: Sequence[str]) -> int:
        """See `EventLog.purge`."""
        await checkpoint()
        return self.letters.purge(letters)

    # -- keys

    async def reserve(self, key: str, holder: str, hold: float) -> Reserved:
        """See `EventLog.reserve`."""
        await checkpoint()
        return self._reservations.reserve(key, holder, hold)

    async def keep(self, key: str, holder: str, ttl: float) -> bool:
        """See `EventLog.keep`."""
        await checkpoint()
        return self._reservations.keep(key, holder, ttl)

    async def free(self, key: str, holder: str) -> None:
        """See `EventLog.free`."""
        await checkpoint()
        self._reservations.free(key, holder)

    # -- for members

    def topic(self, name: str) -> MemoryTopic:
        """Return a topic, which is made as needed."""
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = MemoryTopic(name, self._special.get(name, self._retention))
            self._catalogue.append(name)
            for reader in self._watchers:
                reader.wake()
        return topic

    def known_topic(self, name: str) -> MemoryTopic | None:
        """Return a topic if it exists."""
        return self._topics.get(name)

    def now(self) -> float:
        """Return the time of the log, in Unix seconds."""
        return time.time()

    def owe(self, events: int) -> None:
        """Count the events of a call that did not wait."""
        self._debt += events + 1

    async def be_fair(self) -> None:
        """Let other tasks run if calls of late went on without waiting."""
        if self._debt > _FAIR_SHARE:
            self._debt = 0
            await checkpoint()


class _Reader:
    """A `read` that waits."""

    __slots__ = ("is_awake", "news")

    def __init__(self) -> None:
        self.news = anyio.Event()
        self.is_awake = False

    def wake(self) -> None:
        if not self.is_awake:  # most of the time it is: a publisher goes on without a pause
            self.is_awake = True
            self.news.set()
