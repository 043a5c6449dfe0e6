"""Leases on real servers: of the dead they come again, once; of the living they are nobody else's."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import anyio
import pytest

from connector_sdk.errors import BufferUnavailableError, LeaseExpiredError
from connector_sdk.testing import RedisServer
from tests.faults.books import PATIENCE, Books, MakeBuffer, drain_all, name_of, settled, until_away, until_in_service
from tests.servers.fixtures import Server, one_kind
from tests.servers.proxy import Proxy

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

#: Takes a lease, says what it has, and waits to be killed. Arguments: URL, seconds, most events.
HOLDER = """
import asyncio, sys
from connector_sdk.buffers.redis import RedisEventBuffer

async def main():
    buffer = RedisEventBuffer(sys.argv[1], "faults")
    async with buffer.lease(int(sys.argv[3]), float(sys.argv[2])) as lease:
        print(*(payload.summary for payload in lease), flush=True)
        sys.stdin.read()

asyncio.run(main())
"""


@pytest.fixture
def holder(redis_server: Server) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are surely ended."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def start_holder(url: str, seconds: float, most: int) -> tuple[subprocess.Popen[str], list[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, url, str(seconds), str(most)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().split()


@one_kind
async def test_what_a_killed_process_had_on_lease_comes_again_once(
    redis_server: Server, make_buffer: MakeBuffer, books: Books, holder: list[subprocess.Popen[str]]
) -> None:
    buffer = make_buffer(redis_server.url)
    for number in range(30):
        await buffer.add(books.new(f"s{number % 3}", at=1000.0 + number))
    process, had = await anyio.to_thread.run_sync(start_holder, redis_server.url, 2.0, 20)
    holder.append(process)
    taken_at = time.monotonic()
    assert len(had) == 20
    process.kill()
    process.wait()
    # Until the time is up nobody gets them.
    assert await buffer.size() == 10
    rest = await buffer.drain(5)
    books.took(rest)
    stats = await buffer.stats()
    assert stats.shared is not None
    assert (stats.shared.in_flight, stats.leases) == (20, 1)
    with anyio.fail_after(PATIENCE):
        while await buffer.size() < 25:
            await anyio.sleep(0.02)
    assert 1 <= time.monotonic() - taken_at <= 10
    again = await buffer.drain()
    books.took(again)
    # At their old places: those 20 are older than all others.
    assert [name_of(payload) for payload in again[:20]] == had
    assert [payload.forwarded_at for payload in again] == sorted(payload.forwarded_at for payload in again)
    assert await buffer.drain() == []
    books.check()


@one_kind
async def test_what_the_living_hold_is_theirs_for_as_long_as_they_extend_it(
    redis_server: Server, make_buffer: MakeBuffer, books: Books
) -> None:
    buffer, other = make_buffer(redis_server.url), make_buffer(redis_server.url)
    for _ in range(20):
        await buffer.add(books.new())
    async with buffer.lease(15, timeout=1.0) as lease:
        started = time.monotonic()
        while time.monotonic() - started < 1.6:
            books.took(await other.drain())
            async with other.lease(timeout=30.0) as none:
                assert len(none) == 0
            await lease.extend(1.0)
        assert len(books.taken) == 5
        books.took(lease.events)
    assert await other.size() == 0
    books.check()


@one_kind
async def test_a_lease_that_ran_out_cannot_be_acknowledged(
    redis_server: Server, make_buffer: MakeBuffer, books: Books
) -> None:
    buffer = make_buffer(redis_server.url)
    for _ in range(4):
        await buffer.add(books.new())
    lease = await buffer.lease(timeout=0.2, renew=False).__aenter__()
    assert len(lease) == 4
    with anyio.fail_after(PATIENCE):
        while await buffer.size() < 4:
            await anyio.sleep(0.01)
    with pytest.raises(LeaseExpiredError):
        await lease.__aexit__(None, None, None)
    await drain_all(buffer, books)
    books.check()


@one_kind
async def test_acknowledging_while_the_server_is_away(
    own_redis_server: RedisServer, make_buffer: MakeBuffer, books: Books
) -> None:
    buffer = make_buffer(own_redis_server.url)
    for _ in range(10):
        await buffer.add(books.new())
    lease = await buffer.lease(timeout=2.0).__aenter__()
    assert len(lease) == 10
    own_redis_server.kill()
    with pytest.raises(BufferUnavailableError):
        await lease.__aexit__(None, None, None)
    await until_away(buffer)
    with pytest.raises(BufferUnavailableError):
        await buffer.lease().__aenter__()
    with pytest.raises(BufferUnavailableError):
        await lease.ack()  # not over: one may try again
    await anyio.to_thread.run_sync(own_redis_server.restart)
    await until_in_service(buffer)
    with anyio.fail_after(PATIENCE):
        while await buffer.size() < 10:
            await anyio.sleep(0.02)
    with pytest.raises(LeaseExpiredError):
        await lease.ack()
    await drain_all(buffer, books)
    books.check()


@one_kind
async def test_a_lease_outlives_a_restart_and_can_be_acknowledged_then(
    own_redis_server: RedisServer, make_buffer: MakeBuffer, books: Books
) -> None:
    buffer = make_buffer(own_redis_server.url)
    for _ in range(10):
        await buffer.add(books.new())
    async with buffer.lease(timeout=60.0) as lease:
        own_redis_server.kill()
        with pytest.raises(BufferUnavailableError):
            await lease.ack(lease.events[:5])
        await anyio.to_thread.run_sync(own_redis_server.restart)
        await until_in_service(buffer)
        await lease.ack(lease.events[:5])
        books.took(lease.events)
    assert await buffer.size() == 0
    stats = await settled(buffer)
    assert stats.shared is not None
    assert (stats.shared.delivered, stats.shared.in_flight, stats.leases) == (10, 0, 0)
    books.check()


@one_kind
@pytest.mark.parametrize("partly", [True, False])
async def test_an_acknowledgement_whose_answer_is_lost_can_be_tried_again(
    redis_proxy: Proxy, redis_server: Server, make_buffer: MakeBuffer, books: Books, partly: bool
) -> None:
    buffer, direct = make_buffer(redis_proxy.url), make_buffer(redis_server.url)
    for _ in range(10):
        await direct.add(books.new())
    async with buffer.lease(timeout=60.0) as lease:
        redis_proxy.cut_after(0, "to_client")
        which = lease.events[:4] if partly else None
        with pytest.raises(BufferUnavailableError) as caught:
            await lease.ack(which)
        assert caught.value.in_doubt
        redis_proxy.restore()
        await until_in_service(buffer)
        await lease.ack(which)
        if partly:
            await lease.ack()
    stats = await direct.stats()
    assert stats.shared is not None
    assert (stats.shared.delivered, stats.shared.buffered, stats.shared.in_flight) == (10, 0, 0)
    assert stats.shared.balanced


@one_kind
async def test_taking_whose_answer_is_lost_comes_again(
    redis_proxy: Proxy, redis_server: Server, make_buffer: MakeBuffer, books: Books
) -> None:
    buffer, direct = make_buffer(redis_proxy.url), make_buffer(redis_server.url)
    for _ in range(10):
        await direct.add(books.new())
    await until_in_service(buffer)
    redis_proxy.cut_after(0, "to_client")
    with pytest.raises(BufferUnavailableError):
        await buffer.lease(timeout=1.0).__aenter__()
    with anyio.fail_after(PATIENCE):
        while await direct.size() < 10:
            await anyio.sleep(0.02)
    await drain_all(direct, books)
    books.check()


@one_kind
async def test_cancelling_the_holder_gives_back_at_once(
    redis_server: Server, redis_proxy: Proxy, make_buffer: MakeBuffer, books: Books
) -> None:
    buffer, direct = make_buffer(redis_proxy.url), make_buffer(redis_server.url)
    for _ in range(200):
        await direct.add(books.new())
    redis_proxy.delay(0.002)
    for number in range(30):
        with anyio.move_on_after(0.0005 * number):
            async with buffer.lease(100, timeout=60.0):
                await anyio.sleep_forever()
    redis_proxy.restore()
    with anyio.fail_after(5):
        while await direct.size() < 200:
            await anyio.sleep(0.01)
    await drain_all(direct, books)
    books.check()
