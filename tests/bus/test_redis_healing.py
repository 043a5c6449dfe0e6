"""A RedisLog whose server is killed, emptied, stopped or cut off: nothing is lost in silence, and all go on by themselves."""

from __future__ import annotations

import time

import anyio
import pytest
import redis

from connector_sdk.bus.log import START, Loss
from connector_sdk.errors import BusUnavailableError
from connector_sdk.testing.log_case import Reader
from tests.bus.redis_place import PATIENCE, TOPIC, append_until_stored, claimed, opened, read_until, reader_from_now
from tests.servers.fixtures import Server, StartRedis, one_kind
from tests.servers.proxy import Proxy

pytestmark = pytest.mark.anyio

LOST = Loss(topic=TOPIC, reason="lost")
LOST_BY_GROUP = Loss(topic=TOPIC, reason="lost", group="billing")


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


def flush(port: int) -> None:
    with redis.Redis(port=port) as raw:
        raw.flushall()


# -- data that is gone


async def test_a_group_goes_on_after_everything_was_deleted_and_is_told(redis_server: Server) -> None:
    async with opened(redis_server.url) as log, opened(redis_server.url) as other:
        member = log.member("billing", "one", hold=60.0)
        await member.follow(TOPIC, START)
        await log.append([(TOPIC, b"%d" % number) for number in range(10)])
        in_hand, _ = await claimed(member, [b"0"])
        flush(redis_server.port)
        await append_until_stored(other, [b"10"])
        await append_until_stored(log, [b"11"])
        found, losses = await claimed(member, [b"10", b"11"])
        assert [delivery.body for delivery in found] == [b"10", b"11"]
        assert losses == [LOST_BY_GROUP]
        await member.acknowledge([*in_hand, *found])
        await member.postpone(in_hand[0], 0.0, b"")
        claim = await member.claim(10, wait=0.1)
        assert not claim.deliveries
        assert not claim.losses
        assert (await log.topics())[0] == [TOPIC]
        letter = await member.bury(found[0], b"evidence")
        assert await log.redrive(letter)
        again, losses = await claimed(member, [b"10"])
        assert (len(again), losses) == (1, [])


async def test_a_reader_goes_on_after_everything_was_deleted_and_is_told_once(redis_server: Server) -> None:
    async with opened(redis_server.url) as log, opened(redis_server.url) as other:
        await log.append([(TOPIC, b"before"), ("other", b"before")])
        reader = await reader_from_now(log)
        reader.cursors["other"] = await log.end("other")
        await log.append([(TOPIC, b"seen")])
        await read_until(reader, [b"seen"])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read_until, reader, [b"after"])
            await anyio.sleep(0.1)
            flush(redis_server.port)
            await append_until_stored(other, [b"after"])
        assert [record.body for record in reader.records] == [b"seen", b"after"]
        await append_until_stored(other, [b"later"])
        await append_until_stored(other, [b"new"], "new:topic")
        await read_until(reader, [b"later", b"new"])
        assert reader.losses == [LOST]
        assert reader.created == [TOPIC, "new:topic"], (
            "it begins anew, and who has no place in it yet is to hear of that"
        )


async def test_a_reader_without_a_catalogue_is_told_as_well(redis_server: Server) -> None:
    async with opened(redis_server.url) as log, opened(redis_server.url) as other:
        await log.append([(TOPIC, b"before")])
        reader = Reader(log, {TOPIC: await log.end(TOPIC)})
        await reader.read()
        flush(redis_server.port)
        await append_until_stored(other, [b"after"])
        await read_until(reader, [b"after"])
        await append_until_stored(other, [b"later"])
        await read_until(reader, [b"later"])
        assert reader.losses == [LOST]
        assert [record.body for record in reader.records] == [b"after", b"later"]


async def test_each_of_several_readers_is_told(redis_server: Server) -> None:
    """Also the one that had the news of the topic's new beginning from another."""
    async with opened(redis_server.url) as log, opened(redis_server.url) as other:
        await log.append([(TOPIC, b"before")])
        first = await reader_from_now(log)
        second = Reader(log, {TOPIC: await log.end(TOPIC)})
        await second.read()
        flush(redis_server.port)
        await append_until_stored(other, [b"after"])
        await read_until(first, [b"after"])
        await read_until(second, [b"after"])
        assert first.losses == second.losses == [LOST]


async def test_a_group_that_lost_its_topic_has_it_listed_again_though_nobody_publishes(redis_server: Server) -> None:
    async with opened(redis_server.url) as log:
        member = log.member("billing", "one", hold=60.0)
        await member.follow(TOPIC, START)
        await log.append([(TOPIC, b"before")])
        reader = Reader(log, {}, catalogue=START)
        await reader.read()
        flush(redis_server.port)
        with anyio.fail_after(PATIENCE):
            while not (losses := (await member.claim(1, wait=1.0)).losses):
                pass
        assert losses == [LOST_BY_GROUP]
        assert (await log.topics())[0] == [TOPIC]
        with anyio.fail_after(PATIENCE):
            while reader.created != [TOPIC]:
                await reader.read(wait=1.0)
        with redis.Redis(port=redis_server.port) as raw:
            for key in raw.keys("{events}:*"):
                assert raw.pttl(key) > 0, key


@one_kind
@pytest.mark.parametrize("whole", [True, False])
async def test_ids_that_go_back_are_noticed(redis_server: Server, whole: bool) -> None:
    """The clock of the server that came back is behind; or an old copy of the data came back."""
    async with opened(redis_server.url) as log:
        await log.append([(TOPIC, b"before")])
        reader = await reader_from_now(log)
        future = "99999999999999-0"
        with redis.Redis(port=redis_server.port) as raw:
            if whole:
                raw.xadd("{events}:catalogue", {"t": "soon"}, id=future)
            kept = raw.dump(f"{{events}}:topic:{TOPIC}")
            raw.xadd(f"{{events}}:topic:{TOPIC}", {"b": b"far"}, id=future)
            await read_until(reader, [b"far"])
            assert reader.cursors[TOPIC] == future
            if whole:
                raw.flushall()
            else:
                raw.restore(f"{{events}}:topic:{TOPIC}", 60_000, kept, replace=True)
        if whole:
            await log.append([(TOPIC, b"after"), (TOPIC, b"later")])
            await read_until(reader, [b"after", b"later"])
            assert [record.body for record in reader.records] == [b"far", b"after", b"later"]
            assert reader.losses == [LOST]
        else:
            # Nobody announced that: it is found out when the topic is announced next, by which it began anew.
            with redis.Redis(port=redis_server.port) as raw:
                raw.zrem("{events}:topics", TOPIC)
            async with opened(redis_server.url) as other:
                await other.append([(TOPIC, b"hidden")])
                while not reader.losses:
                    await reader.read(wait=1.0)
                await other.append([(TOPIC, b"after")])
            await read_until(reader, [b"after"])
            assert reader.losses == [LOST]


async def test_a_server_that_was_killed_comes_back_with_its_data(start_redis: StartRedis) -> None:
    server = start_redis(appendonly=True)
    async with opened(server.url) as log:
        member = log.member("billing", "one", hold=60.0)
        await member.follow(TOPIC, START)
        reader = await reader_from_now(log)
        await log.append([(TOPIC, b"%d" % number) for number in range(20)])
        found, _ = await claimed(member, [b"0"])
        await member.acknowledge(found[:5])
        await member.postpone(found[5], 0.0, b"notes")
        server.kill()
        with pytest.raises(BusUnavailableError):
            await log.append([(TOPIC, b"refused")])
        with pytest.raises(BusUnavailableError):
            await member.claim(1, wait=0.1)
        server.restart()
        await append_until_stored(log, [b"after"])
        await read_until(reader, [b"19", b"after"])
        assert [record.body for record in reader.records] == [*(b"%d" % number for number in range(20)), b"after"]
        assert reader.losses == []
        again, losses = await claimed(member, [b"5", b"after"])
        assert {delivery.body for delivery in again} == {b"5", b"after"}, "what is in hand is not given twice"
        assert len(again) == 2
        assert losses == []
        await member.acknowledge([*found[6:], *again])
        info = await log.info(TOPIC)
        assert info is not None
        assert info.groups[0].pending == 0


@one_kind
async def test_a_server_that_was_killed_comes_back_without_its_data(start_redis: StartRedis) -> None:
    server = start_redis(arguments=("--save", ""))
    async with opened(server.url) as log:
        member = log.member("billing", "one", hold=60.0)
        await member.follow(TOPIC, START)
        await log.append([(TOPIC, b"before")])
        reader = await reader_from_now(log)
        await log.append([(TOPIC, b"seen")])
        await claimed(member, [b"seen"])
        await read_until(reader, [b"seen"])
        server.kill()
        server.restart()
        await append_until_stored(log, [b"after"])
        found, losses = await claimed(member, [b"after"])
        assert ([delivery.body for delivery in found], losses) == ([b"after"], [LOST_BY_GROUP])
        await read_until(reader, [b"after"])
        assert reader.losses == [LOST]
        assert (await log.topics())[0] == [TOPIC]


# -- connections


@one_kind
async def test_cut_connections_lose_nothing_and_repeat_nothing_that_is_in_hand(
    redis_server: Server, redis_proxy: Proxy
) -> None:
    async with opened(redis_proxy.url) as log, opened(redis_server.url) as other:
        member = log.member("billing", "one", hold=60.0)
        await member.follow(TOPIC, START)
        reader = await reader_from_now(log)
        bodies = [b"%d" % number for number in range(300)]
        finished = anyio.Event()

        async def publish() -> None:
            for start in range(0, 300, 3):
                await other.append([(TOPIC, body) for body in bodies[start : start + 3]])
                await anyio.sleep(0.005)

        async def cut() -> None:
            while not finished.is_set():
                await anyio.sleep(0.05)
                redis_proxy.cut()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(publish)
            tasks.start_soon(cut)
            found, losses = await claimed(member, bodies)
            finished.set()
        await read_until(reader, bodies)
        assert {delivery.body for delivery in found} == set(bodies)
        assert len(found) == len(bodies)
        assert [record.body for record in reader.records] == bodies
        assert losses == []
        assert reader.losses == []


@one_kind
async def test_replies_that_never_come_end_in_time_and_in_doubt(redis_proxy: Proxy) -> None:
    async with opened(redis_proxy.url, response_timeout=0.3, connect_timeout=0.3) as log:
        await log.append([(TOPIC, b"1")])
        redis_proxy.swallow("to_client")
        started = time.monotonic()
        with pytest.raises(BusUnavailableError) as caught:
            await log.append([(TOPIC, b"2")])
        assert caught.value.in_doubt
        with pytest.raises(BusUnavailableError):
            await log.ping()
        assert time.monotonic() - started < 10.0
        redis_proxy.restore()
        await append_until_stored(log, [b"3"])
        reader = Reader(log, {TOPIC: START})
        await read_until(reader, [b"1", b"2", b"3"])


@one_kind
async def test_a_server_that_is_stopped_and_goes_on(start_redis: StartRedis) -> None:
    server = start_redis()
    async with opened(server.url, response_timeout=0.3, connect_timeout=0.3) as log:
        member = log.member("billing", "one", hold=60.0)
        await member.follow(TOPIC, START)
        reader = await reader_from_now(log)
        await log.append([(TOPIC, b"1")])
        server.pause()
        try:
            with pytest.raises(BusUnavailableError):
                await log.ping()
            with pytest.raises(BusUnavailableError):
                await log.read({TOPIC: START})
            with pytest.raises(BusUnavailableError):
                await member.beat()
        finally:
            server.resume()
        await append_until_stored(log, [b"2"])
        found, losses = await claimed(member, [b"1", b"2"])
        assert losses == []
        await read_until(reader, [b"1", b"2"])
        await member.acknowledge(found)
