"""Processes at one bus: consumers that are killed, handlers that take their time, publishers at full speed."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import anyio
import pytest
import redis

from connector_sdk.bus.events import Event
from connector_sdk.testing.bus_case import TOPIC, Seen, event, number, until
from tests.bus.places import PATIENCE, Place
from tests.bus.processes import publish_all
from tests.servers.fixtures import Server, one_kind

pytestmark = [pytest.mark.anyio, one_kind]

Start: TypeAlias = "Callable[..., subprocess.Popen[str]]"

several_processes = pytest.mark.parametrize("place", ["redis", "postgres"], indirect=True)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def start() -> Iterator[Start]:
    """Start processes; they are killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def run(place: Place, *words: object) -> subprocess.Popen[str]:
        started.append(subprocess.Popen(place.command(*words), stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


@several_processes
async def test_what_killed_consumers_had_goes_to_the_living_and_new_events_too(
    place: Place, start: Start, tmp_path: Path
) -> None:
    """
    Two consumers are killed in a handler, the second with what it had taken over from the first.

    X37: whoever died while it recovered stopped recovery for all. X36: who recovers reads new events as well. X23: names stay.
    """
    log, seen = tmp_path / "log", Seen(PATIENCE)
    log.touch()
    async with place.bus(hold=2.0) as bus:
        await bus.publish(TOPIC, [event(n) for n in range(10)])
        for attempt in (1, 2):
            process = start(place, "consume", 1.5, log, "hang")
            await until(lambda attempt=attempt: f"began 3 {attempt}\n" in log.read_text(), PATIENCE)  # type: ignore[misc]
            kill(process)
        subscription = await bus.subscribe(TOPIC, seen, group="G")
        await bus.publish(TOPIC, event(10))
        await until(lambda: {3, 10} <= set(seen.numbers), PATIENCE)
        await bus.settle(PATIENCE)
        finished = {int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("finished")}
        assert finished | set(seen.numbers) == set(range(11))
        assert max(Counter(seen.numbers).values()) == 1
        assert subscription.stats.recovered >= 1
        info = await bus.info(TOPIC)
        assert info is not None
        assert [(group.name, group.consumers, group.pending) for group in info.groups] == [("G", 1, 0)]


async def test_names_of_killed_consumers_are_forgotten_and_streams_are_trimmed(
    redis_server: Server, redis_prefix: str, start: Start, tmp_path: Path
) -> None:
    """X23: each restart left another consumer name behind, and streams grew for ever."""
    place = Place("redis", redis_server.url, redis_prefix)
    log = tmp_path / "log"
    log.touch()
    async with place.bus(hold=1.0, max_events=100) as bus:
        for life in range(1, 4):
            process = start(place, "consume", 1.0, log, "quick")
            await until(lambda life=life: log.read_text().count("ready") == life, PATIENCE)  # type: ignore[misc]
            await bus.publish(TOPIC, [event(n) for n in range(1000)])
            await until(lambda life=life: log.read_text().count("finished") >= life * 1000, PATIENCE)  # type: ignore[misc]
            kill(process)
        subscription = await bus.subscribe(TOPIC, Seen(PATIENCE), group="G")
        for n in range(30):
            await bus.publish(TOPIC, [event(m) for m in range(n * 10, n * 10 + 10)])
            await bus.settle(PATIENCE)
        with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
            streams = list(client.scan_iter(f"*{redis_prefix}*", _type="stream"))
            assert 100 <= max(client.xlen(key) for key in streams) < 300

            def names() -> set[str]:
                found = [(key, group["name"]) for key in streams for group in client.xinfo_groups(key)]
                return {one["name"] for key, group in found for one in client.xinfo_consumers(key, group)}

            # "-" is nobody: it has what waits for another attempt.
            await until(lambda: names() <= {subscription.consumer, "-"}, PATIENCE)


async def test_a_handler_ten_times_longer_than_the_hold_is_never_run_twice(
    redis_server: Server, redis_prefix: str, postgres_url: str, start: Start, tmp_path: Path
) -> None:
    """X19: on both logs at once; with entries that wait behind it and another member that has nothing to do."""
    hold = 2.0
    places = [Place("redis", redis_server.url, redis_prefix), Place("postgres", postgres_url, "slow")]

    async def run(place: Place) -> None:
        log, seen = tmp_path / place.kind, Seen(PATIENCE)
        log.touch()
        async with place.bus(hold=hold) as bus:
            await bus.publish(TOPIC, [event(n) for n in range(5)])
            start(place, "consume", hold, log, "slow")
            await until(lambda: "began 0 1\n" in log.read_text(), PATIENCE)
            await bus.subscribe(TOPIC, seen, group="G")
            await until(lambda: "finished 0\n" in log.read_text(), PATIENCE)
            await bus.settle(PATIENCE)
            lines = log.read_text().splitlines()
            began = [int(line.split()[1]) for line in lines if line.startswith("began")]
            assert sorted(began + seen.numbers) == list(range(5))
            assert not bus.stats().messages_recovered

    async with anyio.create_task_group() as tasks:
        for place in places:
            tasks.start_soon(run, place)


async def test_replay_goes_over_to_live_while_many_publish_at_full_speed(place: Place, start: Start) -> None:
    """X29: each subscriber gets each event once, all in one order, and each publisher's in its own order."""
    count = 1200
    seen = [Seen(PATIENCE) for _ in range(5)]
    iterated: list[Event] = []

    async with place.bus() as bus, place.bus() as other, anyio.create_task_group() as tasks:
        await bus.publish(TOPIC, [Event("created", TOPIC, {"number": n, "writer": "early"}) for n in range(count)])
        for writer, page in (("one", 1), ("seven", 7)):
            if place.kind == "memory":
                tasks.start_soon(publish_all, other, writer, count, page)
            else:
                start(place, "publish", writer, count, page)
        tasks.start_soon(publish_all, other, "here", count, 3)

        async def iterate() -> None:
            async with bus.events("orders:*", start="beginning") as events:
                async for one in events:
                    iterated.append(one)
                    if len(iterated) == 4 * count:
                        return

        for number_of, handler in enumerate(seen):
            topic = (TOPIC, "orders:*", "*", TOPIC, "ord*")[number_of]
            await bus.subscribe(topic, handler, start="beginning", queue_size=(1000, 10)[number_of % 2])
            await until(lambda n=number_of: len(seen[0].events) >= n * 300, PATIENCE)  # type: ignore[misc]
            if number_of == 1:
                tasks.start_soon(iterate)
        for handler in seen:
            await handler.wait_for(4 * count)
        await bus.settle(PATIENCE)
        await until(lambda: len(iterated) == 4 * count, PATIENCE)
        orders = [[one.event_id for one in handler.events] for handler in seen]
        assert orders == [orders[0]] * len(orders)
        assert [one.event_id for one in iterated] == orders[0]
        assert len(set(orders[0])) == 4 * count
        assert not bus.stats().lost
    by_writer: dict[object, list[int]] = {}
    for one in seen[0].events:
        assert isinstance(one.payload, dict)
        by_writer.setdefault(one.payload["writer"], []).append(number(one))
    assert by_writer == {writer: list(range(count)) for writer in ("early", "here", "one", "seven")}
