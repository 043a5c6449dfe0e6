"""What the tests of an `EventStore` have in common: the store under test, records with a number, one shard in short."""

from __future__ import annotations

import abc
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import pytest
from msgspec import UNSET

from connector_sdk.buffers.store import (
    Appended,
    Buried,
    Census,
    EventStore,
    Page,
    Quarantined,
    Record,
    SessionFilter,
    StoredEvent,
)
from connector_sdk.ledger import DropReason

__all__ = ["START", "Shard", "StoreCase", "new_lease", "numbers", "record", "records"]

#: The time of record 0; those of a test are younger, by up to a minute, and older than now.
START: Final = time.time() - 300.0
#: Enough for every event of a test.
ALL: Final = 100_000
_HOLD: Final = 60.0
#: Numbers of batches, for every store object of a run: so there are gaps.
_batches: Final = itertools.count(1)


def record(
    number: int,
    session: str | None = "session-1",
    *,
    time: float | None = None,
    kind: str = "summary",
    event_id: str | None = None,
    origin: str = "shop",
) -> Record:
    """Make a record that is known by its number: its body, and its time unless that is given."""
    when = START + number / 1000 if time is None else time
    return Record(session, when, kind, b"%d" % number, event_id, origin)


def records(count: int, session: str | None = "session-1", *, start: int = 0) -> list[Record]:
    """Make records of one session, oldest first."""
    return [record(number, session) for number in range(start, start + count)]


def numbers(events: Iterable[StoredEvent]) -> list[int]:
    """Return the numbers of events in their order."""
    return [int(event.body) for event in events]


def new_lease() -> str:
    """Return a name that no lease has had."""
    return f"lease-{uuid.uuid4().hex}"


class Shard:
    """One shard of a store, with what tests seldom vary filled in."""

    def __init__(self, store: EventStore, number: int, patience: float) -> None:
        self.store = store
        self.number = number
        self._timeout = patience

    def sessions_of(self, count: int) -> list[str]:
        """Return names of sessions that this shard has."""
        names = (f"session-{number}" for number in itertools.count(1))
        mine: Iterator[str] = (name for name in names if self.store.shard_of(name) == self.number)
        return list(itertools.islice(mine, count))

    async def append(self, batch: Iterable[Record], number: int | None = None) -> Appended:
        """Append a batch under the next number, or the one that is given."""
        number = next(_batches) if number is None else number
        return await self.store.append(self.number, list(batch), batch=number, timeout=self._timeout)

    async def take(
        self,
        lease: str,
        limit: int = ALL,
        *,
        hold: float = _HOLD,
        session: SessionFilter = UNSET,
        kinds: Collection[str] | None = None,
        cursor: str = "",
        in_order: bool = True,
        holder: str = "",
    ) -> Page:
        """Take a page for a minute, unless *hold* is given."""
        return await self.store.take(
            self.number,
            lease,
            limit,
            hold=hold,
            timeout=self._timeout,
            session=session,
            kinds=kinds,
            cursor=cursor,
            in_order=in_order,
            holder=holder,
        )

    async def take_to_the_end(
        self, lease: str, limit: int, *, session: SessionFilter = UNSET, kinds: Collection[str] | None = None
    ) -> list[StoredEvent]:
        """Take with a filter from page to page until the cursor says that there is no more."""
        found: list[StoredEvent] = []
        cursor = ""
        for _ in range(ALL):
            page = await self.take(lease, limit, session=session, kinds=kinds, cursor=cursor)
            assert len(page.events) <= limit
            found += page.events
            cursor = page.cursor
            if not cursor:
                return found
        raise AssertionError("the cursor never comes to an end")

    async def drain(self, limit: int = ALL) -> list[StoredEvent]:
        """Take the oldest and let them go."""
        lease = new_lease()
        events: list[StoredEvent] = []
        while len(events) < limit:  # a page may be full before the limit is reached
            page = (await self.take(lease, limit - len(events))).events
            if not page:
                break
            events += page
        if events:
            assert await self.acknowledge(lease)
        return events

    async def acknowledge(
        self, lease: str, events: Sequence[StoredEvent] | None = None, *, reason: DropReason | None = None
    ) -> bool:
        """Acknowledge these events, or all."""
        return await self.store.acknowledge(self.number, lease, events, timeout=self._timeout, reason=reason)

    async def extend(self, lease: str, hold: float = _HOLD) -> bool:
        """Extend a lease."""
        return await self.store.extend(self.number, lease, hold=hold, timeout=self._timeout)

    async def give_back(self, lease: str) -> bool:
        """Give back what a lease has."""
        return await self.store.give_back(self.number, lease, timeout=self._timeout)

    async def quarantine(self, lease: str, events: Sequence[StoredEvent]) -> bool:
        """Put events aside."""
        return await self.store.quarantine(self.number, lease, events, timeout=self._timeout)

    async def quarantined(self) -> list[Quarantined]:
        """Return what was put aside."""
        return await self.store.quarantined(self.number, timeout=self._timeout)

    async def bury(self, lease: str, letters: Iterable[tuple[StoredEvent, bytes]]) -> bool:
        """Bury events, each with its evidence."""
        return await self.store.bury(self.number, lease, list(letters), timeout=self._timeout)

    async def dead_letters(self, limit: int = ALL, cursor: str = "") -> tuple[list[Buried], str]:
        """Return a page of dead letters."""
        return await self.store.dead_letters(self.number, limit, cursor=cursor, timeout=self._timeout)

    async def all_dead_letters(self, limit: int = ALL) -> list[Buried]:
        """Return all dead letters, in pages of *limit*."""
        found: list[Buried] = []
        cursor = ""
        for _ in range(ALL):
            page, cursor = await self.dead_letters(limit, cursor)
            assert len(page) <= limit
            found += page
            if not cursor:
                return found
        raise AssertionError("the cursor never comes to an end")

    async def dead_letter(self, arrival: int) -> Buried | None:
        """Return one dead letter."""
        return await self.store.dead_letter(self.number, arrival, timeout=self._timeout)

    async def redrive(self, arrivals: Iterable[int]) -> list[int]:
        """Let dead letters wait again."""
        return await self.store.redrive(self.number, list(arrivals), timeout=self._timeout)

    async def purge(self, arrivals: Iterable[int] | None = None) -> int:
        """Discard these dead letters, or all."""
        chosen = None if arrivals is None else list(arrivals)
        return await self.store.purge(self.number, chosen, timeout=self._timeout)

    async def peek(self, limit: int | None = None) -> list[StoredEvent]:
        """Look at the newest."""
        return await self.store.peek(self.number, limit, timeout=self._timeout)

    async def sessions(self) -> dict[str | None, int]:
        """Return the sessions."""
        return await self.store.sessions(self.number, timeout=self._timeout)

    async def census(self) -> Census:
        """Count; the account must balance."""
        census = await self.store.census(self.number, timeout=self._timeout)
        ledger = census.ledger
        assert ledger.balanced, ledger
        assert min(ledger.received, ledger.delivered, ledger.buffered, ledger.in_flight) >= 0, ledger
        assert all(count > 0 for count in ledger.dropped.values()), ledger
        return census


class StoreCase(abc.ABC):
    """What a test class must give; see `EventStoreContract`."""

    #: Seconds that leases hold which are to run out; longer for a store that counts in whole seconds.
    lease_timeout: float = 0.1
    #: Seconds that one step may take, and that a test waits for what must happen before it fails.
    patience: float = 20.0

    @abc.abstractmethod
    def make_store(self) -> EventStore | Awaitable[EventStore]:
        """
        Return a new store over an empty place; may be a coroutine function.

        If it has a window, or forgets sessions that are idle, ids or dead letters, then after ten minutes or more; and no
        bounds that 10,000 events in as many sessions, or 5,000 dead letters, would reach.
        """

    def another_process(self, store: EventStore) -> EventStore | Awaitable[EventStore]:
        """
        Return a second store object over the place of *store*, as another process would make it; may be a coroutine
        function. Unless it is overridden, tests of what stores share are skipped.
        """
        del store
        pytest.skip("the class has no another_process()")

    def make_bounded_store(self, max_dead_letters: int) -> EventStore | Awaitable[EventStore]:
        """
        Return a new store of one shard over an empty place, that keeps *max_dead_letters*; may be a coroutine function.
        Unless it is overridden, tests of that bound are skipped.
        """
        del max_dead_letters
        pytest.skip("the class has no make_bounded_store()")

    async def close_store(self, store: EventStore) -> None:
        """Release what `make_store` or `another_process` opened; closes the store unless overridden."""
        await store.aclose()

    @asynccontextmanager
    async def opened(self, *, max_dead_letters: int | None = None) -> AsyncIterator[EventStore]:
        """Open a store for the length of a test; the account of every shard must balance at its end."""
        made = self.make_store() if max_dead_letters is None else self.make_bounded_store(max_dead_letters)
        store = await _made(made)
        try:
            yield store
            for number in range(store.shards):
                await Shard(store, number, self.patience).census()
        finally:
            await self.close_store(store)

    @asynccontextmanager
    async def opened_shard(self) -> AsyncIterator[Shard]:
        """Open a store; yield the shard of "session-1"."""
        async with self.opened() as store:
            yield Shard(store, store.shard_of("session-1"), self.patience)

    @asynccontextmanager
    async def opened_twice(self) -> AsyncIterator[tuple[Shard, Shard]]:
        """Open a store, and another one over the same place; yield the same shard of both."""
        async with self.opened_shard() as shard:
            other = await _made(self.another_process(shard.store))
            try:
                yield shard, Shard(other, shard.number, self.patience)
            finally:
                await self.close_store(other)


async def _made(store: EventStore | Awaitable[EventStore]) -> EventStore:
    return await store if isinstance(store, Awaitable) else store
