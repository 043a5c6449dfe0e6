"""The server is down at the start, killed, or stopped: adding goes on at once, nothing is lost untold, service returns."""

from __future__ import annotations

import logging
import time

import anyio
import pytest
import redis

from connector_sdk.ledger import DropReason
from connector_sdk.testing import RedisServer
from tests.faults.books import Books, MakeBuffer, check_account, drain_all, settled, until_away, until_in_service
from tests.faults.traffic import Switches, Traffic, finish, quantile
from tests.servers.fixtures import StartRedis, one_kind

pytestmark = [pytest.mark.anyio, pytest.mark.faults, pytest.mark.busy]

SECRET = "hunter2-the-password"


async def test_down_at_the_start(
    own_redis_server: RedisServer, make_buffer: MakeBuffer, books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "connector_sdk")
    own_redis_server.kill()
    url = f"redis://someone:{SECRET}@127.0.0.1:{own_redis_server.port}/0"
    buffer = make_buffer(url)
    await buffer.add(books.new())  # finds out
    seconds = []
    for _ in range(500):
        started = time.monotonic()
        await buffer.add(books.new())
        seconds.append(time.monotonic() - started)
    assert sorted(seconds)[494] < 0.2, "the 99th percentile"
    assert len(books.dropped) == 501
    assert await buffer.drain() == []
    assert await buffer.size() == 0
    assert await buffer.peek() == []
    assert await buffer.sessions() == {}
    stats = await buffer.stats()
    assert stats.ledger.dropped == {DropReason.UNAVAILABLE: 501}
    assert stats.failed_reads == 5
    assert stats.state == "open"
    assert stats.outages == 1
    check_account(stats, books)
    books.check()
    lines = [record for record in caplog.records if record.levelno >= logging.INFO]
    assert len(lines) <= 3, [record.getMessage() for record in lines]
    assert SECRET not in caplog.text
    assert SECRET not in repr(buffer)


async def test_service_begins_when_a_server_that_was_down_at_the_start_comes_up(
    own_redis_server: RedisServer, make_buffer: MakeBuffer, books: Books
) -> None:
    own_redis_server.kill()
    buffer = make_buffer(own_redis_server.url)
    await buffer.add(books.new())
    await until_away(buffer)
    await anyio.to_thread.run_sync(own_redis_server.restart)
    waited = await until_in_service(buffer)
    print(f"in service {waited:.2f} s after the server")
    assert waited <= 2
    await buffer.add(last := books.new())
    assert await buffer.drain() == [last]


@pytest.mark.parametrize("appendonly", [True, False], ids=["on-disk", "in-memory"])
async def test_killed_and_restarted(
    start_redis: StartRedis, make_buffer: MakeBuffer, books: Books, appendonly: bool
) -> None:
    server = start_redis(appendonly=appendonly)
    switches = Switches()
    buffer = make_buffer(server.url, observer=switches)
    # What is drained cannot be lost: then nothing must be.
    async with Traffic(buffer, books, drains=appendonly) as traffic:
        await traffic.calls_after(0, 300)
        killed = time.monotonic()
        server.kill()
        await traffic.calls_after(killed, 2000)
        restarting = time.monotonic()
        await anyio.to_thread.run_sync(server.restart)
        back = await traffic.stored_again()
        await traffic.calls_after(time.monotonic(), 200)
    report(traffic, switches, killed, restarting, back)
    await finish(buffer, books)
    stats = await buffer.stats()
    assert stats.shared is not None
    if appendonly:
        # It may die after it has handed a page over and before it has heard that the page has arrived.
        books.check(in_doubt=stats.in_doubt)
        assert DropReason.LOST not in stats.shared.dropped
    else:
        lost = stats.shared.dropped[DropReason.LOST]
        assert lost >= 300 - 8
        books.check(missing=lost)


async def test_stopped_and_continued(own_redis_server: RedisServer, make_buffer: MakeBuffer, books: Books) -> None:
    switches = Switches()
    buffer = make_buffer(own_redis_server.url, observer=switches)
    async with Traffic(buffer, books) as traffic:
        await traffic.calls_after(0, 300)
        stopped = time.monotonic()
        own_redis_server.pause()
        await traffic.calls_after(stopped, 100)
        await until_away(buffer)
        await traffic.calls_after(time.monotonic(), 1500)
        resumed = time.monotonic()
        own_redis_server.resume()
        back = await traffic.stored_again()
        await traffic.calls_after(time.monotonic(), 200)
    report(traffic, switches, stopped, resumed, back)
    await finish(buffer, books)
    stats = await buffer.stats()
    # An acknowledgement without an answer may come twice; nothing else may.
    assert len(books.twice) <= stats.in_doubt
    assert not books.missing


def report(traffic: Traffic, switches: Switches, since: float, until: float, back: float) -> None:
    """Check, and print, how long calls took during an outage, and how soon it was over."""
    opened = next(moment for moment, state in switches.changes if state == "open")
    during, open_ = traffic.seconds(since, until), traffic.seconds(opened, until)
    print(
        f"{len(during)} adds: p50 {quantile(during, 50) * 1e3:.2f} ms, p99 {quantile(during, 99) * 1e3:.1f} ms; "
        f"{len(open_)} with an open breaker: p50 {quantile(open_, 50) * 1e3:.2f} ms, p90 {quantile(open_, 90) * 1e3:.2f} "
        f"ms, p99 {quantile(open_, 99) * 1e3:.2f} ms; back after {back:.2f} s; {traffic.looked} looks"
    )
    assert len(during) >= 200
    assert quantile(during, 99) <= 0.35
    assert quantile(open_, 50) <= 0.005
    assert back <= 3
    assert traffic.looked >= 20
    assert [state for _, state in switches.changes] == ["open", "closed"]


@one_kind
async def test_many_short_outages(own_redis_server: RedisServer, make_buffer: MakeBuffer, books: Books) -> None:
    buffer = make_buffer(own_redis_server.url)
    async with Traffic(buffer, books, with_ids=True) as traffic:
        for _ in range(6):
            await traffic.calls_after(time.monotonic(), 50)
            own_redis_server.kill()
            await anyio.to_thread.run_sync(own_redis_server.restart)
            await traffic.stored_again()
    await finish(buffer, books)
    assert len(books.twice) <= (await buffer.stats()).in_doubt
    assert not books.missing


@one_kind
async def test_what_is_sent_when_the_server_dies_is_stored_or_told_once_by_closing(
    own_redis_server: RedisServer, make_buffer: MakeBuffer, books: Books
) -> None:
    buffer = make_buffer(own_redis_server.url)
    await buffer.add(books.new())
    own_redis_server.pause()
    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(buffer.add, books.new())
    assert not books.dropped  # on their way
    await buffer.aclose(0.2)
    assert len(books.dropped) == 50
    stats = await buffer.stats()
    check_account(stats, books)
    assert stats.in_doubt == 50
    own_redis_server.resume()
    other = make_buffer(own_redis_server.url)
    await settled(other)
    await drain_all(other, books)
    # "in doubt": they may be stored as well.
    assert all(books.dropped[name] == 1 for name in books.twice)
    assert not books.missing


@pytest.mark.parametrize("flush", ["keys", "scripts"])
async def test_flushed_in_traffic(
    own_redis_server: RedisServer, make_buffer: MakeBuffer, books: Books, flush: str
) -> None:
    buffer = make_buffer(own_redis_server.url)
    async with Traffic(buffer, books, drains=False) as traffic:
        with redis.Redis(port=own_redis_server.port) as admin:
            await traffic.calls_after(0, 500)
            if flush == "keys":
                admin.flushall()
            else:
                admin.script_flush()
            await traffic.calls_after(time.monotonic(), 300)
    stats = await settled(buffer)
    assert stats.ledger.dropped == {}
    assert stats.outages == 0
    assert stats.shared is not None
    assert stats.shared.balanced
    lost = stats.shared.dropped.get(DropReason.LOST, 0)
    await finish(buffer, books)
    books.check(missing=len(books.missing))
    assert lost >= 400 if flush == "keys" else not books.missing
    # What was stored a moment before, and confirmed a moment after, is in nobody's account: an event of each adder at most.
    assert lost <= len(books.missing) <= lost + 8
