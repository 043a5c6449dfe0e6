"""Promises of the stream consumers that their other tests take for granted."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import anyio
import pytest

from connector_sdk.streams import Consumer, Entry, GroupConsumer
from tests.servers.fixtures import one_kind
from tests.streams.stream_place import PATIENCE, StreamPlace, eventually, number

pytestmark = pytest.mark.anyio


async def drain(consumer: Consumer | GroupConsumer) -> list[int]:
    """Take until nothing is left."""
    return [number(entry) async for _, entry in consumer]


async def test_a_group_that_is_made_begins_where_it_is_told(place: StreamPlace) -> None:
    """Row 61: at an id or at a time, each stream at its own place; once it exists the start means nothing."""
    stream, other = place.key("a"), place.key("b")
    for second in range(5):
        place.raw.xadd(stream, {"n": second}, id=f"{1_700_000_000 + second}000-0")
        place.raw.xadd(other, {"n": 10 + second}, id=f"{1_700_000_000 + second}000-0")
    for name, start, expected in (
        ("id", "1700000001000-0", [2, 3, 4]),
        ("seconds", 1_700_000_002, [2, 3, 4]),
        ("time", datetime.fromtimestamp(1_700_000_003, UTC), [3, 4]),
        ("latest", "latest", []),
        ("time", "beginning", [3, 4]),
    ):
        async with GroupConsumer(place.url, stream, name, start=start, connect_timeout=PATIENCE) as consumer:
            assert await drain(consumer) == expected, name
    starts = {stream: "1700000003000-0", other: 1_700_000_004}
    async with GroupConsumer(place.url, starts, "each", connect_timeout=PATIENCE) as consumer:
        assert sorted(await drain(consumer)) == [4, 14]


@one_kind
async def test_iterations_end_when_idle_or_never(place: StreamPlace) -> None:
    """Row 60: `async for` ends at once, `until_idle` after so many seconds without an entry, `forever` never."""
    place.add("a", range(3))
    async with place.consumer("a", start="beginning") as consumer:
        seen: list[int] = []
        waited: list[float] = []

        async def follow() -> None:
            async for _, entry in consumer.until_idle(1.5):
                seen.append(number(entry))
            waited.append(time.monotonic())

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follow())
            await eventually(lambda: len(seen) == 3, "what was there")
            await anyio.sleep(0.5)
            last = time.monotonic()
            place.add("a", [3])
            await eventually(lambda: len(seen) == 4, "what came before it was idle for long enough")
        assert waited[0] - last >= 1.5
        endless: list[int] = []

        async def follow_for_ever() -> None:
            async for _, entry in consumer.forever():
                endless.append(number(entry))

        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(follow_for_ever())
            for value in (4, 5):
                await anyio.sleep(0.3)
                place.add("a", [value])
                await eventually(lambda value=value: endless[-1:] == [value], "an entry after a pause")  # type: ignore[misc]
            assert not following.done()
            following.cancel()
        assert endless == [4, 5]


async def test_readers_and_groups_go_on_after_everything_was_deleted(place: StreamPlace) -> None:
    """X16, for both consumers: also where the one that reads waits at the moment; the group's loss is counted."""
    seen: dict[str, list[int]] = {"one": [], "two": []}
    place.add("a", [1])
    async with place.consumer("a", start="beginning") as one, place.group_consumer("a") as two:

        async def follow(name: str, consumer: Consumer | GroupConsumer) -> None:
            async for _, entry in consumer.forever():
                seen[name].append(number(entry))
                if isinstance(consumer, GroupConsumer):
                    await consumer.acknowledge(entry)

        async with asyncio.TaskGroup() as tasks:
            following = [tasks.create_task(follow(name, consumer)) for name, consumer in (("one", one), ("two", two))]
            for turn in range(2, 5):
                await eventually(lambda turn=turn: all(turn - 1 in found for found in seen.values()), "what was added")  # type: ignore[misc]
                await anyio.sleep(0.2)
                place.raw.flushall()
                place.add("a", [turn])
            await eventually(lambda: all(4 in found for found in seen.values()), "what was added last")
            for task in following:
                task.cancel()
        assert seen["one"] == [1, 2, 3, 4]
        assert sorted(set(seen["two"])) == [1, 2, 3, 4]
        assert two.stats().healed >= 1


async def test_the_lag_is_right_though_entries_were_deleted(place: StreamPlace) -> None:
    """Row 67: within one entry, where the server itself does not know any more; with what came back as well."""
    ids = place.add("a", range(30))
    async with place.consumer("a", start="beginning", buffer_size=0) as one, place.group_consumer("a") as two:
        for _ in range(10):
            for consumer in (one, two):
                assert (await consumer.get_entry(PATIENCE))[1] is not None
        place.raw.xdel(place.key("a"), *ids[15:20])
        place.raw.xtrim(place.key("a"), minid=ids[5], approximate=False)
        for consumer in (one, two):
            lag = await consumer.lag(place.key("a"))
            assert abs(lag.entries - 15) <= 1, consumer
        left = len(await drain(one))
        assert left == 15
        assert len(await drain(two)) == 15
        for consumer in (one, two):
            lag = await consumer.lag(place.key("a"))
            assert (lag.entries, lag.seconds) == (0, 0.0)


@one_kind
async def test_keys_run_at_the_same_time(place: StreamPlace) -> None:
    """Row 65: handlers of four keys wait for each other, and all get on."""
    place.add("a", range(12))
    met = [anyio.Event() for _ in range(3)]
    inside: set[int] = set()

    async def meet(entry: Entry) -> None:
        turn = number(entry) // 4
        inside.add(number(entry))
        if {turn * 4 + key for key in range(4)} <= inside:
            met[turn].set()
        with anyio.fail_after(PATIENCE):
            await met[turn].wait()

    async with place.group_consumer("a", buffer_size=12) as consumer:
        await consumer.run(meet, concurrency=4, key=lambda entry: number(entry) % 4, until_idle=True)
    assert place.pending_count("a") == 0


@one_kind
async def test_an_entry_that_was_put_off_is_not_early_and_holds_up_no_other(place: StreamPlace) -> None:
    """Row 48, for a consumer of a stream: `nack(delay)` is measured, and outlives who asked for it."""
    place.add("a", range(10))
    async with place.group_consumer("a", buffer_size=20) as one:
        _, entry = await one.get_entry(PATIENCE)
        assert entry is not None
        put_off = time.monotonic()
        await one.nack(entry, 1.5)
        assert await drain(one) == list(range(1, 10))
    async with place.group_consumer("a") as two:
        while True:
            _, entry = await two.get_entry(PATIENCE)
            assert entry is not None
            if number(entry) == 0:
                break
        assert time.monotonic() - put_off >= 1.49
        assert entry.attempt == 2


@one_kind
async def test_any_time_out_may_be_asked_for(place: StreamPlace) -> None:
    """Also one that no server takes: it is waited for in parts."""
    async with place.consumer("a", timeout=1e9) as one, place.group_consumer("a", timeout=1e9) as two:
        async with asyncio.TaskGroup() as tasks:
            waiting = [
                tasks.create_task(consumer.get_entry(seconds)) for consumer, seconds in ((one, 1e300), (two, None))
            ]
            await anyio.sleep(0.3)
            assert not any(task.done() for task in waiting)
            place.add("a", [1])
            found = [(await task)[1] for task in waiting]
        assert [number(entry) for entry in found if entry is not None] == [1, 1]
