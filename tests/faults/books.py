"""What became of which event: the books that a test keeps beside the buffer's own account."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

import anyio

from connector_sdk.buffers.durable_stats import DurableStats
from connector_sdk.buffers.redis import RedisEventBuffer
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import Payload, SummaryPayload

MakeBuffer: TypeAlias = Callable[..., RedisEventBuffer]

#: Seconds after which what must happen has not happened.
PATIENCE: Final = 30.0


def event(name: str, session: str | None = "s", *, with_id: bool = False, at: float | None = None) -> SummaryPayload:
    """An event that is known by its text, and by an event id if it is to have one."""
    moment = time.time() if at is None else at
    return SummaryPayload("shop", session, name, 0, moment, name if with_id else None)


def name_of(payload: Payload) -> str:
    assert isinstance(payload, SummaryPayload)
    return payload.summary


class Books:
    """
    Which events were added, told to `on_drop`, and taken out: by name, so also for events without an id.

    `told` is the hook for the buffer.
    """

    def __init__(self) -> None:
        self.added: set[str] = set()
        self.dropped: Counter[str] = Counter()
        self.taken: Counter[str] = Counter()
        self._numbers = itertools.count()

    def new(self, session: str | None = "s", *, with_id: bool = False, at: float | None = None) -> SummaryPayload:
        """An event that no other is like."""
        payload = event(f"e{next(self._numbers)}", session, with_id=with_id, at=at)
        self.added.add(payload.summary)
        return payload

    def told(self, payload: Payload) -> None:
        self.dropped[name_of(payload)] += 1

    def took(self, payloads: Iterable[Payload]) -> None:
        self.taken.update(name_of(payload) for payload in payloads)

    @property
    def twice(self) -> set[str]:
        """Events that were taken more than once, told more than once, or both taken and told."""
        both = self.taken + self.dropped
        return {name for name, count in both.items() if count > 1}

    @property
    def missing(self) -> set[str]:
        """Events that were neither taken nor told."""
        return self.added - self.taken.keys() - self.dropped.keys()

    def check(self, *, missing: int = 0, in_doubt: int = 0) -> None:
        """Each event was taken once, or told once; *missing* of them neither, and up to *in_doubt* were taken twice."""
        assert len(self.twice) <= in_doubt, self.twice
        assert not self.taken.keys() & self.dropped.keys()
        assert max((self.taken + self.dropped).values(), default=1) <= 2
        assert not (self.taken.keys() | self.dropped.keys()) - self.added
        assert len(self.missing) == missing, (len(self.missing), missing)


def check_account(stats: DurableStats, books: Books) -> None:
    """The account of a buffer that alone writes to these books balances and agrees with them."""
    assert stats.ledger.balanced, stats.ledger
    assert stats.shared is None or stats.shared.balanced, stats.shared
    told = stats.ledger.dropped_total - stats.ledger.dropped.get(DropReason.DUPLICATE, 0)
    assert told == books.dropped.total(), (stats.ledger, books.dropped.total())


async def settled(buffer: RedisEventBuffer, timeout: float = PATIENCE) -> DurableStats:
    """Wait until the store is in service and every event is stored or given up; return the stats of then."""
    with anyio.fail_after(timeout):
        while True:
            stats = await buffer.stats()
            if stats.shared is not None and not stats.ledger.buffered and not stats.ledger.in_flight:
                return stats
            await anyio.sleep(0.01)


async def until_in_service(buffer: RedisEventBuffer, timeout: float = PATIENCE) -> float:
    """Wait until a reading of the store succeeds; return the seconds that took."""
    started = time.monotonic()
    with anyio.fail_after(timeout):
        while (await buffer.stats()).shared is None:
            await anyio.sleep(0.005)
    return time.monotonic() - started


async def until_away(buffer: RedisEventBuffer, timeout: float = PATIENCE) -> None:
    """Wait until the buffer has noticed that the store is away."""
    with anyio.fail_after(timeout):
        while (await buffer.stats()).state != "open":
            await anyio.sleep(0.005)


async def drain_all(buffer: RedisEventBuffer, books: Books) -> None:
    """Take out what waits, until nothing does; the store must be in service."""
    while payloads := await buffer.drain():
        books.took(payloads)
