"""The event bus on a real Redis that is killed, restarted, flushed and cut off, and consumers that are killed."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
import redis

from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.events import Event
from connector_sdk.bus.redis import RedisLog
from connector_sdk.errors import BusUnavailableError
from connector_sdk.testing import RedisServer
from connector_sdk.testing.bus_case import TOPIC, Seen, event, number, until
from tests.servers.fixtures import Server, StartRedis
from tests.servers.proxy import Proxy

pytestmark = pytest.mark.anyio

PATIENCE = 30.0


@pytest.fixture
def anyio_backend() -> str:
    """The Redis client works in asyncio alone."""
    return "asyncio"


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


@pytest.mark.parametrize("group", [None, "G"])
async def test_a_restart_with_the_data_loses_nothing(own_redis_server: RedisServer, group: str | None) -> None:
    seen = Seen(PATIENCE)
    states: list[str] = []

    class Observer:
        def bus_state(self, *, bus: str, state: str) -> None:
            states.append(state)

    async with EventBus(RedisLog(own_redis_server.url), observer=Observer()) as bus:
        subscription = await bus.subscribe(TOPIC, seen, group=group)
        await bus.publish(TOPIC, [event(n) for n in range(5)])
        await seen.wait_for(5)
        own_redis_server.kill()
        with pytest.raises(BusUnavailableError):
            await bus.publish(TOPIC, event(5))
        await until(lambda: not bus.is_connected, PATIENCE)
        health = await bus.health()
        assert not health
        assert health.error
        own_redis_server.restart()
        for value in range(6, 12):
            await publish_until_stored(bus, value)
        await until(lambda: {*range(5), *range(6, 12)} <= set(seen.numbers), PATIENCE)
        await until(lambda: bus.is_connected, PATIENCE)
        await bus.settle(PATIENCE)
        assert bus.stats().reconnections >= 1
        assert states[0] == "unavailable"
        assert states[-1] == "available"
        assert subscription.stats.balanced
        assert not bus.stats().lost


@pytest.mark.parametrize("how", ["restart", "flush"])
async def test_delivery_goes_on_after_all_data_is_lost(start_redis: StartRedis, how: str) -> None:
    """X16: groups and readers are there again by themselves, and the loss is told."""
    server = start_redis()
    live, members, pattern = Seen(PATIENCE), Seen(PATIENCE), Seen(PATIENCE)
    losses: list[tuple[str, str | None]] = []

    class Observer:
        def bus_loss(self, *, topic: str, group: str | None, reason: str, count: int | None) -> None:
            losses.append((reason, group))

    async with EventBus(RedisLog(server.url), observer=Observer()) as bus:
        await bus.subscribe(TOPIC, live)
        await bus.subscribe(TOPIC, members, group="G")
        await bus.subscribe("orders:*", pattern)
        await bus.publish(TOPIC, [event(n) for n in range(20)])
        for seen in (live, members, pattern):
            await seen.wait_for(20)
        await bus.settle(PATIENCE)
        if how == "flush":
            with redis.Redis(port=server.port) as client:
                client.flushall()
        else:
            server.kill()
            server.restart()
        for value in range(100, 110):
            await publish_until_stored(bus, value)
        for seen in (live, members, pattern):
            await until(lambda seen=seen: set(range(100, 110)) <= set(seen.numbers), PATIENCE)  # type: ignore[misc]
        assert ("lost", "G") in losses
        assert "lost" in bus.stats().lost


async def test_connections_that_are_cut_lose_nothing_that_was_confirmed(redis_proxy: Proxy, redis_prefix: str) -> None:
    live, members = Seen(PATIENCE), Seen(PATIENCE)
    confirmed: list[int] = []
    async with EventBus(RedisLog(redis_proxy.url, redis_prefix)) as bus:
        await bus.subscribe(TOPIC, live, start="beginning")
        await bus.subscribe(TOPIC, members, group="G", start="beginning")
        for value in range(200):
            if value % 40 == 20:
                await anyio.to_thread.run_sync(redis_proxy.cut)
            try:
                await bus.publish(TOPIC, event(value))
            except BusUnavailableError:
                continue
            confirmed.append(value)
        for seen in (live, members):
            await until(lambda seen=seen: set(confirmed) <= set(seen.numbers), PATIENCE)  # type: ignore[misc]
        assert len(confirmed) >= 190
        assert live.numbers == sorted(live.numbers)


CONSUMER = """
import os, sys
import anyio
from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.redis import RedisLog

async def main():
    async with EventBus(RedisLog(sys.argv[1], sys.argv[2]), hold=1.0) as bus:
        async def handle(event):
            print(event.payload["number"], flush=True)
            if event.payload["number"] == 3:
                await anyio.sleep_forever()
        await bus.subscribe("orders:created", handle, group="G", start="beginning")
        print("ready", flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


@contextmanager
def consumer(url: str, prefix: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a member of the group in a process of its own."""
    script = folder / "consumer.py"
    script.write_text(CONSUMER)
    arguments = [sys.executable, str(script), url, prefix]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_what_a_killed_consumer_had_is_handled_by_another(
    redis_server: Server, redis_prefix: str, tmp_path: Path
) -> None:
    seen = Seen(PATIENCE)
    async with EventBus(RedisLog(redis_server.url, redis_prefix), hold=1.0) as bus:
        await bus.publish(TOPIC, [event(n) for n in range(10)])
        with consumer(redis_server.url, redis_prefix, tmp_path) as process:
            assert process.stdout is not None
            lines: list[str] = []
            while "3" not in lines:
                line = await anyio.to_thread.run_sync(process.stdout.readline)
                assert line, "the consumer ended"
                lines.append(line.strip())
            os.kill(process.pid, signal.SIGKILL)
        await bus.subscribe(TOPIC, seen, group="G")
        await until(lambda: set(range(3, 10)) <= set(seen.numbers), PATIENCE)
        await bus.settle(PATIENCE)
        info = await bus.info(TOPIC)
        assert info is not None
        assert [(group.consumers, group.pending) for group in info.groups] == [(1, 0)]
        assert bus.stats().messages_recovered >= 1


async def test_an_idle_bus_logs_nothing(
    redis_server: Server, redis_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """X15 for the bus: longer than every wait and time-out of a request."""
    with caplog.at_level(logging.INFO, "connector_sdk"):
        async with EventBus(RedisLog(redis_server.url, redis_prefix, response_timeout=0.5)) as bus:
            seen = Seen(PATIENCE)
            await bus.subscribe(TOPIC, seen)
            await bus.subscribe(TOPIC, seen, group="G")
            await anyio.sleep(3)
            await bus.publish(TOPIC, event(1))
            await seen.wait_for(2)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_publishing_shares_requests(redis_server: Server, redis_prefix: str) -> None:
    """Many publishers at once cost few requests, and each gets the position of its own event."""
    log = RedisLog(redis_server.url, redis_prefix)
    requests: list[int] = []
    append = log.append

    async def counted(entries: list[tuple[str, Event | bytes]]) -> list[str]:
        requests.append(len(entries))
        return await append(entries)

    log.append = counted  # type: ignore[method-assign,assignment]
    got: dict[int, list[str]] = {}
    async with EventBus(log) as bus:

        async def publish(value: int) -> None:
            got[value] = await bus.publish(TOPIC, [event(value), event(1000 + value)])

        async with anyio.create_task_group() as tasks:
            for value in range(100):
                tasks.start_soon(publish, value)
        assert len(requests) < 20
        stored = {record.position: record for record in (await log.read({TOPIC: ""}, limit=1000)).records}
        assert len(stored) == 200
        by_id: dict[int, str] = {}
        async with bus.events(TOPIC, start="beginning") as events:
            for position in stored:
                one = await events.__anext__()
                by_id[number(one)] = position
        assert all(got[value] == [by_id[value], by_id[1000 + value]] for value in range(100))
