"""Connections are cut at any byte, delayed, swallowed and refused: each event is stored once or told once."""

from __future__ import annotations

import time
from collections.abc import Iterator

import anyio
import pytest

from connector_sdk.ledger import DropReason
from connector_sdk.payloads import Payload
from tests.faults.books import Books, MakeBuffer, check_account, drain_all, settled, until_away
from tests.faults.traffic import Traffic, finish
from tests.servers.fixtures import Server, one_kind
from tests.servers.proxy import Direction, Proxy

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

#: Bytes into a request or a reply, and beyond what one write holds.
OFFSETS = [0, 1, 2, 3, 5, 8, 13, 40, 100, 250, 399, 700, 1500, 4000, 9000, 20_000]


def places() -> Iterator[tuple[Direction, int]]:
    for offset in OFFSETS:
        yield "to_server", offset
        yield "to_client", offset


@one_kind
@pytest.mark.parametrize("how", ["ended", "reset", "ended and refused", "reset and refused"])
async def test_cut_at_many_offsets_while_adding(
    redis_server: Server, redis_proxy: Proxy, make_buffer: MakeBuffer, books: Books, how: str
) -> None:
    buffer, direct = make_buffer(redis_proxy.url), make_buffer(redis_server.url)
    for direction, offset in places():
        await buffer.add(books.new())
        redis_proxy.cut_after(offset, direction, reset="reset" in how)
        if "refused" in how:
            redis_proxy.refuse()
        async with anyio.create_task_group() as group:
            for number in range(60):
                group.start_soon(buffer.add, books.new(f"s{number % 4}"))
        check_account(await buffer.stats(), books)
        redis_proxy.restore()
        await settled(buffer)
    await drain_all(direct, books)
    books.check()
    stats = await buffer.stats()
    assert stats.in_doubt == 0
    # Smaller offsets are within the first request or reply.
    assert redis_proxy.accepted > len(OFFSETS)
    assert "refused" not in how or stats.outages > len(OFFSETS)
    assert stats.shared is not None
    # What was stored counts once: a batch that was sent again is no duplicate, it is the same batch.
    assert stats.shared.received == len(books.added) - len(books.dropped)


@one_kind
async def test_cut_at_many_offsets_while_draining(
    redis_proxy: Proxy, redis_server: Server, make_buffer: MakeBuffer, books: Books
) -> None:
    buffer, direct = make_buffer(redis_proxy.url), make_buffer(redis_server.url)
    for direction, offset in places():
        await settled(buffer)
        async with anyio.create_task_group() as group:
            for number in range(60):
                group.start_soon(direct.add, books.new(f"s{number % 4}"))
        redis_proxy.cut_after(offset, direction)
        books.took(await buffer.drain())
        redis_proxy.restore()
    await finish(direct, books)
    # An acknowledgement whose answer was lost: the events were handed out, and may have come again.
    assert len(books.twice) <= (await buffer.stats()).in_doubt
    assert not books.missing


async def test_a_batch_whose_answer_is_lost_is_stored_once(
    redis_proxy: Proxy, redis_server: Server, make_buffer: MakeBuffer, books: Books
) -> None:
    buffer, direct = make_buffer(redis_proxy.url), make_buffer(redis_server.url)
    await buffer.add(books.new())
    for _ in range(20):
        redis_proxy.cut_after(0, "to_client")
        async with anyio.create_task_group() as group:
            for _ in range(30):
                group.start_soon(buffer.add, books.new())
        stats = await settled(buffer)
        assert stats.ledger.dropped == {}
        redis_proxy.restore()
    assert stats.ledger.delivered == 601
    assert await direct.size() == 601
    await drain_all(direct, books)
    books.check()


@one_kind
@pytest.mark.parametrize("fault", ["cut", "swallow to_server", "swallow to_client", "refuse", "delay"])
async def test_faults_in_traffic(redis_proxy: Proxy, make_buffer: MakeBuffer, books: Books, fault: str) -> None:
    """Several shards share one connection, and each must still know which of its batches came."""
    buffer = make_buffer(redis_proxy.url, shards=3)
    rounds = {"cut": 4, "refuse": 4, "delay": 2}.get(fault, 1)
    async with Traffic(buffer, books) as traffic:
        for number in range(rounds):
            await traffic.calls_after(time.monotonic(), 300)
            if fault == "cut":
                redis_proxy.cut(reset=number % 2 == 0)
            elif fault == "refuse":
                redis_proxy.refuse()
                redis_proxy.cut()
            elif fault == "delay":
                redis_proxy.delay(number * 0.2 + 0.1)
            elif fault == "swallow to_server":
                redis_proxy.swallow("to_server")
            else:
                redis_proxy.swallow("to_client")
            await traffic.calls_after(time.monotonic(), 100)
            if "swallow" in fault:
                # Only a time-out tells that nobody hears, and that gives the connection up, as TCP itself would.
                await until_away(buffer)
            redis_proxy.restore()
            assert await traffic.stored_again() <= 3
    await finish(buffer, books)
    stats = await buffer.stats()
    assert len(books.twice) <= stats.in_doubt
    assert not books.missing
    assert stats.shared is not None
    assert stats.shared.received == stats.ledger.delivered


@one_kind
async def test_with_event_ids_what_comes_again_is_known(
    redis_proxy: Proxy, redis_server: Server, make_buffer: MakeBuffer, books: Books
) -> None:
    """A sender that was told of a drop, or that does not know, adds the same event again: it is stored once."""
    buffer, direct = make_buffer(redis_proxy.url), make_buffer(redis_server.url)
    await buffer.add(books.new(with_id=True))
    payloads: list[Payload] = [books.new(with_id=True) for _ in range(100)]
    for offset in OFFSETS:
        redis_proxy.cut_after(offset, "to_client")
        async with anyio.create_task_group() as group:
            for payload in payloads:
                group.start_soon(buffer.add, payload)
        redis_proxy.restore()
        await settled(buffer)
    async with anyio.create_task_group() as group:
        for payload in payloads:
            group.start_soon(direct.add, payload)
    await drain_all(direct, books)
    assert len(books.taken) == 101
    assert set(books.taken.values()) == {1}
    check_account(await buffer.stats(), books)


@one_kind
async def test_a_slow_server_means_backpressure_and_each_drop_is_told(
    redis_proxy: Proxy, redis_server: Server, make_buffer: MakeBuffer, books: Books
) -> None:
    buffer, direct = make_buffer(redis_proxy.url, max_concurrent=2), make_buffer(redis_server.url)
    await buffer.add(books.new())
    redis_proxy.delay(0.3)  # each way: an answer takes 0.6 s
    started = time.monotonic()
    async with anyio.create_task_group() as group:
        for number in range(1000):
            group.start_soon(buffer.add, books.new(f"s{number % 10}"))
    assert time.monotonic() - started < 2
    dropped = (await buffer.stats()).ledger.dropped
    assert set(dropped) == {DropReason.BACKPRESSURE}
    # Two batches of 128 at most are under way, the rest found no place.
    assert dropped[DropReason.BACKPRESSURE] >= 1000 - 2 * 128
    redis_proxy.restore()
    stats = await settled(buffer)
    assert stats.ledger.dropped == dropped
    check_account(stats, books)
    await drain_all(direct, books)
    books.check()


@one_kind
async def test_with_overflow_block_a_slow_server_drops_nothing(
    redis_proxy: Proxy, redis_server: Server, make_buffer: MakeBuffer, books: Books
) -> None:
    buffer = make_buffer(redis_proxy.url, max_concurrent=2, overflow="block", response_timeout=5.0)
    direct = make_buffer(redis_server.url)
    await buffer.add(books.new())
    redis_proxy.delay(0.1)
    async with anyio.create_task_group() as group:
        for number in range(1000):
            group.start_soon(buffer.add, books.new(f"s{number % 10}"))
    stats = await buffer.stats()
    assert (stats.ledger.delivered, stats.ledger.dropped) == (1001, {})
    await drain_all(direct, books)
    books.check()
    assert not books.dropped


@one_kind
async def test_with_overflow_block_callers_wait_for_a_network_that_comes_back(
    redis_proxy: Proxy, redis_server: Server, make_buffer: MakeBuffer, books: Books
) -> None:
    buffer, direct = make_buffer(redis_proxy.url, overflow="block"), make_buffer(redis_server.url)
    await buffer.add(books.new())
    redis_proxy.refuse()
    redis_proxy.cut()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for _ in range(200):
                group.start_soon(buffer.add, books.new())
            with anyio.move_on_after(1):
                await settled(buffer)
            redis_proxy.restore()
    assert (await buffer.stats()).ledger.dropped == {}
    await drain_all(direct, books)
    books.check()
