"""What a RedisLog keeps in its keys and for how long, who may use it, and what it tells of itself."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import anyio
import pytest
import redis

from connector_sdk.bus.log import START, Loss
from connector_sdk.bus.redis import RedisLog
from connector_sdk.bus.redis_inspection import check_version, findings_of
from connector_sdk.errors import BusClosedError, BusUnavailableError, ConfigurationError
from connector_sdk.testing.log_case import Reader
from tests.bus.redis_place import PATIENCE, TOPIC, AgingRedisLog, claimed, opened, read_until, reader_from_now
from tests.servers.acl import PASSWORD
from tests.servers.cluster import Cluster
from tests.servers.fixtures import MakeUser, Server, StartRedis, one_kind

pytestmark = pytest.mark.anyio

#: What the docstring of RedisLog says that a user needs.
COMMANDS: Final = (
    "ping info client|setname eval evalsha exists time pexpire pttl xadd xread xrange xrevrange xlen xdel xtrim xinfo xgroup "
    "xreadgroup xack xclaim xpending zadd zcard zcount zrange zrangebyscore zrem zremrangebyscore zscore hget hset hsetnx hdel "
    "hincrby"
)


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


def keys_of(server: Server) -> dict[str, int]:
    """Return all keys with the ms that they live."""
    with redis.Redis(port=server.port, decode_responses=True) as raw:
        return {key: raw.pttl(key) for key in raw.scan_iter(count=1000)}


async def use_everything(log: RedisLog) -> None:
    """Do all that writes."""
    member = log.member("billing", "one", hold=60.0)
    assert await member.follow(TOPIC, START)
    await log.append([(TOPIC, b"%d" % number) for number in range(300)])
    await log.append([("other", b"single")])
    first, second, third, *rest = (await claimed(member, [b"99"]))[0]
    await member.postpone(first, 100.0, b"notes")
    await member.give_back([second])
    redriven = await member.bury(third, b"evidence")
    await member.bury(rest.pop(), b"evidence")
    buried = await log.bury("other", "1-1", b"body", b"evidence")
    assert await log.redrive(redriven)
    assert await log.redrive(buried)
    await member.acknowledge(rest)
    await member.beat()
    reader = Reader(log, {"other": START}, catalogue=START)
    await read_until(reader, [b"single", b"body"])
    assert (await log.info(TOPIC)) is not None
    assert len((await log.dead_letters(None, 10))[0]) == 1
    assert await log.topics() == (["orders:created", "other"], reader.catalogue)
    heir = log.member("billing", "two", hold=60.0)
    await heir.follow(TOPIC, START)
    await heir.recover(100, 0.0)
    await member.aclose()
    await heir.aclose()
    for key in ("done", "free", "held"):
        assert await log.reserve(key, "one", 60.0) == "yours"
    assert await log.keep("done", "one", 3600.0)
    await log.free("free", "one")


async def test_all_keys_have_an_expiry_and_one_hash_tag(redis_server: Server, redis_prefix: str) -> None:
    async with opened(redis_server.url, redis_prefix) as log:
        await use_everything(log)
    keys = {key: ms for key, ms in keys_of(redis_server).items() if redis_prefix in key}
    assert len(keys) >= 8
    for key, ms in keys.items():
        assert key.startswith(f"{{{redis_prefix}}}:"), key
        assert 0 < ms <= 1.5 * 7 * 86_400_000, key


@one_kind
async def test_a_cluster_has_a_bus_on_one_node(redis_cluster: Cluster) -> None:
    async with opened(redis_cluster.url, "here") as log, opened(redis_cluster.url, "there") as other:
        await use_everything(log)
        await use_everything(other)


async def test_the_documented_commands_are_enough(
    redis_server: Server, redis_prefix: str, redis_user: MakeUser
) -> None:
    documented = (RedisLog.__doc__ or "").lower()
    commands = COMMANDS.split()
    for command in commands:
        assert command.replace("|", " ") in documented
    if redis_server.version.startswith("6."):
        commands = [command if "|" not in command else "client" for command in commands]
    user = redis_user(commands=commands, keys=[f"{{{redis_prefix}}}:*"])
    async with opened(user.url, redis_prefix) as log:
        await use_everything(log)
        assert PASSWORD not in log.name + repr(log)


# -- topics that begin and end

_PUBLISHER: Final = """
import asyncio, sys
from connector_sdk.bus.redis import RedisLog

async def main(url, prefix, me):
    log = RedisLog(url, prefix, max_events=10_000)
    await log.connect()
    print("ready", flush=True)
    sys.stdin.readline()
    for topic in ("a", "b"):
        for number in range(0, 60, 3):
            await log.append([(topic, f"{me}:{number}".encode())])
            await log.append([(topic, f"{me}:{more}".encode()) for more in (number + 1, number + 2)])
    await log.aclose()

asyncio.run(main(*sys.argv[1:]))
"""


def publisher(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _PUBLISHER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@one_kind
async def test_processes_that_race_to_begin_a_topic_lose_nothing(redis_server: Server, redis_prefix: str) -> None:
    """Each keeps its order, and the topic is announced once."""
    async with opened(redis_server.url, redis_prefix, max_events=10_000) as log:
        reader = Reader(log, {}, catalogue=START)
        await reader.read()
        processes = [publisher(redis_server.url, redis_prefix, str(me)) for me in range(4)]
        try:
            for process in processes:
                assert process.stdout is not None
                assert await anyio.to_thread.run_sync(process.stdout.readline) == "ready\n"
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            await read_until(reader, [f"{me}:59".encode() for me in range(4)])
            for process in processes:
                assert await anyio.to_thread.run_sync(process.wait) == 0
        finally:
            for process in processes:
                process.kill()
                process.communicate()
        with anyio.fail_after(PATIENCE):
            while len(reader.records) < 480:
                await reader.read(wait=1.0)
        assert sorted(reader.created) == ["a", "b"]
        for topic in "ab":
            for me in range(4):
                mine = [record.body for record in reader.records if record.topic == topic]
                mine = [body for body in mine if isinstance(body, bytes) and body.startswith(b"%d:" % me)]
                assert mine == [b"%d:%d" % (me, number) for number in range(60)]
        assert reader.losses == []


async def test_a_topic_that_nobody_uses_goes_and_may_come_again(redis_server: Server) -> None:
    async with opened(redis_server.url, ttl_seconds=0.3) as log:
        reader = await reader_from_now(log)
        await log.append([(TOPIC, b"1"), ("idle", b"1")])
        await read_until(reader, [b"1"])
        with anyio.fail_after(PATIENCE):
            while (await log.topics())[0]:
                await anyio.sleep(0.05)
        assert await log.info(TOPIC) is None
        assert await log.end(TOPIC) == START
        await log.append([(TOPIC, b"2")])
        assert (await log.topics())[0] == [TOPIC]
        reader.created.clear()
        await read_until(reader, [b"2"])
        assert reader.created == [TOPIC], "whoever follows a pattern and has no place in it yet is to hear of it"
        assert reader.losses == [], "it had seen all"


async def test_a_reader_that_was_away_is_told_of_a_topic_that_went_meanwhile(redis_server: Server) -> None:
    async with opened(redis_server.url, ttl_seconds=0.3) as log:
        (position,) = await log.append([(TOPIC, b"1")])
        await log.append([(TOPIC, b"unseen")])
        with anyio.fail_after(PATIENCE):
            while (await log.topics())[0]:
                await anyio.sleep(0.05)
        async with opened(redis_server.url, ttl_seconds=60.0) as later:
            await later.append([(TOPIC, b"2")])
            reader = Reader(later, {TOPIC: position})
            await read_until(reader, [b"2"])
            assert reader.losses == [Loss(topic=TOPIC, reason="trimmed")]


async def test_who_asks_for_a_time_before_all_that_is_there_has_lost_nothing(redis_server: Server) -> None:
    async with opened(redis_server.url, max_events=10) as log:
        past = datetime.now(UTC) - timedelta(hours=1)
        nowhere = await log.position_at(TOPIC, past)
        await log.append([(TOPIC, b"%d" % number) for number in range(5)])
        for start in (nowhere, await log.position_at(TOPIC, past)):
            reader = Reader(log, {TOPIC: start})
            await read_until(reader, [b"0", b"4"])
            assert reader.losses == []
        await log.append([(TOPIC, b"%d" % number) for number in range(5, 100)])
        reader = Reader(log, {TOPIC: await log.position_at(TOPIC, past)})
        await read_until(reader, [b"99"])
        assert reader.losses == []
        assert len(reader.records) >= 10


async def test_names_of_topics_that_went_are_forgotten_by_who_publishes_to_others(redis_server: Server) -> None:
    async with opened(redis_server.url, ttl_seconds=0.3) as log:
        await log.append([(f"topic:{number}", b"1") for number in range(20)])
        with redis.Redis(port=redis_server.port) as raw, anyio.fail_after(PATIENCE):
            while raw.zcard("{events}:topics") > 1:
                await log.append([(TOPIC, b"1")])
                await anyio.sleep(0.02)
            assert raw.hkeys("{events}:state") != []
            assert not [key for key in raw.hkeys("{events}:state") if key.startswith(b"born:topic:")]


async def test_a_group_is_kept_longer_than_the_events_of_its_topic(redis_server: Server) -> None:
    async with opened(redis_server.url, ttl_seconds=0.2, max_backlog_seconds=600.0) as log:
        member = log.member("billing", "one", hold=60.0)
        await member.follow(TOPIC, START)
        await log.append([(TOPIC, b"1")])
        await member.aclose()
        await anyio.sleep(0.5)
        await log.append([(TOPIC, b"2")])
        later = log.member("billing", "two", hold=60.0)
        assert await later.follow(TOPIC, await log.end(TOPIC)) is False
        found, losses = await claimed(later, [b"1", b"2"])
        assert (len(found), losses) == (2, [])


async def test_a_group_whose_members_live_is_kept_though_nothing_comes(redis_server: Server) -> None:
    async with opened(redis_server.url, ttl_seconds=5.0, max_backlog_seconds=5.0) as log:
        member = log.member("billing", "one", hold=60.0)
        await member.follow(TOPIC, START)
        lives = {f"{{events}}:topic:{TOPIC}": 10_000, f"{{events}}:again:7:billing:{TOPIC}": 10_000}
        renewed: set[str] = set()
        with anyio.fail_after(PATIENCE):
            while renewed != set(lives):
                await member.beat()
                now = keys_of(redis_server)
                renewed |= {key for key, before in lives.items() if now[key] > before + 100}
                lives = {key: now[key] for key in lives}
                await anyio.sleep(0.05)
        assert (await log.topics())[0] == [TOPIC]
        assert not (await member.claim(1, wait=0.0)).losses


async def test_what_waits_for_a_group_for_too_long_is_lost_and_told(redis_server: Server) -> None:
    async with opened(redis_server.url, ttl_seconds=0.1, max_backlog_seconds=0.1, max_events=10) as log:
        member = log.member("billing", "one", hold=60.0)
        await member.follow("topic", START)
        with redis.Redis(port=redis_server.port) as raw:
            await log.append([("topic", b"%d" % number) for number in range(5)])
            raw.persist("{events}:topic:topic")
            raw.persist("{events}:state")
            await anyio.sleep(0.3)
        await log.append([("topic", b"new")])
        found, losses = await claimed(member, [b"new"])
        assert [delivery.body for delivery in found] == [b"new"]
        with anyio.fail_after(PATIENCE):
            while not losses:
                losses += (await member.claim(1, wait=1.0)).losses
        assert losses == [Loss(topic="topic", reason="trimmed", count=5, group="billing")]


async def test_a_script_never_holds_much_of_what_it_lets_go(redis_server: Server) -> None:
    """Large bodies are let go one by one: the server's memory for scripts stays small."""
    async with opened(redis_server.url, max_events=10) as log:
        for _ in range(40):
            await log.append([(TOPIC, b"x" * 1_000_000)])
        info = await log.info(TOPIC)
        assert info is not None
        assert info.length <= 11


async def test_topics_may_have_a_retention_of_their_own(redis_server: Server) -> None:
    async with opened(redis_server.url, max_events=10, retention={"long": (500, 60.0)}) as log:
        for topic in ("long", "short"):
            for _ in range(10):
                await log.append([(topic, b"body")] * 30)
        lengths = {topic: info.length for topic in ("long", "short") if (info := await log.info(topic))}
        assert lengths["long"] == 300
        assert 10 <= lengths["short"] <= 40


async def test_order_is_kept_when_the_stream_is_gone_in_between(redis_server: Server) -> None:
    async with opened(redis_server.url) as log:
        await log.append([(TOPIC, b"0")])
        for number in range(1, 6):
            with redis.Redis(port=redis_server.port) as raw:
                raw.delete(f"{{events}}:topic:{TOPIC}")
            await log.append([(TOPIC, b"%d" % number)])
            await log.append([(TOPIC, b"%d.%d" % (number, part)) for part in range(3)])
            reader = Reader(log, {TOPIC: START})
            await reader.read()
            assert [record.body for record in reader.records] == [
                b"%d" % number,
                *(b"%d.%d" % (number, part) for part in range(3)),
            ]


async def test_many_large_entries_go_in_several_requests(redis_server: Server) -> None:
    async with opened(redis_server.url, max_events=10_000) as log:
        positions = await log.append([(TOPIC, b"x" * 300_000)] * 10 + [(TOPIC, b"")] * 2500)
        assert len(set(positions)) == 2510
        assert sorted(positions, key=log.order) == positions


# -- what it says of itself


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("key_prefix", ""), ("key_prefix", "a{b}"), ("max_events", 9), ("max_events", 100_001), ("ttl_seconds", 59.0),
        ("ttl_seconds", 604_801.0), ("max_backlog", 0), ("max_backlog_seconds", 0), ("max_dead_letters", 0),
        ("dead_letter_seconds", -1), ("connect_timeout", 0), ("response_timeout", 0), ("redis_url", "http://localhost"),
    ],
)  # fmt: skip
async def test_options_that_cannot_work_are_refused(option: str, value: object) -> None:
    options: Mapping[str, object] = {"redis_url": "redis://localhost", option: value}
    with pytest.raises(ConfigurationError) as caught:
        RedisLog(**options)  # type: ignore[arg-type]  # wrong on purpose
    assert caught.value.option == option


def test_what_is_wrong_with_a_server_is_read_off_its_info() -> None:
    assert list(findings_of({"maxmemory": "100", "maxmemory_policy": "noeviction"})) == []
    assert list(findings_of({"maxmemory": "0", "maxmemory_policy": "allkeys-lru"})) == []
    (finding,) = findings_of({"maxmemory": "100", "maxmemory_policy": "allkeys-lru"})
    assert "allkeys-lru" in finding
    check_version({"redis_version": "6.2.0"})
    check_version({})
    with pytest.raises(ConfigurationError):
        check_version({"redis_version": "6.0.16"})


@one_kind
async def test_a_server_that_evicts_is_warned_of(start_redis: StartRedis, caplog: pytest.LogCaptureFixture) -> None:
    server = start_redis(arguments=("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"))
    with caplog.at_level(logging.WARNING):
        async with opened(server.url) as log:
            assert len(log.findings) == 1
    assert "allkeys-lru" in caplog.text


@one_kind
async def test_a_wrong_password_is_a_configuration_error_and_no_secret_comes_out(
    start_redis: StartRedis, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_redis(arguments=("--requirepass", "swordfish"))
    wrong = RedisLog(f"redis://:marlin@127.0.0.1:{server.port}")
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigurationError) as caught:
        await wrong.connect()
    await wrong.aclose()
    async with opened(f"redis://:swordfish@127.0.0.1:{server.port}") as log:
        text = f"{log.name} {log!r} {caught.value} {caught.value.__cause__} {wrong.name} {caplog.text}"
    assert "swordfish" not in text
    assert "marlin" not in text


async def test_a_user_who_may_not_run_scripts_is_told_at_once(redis_server: Server, redis_user: MakeUser) -> None:
    del redis_server
    user = redis_user(commands=["ping", "info", "xadd"], keys=["*"])
    log = RedisLog(user.url)
    with pytest.raises(ConfigurationError, match="NOPERM"):
        await log.connect()
    await log.aclose()


async def test_nobody_there_is_no_configuration_error() -> None:
    log = AgingRedisLog("redis://127.0.0.1:1")
    with pytest.raises(BusUnavailableError) as caught:
        await log.connect()
    assert not caught.value.in_doubt
    await log.aclose()
    with pytest.raises(BusClosedError):
        await log.ping()
    with pytest.raises(BusClosedError):
        await log.read({TOPIC: START})


async def test_what_a_member_was_given_is_pending_for_others_who_look(redis_server: Server) -> None:
    """Other programs may look at the group with their own tools."""
    async with opened(redis_server.url) as log:
        member = log.member("billing", "one", hold=60.0)
        await member.follow(TOPIC, START)
        await log.append([(TOPIC, json.dumps({"n": 1}).encode())])
        ((delivery,), _) = await claimed(member, [b'{"n": 1}'])
        with redis.Redis(port=redis_server.port, decode_responses=True) as raw:
            pending = raw.xpending(f"{{events}}:topic:{TOPIC}", "billing")
            assert (pending["pending"], pending["consumers"]) == (1, [{"name": "one", "pending": 1}])
            await member.acknowledge([delivery])
            assert raw.xpending(f"{{events}}:topic:{TOPIC}", "billing")["pending"] == 0
