"""What the tests of an `EventLog` have in common: the log under test, bodies with a number, readers, and patience."""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypedDict, Unpack

import anyio
import pytest

from connector_sdk.bus.log import START, Body, Claim, Delivery, EventLog, GroupInfo, LogMember, Loss, Record, TopicInfo

__all__ = ["FOREVER", "TOPIC", "LogCase", "LogOptions", "Reader"]

TOPIC: Final = "orders:created"
#: Seconds that members of a test hold which must not die in it.
FOREVER: Final = 600.0


class LogOptions(TypedDict, total=False):
    """What a test wants of a log; what it leaves out has the default, or anything that 10,000 entries do not reach."""

    max_events: int  # 10 or more
    max_backlog: int
    max_dead_letters: int


class Reader:
    """Somebody who reads a log as a bus does, and keeps what was found."""

    def __init__(self, log: EventLog, cursors: Mapping[str, str], *, catalogue: str | None = None) -> None:
        self.log = log
        self.cursors = dict(cursors)
        self.catalogue = catalogue
        self.records: list[Record] = []
        self.losses: list[Loss] = []
        self.created: list[str] = []

    async def read(self, limit: int = 1000, *, wait: float = 0.0) -> Sequence[Record]:
        """Read once; go on with whatever was created."""
        reading = await self.log.read(self.cursors, catalogue=self.catalogue, limit=limit, wait=wait)
        assert len(reading.records) <= limit
        self.cursors.update(reading.cursors)
        for topic in reading.topics:
            assert topic not in self.created, f"{topic} was found twice"
            self.cursors.setdefault(topic, START)
        self.created += reading.topics
        if self.catalogue is not None:
            assert reading.catalogue != START
            self.catalogue = reading.catalogue
        for record in reading.records:
            before = self.cursors[record.topic]
            assert self.log.order(record.position) > self.log.order(before), "not in order, or not after the cursor"
            self.cursors[record.topic] = record.position
        self.records += reading.records
        self.losses += reading.losses
        return reading.records


class LogCase(abc.ABC):
    """What a test class must give; see `EventLogContract`."""

    #: Seconds after which members die that are to die in a test; longer for a storage that is slow.
    hold: float = 0.6
    #: Seconds after which members would die that give signs of life; several, for on a busy machine these may come late.
    long_hold: float = 3.0
    #: Seconds that a test waits for what must happen before it fails.
    patience: float = 30.0
    #: Whether the storage can tell how many entries a group was not given yet; False allows None, never a wrong number.
    knows_lag: bool = True
    #: Whether whoever waits is woken; False for a log that looks from time to time.
    wakes_up: bool = True

    @abc.abstractmethod
    async def make_log(self, **options: Unpack[LogOptions]) -> EventLog:
        """
        Return a new log object, not connected, over the storage of this test, which nobody used before.

        A second call in the same test, with the same options, returns what another process would make; a log for one
        process may return the same object.
        """

    async def make_aging_log(self, ttl_seconds: float) -> EventLog:
        """Return a log as `make_log` does that keeps events for so few seconds. Unless overridden, such tests are skipped."""
        del ttl_seconds
        pytest.skip("the class has no make_aging_log()")

    def body(self, number: int) -> Body:
        """Return the body of an entry that is known by its number."""
        return b"%d" % number

    def number(self, body: Body) -> int:
        """Return the number of an entry that `body` made."""
        assert isinstance(body, bytes)
        return int(body)

    def big_body(self, size: int) -> Body:
        """Return a body of *size* bytes or a little more, with every byte that there is."""
        return bytes(range(256)) * -(-size // 256)

    # -- help for tests

    @asynccontextmanager
    async def opened(self, **options: Unpack[LogOptions]) -> AsyncIterator[EventLog]:
        """Open a log for the length of a test."""
        log = await self.make_log(**options)
        async with self._connected(log):
            yield log

    @asynccontextmanager
    async def opened_twice(self, **options: Unpack[LogOptions]) -> AsyncIterator[tuple[EventLog, EventLog]]:
        """Open a log as two processes do."""
        async with self.opened(**options) as one, self.opened(**options) as other:
            yield one, other

    @asynccontextmanager
    async def _connected(self, log: EventLog) -> AsyncIterator[None]:
        try:
            with anyio.fail_after(self.patience * 3):
                await log.connect()
                yield
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(self.patience):
                await log.aclose()

    def numbers(self, entries: Iterable[Record | Delivery]) -> list[int]:
        """Return the numbers of entries in their order."""
        return [self.number(entry.body) for entry in entries]

    async def append(self, log: EventLog, numbers: Iterable[int], topic: str = TOPIC, *, page: int = 100) -> list[str]:
        """Append entries with these numbers, and return their positions."""
        entries = [(topic, self.body(number)) for number in numbers]
        positions: list[str] = []
        for start in range(0, len(entries), page):
            positions += await log.append(entries[start : start + page])
        assert len(positions) == len(entries)
        return positions

    async def read_all(self, log: EventLog, topic: str = TOPIC, start: str = START) -> list[int]:
        """Return the numbers of what is in a topic."""
        reader = Reader(log, {topic: start})
        while await reader.read():
            pass
        return self.numbers(reader.records)

    async def joined(
        self,
        log: EventLog,
        consumer: str = "member-1",
        *,
        group: str = "billing",
        topics: Sequence[str] = (TOPIC,),
        hold: float = FOREVER,
    ) -> LogMember:
        """Return a member that follows these topics from their beginning."""
        member = log.member(group, consumer, hold=hold)
        for topic in topics:
            await member.follow(topic, START)
        return member

    async def claim(self, member: LogMember, count: int, *, limit: int = 100) -> list[Delivery]:
        """Claim until there are *count* entries."""
        found: list[Delivery] = []
        with anyio.fail_after(self.patience):
            while len(found) < count:
                claim = await self.one_claim(member, min(limit, count - len(found)), wait=1.0)
                assert not claim.losses
                found += claim.deliveries
        return found

    async def one_claim(self, member: LogMember, limit: int = 100, *, wait: float = 0.0) -> Claim:
        """Claim once."""
        claim = await member.claim(limit, wait=wait)
        assert len(claim.deliveries) <= limit
        assert 0 <= claim.recovered <= len(claim.deliveries)
        assert claim.recovered <= claim.checked
        return claim

    async def nothing_for(self, member: LogMember) -> None:
        """There is nothing to claim now."""
        claim = await self.one_claim(member)
        assert self.numbers(claim.deliveries) == []

    def is_lag(self, lag: int | None, expected: int) -> bool:
        """Whether *lag* is right, within one entry."""
        return not self.knows_lag if lag is None else abs(lag - expected) <= 1

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Wait until something is so."""
        with anyio.fail_after(self.patience):
            for _ in range(1_000_000):
                if await condition():
                    break
                await anyio.sleep(0.02)

    async def info(self, log: EventLog, topic: str = TOPIC) -> TopicInfo:
        """Return what is known of a topic that exists."""
        info = await log.info(topic)
        assert info is not None
        assert info.topic == topic
        return info

    async def group_info(self, log: EventLog, group: str = "billing", topic: str = TOPIC) -> GroupInfo:
        """Return what is known of a group that exists."""
        (found,) = [known for known in (await self.info(log, topic)).groups if known.name == group]
        return found
