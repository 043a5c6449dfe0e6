"""What a RedisStore makes of servers that lose keys, scripts or room, and of strangers who write into its keys."""

from __future__ import annotations

import struct

import anyio
import pytest
import redis

from connector_sdk.buffers.store import Record
from connector_sdk.errors import BufferUnavailableError
from connector_sdk.ledger import DropReason
from connector_sdk.testing import RedisServer
from connector_sdk.testing.store_case import Shard, new_lease, numbers, record
from tests.buffers.redis_place import RedisPlace, event
from tests.servers.fixtures import StartRedis

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


# -- keys that go

KEYS = [
    "state", "heads", "touched", "ids", "drops", "leases", "held", "quarantine", "session:a", "session:b", "no-session",
    "lease:*", "acked:*", "known:*", "*",
]  # fmt: skip


async def fill(shard: Shard) -> tuple[str, str]:
    """Make one key of each kind; return two leases, of which one is gone by half."""
    await shard.append(record(n, ("a", "b", None)[n % 3], event_id=str(n)) for n in range(30))
    await shard.append([record(0, "a", event_id="0")])
    half, whole = new_lease(), new_lease()
    events = (await shard.take(half, 6)).events
    await shard.take(whole, 3)
    assert await shard.acknowledge(half, events[:2])
    assert await shard.quarantine(half, events[2:3])
    return half, whole


def delete(place: RedisPlace, pattern: str) -> int:
    keys = [key for key in place.raw.scan_iter(match=place.key(pattern)) if isinstance(key, bytes)]
    for key in keys:
        place.raw.delete(key)
    return len(keys)


@pytest.mark.parametrize("pattern", KEYS)
@pytest.mark.parametrize("first", ["append", "drain", "settle", "peek", "extend", "filter"])
async def test_a_key_that_is_gone_does_no_further_harm(redis_place: RedisPlace, pattern: str, first: str) -> None:
    shard = redis_place.store(window=3600.0)
    half, whole = await fill(shard)
    assert delete(redis_place, pattern) > 0
    if first == "append":
        await shard.append(record(n, ("a", "b", None)[n % 3]) for n in range(100, 106))
    elif first == "drain":
        await shard.drain()
    elif first == "peek":
        await shard.peek()
        await shard.sessions()
    elif first == "extend":
        await shard.extend(whole)
    elif first == "filter":
        await shard.take_to_the_end(whole, 3, kinds=["summary"])
    await shard.acknowledge(half)
    await shard.give_back(whole)
    await shard.append([record(200, "a", event_id="200"), record(201, "c")])
    taken = numbers(await shard.drain()) + numbers(await shard.drain())
    assert {200, 201} <= set(taken)
    assert len(taken) == len(set(taken))
    ledger = (await shard.census()).ledger  # which must balance
    assert (ledger.buffered, ledger.in_flight, (await shard.census()).leases) == (0, 0, 0)
    redis_place.assert_all_expire()


@pytest.mark.parametrize(
    ("pattern", "lost"),
    [("session:a", 7), ("session:b", 7), ("lease:*", 6), ("*", 27), ("heads", 0), ("touched", 0), ("held", 0)],
)
async def test_events_whose_key_is_gone_are_counted_as_lost(redis_place: RedisPlace, pattern: str, lost: int) -> None:
    shard = redis_place.store(window=3600.0)
    half, whole = await fill(shard)
    delete(redis_place, pattern)
    await shard.give_back(half)
    await shard.give_back(whole)
    drained = len(await shard.drain())
    assert dict((await shard.census()).ledger.dropped).get(DropReason.LOST, 0) == lost
    assert drained + lost == 27


async def test_a_lease_whose_index_is_gone_still_comes_back(redis_place: RedisPlace) -> None:
    shard = redis_place.store(window=3600.0)
    await shard.append([record(0), record(1)])
    lease = new_lease()
    await shard.take(lease)
    redis_place.raw.delete(redis_place.key("leases"))
    assert (await shard.census()).ledger.in_flight == 2, "its time is not up"
    assert await shard.extend(lease, 0.05)
    await redis_place.pass_time(0.06)
    assert numbers(await shard.drain()) == [0, 1]


async def test_a_flushed_server_is_empty_and_what_it_had_is_lost(redis_place: RedisPlace) -> None:
    shard = redis_place.store()
    await shard.append(record(number) for number in range(5))
    redis_place.raw.flushall()
    appended = await shard.append([record(7)])
    assert (appended.stored, appended.size, dict(appended.dropped)) == (1, 1, {DropReason.LOST: 5})
    ledger = (await shard.census()).ledger
    assert (ledger.received, ledger.buffered, dict(ledger.dropped)) == (6, 1, {DropReason.LOST: 5})
    assert numbers(await shard.drain()) == [7]


@pytest.mark.parametrize("first", ["acknowledge", "extend", "give_back", "quarantine", "take", "census", "peek"])
async def test_whoever_comes_first_to_a_flushed_server_counts_what_is_lost(redis_place: RedisPlace, first: str) -> None:
    shard = redis_place.store()
    await shard.append(record(number) for number in range(5))
    lease = new_lease()
    events = (await shard.take(lease, 2)).events
    redis_place.raw.flushall()
    if first == "acknowledge":
        assert not await shard.acknowledge(lease)
    elif first == "extend":
        assert not await shard.extend(lease)
    elif first == "give_back":
        assert not await shard.give_back(lease)
    elif first == "quarantine":
        assert not await shard.quarantine(lease, events)
    elif first == "take":
        assert await shard.drain() == []
    elif first == "peek":
        assert await shard.peek() == []
    assert dict((await shard.census()).ledger.dropped) == {DropReason.LOST: 5}
    redis_place.assert_all_expire()


async def test_what_is_lost_is_counted_once_for_all_processes(redis_place: RedisPlace) -> None:
    shard, other = redis_place.store(), redis_place.store()
    await shard.append(record(number) for number in range(5))
    await other.census()
    redis_place.raw.flushall()
    await shard.append([record(5)])
    await other.append([record(6)])
    assert dict((await other.census()).ledger.dropped) == {DropReason.LOST: 5}


async def test_a_batch_is_stored_again_by_a_server_that_lost_it(redis_place: RedisPlace) -> None:
    shard = redis_place.store()
    for number in range(1, 4):
        await shard.append([record(number)], number)
    redis_place.raw.flushall()
    for number in (5, 3, 4):
        await shard.append([record(number)], number)
    assert numbers(await shard.drain()) == [3, 4, 5]


async def test_scripts_that_the_server_forgot_are_sent_again(redis_place: RedisPlace) -> None:
    shard = redis_place.store()
    await shard.append([record(0)])
    redis_place.raw.script_flush()
    await shard.append([record(1)])
    redis_place.raw.script_flush()
    assert numbers(await shard.drain()) == [0, 1]
    redis_place.raw.script_flush()
    assert (await shard.census()).ledger.delivered == 2


# -- strangers

JUNK = [
    *(bytes(range(200, 200 + length)) for length in range(41)),
    b"\0" * 16,
    *(b"\0" * 7 + struct.pack(">d", time) + b"a:{" for time in (0.0, 1.5, float("inf"), float("-inf"), float("nan"))),
    b"\x7f" * 15 + b"s" + b"ffffffff:x",
    b"\x7f" * 15 + b"u::{",
    b"\x7f" * 15 + b"u-5:abc:{}",
    b"\x7f" * 15 + b"a5:ab",
    b"\x7f" * 15 + b"a2:\xff\xff0:{}",
    b"\x7f" * 15 + b"a",
    b"\x7f" * 15 + b"a:[1]",
    b"\x7f" * 15 + b"a:\x01junk",
    b"\x7f" * 15 + b"a:\x02junk",
]


@pytest.mark.parametrize("score", [0.0, 1e12, float("-inf"), float("inf")])
async def test_members_that_are_no_events_are_put_aside_and_block_nothing(
    redis_place: RedisPlace, score: float
) -> None:
    buffer = redis_place.buffer()
    for number in range(6):
        await buffer.add(event(number, "s" if number % 2 else None))
    for end in ("session:s", "no-session"):
        redis_place.raw.zadd(redis_place.key(end), dict.fromkeys(JUNK, score))
    assert [payload.event_id for payload in await buffer.peek()] == list("012345")
    assert sorted(str(payload.event_id) for payload in await buffer.drain()) == list("012345")
    assert await buffer.drain() == []
    assert await buffer.size() == 0
    found = await buffer.quarantined()
    assert sorted(each.session or "" for each in found) == [""] * len(JUNK) + ["s"] * len(JUNK)
    assert {junk for junk in JUNK if not any(junk in each.body for each in found)} == set()
    stats = await buffer.stats()
    assert stats.quarantined == 2 * len(JUNK)
    assert stats.shared is not None
    assert stats.shared.balanced
    assert dict(stats.shared.dropped) == {DropReason.UNDECODABLE: 2 * len(JUNK)}
    redis_place.assert_all_expire()


async def test_filters_and_leases_get_past_members_that_are_no_events(redis_place: RedisPlace) -> None:
    buffer = redis_place.buffer()
    for number in range(6):
        await buffer.add(event(number))
    redis_place.raw.zadd(redis_place.key("session:s"), dict.fromkeys(JUNK, 1000000000.0))
    assert [payload.event_id for payload in await buffer.drain(2, types=["summary"])] == ["0", "1"]
    assert [payload.event_id for payload in await buffer.drain(2, session_id="s")] == ["2", "3"]
    got: list[str | None] = []
    with anyio.fail_after(30):
        while len(got) < 2:
            async with buffer.lease(10) as lease:
                got += [payload.event_id for payload in lease.events]
    assert got == ["4", "5"]
    assert await buffer.drain() == []
    assert len(await buffer.quarantined()) == len(JUNK)


async def test_a_session_that_a_stranger_made_is_found_by_who_asks_for_it_and_expires(redis_place: RedisPlace) -> None:
    shard = redis_place.store()
    await shard.append([record(0)])
    redis_place.raw.zadd(redis_place.key("session:strange"), {b"one": 1.0, b"two": 2.0})
    assert len((await shard.take(new_lease(), 1, session="strange")).events) == 1
    redis_place.assert_all_expire()
    await shard.census()
    redis_place.assert_all_expire()
    assert len(await shard.drain()) == 2


# -- no room

ROOM = 8 * 1024 * 1024


async def full_server(server: RedisServer, shard: Shard) -> tuple[redis.Redis, int]:
    """Fill a server until it refuses; return how many events it has."""
    admin = redis.Redis(port=server.port)
    await shard.append(_big(0))
    used = admin.info("memory")["used_memory"]
    admin.config_set("maxmemory", used + ROOM)
    stored, refused = 1, None
    while refused is None:
        try:
            await shard.append(_big(stored))
        except BufferUnavailableError as error:
            refused = error
        else:
            stored += 1
    assert refused.full
    assert not refused.in_doubt
    return admin, stored


def _big(number: int) -> list[Record]:
    return [Record(f"s-{number % 7}", float(number), "summary", b"%d" % number + b" " * 100_000, str(number))]


async def test_a_server_without_room_refuses_and_nothing_is_done(start_redis: StartRedis) -> None:
    server = start_redis()
    async with RedisPlace.at(server.url, "full") as place:
        shard = place.store(window=3600.0, max_per_session=50)
        admin, stored = await full_server(server, shard)
        with admin:
            before, keys = (await shard.census()).ledger, place.expiries().keys()
            for batch in (_big(5000), [record(0, "new")], [record(0, "s-1", event_id="new")]):
                with pytest.raises(BufferUnavailableError) as caught:
                    await shard.append(batch)
                assert caught.value.full
            assert (await shard.census()).ledger == before
            assert place.expiries().keys() == keys
            assert before.buffered == stored
            place.assert_all_expire()


async def test_draining_works_without_room_and_makes_some(start_redis: StartRedis) -> None:
    server = start_redis()
    async with RedisPlace.at(server.url, "full") as place:
        shard = place.store(window=3600.0)
        admin, stored = await full_server(server, shard)
        with admin:
            lease, again = new_lease(), new_lease()
            events = (await shard.take(lease, 5)).events
            assert await shard.acknowledge(lease, events[:2])
            assert await shard.extend(lease)
            assert await shard.give_back(lease)
            assert numbers((await shard.take(again, 3, in_order=False)).events)
            assert await shard.acknowledge(again)
            assert len((await shard.take(again, 4, session="s-3")).events) == 4
            assert await shard.quarantine(again, (await shard.take(again, 1)).events)
            assert await shard.acknowledge(again)
            assert len(await shard.peek(3)) == 3
            assert len(await shard.drain()) == stored - 2 - 3 - 5
            assert (await shard.append(_big(7000))).stored == 1
            assert (await shard.census()).ledger.received == stored + 1


async def test_a_server_that_evicts_is_reported(start_redis: StartRedis) -> None:
    server = start_redis()
    async with RedisPlace.at(server.url, "policy") as place:
        with redis.Redis(port=server.port) as admin:
            store = place.store(shards=3).store
            assert await store.inspect(timeout=20.0) == []
            admin.config_set("maxmemory-policy", "allkeys-lru")
            assert await store.inspect(timeout=20.0) == [], "without a bound nothing is evicted"
            admin.config_set("maxmemory", "100mb")
            (finding,) = await store.inspect(timeout=20.0)
            assert "allkeys-lru" in finding
            assert "noeviction" in finding
            admin.config_set("maxmemory-policy", "noeviction")
            assert await store.inspect(timeout=20.0) == []
