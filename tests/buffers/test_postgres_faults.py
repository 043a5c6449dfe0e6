"""PostgresEventBuffer when connections are cut, and its server is killed, hangs or was never there."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import anyio
import pytest

from connector_sdk.buffers.postgres import PostgresEventBuffer
from connector_sdk.errors import BufferUnavailableError
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import Payload
from connector_sdk.testing import PostgresServer
from connector_sdk.testing.store_case import Shard, new_lease, record
from tests.buffers.postgres_place import PATIENCE, PostgresPlace, until_empty
from tests.buffers.sqlite_place import event, numbers_of
from tests.servers.fixtures import EXTERNAL_POSTGRES
from tests.servers.proxy import Proxy

pytestmark = [pytest.mark.anyio, pytest.mark.faults]


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


@pytest.fixture
async def place(postgres_url: str) -> AsyncIterator[PostgresPlace]:
    async with PostgresPlace.at(postgres_url) as place:
        yield place


async def until_served(buffer: PostgresEventBuffer) -> None:
    """Wait until the buffer has found out that its store is back."""
    with anyio.fail_after(PATIENCE):
        while (await buffer.stats()).state != "closed":
            await anyio.sleep(0.02)


async def test_connections_that_are_terminated_cost_nothing(place: PostgresPlace) -> None:
    buffer = place.buffer(overflow="block")
    added = terminated = 0

    async def add() -> None:
        nonlocal added
        while added < 100 or terminated < 5:
            async with anyio.create_task_group() as adders:
                for number in range(added, added + 10):
                    adders.start_soon(buffer.add, event(number))
            added += 10
            await anyio.sleep(0.01)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(add)
        while terminated < 5:
            terminated += await anyio.to_thread.run_sync(place.terminate_all)
            await anyio.sleep(0.03)
    assert sorted(numbers_of(await buffer.peek())) == list(range(added))
    stats = await buffer.stats()
    assert stats.shared is not None
    assert (stats.shared.received, stats.shared.dropped) == (added, {})


async def test_a_server_that_is_killed_keeps_what_it_confirmed(postgres_server: PostgresServer) -> None:
    async with PostgresPlace.at(postgres_server.url) as place:
        buffer = place.buffer(overflow="block", response_timeout=5.0)
        async with anyio.create_task_group() as adders:
            for number in range(300):
                adders.start_soon(buffer.add, event(number))
                if number == 150:
                    await anyio.sleep(0.01)
                    await anyio.to_thread.run_sync(postgres_server.kill)
                    await anyio.sleep(0.3)
                    await anyio.to_thread.run_sync(postgres_server.restart)
        assert sorted(numbers_of(await buffer.drain())) == list(range(300))
        stats = await buffer.stats()
        assert stats.shared is not None
        assert (stats.shared.received, stats.shared.delivered, stats.shared.dropped) == (300, 300, {})
        assert stats.outages >= 1


async def test_a_server_that_hangs_holds_up_nobody(postgres_server: PostgresServer) -> None:
    async with PostgresPlace.at(postgres_server.url) as place:
        await place.store().census()  # setting up takes its time on a busy machine
        told: list[Payload] = []
        buffer = place.buffer(on_drop=told.append, acquire_timeout=0.1, response_timeout=1.0, connect_timeout=1.0)
        await anyio.to_thread.run_sync(postgres_server.pause)
        started = time.monotonic()
        for number in range(30):
            await buffer.add(event(number))
        assert await buffer.drain() == []
        assert time.monotonic() - started < 20.0
        await anyio.to_thread.run_sync(postgres_server.resume)
        drained: list[int] = []
        with anyio.fail_after(PATIENCE):
            # Those that were in doubt were stored, once, or told later.
            while not set(drained) | set(numbers_of(told)) >= set(range(30)):
                drained += numbers_of(await buffer.drain())
                await anyio.sleep(0.05)
        assert len(set(drained)) == len(drained)
        assert len(told) >= 10
        ledger = (await buffer.stats()).ledger
        assert ledger.balanced
        assert ledger.dropped_total == len(told)


async def test_a_server_that_is_away_at_the_start_is_found_later(postgres_server: PostgresServer) -> None:
    postgres_server.kill()
    async with PostgresPlace.at(postgres_server.url) as place:
        told: list[Payload] = []
        buffer = place.buffer(on_drop=told.append)
        for number in range(5):
            await buffer.add(event(number))
        assert await buffer.drain() == []
        assert numbers_of(told) == list(range(5))
        assert (await buffer.stats()).ledger.dropped == {DropReason.UNAVAILABLE: 5}
        await anyio.to_thread.run_sync(postgres_server.restart)
        await until_served(buffer)
        await buffer.add(event(5))
        assert numbers_of(await buffer.drain()) == [5]


@pytest.mark.skipif(bool(EXTERNAL_POSTGRES), reason="needs a server on this machine")
async def test_an_answer_that_is_lost_is_in_doubt_and_sent_again_once(place: PostgresPlace, postgres_url: str) -> None:
    port = int(postgres_url.rpartition(":")[2].partition("/")[0])
    with Proxy(port) as proxy:
        there = PostgresPlace(postgres_url.replace(f":{port}/", f":{proxy.port}/"), "test", place._stack)
        shard, direct = there.store(patience=1.0), place.store()
        await direct.append([record(0, event_id="0")], 1)
        await until_connected(shard)
        proxy.swallow("to_client")
        with pytest.raises(BufferUnavailableError) as caught:
            await shard.append([record(1, event_id="1")], 77)
        assert caught.value.in_doubt
        proxy.restore()
        await there.store().append([record(2, event_id="2")])
        with anyio.fail_after(PATIENCE):
            while True:
                try:
                    await shard.append([record(1, event_id="1")], 77)
                    break
                except BufferUnavailableError:
                    await anyio.sleep(0.05)
        assert sorted(int(found.event_id or -1) for found in await direct.peek()) == [0, 1, 2]
        census = await direct.census()
        assert (census.ledger.received, census.ledger.dropped) == (3, {})


async def until_connected(shard: Shard) -> None:
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                await shard.census()
            except BufferUnavailableError:
                continue
            return


async def test_callers_that_are_cancelled_harm_nobody(place: PostgresPlace) -> None:
    shard = place.store()
    await shard.append(record(number, event_id=str(number)) for number in range(200))

    async def take(delay: float) -> None:
        with anyio.move_on_after(delay):
            lease = new_lease()
            await shard.take(lease, 3, hold=0.5)
            await shard.give_back(lease)

    async with anyio.create_task_group() as tasks:
        for step in range(100):
            tasks.start_soon(take, step * 0.0005)
        for number in range(200, 220):
            tasks.start_soon(shard.append, [record(number, event_id=str(number))])
    assert sorted(await until_empty(shard)) == list(range(220))


async def test_a_step_that_waits_for_others_gives_up_undone(place: PostgresPlace) -> None:
    shard, hasty = place.store(), place.store(patience=0.5)
    await shard.append([record(0)])
    await until_connected(hasty)
    with place.raw() as connection, connection.transaction():
        connection.execute("SELECT * FROM connector_buffers.accounts FOR UPDATE")
        with pytest.raises(BufferUnavailableError) as caught:
            await hasty.append([record(1)])
        assert not caught.value.in_doubt
    assert (await shard.census()).ledger.received == 1


async def test_a_full_disk_is_told_from_a_server_that_is_away(place: PostgresPlace) -> None:
    buffer = place.buffer()
    await buffer.add(event(1))
    with place.raw() as connection:
        connection.execute(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$; "
            "CREATE TRIGGER full_disk BEFORE INSERT ON connector_buffers.events EXECUTE FUNCTION full_disk()"
        )
        await buffer.add(event(2))
        assert (await buffer.stats()).ledger.dropped == {DropReason.STORE_FULL: 1}
        assert numbers_of(await buffer.drain()) == [1]  # what is there can be taken
        connection.execute("DROP TRIGGER full_disk ON connector_buffers.events")
    with anyio.fail_after(PATIENCE):
        while await buffer.size() == 0:
            await buffer.add(event(3))


async def test_a_server_that_cannot_be_written_to_is_away_for_a_time(place: PostgresPlace) -> None:
    buffer = place.buffer()
    await buffer.add(event(1))
    name = place.dsn.rpartition("/")[2]
    with place.raw() as connection:
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
    place.terminate_all()
    await buffer.add(event(2))
    with place.raw() as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = off".encode())
    assert (await buffer.stats()).ledger.dropped == {DropReason.UNAVAILABLE: 1}
    with anyio.fail_after(PATIENCE):
        while not (drained := await buffer.drain()):
            await anyio.sleep(0.02)
    assert numbers_of(drained) == [1]
