"""Consumer: streams as async iterators, without a group."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime

import anyio
import pytest

from connector_sdk.errors import BusClosedError, BusUnavailableError, ConfigurationError
from connector_sdk.streams import Consumer
from tests.servers.fixtures import one_kind
from tests.servers.proxy import Proxy
from tests.streams.stream_place import PATIENCE, StreamPlace, number

pytestmark = pytest.mark.anyio


async def drain(consumer: Consumer) -> list[int]:
    return [number(entry) async for _, entry in consumer]


async def test_entries_of_many_streams_until_nothing_is_left(place: StreamPlace) -> None:
    first = place.add("a", range(3))[0]
    place.add("b", range(10, 12))
    async with place.consumer(["a", "b"], start="beginning") as consumer:
        seen = [(stream, number(entry)) async for stream, entry in consumer]
        assert sorted(seen) == [(place.key("a"), n) for n in range(3)] + [(place.key("b"), n) for n in (10, 11)]
        assert await drain(consumer) == []
        place.add("a", [3])
        assert await drain(consumer) == [3], "an outer loop goes on"
        assert await consumer.get_entry() == (None, None)
        place.add("a", [4])
        stream, entry = await consumer.get_entry()
        assert stream == place.key("a")
        assert entry is not None
        assert (entry.fields, entry.text, entry.stream) == ({b"n": b"4"}, {"n": "4"}, stream)
        assert entry.identifier > first
        assert abs(entry.time - time.time()) < 3600
        assert entry.attempt == 1


async def test_the_latest_is_fixed_when_the_block_is_entered(place: StreamPlace) -> None:
    place.add("a", [1])
    async with place.consumer(["a", "new"]) as consumer:
        place.add("a", [2])
        place.add("new", [3])
        assert sorted(await drain(consumer)) == [2, 3]


async def test_where_to_start(place: StreamPlace) -> None:
    stream = place.key("a")
    for second in range(5):
        place.raw.xadd(stream, {"n": second}, id=f"{1_700_000_000 + second}000-0")
    for start, expected in (
        ("beginning", [0, 1, 2, 3, 4]),
        ("1700000001000-0", [2, 3, 4]),
        (1_700_000_002, [2, 3, 4]),
        (1_700_000_002.001, [3, 4]),
        (datetime.fromtimestamp(1_700_000_003, UTC), [3, 4]),
        ("latest", []),
    ):
        async with place.consumer("a", start=start) as consumer:
            assert await drain(consumer) == expected, start
    async with Consumer(place.url, {stream: "1700000003000", place.key("b"): "latest"}) as consumer:
        assert await drain(consumer) == [4]


@pytest.mark.parametrize("buffer_size", [0, 1, 7, 1000])
async def test_no_buffer_changes_what_comes(place: StreamPlace, buffer_size: int) -> None:
    place.add("a", range(50))
    async with place.consumer("a", start="beginning", buffer_size=buffer_size) as consumer:
        assert number((await consumer.get_entry())[1] or pytest.fail("nothing came")) == 0
        assert consumer.stats().buffered == min(buffer_size, 49)
        assert await drain(consumer) == list(range(1, 50))
        assert consumer.stats().received == 50


@one_kind
async def test_the_time_out_is_waited_for_and_ends_early_when_something_comes(place: StreamPlace) -> None:
    async with place.consumer("a", timeout=0.3) as consumer:
        started = time.monotonic()
        assert await drain(consumer) == []
        assert time.monotonic() - started >= 0.3
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(consumer.get_entry(PATIENCE))
            await anyio.sleep(0.05)
            place.add("a", [1])
            assert (await waiting)[1] is not None


@one_kind
async def test_streams_come_and_go_while_it_runs(place: StreamPlace) -> None:
    place.add("a", [1, 2])
    place.add("b", [3])
    async with place.consumer("a", start="beginning") as consumer:
        assert not await consumer.add_stream(place.key("a"))
        assert await consumer.add_stream(place.key("b"), "beginning")
        assert await consumer.add_stream(place.key("c"), "latest")
        assert consumer.streams == (place.key("a"), place.key("b"), place.key("c"))
        assert sorted(await drain(consumer)) == [1, 2, 3]
        assert await consumer.remove_stream(place.key("a"))
        assert not await consumer.remove_stream(place.key("a"))
        place.add("a", [4])
        place.add("c", [5])
        assert await drain(consumer) == [5]


@one_kind
async def test_pause_resume_and_seek_lose_nothing(place: StreamPlace) -> None:
    ids = place.add("a", range(6))
    place.add("b", [10])
    async with place.consumer(["a", "b"], start="beginning") as consumer:
        seen = [number((await consumer.get_entry())[1] or pytest.fail("nothing came"))]
        await consumer.pause(place.key("a"))
        assert consumer.stats().paused == (place.key("a"),)
        seen += await drain(consumer)
        await consumer.resume()
        seen += await drain(consumer)
        assert sorted(seen) == [0, 1, 2, 3, 4, 5, 10]
        await consumer.seek(place.key("a"), ids[3])
        assert await drain(consumer) == [4, 5]
        await consumer.seek(place.key("a"), "beginning")
        assert number((await consumer.get_entry())[1] or pytest.fail("nothing came")) == 0
        await consumer.seek(place.key("a"), "latest")
        assert await drain(consumer) == []
        with pytest.raises(KeyError, match="does not read"):
            await consumer.seek("other", "latest")


async def test_the_lag_counts_what_was_not_handed_out(place: StreamPlace) -> None:
    place.add("a", range(20))
    async with place.consumer("a", start="beginning") as consumer:
        assert (await consumer.lag(place.key("a"))).entries == 20
        for _ in range(5):
            await consumer.get_entry()
        await anyio.sleep(0.05)
        lag = await consumer.lag(place.key("a"))
        assert (lag.stream, lag.entries, lag.pending) == (place.key("a"), 15, 0)
        assert 0.05 <= lag.seconds < PATIENCE
        await drain(consumer)
        lag = await consumer.lag(place.key("a"))
        assert (lag.entries, lag.seconds) == (0, 0.0)


@one_kind
async def test_an_outage_is_waited_out(
    place: StreamPlace, redis_proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    async with place.consumer("a", start="beginning", url=redis_proxy.url) as consumer:
        iterator = consumer.forever()
        place.add("a", [1])
        assert number((await anext(iterator))[1]) == 1
        redis_proxy.refuse()
        redis_proxy.cut()
        with pytest.raises(BusUnavailableError):
            await consumer.get_entry(0.2)
        place.add("a", [2])
        async with asyncio.TaskGroup() as tasks:

            async def following() -> int:
                return number((await anext(iterator))[1])

            waiting = tasks.create_task(following())
            await anyio.sleep(0.3)
            redis_proxy.restore()
            assert await waiting == 2
        assert consumer.stats().outages >= 1
    assert any("waiting for it" in record.getMessage() for record in caplog.records)


@one_kind
async def test_an_idle_consumer_logs_nothing(place: StreamPlace, caplog: pytest.LogCaptureFixture) -> None:
    """X15, for both consumers: a block time far above the time-out of responses."""
    options = {"timeout": 4.0, "response_timeout": 1.5, "connect_timeout": 1.5}
    with caplog.at_level(logging.DEBUG, logger="connector_sdk"):
        async with place.consumer("a", **options) as one, place.group_consumer("b", **options) as two:
            assert [await one.get_entry(), await two.get_entry()] == [(None, None)] * 2
            assert one.stats().outages == two.stats().outages == 0
    assert caplog.records == []


async def test_a_stream_that_is_none_is_told(place: StreamPlace) -> None:
    place.raw.set(place.key("a"), "text")
    async with place.consumer("a", start="beginning") as consumer:
        with pytest.raises(BusUnavailableError, match="WRONGTYPE"):
            await consumer.get_entry()


@one_kind
async def test_it_works_inside_its_block_only(place: StreamPlace) -> None:
    consumer = place.consumer("a")
    with pytest.raises(BusClosedError, match="not entered yet"):
        await consumer.get_entry()
    async with consumer:
        pass
    with pytest.raises(BusClosedError, match="closed"):
        await consumer.get_entry()
    with pytest.raises(BusClosedError, match="entered before"):
        await consumer.__aenter__()


async def test_a_server_that_is_not_there_is_told_when_entering() -> None:
    with pytest.raises(BusUnavailableError):
        async with Consumer("redis://127.0.0.1:1", "a"):
            pass


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("timeout", -1), ("timeout", "5"), ("buffer_size", -1), ("buffer_size", True), ("buffer_size", 100_001),
        ("start", "sometime"), ("connect_timeout", 0), ("response_timeout", float("nan")),
    ],
)  # fmt: skip
def test_an_option_that_cannot_work_is_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Consumer("redis://localhost", "a", **{option: value})  # type: ignore[arg-type]  # wrong on purpose
    assert caught.value.option == option
