"""RedisEventBuffer as its users see it: drains that race writers, payloads that survive, processes, secrets, cost."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import traceback
from typing import Final

import anyio
import msgspec
import pytest
import redis

from connector_sdk.buffers.redis import RedisEventBuffer
from connector_sdk.errors import BufferUnavailableError, ConfigurationError
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import ActionsPayload, Payload, SlimAction, UnknownPayload, decode_payload
from connector_sdk.testing.store_case import new_lease, numbers, record
from tests.buffers.redis_place import PATIENCE, RedisPlace, event, eventually
from tests.buffers.test_fork import in_child
from tests.servers.fixtures import Server, StartRedis

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


def ids(payloads: list[Payload]) -> list[int]:
    return [int(payload.event_id or -1) for payload in payloads]


# -- drains and writers at once: X9


@pytest.mark.parametrize("shards", [1, 3])
async def test_drains_that_race_writers_strand_nothing(redis_place: RedisPlace, shards: int) -> None:
    writer, one, other = (redis_place.buffer(shards=shards, dedupe_seconds=0.0) for _ in range(3))
    rounds, sessions = 150, 4
    drained: list[int] = []
    is_done = False

    async def write() -> None:
        # Each round the sessions are new to the server, as a rule: it is then that an index is written.
        nonlocal is_done
        for start in range(0, rounds * sessions, sessions):
            async with anyio.create_task_group() as tasks:
                for number in range(start, start + sessions):
                    tasks.start_soon(writer.add, event(number, f"s-{number % sessions}"))
        is_done = True

    async def drain(buffer: RedisEventBuffer) -> None:
        while not is_done:
            drained.extend(ids(await buffer.drain()))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            tasks.start_soon(drain, one)
            tasks.start_soon(drain, other)
    drained += ids(await one.drain())
    assert sorted(drained) == list(range(rounds * sessions))
    assert await other.size() == 0
    assert {key for key in redis_place.expiries() if key not in ("state", "drops")} == set()
    redis_place.assert_all_expire()


async def test_the_order_of_a_session_is_kept_by_drains_that_race(redis_place: RedisPlace) -> None:
    writer, reader = redis_place.buffer(), redis_place.buffer()
    drained: list[int] = []
    is_done = False

    async def write() -> None:
        nonlocal is_done
        for number in range(300):
            await writer.add(event(number, "one"))
        is_done = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        while not is_done:
            drained += ids(await reader.drain(7))
    drained += ids(await reader.drain())
    assert drained == list(range(300))


async def test_a_drain_is_chronological_over_sessions_and_shards(redis_place: RedisPlace) -> None:
    buffer = redis_place.buffer(shards=3)
    order = list(range(200))
    random.Random(3).shuffle(order)
    async with anyio.create_task_group() as tasks:
        for number in order:
            tasks.start_soon(buffer.add, event(number, f"s-{number % 17}", age=30 - number / 10))
    assert ids(await buffer.drain(120)) == list(range(120))
    assert ids(await buffer.drain()) == list(range(120, 200))


# -- what survives: X10


async def test_every_field_survives_unknown_ones_too(redis_place: RedisPlace) -> None:
    raw = (
        b'{"type":"actions","product_id":"p","session_id":"s","user_id":"u","email":"e@x","actions":[{"title":"T","index":3,'
        b'"type":"click","timestamp_start":1.5,"conversation_id":"c-1","new_in_action":[1,null]}],"count":1,"forwarded_at":'
        b'1700000000.25,"conversation_id":"c-2","new_field":{"deep":"\xc3\xa9"}}'
    )
    given: list[Payload] = [
        decode_payload(raw, event_id="1"),
        decode_payload(b'{"type":"survey","forwarded_at":1700000001,"answers":[{"a":null}]}', event_id="2"),
        ActionsPayload(
            session_id=None,
            actions=[SlimAction(conversation_id="c-3")],
            forwarded_at=1_700_000_002.0,
            conversation_id="c-4",
            event_id="3",
        ),
    ]
    for codec in ("json", "compact"):
        buffer = redis_place.buffer(codec=codec, dedupe_seconds=0.0)
        for payload in given:
            await buffer.add(payload)
        drained = sorted(await buffer.drain(), key=lambda payload: payload.event_id or "")
        assert drained == given
        assert [payload.to_dict() for payload in drained] == [payload.to_dict() for payload in given]
        first, second, third = drained
        assert isinstance(first, ActionsPayload)
        assert isinstance(second, UnknownPayload)
        assert isinstance(third, ActionsPayload)
        assert (first.conversation_id, first.actions[0].conversation_id) == ("c-2", "c-1")
        assert (third.conversation_id, third.actions[0].conversation_id) == ("c-4", "c-3")


async def test_a_redelivered_event_is_stored_once_whichever_process_adds_it(redis_place: RedisPlace) -> None:
    one, other = redis_place.buffer(), redis_place.buffer()
    for buffer in (one, other, one):
        await buffer.add(event(7))
    assert ids(await other.drain()) == [7]
    await one.add(event(7))
    assert await other.drain() == []
    stats = await one.stats()
    assert dict(stats.ledger.dropped) == {DropReason.DUPLICATE: 2}
    assert stats.ledger.balanced


# -- the account over processes


async def test_evictions_are_counted_for_all_processes_and_told_to_the_one_that_caused_them(
    redis_place: RedisPlace,
) -> None:
    one, other = redis_place.buffer(max_per_session=2), redis_place.buffer(max_per_session=2)
    await one.add(event(0))
    await one.add(event(1))
    await other.add(event(2))
    await other.add(event(3))
    mine, theirs = await one.stats(), await other.stats()
    assert (dict(mine.evicted), dict(theirs.evicted)) == ({}, {DropReason.OVERFLOW: 2})
    assert mine.shared == theirs.shared
    assert mine.shared is not None
    assert (mine.shared.received, dict(mine.shared.dropped)) == (4, {DropReason.OVERFLOW: 2})


async def test_clear_discards_everything_and_counts_it(redis_place: RedisPlace) -> None:
    buffer = redis_place.buffer(shards=2)
    async with anyio.create_task_group() as tasks:
        for number in range(2500):
            tasks.start_soon(buffer.add, event(number, f"s-{number % 7}"))
    await buffer.clear()
    stats = await buffer.stats()
    assert stats.shared is not None
    assert (stats.shared.buffered, dict(stats.shared.dropped)) == (0, {DropReason.CLEARED: 2500})
    redis_place.assert_all_expire()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_and_its_parent_both_add(redis_server: Server, redis_prefix: str) -> None:
    buffer = RedisEventBuffer(redis_server.url, redis_prefix, response_timeout=PATIENCE, acquire_timeout=PATIENCE)

    async def add(*which: int) -> None:
        for number in which:
            await buffer.add(event(number))

    async def drain() -> list[int]:
        try:
            return ids(await buffer.drain())
        finally:
            await buffer.aclose()

    asyncio.run(add(0, 1, 2))
    in_child(lambda: asyncio.run(add(3, 4)))
    asyncio.run(add(5))
    assert asyncio.run(drain()) == [0, 1, 2, 3, 4, 5]


# -- secrets: X13

SECRET: Final = "SECRET-hunter2"


async def test_the_password_comes_out_nowhere(start_redis: StartRedis, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = start_redis(arguments=["--requirepass", SECRET])
    told: list[str] = []

    class Telling:
        def __getattr__(self, name: str) -> object:
            return lambda **facts: told.append(f"{name} {facts}")

    url = f"redis://default:{SECRET}@127.0.0.1:{server.port}/0?client_name=secret-query"
    buffer = RedisEventBuffer(url, observer=Telling(), on_drop=lambda payload: None)
    await buffer.add(event(1))
    assert ids(await buffer.drain()) == [1]
    told += [repr(buffer), str(await buffer.stats()), msgspec.json.encode(await buffer.stats()).decode()]
    server.kill()
    await buffer.add(event(2))
    assert await buffer.drain() == []
    with pytest.raises(BufferUnavailableError) as caught:
        await buffer.quarantined()
    told += ["".join(traceback.format_exception(caught.value)), repr(buffer), str(await buffer.stats())]
    await buffer.aclose(timeout=0.0)
    server.restart()
    wrong = RedisEventBuffer(url.replace(SECRET, SECRET + "-wrong"), observer=Telling(), on_drop=lambda payload: None)
    await wrong.add(event(3))
    with pytest.raises(BufferUnavailableError) as caught:
        await wrong.quarantined()
    told += ["".join(traceback.format_exception(caught.value)), repr(wrong), str(await wrong.stats())]
    await wrong.aclose(timeout=0.0)
    for bad in (f"redis://u:{SECRET}@h:port", f"http://u:{SECRET}@h", f"redis://u:{SECRET}@h/0?nonsense={SECRET}"):
        with pytest.raises(ConfigurationError) as refused:
            RedisEventBuffer(bad)
        told.append(str(refused.value) + repr(refused.value) + refused.value.given)
    records = [f"{entry.getMessage()} {entry.args} {entry.exc_text}" for entry in caplog.records]
    assert [text for text in [*records, caplog.text, *told] if SECRET in text] == []
    assert any("away" in text for text in records), "an outage is told"


# -- cost


def calls_of(admin: redis.Redis) -> int:
    stats = admin.info("commandstats")
    assert isinstance(stats, dict)
    ours = [name for name in stats if not name.startswith(("cmdstat_info", "cmdstat_config"))]
    return sum(int(stats[name]["calls"]) for name in ours)


async def test_the_work_for_an_event_does_not_grow_with_the_sessions(start_redis: StartRedis) -> None:
    server = start_redis()
    cost: dict[int, list[int]] = {}
    with redis.Redis(port=server.port) as admin:
        for many in (10, 1000, 10_000):
            async with RedisPlace.at(server.url, f"cost-{many}") as place:
                shard = place.store(window=3600.0)
                for start in range(0, many, 1000):
                    await shard.append(record(n, f"old-{n}") for n in range(start, min(start + 1000, many)))
                admin.config_resetstat()
                for start in range(0, 1000, 100):
                    await shard.append(record(start + n, f"new-{n % 20}", time=1.0 + n) for n in range(100))
                added = calls_of(admin)
                admin.config_resetstat()
                for _ in range(10):
                    lease = new_lease()
                    assert len((await shard.take(lease, 100)).events) == 100
                    await shard.acknowledge(lease)
                cost[many] = [added, calls_of(admin)]
    for many in (1000, 10_000):
        for few, more in zip(cost[10], cost[many], strict=True):
            assert more <= 1.3 * few + 200, cost
    assert cost[10][0] <= 1000, "one call of Redis for each event"


async def test_a_batch_of_one_session_takes_a_handful_of_calls(start_redis: StartRedis) -> None:
    server = start_redis()
    with redis.Redis(port=server.port) as admin:
        async with RedisPlace.at(server.url, "cost") as place:
            shard = place.store(window=3600.0)
            await shard.append([record(0)])
            admin.config_resetstat()
            await shard.append(record(number) for number in range(1, 1001))
            assert calls_of(admin) < 30
            assert numbers(await shard.peek(2)) == [999, 1000]


# -- time


async def test_what_waits_longest_is_told(redis_place: RedisPlace) -> None:
    buffer = redis_place.buffer()
    await buffer.add(event(0))

    async def is_old() -> bool:
        age = (await buffer.stats()).oldest_age
        return age is not None and age >= 0.2

    await eventually(is_old)
    await buffer.drain()
    assert (await buffer.stats()).oldest_age is None
