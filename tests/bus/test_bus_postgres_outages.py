"""The event bus on a real PostgreSQL that is killed, restarted and emptied, and whose connections are killed."""

from __future__ import annotations

import logging

import anyio
import psycopg
import pytest

from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.postgres import PostgresLog
from connector_sdk.errors import BusUnavailableError
from connector_sdk.testing import PostgresServer
from connector_sdk.testing.bus_case import TOPIC, Seen, event, until
from tests.bus.places import PATIENCE

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Observer:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.states: list[str] = []
        self.losses: list[tuple[str, str | None]] = []

    def bus_state(self, *, bus: str, state: str) -> None:
        self.states.append(state)

    def bus_loss(self, *, topic: str, group: str | None, reason: str, count: int | None) -> None:
        self.losses.append((reason, group))


class Three:
    """A live subscriber, a pattern, and a member of a group."""

    def __init__(self) -> None:
        self.live, self.pattern, self.member = Seen(PATIENCE), Seen(PATIENCE), Seen(PATIENCE)
        self.all = (self.live, self.pattern, self.member)

    async def subscribe(self, bus: EventBus) -> None:
        await bus.subscribe(TOPIC, self.live)
        await bus.subscribe("orders:*", self.pattern)
        await bus.subscribe(TOPIC, self.member, group="G")

    async def wait_for(self, numbers: set[int]) -> None:
        """Wait until each of them got *numbers*."""
        await until(lambda: all(numbers <= set(seen.numbers) for seen in self.all), PATIENCE)


async def publish_until_stored(bus: EventBus, value: int) -> None:
    """Publish, again and again while the storage is away; an event may then be there twice."""
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                await bus.publish(TOPIC, event(value))
            except BusUnavailableError:
                await anyio.sleep(0.05)
            else:
                return


async def test_a_server_that_is_killed_and_restarted_loses_nothing_that_was_confirmed(
    postgres_server: PostgresServer,
) -> None:
    observer, three = Observer(), Three()
    log = PostgresLog(postgres_server.url, connect_timeout=5.0, response_timeout=5.0)
    async with EventBus(log, observer=observer) as bus:
        await three.subscribe(bus)
        await bus.publish(TOPIC, [event(n) for n in range(10)])
        await three.wait_for(set(range(10)))
        await bus.publish(TOPIC, [event(n) for n in range(10, 20)])
        await anyio.to_thread.run_sync(postgres_server.kill)
        with pytest.raises(BusUnavailableError):
            await bus.publish(TOPIC, event(1000))
        await until(lambda: not bus.is_connected, PATIENCE)
        health = await bus.health()
        assert not health
        assert health.error
        await anyio.to_thread.run_sync(postgres_server.restart)
        for value in range(20, 25):
            await publish_until_stored(bus, value)
        await three.wait_for(set(range(25)))
        await until(lambda: bus.is_connected, PATIENCE)
        await bus.settle(PATIENCE)
        assert bus.stats().reconnections >= 1
        assert (observer.states[0], observer.states[-1]) == ("unavailable", "available")
        assert not observer.losses
        assert three.live.numbers == three.pattern.numbers == sorted(three.live.numbers)


async def test_connections_that_are_killed_lose_nothing(postgres_url: str) -> None:
    """X30, X34: the one that listens was not made anew, and what was sent meanwhile was lost."""
    observer, three, confirmed = Observer(), Three(), set[int]()
    async with (
        EventBus(PostgresLog(postgres_url, connect_timeout=20.0, response_timeout=20.0), observer=observer) as bus,
        await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as other,
    ):
        await three.subscribe(bus)
        for value in range(120):
            if value % 30 == 15:
                await other.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            try:
                await bus.publish(TOPIC, event(value))
            except BusUnavailableError:
                continue
            confirmed.add(value)
        await three.wait_for(confirmed)
        await bus.settle(PATIENCE)
        assert len(confirmed) > 60
        for seen in three.all[:2]:
            assert seen.numbers == sorted(set(seen.numbers))
        assert not observer.losses
        info = await bus.info(TOPIC)
        assert info is not None
        assert [(group.pending, group.lag) for group in info.groups] == [(0, 0)]


async def test_delivery_goes_on_after_all_data_is_lost(postgres_url: str) -> None:
    """X16: groups and readers are there again by themselves, and the loss is told."""
    observer, three = Observer(), Three()
    async with EventBus(
        PostgresLog(postgres_url, connect_timeout=20.0, response_timeout=20.0), observer=observer
    ) as bus:
        await three.subscribe(bus)
        await bus.publish(TOPIC, [event(n) for n in range(20)])
        await three.wait_for(set(range(20)))
        await bus.settle(PATIENCE)
        async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as other:
            await other.execute("DROP SCHEMA public CASCADE")
            await other.execute("CREATE SCHEMA public")
        for value in range(100, 110):
            await publish_until_stored(bus, value)
        await three.wait_for(set(range(100, 110)))
        await until(lambda: ("lost", "G") in observer.losses, PATIENCE)
        assert "lost" in bus.stats().lost


async def test_an_idle_bus_logs_nothing(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """X15: longer than every wait and time-out of a request."""
    three = Three()
    with caplog.at_level(logging.INFO):
        log = PostgresLog(postgres_url, connect_timeout=20.0, response_timeout=2.0, poll_interval=0.2)
        async with EventBus(log) as bus:
            await three.subscribe(bus)
            await anyio.sleep(3)
            await bus.publish(TOPIC, event(1))
            await three.wait_for({1})
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
