"""A bus whose storage loses everything under it, or is not there: what each log must get over by itself."""

from __future__ import annotations

import anyio
import psycopg
import pytest
import redis

from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.events import Event
from connector_sdk.bus.handlers import Message
from connector_sdk.bus.redis import RedisLog
from connector_sdk.errors import BusUnavailableError
from connector_sdk.testing.bus_case import TOPIC, Seen, event, number, until
from tests.bus.places import PATIENCE, Place
from tests.servers.fixtures import StartRedis, one_kind

pytestmark = [pytest.mark.anyio, one_kind]

durable = pytest.mark.parametrize("place", ["redis", "postgres"], indirect=True)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def lose_everything(place: Place) -> None:
    """Delete all that the bus has stored."""
    if place.kind == "redis":
        with redis.Redis.from_url(place.url) as client:
            client.flushall()
        return
    with psycopg.connect(place.url, autocommit=True) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE %s", (f"{place.prefix}%",))
        names = ", ".join(f'"{name}"' for (name,) in found)
        assert names
        connection.execute(f"DROP TABLE {names} CASCADE".encode())


async def publish_until_stored(bus: EventBus, topic: str, value: int) -> None:
    """Publish, again and again while the storage is away; an event may then be there twice."""
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                await bus.publish(topic, event(value, topic))
            except BusUnavailableError:
                await anyio.sleep(0.05)
            else:
                return


@durable
async def test_groups_by_topic_and_by_pattern_go_on_after_everything_is_lost(place: Place) -> None:
    """X16: in topics that were there, and in new ones; with an entry in a handler's hands; and the loss is told."""
    losses: list[tuple[str, str | None]] = []
    exact, pattern = Seen(PATIENCE), Seen(PATIENCE)
    entered, release = anyio.Event(), anyio.Event()

    class Observer:
        def bus_loss(self, *, topic: str, group: str | None, reason: str, count: int | None) -> None:
            losses.append((reason, group))

    async def handle(one: Event) -> None:
        if number(one) == 9:
            entered.set()
            await release.wait()
        await pattern(one)

    async with place.bus(observer=Observer()) as bus, place.bus() as other:
        await bus.subscribe(TOPIC, exact, group="exact")
        await bus.subscribe("orders:*", handle, group="pattern")
        await other.publish(TOPIC, [event(n) for n in range(10)])
        await entered.wait()
        await exact.wait_for(10)
        await anyio.to_thread.run_sync(lose_everything, place)
        release.set()
        for value in range(100, 105):
            await publish_until_stored(other, TOPIC, value)
            await publish_until_stored(other, "orders:new", 100 + value)
        await until(lambda: set(range(100, 105)) <= set(exact.numbers), PATIENCE)
        await until(lambda: {*range(10), *range(100, 105), *range(200, 205)} <= set(pattern.numbers), PATIENCE)
        await until(lambda: {("lost", "exact"), ("lost", "pattern")} <= set(losses), PATIENCE)
        await bus.settle(PATIENCE)


@durable
async def test_what_waits_for_another_attempt_comes_to_whoever_lives_when_all_connections_are_new(place: Place) -> None:
    """An event fails in a bus that ends; another bus gets it, with the attempts that it had."""
    attempts: list[int] = []
    failed = anyio.Event()

    async def fails(one: Event) -> None:
        failed.set()
        raise LookupError("on purpose")

    async def handle(one: Event, message: Message) -> None:
        attempts.append(message.attempt)

    async with place.bus() as bus:
        await bus.subscribe(TOPIC, fails, group="G", retry_delays=(0.2,))
        await bus.publish(TOPIC, event(1))
        await failed.wait()
    async with place.bus() as bus:
        await bus.subscribe(TOPIC, handle, group="G")
        await until(lambda: bool(attempts), PATIENCE)
        await bus.settle(PATIENCE)
    assert attempts == [2]


async def test_what_is_asked_for_during_an_outage_fails_and_leaves_nothing_behind(start_redis: StartRedis) -> None:
    """Who could not subscribe is not subscribed; what was subscribed before goes on; the end comes in time."""
    server = start_redis(appendonly=True)
    seen, late = Seen(PATIENCE), Seen(PATIENCE)
    async with EventBus(RedisLog(server.url)) as bus:
        await bus.subscribe(TOPIC, seen)
        await bus.publish(TOPIC, event(1))
        await seen.wait_for(1)
        server.kill()
        for group in (None, "G"):
            for topic in (TOPIC, "orders:*"):
                with pytest.raises(BusUnavailableError):
                    await bus.subscribe(topic, late, group=group)
        with pytest.raises(BusUnavailableError):
            await bus.dead_letters.list()
        with pytest.raises(BusUnavailableError):
            await bus.info(TOPIC)
        assert bus.subscriber_count() == 1
        server.restart()
        await publish_until_stored(bus, TOPIC, 2)
        await until(lambda: 2 in seen.numbers, PATIENCE)
        await bus.subscribe("orders:*", late, group="G")
        await publish_until_stored(bus, TOPIC, 3)
        await until(lambda: 3 in late.numbers and 3 in seen.numbers, PATIENCE)
        await bus.settle(PATIENCE)
        assert set(late.numbers) == {3}
        server.kill()
        with anyio.fail_after(PATIENCE):
            assert (await bus.close(timeout=1)).clean
