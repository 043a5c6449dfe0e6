"""StreamReader: what is new in streams, without a group."""

from __future__ import annotations

import asyncio
import logging
import time

import anyio
import pytest

from connector_sdk.redis_client import RedisUnavailableError
from connector_sdk.streams.reader import StreamReader
from tests.servers.fixtures import one_kind
from tests.servers.proxy import Proxy
from tests.streams.stream_place import PATIENCE, StreamPlace, eventually

pytestmark = pytest.mark.anyio


async def read(
    reader: StreamReader, cursors: dict[str, str], limit: int = 100, wait: float = 0.0
) -> dict[str, list[int]]:
    found = await reader.read({name.encode(): cursor.encode() for name, cursor in cursors.items()}, limit, wait)
    return {name.decode(): [int(fields[1]) for _, fields in entries] for name, entries in found}


async def test_entries_after_the_cursors_come_in_order(place: StreamPlace) -> None:
    reader = place.reader()
    a, b = place.key("a"), place.key("b")
    ids = place.add("a", range(5))
    place.add("b", range(10, 12))
    assert await read(reader, {a: "0", b: "0"}) == {a: [0, 1, 2, 3, 4], b: [10, 11]}
    assert await read(reader, {a: ids[2]}) == {a: [3, 4]}
    assert await read(reader, {a: ids[-1], place.key("none"): "0"}) == {}


async def test_no_more_than_asked_for_and_no_stream_starves(place: StreamPlace) -> None:
    reader = place.reader()
    streams = {place.key(name): "0" for name in "abc"}
    for name in "abc":
        place.add(name, range(10))
    seen: set[str] = set()
    for _ in range(6):
        found = await read(reader, streams, limit=2)
        assert sum(map(len, found.values())) == 2
        seen.update(found)
    assert seen == set(streams)


async def test_it_waits_for_what_is_added(place: StreamPlace) -> None:
    reader = place.reader()
    started = time.monotonic()
    assert await read(reader, {place.key("a"): "0"}, wait=0.2) == {}
    assert time.monotonic() - started >= 0.2
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(read(reader, {place.key("a"): "0"}, wait=PATIENCE))
        await eventually(lambda: int(place.raw.info("clients")["blocked_clients"]) >= 1, "a blocked reader")
        place.add("a", [7])
        assert await waiting == {place.key("a"): [7]}


@one_kind
async def test_a_cancelled_read_leaves_it_usable_and_nothing_on_the_server(place: StreamPlace) -> None:
    reader = place.reader()
    for _ in range(5):
        waiting = asyncio.create_task(read(reader, {place.key("a"): "0"}, wait=PATIENCE))
        await eventually(lambda: int(place.raw.info("clients")["blocked_clients"]) == 1, "a blocked reader")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await eventually(lambda: int(place.raw.info("clients")["blocked_clients"]) == 0, "nobody blocked")
    place.add("a", [1])
    assert await read(reader, {place.key("a"): "0"}) == {place.key("a"): [1]}


@one_kind
async def test_several_tasks_read_at_once(place: StreamPlace) -> None:
    reader = place.reader()
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(read(reader, {place.key(str(n)): "0"}, wait=PATIENCE)) for n in range(5)]
        await eventually(lambda: int(place.raw.info("clients")["blocked_clients"]) == 5, "five blocked readers")
        for n in reversed(range(5)):
            place.add(str(n), [n])
        assert [await task for task in waiting] == [{place.key(str(n)): [n]} for n in range(5)]


@one_kind
async def test_any_wait_works_with_any_time_out_and_an_idle_reader_logs_nothing(
    place: StreamPlace, caplog: pytest.LogCaptureFixture
) -> None:
    """X15: a blocking time as long as the time-out of the socket made an idle consumer log errors."""
    reader = StreamReader(place.client().address, connect_timeout=2.0, response_timeout=2.0)
    with caplog.at_level(logging.DEBUG, logger="connector_sdk"):
        started = time.monotonic()
        assert await reader.read({place.key("a").encode(): b"0"}, 10, 5.0) == []
        assert time.monotonic() - started >= 5.0
    await reader.aclose()
    assert caplog.records == []


@one_kind
async def test_a_lost_connection_is_made_anew(place: StreamPlace, redis_proxy: Proxy) -> None:
    reader = place.reader(redis_proxy.url)
    place.add("a", [1])
    cursors = {place.key("a"): "0"}
    assert await read(reader, cursors)
    redis_proxy.cut()
    assert await read(reader, cursors)
    with anyio.fail_after(PATIENCE):
        redis_proxy.refuse()
        redis_proxy.cut()
        with pytest.raises(RedisUnavailableError):
            await read(reader, cursors)
    redis_proxy.restore()
    assert await read(reader, cursors)
