"""GroupConsumer: streams shared by the members of a group."""

from __future__ import annotations

import asyncio
import logging

import anyio
import msgspec
import pytest

from connector_sdk.errors import BusUnavailableError, ConfigurationError
from connector_sdk.streams import Entry, GroupConsumer
from tests.servers.fixtures import one_kind
from tests.servers.proxy import Proxy
from tests.streams.stream_place import PATIENCE, StreamPlace, eventually, number

pytestmark = pytest.mark.anyio


async def take(consumer: GroupConsumer, count: int) -> list[Entry]:
    """Take entries without acknowledging them."""
    entries: list[Entry] = []
    while len(entries) < count:
        _, entry = await consumer.get_entry(PATIENCE)
        assert entry is not None, f"{len(entries)} of {count} entries came"
        entries.append(entry)
    return entries


async def drain(consumer: GroupConsumer) -> list[int]:
    """Take and acknowledge until nothing is left."""
    seen = []
    async for _, entry in consumer:
        seen.append(number(entry))
        await consumer.acknowledge(entry)
    await consumer.flush()
    return seen


@pytest.mark.parametrize("buffer_size", [0, 20])
async def test_two_members_drain_three_streams_and_see_each_entry_once(place: StreamPlace, buffer_size: int) -> None:
    for at, name in enumerate("abc"):
        place.add(name, range(100 * at, 100 * at + 50))
    streams = ["a", "b", "c"]
    async with (
        place.group_consumer(streams, buffer_size=buffer_size, timeout=0.5) as one,
        place.group_consumer(streams, buffer_size=buffer_size, timeout=0.5) as two,
    ):
        found = await asyncio.gather(drain(one), drain(two))
        assert sorted([*found[0], *found[1]]) == [n for at in range(3) for n in range(100 * at, 100 * at + 50)]
        assert one.stats().acknowledged + two.stats().acknowledged == 150
        assert [place.pending_count(name) for name in streams] == [0, 0, 0]
    assert place.pending("a") == {}, "names that were made up are gone"


async def test_a_group_that_is_made_begins_at_the_beginning(place: StreamPlace) -> None:
    """X27: entries that were there were skipped without a word."""
    place.add("a", range(3))
    async with place.group_consumer("a") as consumer:
        assert await drain(consumer) == [0, 1, 2]
    async with GroupConsumer(place.url, place.key("a"), "h", start="latest") as consumer:
        assert await drain(consumer) == []


@one_kind
async def test_groups_that_are_missing_are_named(place: StreamPlace) -> None:
    place.add("a", [1])
    place.add("b", [1])
    place.raw.xgroup_create(place.key("a"), "g", "0")
    with pytest.raises(ConfigurationError, match="auto_create") as caught:
        async with place.group_consumer(["a", "b", "c"], auto_create=False):
            pass
    assert place.key("a") not in str(caught.value)
    assert place.key("b") in str(caught.value)
    assert place.key("c") in str(caught.value)
    async with place.group_consumer("a", auto_create=False) as consumer:
        assert await drain(consumer) == [1]
        with pytest.raises(ConfigurationError, match="auto_create"):
            await consumer.add_stream(place.key("b"))


async def test_what_was_buffered_goes_to_the_others_when_the_block_is_left(place: StreamPlace) -> None:
    place.add("a", range(10))
    async with place.group_consumer("a", buffer_size=6) as one:
        entries = await take(one, 2)
        await one.acknowledge(entries[0])
    async with place.group_consumer("a") as two:
        rest = await take(two, 9)
        assert [(number(entry), entry.attempt) for entry in rest] == [(1, 2), *((n, 1) for n in range(2, 10))]


async def test_automatic_acknowledgement_loses_nothing_that_is_buffered(place: StreamPlace) -> None:
    """X24: entries that were fetched and not handed out were lost for good."""
    place.add("a", range(6))
    async with place.group_consumer("a", auto_acknowledge=True, buffer_size=5) as one:
        assert [number(entry) for entry in await take(one, 1)] == [0]
    async with place.group_consumer("a", auto_acknowledge=True) as two:
        assert [number(entry) async for _, entry in two] == [1, 2, 3, 4, 5]
    assert place.pending_count("a") == 0


@one_kind
async def test_acknowledgements_arrive_though_nothing_is_fetched(place: StreamPlace) -> None:
    place.add("a", range(3))
    async with place.group_consumer("a", buffer_size=10) as consumer:
        entries = await take(consumer, 3)
        await consumer.acknowledge(*entries, entries[0])
        await eventually(lambda: place.pending_count("a") == 0, "the acknowledgements")
        assert consumer.stats().in_hand == 0


async def test_its_own_backlog_comes_first(place: StreamPlace) -> None:
    """C19, C20: a second run clears what the first one left."""
    place.add("a", range(4))
    async with place.group_consumer("a", consumer="me", backlog="own") as first:
        await take(first, 3)
    assert place.pending("a") == {"me": 3}
    async with place.group_consumer("a", consumer="other", backlog="own") as other:
        assert await drain(other) == [3]
    async with place.group_consumer("a", consumer="me", backlog="none") as none:
        assert await drain(none) == []
        assert place.pending("a")["me"] == 3
    place.add("a", [4])
    async with place.group_consumer("a", consumer="me", backlog="own") as second:
        entries = await take(second, 4)
        assert [(number(entry), entry.attempt) for entry in entries] == [(0, 2), (1, 2), (2, 2), (4, 1)]
        await second.acknowledge(*entries)
    assert place.pending_count("a") == 0


async def test_the_backlog_of_dead_members_is_offered(place: StreamPlace) -> None:
    """X25: only the consumer's own backlog was ever looked at."""
    place.add("a", range(3))
    place.raw.xgroup_create(place.key("a"), "g", "0")
    place.raw.xreadgroup("g", "dead", {place.key("a"): ">"}, count=2)
    async with place.group_consumer("a", backlog="own", hold=0.5, timeout=1.5) as own:
        assert await drain(own) == [2]
    async with place.group_consumer("a", backlog="group", hold=0.5) as group:
        assert [number(entry) for entry in await take(group, 2)] == [0, 1]
        assert group.stats().recovered == 2
        assert "dead" not in place.pending("a")


async def test_trimmed_entries_of_the_backlog_are_counted_and_passed_over(
    place: StreamPlace, caplog: pytest.LogCaptureFixture
) -> None:
    """X26, through the iterator."""
    ids = place.add("a", range(6))
    async with place.group_consumer("a", consumer="me") as first:
        await take(first, 6)
    place.raw.xdel(place.key("a"), ids[0], ids[3])
    async with place.group_consumer("a", consumer="me") as second:
        assert await drain(second) == [1, 2, 4, 5]
        assert second.stats().trimmed == 2
    assert place.pending_count("a") == 0
    assert any("trimmed" in record.getMessage() for record in caplog.records)


async def test_what_is_refused_comes_again(place: StreamPlace) -> None:
    place.add("a", range(2))
    async with place.group_consumer("a") as one, place.group_consumer("a") as two:
        first, second = await take(one, 2)
        await one.nack(first)
        await one.nack(second, delay=0.3)
        again = await take(two, 2)
        assert [(number(entry), entry.attempt) for entry in again] == [(0, 2), (1, 2)]
        await two.acknowledge(*again)
        assert (one.stats().nacked, two.stats().redelivered) == (2, 2)


async def test_a_group_outlives_the_loss_of_all_data(place: StreamPlace) -> None:
    place.add("a", [1])
    async with place.group_consumer("a") as consumer:
        entries = await take(consumer, 1)
        place.raw.flushall()
        await consumer.acknowledge(*entries)
        place.add("a", [2])
        assert [number(entry) for entry in await take(consumer, 1)] == [2]
        assert consumer.stats().healed == 1


@one_kind
async def test_connections_that_are_cut_lose_nothing(place: StreamPlace, redis_proxy: Proxy) -> None:
    seen: set[int] = set()
    async with place.group_consumer("a", url=redis_proxy.url, buffer_size=10) as consumer:
        for n in range(15):
            place.add("a", range(20 * n, 20 * n + 20))
            redis_proxy.cut_after(150 * n + 1)
            for _ in range(20):
                _, entry = await consumer.get_entry(PATIENCE)
                assert entry is not None
                seen.add(number(entry))
                await consumer.acknowledge(entry)
        redis_proxy.restore()
        while len(seen) < 300:
            _, entry = await consumer.get_entry(PATIENCE)
            assert entry is not None, f"{len(seen)} of 300 came"
            seen.add(number(entry))
            await consumer.acknowledge(entry)
        await consumer.flush()
    assert place.pending_count("a") == 0


@one_kind
async def test_a_server_that_is_away_harms_nothing(place: StreamPlace, redis_proxy: Proxy) -> None:
    place.add("a", range(3))
    options = {"url": redis_proxy.url, "connect_timeout": 1.0, "response_timeout": 1.0}
    async with place.group_consumer("a", buffer_size=2, **options) as consumer:
        entries = await take(consumer, 3)
        redis_proxy.refuse()
        redis_proxy.cut()
        await consumer.acknowledge(*entries[:2])
        with pytest.raises(BusUnavailableError):
            await consumer.flush()
        with pytest.raises(BusUnavailableError):
            await consumer.nack(entries[2])
        redis_proxy.restore()
        await eventually(lambda: place.pending_count("a") == 1, "the acknowledgements")
        redis_proxy.refuse()
        redis_proxy.cut()


@one_kind
async def test_streams_are_added_removed_paused_and_sought(place: StreamPlace) -> None:
    ids = place.add("a", range(5))
    place.add("b", [10])
    async with place.group_consumer("a", buffer_size=10) as consumer:
        assert await consumer.add_stream(place.key("b"))
        assert not await consumer.add_stream(place.key("b"))
        first = await take(consumer, 1)
        await consumer.pause(place.key("a"))
        await consumer.acknowledge(*first)
        assert {number(entry) for entry in first} | set(await drain(consumer)) in ({0, 10}, {10})
        async with place.group_consumer("a") as other:  # has what is paused here
            _, entry = await other.get_entry(PATIENCE)
            assert entry is not None
            await other.nack(entry)
        await consumer.resume()
        rest: set[int] = set()
        while len(rest) < 4:
            rest |= set(await drain(consumer))
        await consumer.seek(place.key("a"), ids[2])
        assert await drain(consumer) == [3, 4]
        assert await consumer.remove_stream(place.key("a"))
        assert not await consumer.remove_stream(place.key("a"))
        place.add("a", [5])
        assert await drain(consumer) == []


async def test_the_lag_of_a_group(place: StreamPlace) -> None:
    place.add("a", range(10))
    async with place.group_consumer("a") as consumer:
        await take(consumer, 4)
        await anyio.sleep(0.05)
        lag = await consumer.lag(place.key("a"))
        assert (lag.entries, lag.pending) == (6, 4)
        assert 0.05 <= lag.seconds < PATIENCE
        await take(consumer, 6)
        lag = await consumer.lag(place.key("a"))
        assert (lag.entries, lag.pending, lag.seconds) == (0, 10, 0.0)


@one_kind
async def test_a_reading_of_a_consumer_is_json(place: StreamPlace) -> None:
    async with place.group_consumer("a") as consumer:
        assert msgspec.json.decode(msgspec.json.encode(consumer.stats()))["streams"] == [place.key("a")]
        assert consumer.group == "g"
        assert consumer.name


@one_kind
async def test_many_tasks_take_from_one_consumer(place: StreamPlace, caplog: pytest.LogCaptureFixture) -> None:
    place.add("a", range(200))
    with caplog.at_level(logging.WARNING):
        async with place.group_consumer("a", buffer_size=7, timeout=0.3) as consumer:
            found = await asyncio.gather(*(drain(consumer) for _ in range(5)))
    assert sorted(n for part in found for n in part) == list(range(200))
    assert not caplog.records


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("group", ""),
        ("group", None),
        ("consumer", ""),
        ("consumer", "-"),
        ("backlog", "all"),
        ("hold", 0.4),
        ("hold", "1"),
    ],
)
def test_an_option_that_cannot_work_is_refused_by_name(option: str, value: object) -> None:
    options = {"group": "g", option: value}
    with pytest.raises(ConfigurationError) as caught:
        GroupConsumer("redis://localhost", "a", **options)  # type: ignore[arg-type]  # wrong on purpose
    assert caught.value.option == option
