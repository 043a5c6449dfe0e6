"""All faults of a network at random, in traffic of every kind: whatever happens, each event is in one place."""

from __future__ import annotations

import random
import time

import anyio
import pytest

from connector_sdk.buffers.redis import RedisEventBuffer
from tests.faults.books import Books, MakeBuffer, check_account, settled
from tests.faults.test_conservation import SECONDS
from tests.faults.traffic import finish
from tests.servers.fixtures import Server, one_kind
from tests.servers.proxy import Direction, Proxy

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

BOTH: tuple[Direction, ...] = ("to_server", "to_client")


class Chaos:
    """Tasks that add through a proxy, some of them cancelled, and one that drains in every way, without the proxy."""

    def __init__(self, buffer: RedisEventBuffer, direct: RedisEventBuffer, books: Books, chance: random.Random) -> None:
        self.over = False
        #: Events whose `add` was cancelled: they may be anywhere, or nowhere.
        self.cancelled: set[str] = set()
        self._buffer = buffer
        self._direct = direct
        self._books = books
        self._chance = chance

    async def add(self) -> None:
        chance = self._chance
        while not self.over:
            payload = self._books.new(chance.choice(["a", "b", "c", "d", None]), with_id=chance.random() < 0.3)
            with anyio.move_on_after(chance.random() * 0.05 if chance.random() < 0.2 else None) as scope:
                await self._buffer.add(payload)
            if scope.cancelled_caught:
                self.cancelled.add(payload.summary)
            await anyio.sleep(chance.random() * 0.004)

    async def drain(self) -> None:
        took, direct = self._books.took, self._direct
        while not self.over:
            way = self._chance.randrange(6)
            if way == 0:
                took(await direct.drain())
            elif way == 1:
                took(await direct.drain(self._chance.randrange(1, 30)))
            elif way == 2:
                took(await direct.drain(session_id="a"))
            elif way == 3:
                took(await direct.drain_by_type())
            elif way == 4:
                async with direct.lease(20, timeout=60.0) as lease:
                    await lease.give_back()
            else:
                async with direct.lease(20, timeout=60.0) as lease:
                    half = lease.events[: len(lease) // 2]
                    await lease.ack(half)
                    took(half)
                    await lease.give_back()
            await anyio.sleep(0.01)

    async def look(self) -> None:
        while not self.over:
            check_account(await self._buffer.stats(), self._books)
            await anyio.sleep(0.03)


def disturb(proxy: Proxy, chance: random.Random) -> bool:
    """Do one thing to the network; return whether connections that are open now lose bytes."""
    fault = chance.randrange(8)
    if fault < 3:
        proxy.cut_after(chance.randrange(3000), chance.choice(BOTH), reset=chance.random() < 0.5)
    elif fault == 3:
        proxy.cut(reset=chance.random() < 0.5)
    elif fault == 4:
        proxy.delay(chance.random() * 0.3)
    elif fault == 5:
        proxy.swallow(chance.choice(BOTH))
    elif fault == 6:
        proxy.swallow()
    else:
        proxy.refuse()
        proxy.cut()
    return fault in (5, 6)


@one_kind
@pytest.mark.timeout(SECONDS + 100)
async def test_chaos(redis_server: Server, redis_proxy: Proxy, make_buffer: MakeBuffer, books: Books) -> None:
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    chance = random.Random(seed)
    buffer = make_buffer(redis_proxy.url, shards=3, response_timeout=0.3, max_concurrent=chance.choice([1, 3, 10]))
    direct = make_buffer(redis_server.url, shards=3)
    chaos = Chaos(buffer, direct, books, chance)
    until = time.monotonic() + SECONDS / 8
    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(chaos.add)
        group.start_soon(chaos.drain)
        group.start_soon(chaos.look)
        while time.monotonic() < until:
            is_deaf = disturb(redis_proxy, chance)
            await anyio.sleep(chance.random() * 0.6)
            if is_deaf:
                redis_proxy.cut()  # TCP loses nothing from the middle of a stream
            redis_proxy.restore()
            await anyio.sleep(chance.random() * 0.4)
        chaos.over = True
    await settled(buffer)
    await finish(direct, books, alone=False)
    stats = await buffer.stats()
    print(
        f"{len(books.added)} added, {len(books.dropped)} told, {stats.outages} outages, {len(chaos.cancelled)} cancelled"
    )
    assert not books.twice
    assert books.missing <= chaos.cancelled
    assert len(books.added) - len(books.missing) == stats.ledger.received
    assert stats.shared is not None
    assert stats.shared.received == stats.ledger.delivered == len(books.taken)
    assert stats.in_doubt == 0
