"""The event bus on PostgresLog passes the public contract suite, and outlives its connections."""

from __future__ import annotations

import itertools
from typing import Unpack

import anyio
import psycopg
import pytest

from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.events import Event
from connector_sdk.bus.postgres import PostgresLog
from connector_sdk.errors import BusUnavailableError
from connector_sdk.testing import EventBusContract, LogOptions
from connector_sdk.testing.bus_case import TOPIC, Seen, event, until
from tests.servers.fixtures import every_postgres

PATIENCE = 30.0
_prefixes = itertools.count()


@pytest.fixture
def anyio_backend() -> str:
    """The driver works in asyncio alone."""
    return "asyncio"


@every_postgres
class TestBusOnPostgres(EventBusContract):
    hold = 1.0

    @pytest.fixture(autouse=True)
    def _place(self, postgres: str) -> None:
        self.dsn, self.prefix = postgres, f"bus-{next(_prefixes)}"

    async def make_log(self, **options: Unpack[LogOptions]) -> PostgresLog:
        return PostgresLog(self.dsn, self.prefix, connect_timeout=20.0, response_timeout=20.0, **options)


@pytest.mark.anyio
async def test_after_all_connections_were_killed_no_event_is_missed(postgres_url: str) -> None:
    """X34: also those that were published while the listener was away."""
    live, members = Seen(PATIENCE), Seen(PATIENCE)
    confirmed: list[int] = []
    log = PostgresLog(postgres_url, connect_timeout=20.0, response_timeout=20.0)
    async with EventBus(log) as bus:
        await bus.subscribe("orders:*", live)
        await bus.subscribe(TOPIC, members, group="G")
        for value in range(60):
            if value % 20 == 10:
                await anyio.to_thread.run_sync(_kill_connections, postgres_url)
            try:
                await bus.publish(TOPIC, event(value))
            except BusUnavailableError:
                await anyio.sleep(0.05)
            else:
                confirmed.append(value)
        for seen in (live, members):
            await until(lambda seen=seen: set(confirmed) <= set(seen.numbers), PATIENCE)  # type: ignore[misc]
        assert len(confirmed) >= 40
        assert live.numbers == sorted(live.numbers)
        await until(lambda: bus.is_connected, PATIENCE)


@pytest.mark.anyio
async def test_topics_that_look_alike_are_never_mixed(postgres: str) -> None:
    """X33: topics that differ in a mark only, and names of every length."""
    topics = ["a:b", "a.b", "a_b", "a-b", "A:b", "t" * 80, "t" * 81, "ü:b"]
    log = PostgresLog(postgres, f"bus-{next(_prefixes)}", connect_timeout=20.0, response_timeout=20.0)
    got: dict[str, list[str]] = {topic: [] for topic in topics}
    async with EventBus(log) as bus:
        for topic in topics:

            async def take(one: Event, topic: str = topic) -> None:
                got[topic].append(one.topic)

            await bus.subscribe(topic, take)
        for topic in topics:
            await bus.publish(topic, Event("created", topic, {"text": "x" * 9000}))
        await bus.settle(PATIENCE)
    assert got == {topic: [topic] for topic in topics}


def _kill_connections(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
