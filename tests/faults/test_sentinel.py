"""A master that sentinels watch dies: the one that takes over has service."""

from __future__ import annotations

import time

import anyio
import pytest

from connector_sdk.ledger import DropReason
from tests.faults.books import Books, MakeBuffer, until_in_service
from tests.faults.traffic import Traffic, finish
from tests.servers.fixtures import one_kind
from tests.servers.sentinel import SentinelSet

pytestmark = [pytest.mark.anyio, pytest.mark.faults, pytest.mark.busy]


def sentinel_url(servers: SentinelSet) -> str:
    return f"redis+sentinel://127.0.0.1:{servers.sentinel_port}/{servers.master_name}"


@one_kind
async def test_the_master_dies_in_traffic(redis_sentinel: SentinelSet, make_buffer: MakeBuffer, books: Books) -> None:
    buffer = make_buffer(sentinel_url(redis_sentinel))
    async with Traffic(buffer, books) as traffic:
        await traffic.calls_after(0, 300)
        await anyio.to_thread.run_sync(redis_sentinel.failover)
        back = await traffic.stored_again()
        await traffic.calls_after(time.monotonic(), 200)
    await finish(buffer, books)
    stats = await buffer.stats()
    assert stats.shared is not None
    lost = stats.shared.dropped.get(DropReason.LOST, 0)
    print(f"in service {back:.2f} s after the promotion; {len(books.missing)} missing, {lost} counted as lost")
    assert back <= 5
    # The master answers before its replica has it: what it took in the last moment before it died went with it. What had
    # been taken out in that moment comes again.
    assert len(books.missing) <= 100
    assert len(books.twice) <= 100 + stats.in_doubt


@one_kind
async def test_a_failover_by_agreement(redis_sentinel: SentinelSet, make_buffer: MakeBuffer, books: Books) -> None:
    """The old master goes on taking writes, in vain: the buffer must leave it by itself."""
    buffer = make_buffer(sentinel_url(redis_sentinel))
    for _ in range(50):
        await buffer.add(books.new())
    await anyio.to_thread.run_sync(redis_sentinel.graceful_failover)
    switched = time.monotonic()
    await until_in_service(buffer)
    other = make_buffer(redis_sentinel.master.url)
    with anyio.fail_after(20):
        while await other.size() < 51:
            await buffer.add(books.new())
            await anyio.sleep(0.05)
    print(f"followed the sentinel after {time.monotonic() - switched:.2f} s")
    assert time.monotonic() - switched <= 5
    await finish(buffer, books)
    assert not books.twice
    # What the old master took in between; nobody can tell.
    assert len(books.missing) <= 100
