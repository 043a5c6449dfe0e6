"""Which server gets a command: clusters, sentinels, and servers that send us elsewhere."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest

from connector_sdk.redis_client import RedisRefusedError, RedisUnavailableError, Script
from connector_sdk.redis_client.slots import key_slot
from tests.redis_client.conftest import MakeClient
from tests.redis_client.fake import OK, Answer, FakeServer
from tests.servers.cluster import Cluster
from tests.servers.fixtures import one_kind
from tests.servers.sentinel import SentinelSet

pytestmark = pytest.mark.anyio

FOO = key_slot(b"foo")


def error(text: str) -> Answer:
    return lambda _: f"-{text}\r\n".encode()


def moved(to: FakeServer, host: str = "127.0.0.1") -> Answer:
    def answer(words: list[bytes]) -> bytes:
        if words[0] == b"CLUSTER":
            return b"-NOPERM no\r\n"
        return b"-MOVED %d %b:%d\r\n" % (FOO, host.encode(), to.port)

    return answer


# ---------------------------------------------------------------------------------------------- scripted servers


@pytest.mark.parametrize("host", ["127.0.0.1", "", "?"])
@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
async def test_moved_is_followed_and_remembered(make_client: MakeClient, scheme: str, host: str) -> None:
    async with FakeServer() as seed, FakeServer() as owner:
        seed.answer = moved(owner, host)
        client = make_client(seed.url.replace("redis", scheme, 1))
        for _ in range(3):
            assert await client.call("SET", b"foo", 1, key=b"foo", timeout=5) == b"OK"
        assert (seed.count(b"SET"), owner.count(b"SET")) == (1, 3)
        assert seed.count(b"CLUSTER") == 1
        assert sorted(client.servers) == sorted(f"127.0.0.1:{each.port}" for each in (seed, owner))


async def test_the_first_move_teaches_the_whole_cluster(make_client: MakeClient) -> None:
    async with FakeServer() as seed, FakeServer() as other:

        def answer(words: list[bytes]) -> bytes:
            if words[0] == b"CLUSTER":
                return b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % other.port
            return b"-MOVED %d 127.0.0.1:%d\r\n" % (FOO, other.port)

        seed.answer = answer
        client = make_client(seed.url.replace("redis", "redis+cluster"))
        for key in (b"foo", b"bar", b"baz"):
            assert await client.call("SET", key, 1, key=key, timeout=5) == b"OK"
        assert (seed.count(b"SET"), other.count(b"SET")) == (1, 3)


async def test_a_server_that_does_not_tell_of_the_cluster_in_time(make_client: MakeClient) -> None:
    async with FakeServer() as seed, FakeServer() as other:
        seed.answer = lambda words: None if words[0] == b"CLUSTER" else moved(other)(words)
        client = make_client(seed.url.replace("redis", "redis+cluster"))
        began = time.monotonic()
        assert await client.call("SET", b"foo", 1, key=b"foo", timeout=4) == b"OK"
        assert time.monotonic() - began < 4


async def test_ask_is_followed_once(make_client: MakeClient) -> None:
    async with FakeServer() as old, FakeServer() as new:
        old.answer = error(f"ASK {FOO} 127.0.0.1:{new.port}")
        client = make_client(old.url.replace("redis", "redis+cluster"))
        for _ in range(2):
            assert await client.call("SET", b"foo", 1, key=b"foo", timeout=5) == b"OK"
        assert old.count(b"SET") == 2
        assert [words[0] for words in new.seen] == [b"ASKING", b"SET"] * 2


@pytest.mark.parametrize("repeatable", [False, True])
async def test_a_seed_that_is_down_is_passed_over(make_client: MakeClient, repeatable: bool) -> None:
    async with FakeServer() as down, FakeServer() as up:
        await down.stop()
        url = f"redis+cluster://127.0.0.1:{down.port},127.0.0.1:{up.port}"
        client = make_client(url)
        for _ in range(2):
            assert await client.call("SET", b"foo", 1, key=b"foo", timeout=5, repeatable=repeatable) == b"OK"
        await up.stop()
        began = time.monotonic()
        with pytest.raises(RedisUnavailableError):
            await client.call("SET", b"foo", 1, key=b"foo", timeout=0.5, repeatable=repeatable)
        assert time.monotonic() - began < 3


async def test_an_owner_that_is_gone_is_forgotten(make_client: MakeClient) -> None:
    async with FakeServer() as seed, FakeServer() as old, FakeServer() as new:
        seed.answer = moved(old)
        client = make_client(seed.url.replace("redis", "redis+cluster"))
        assert await client.call("SET", b"foo", 1, key=b"foo", timeout=5) == b"OK"
        await old.stop()
        seed.answer = moved(new)
        assert await client.call("SET", b"foo", 1, key=b"foo", timeout=5, repeatable=True) == b"OK"
        assert new.count(b"SET") == 1


async def test_servers_that_send_each_other_round_cost_no_more_than_the_time_out(make_client: MakeClient) -> None:
    async with FakeServer() as one, FakeServer() as other:
        one.answer, other.answer = moved(other), moved(one)
        client = make_client(one.url.replace("redis", "redis+cluster"))
        began = time.monotonic()
        with pytest.raises(RedisUnavailableError, match="MOVED") as caught:
            await client.call("SET", b"foo", 1, key=b"foo", timeout=0.5)
        assert 0.3 < time.monotonic() - began < 3
        assert not caught.value.in_doubt
        assert one.count(b"SET") < 50


@pytest.mark.parametrize("code", ["TRYAGAIN", "CLUSTERDOWN", "READONLY", "MASTERDOWN"])
async def test_what_will_change_is_tried_again_and_what_will_not_ends(make_client: MakeClient, code: str) -> None:
    refusals = 0

    def answer(words: list[bytes]) -> bytes:
        nonlocal refusals
        refusals += 1
        return OK if refusals > 4 else f"-{code} not now\r\n".encode()

    async with FakeServer(answer) as server:
        client = make_client(server.url)
        assert await client.call("SET", b"foo", 1, key=b"foo", timeout=10) == b"OK"
        assert server.accepted == (5 if code in ("READONLY", "MASTERDOWN") else 1)
        server.answer = error(f"{code} not now")
        with pytest.raises(RedisUnavailableError, match=code) as caught:
            await client.call("SET", b"foo", 1, key=b"foo", timeout=0.2)
        assert not caught.value.in_doubt


@pytest.mark.parametrize("code", ["LOADING", "BUSY", "NOREPLICAS"])
async def test_what_takes_longer_ends_at_once(make_client: MakeClient, code: str) -> None:
    async with FakeServer(error(f"{code} wait")) as server:
        client = make_client(server.url)
        with pytest.raises(RedisUnavailableError, match=code) as caught:
            await client.call("SET", b"foo", 1, key=b"foo", timeout=10, repeatable=True)
        assert not caught.value.in_doubt
        assert server.count(b"SET") == 1


async def test_a_full_server_is_unavailable(make_client: MakeClient) -> None:
    full = b"-ERR max number of clients reached\r\n"

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(full)
        await writer.drain()

    async with FakeServer(talk=talk) as server:
        client = make_client(server.url)
        with pytest.raises(RedisUnavailableError) as caught:
            await client.call("SET", b"foo", 1, key=b"foo", timeout=5, repeatable=True)
        assert not caught.value.in_doubt


async def test_a_server_of_another_protocol_is_unavailable(make_client: MakeClient) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async with FakeServer(talk=talk) as server:
        client = make_client(server.url)
        with pytest.raises(RedisUnavailableError, match="protocol"):
            await client.call("SET", b"foo", 1, key=b"foo", timeout=5)


async def test_a_name_that_does_not_resolve(make_client: MakeClient) -> None:
    for host in ("no-such-host.invalid", "a" * 70, "x..y"):
        with pytest.raises(RedisUnavailableError, match="cannot connect"):
            await make_client(f"redis://{host}").call("PING", key=b"", timeout=20)


async def test_of_two_addresses_of_a_name_one_will_do(make_client: MakeClient) -> None:
    # It resolves to ::1 and 127.0.0.1, in some order; nobody listens on the first.
    async with FakeServer() as server:
        client = make_client(f"redis://localhost:{server.port}")
        assert await client.call("SET", b"foo", 1, key=b"foo", timeout=20) == b"OK"


# ---------------------------------------------------------------------------------------------- sentinels that are scripted


def names(master: FakeServer) -> Answer:
    return lambda _: b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%d\r\n" % (len(str(master.port)), master.port)


def in_role(role: bytes) -> Answer:
    return lambda words: b"*1\r\n$%d\r\n%b\r\n" % (len(role), role) if words[0] == b"ROLE" else OK


async def test_sentinels_are_asked_in_turn_until_one_names_a_true_master(make_client: MakeClient) -> None:
    async with AsyncExitStack() as stack:
        down, silent, ignorant, wrong, right, replica, master = [
            await stack.enter_async_context(FakeServer()) for _ in range(7)
        ]
        await down.stop()
        silent.answer = lambda _: None
        ignorant.answer = lambda _: b"*-1\r\n"
        wrong.answer, right.answer = names(replica), names(master)
        replica.answer, master.answer = in_role(b"slave"), in_role(b"master")
        sentinels = (down, silent, ignorant, wrong, right)
        client = make_client(f"redis+sentinel://{','.join(f'127.0.0.1:{each.port}' for each in sentinels)}/main", 3.0)
        assert await client.call("SET", b"foo", 1, key=b"foo", timeout=10) == b"OK"
        assert (replica.count(b"SET"), master.count(b"SET")) == (0, 1)
        assert right.seen == [[b"SENTINEL", b"get-master-addr-by-name", b"main"]]

        # A failover, by a word: whoever knew better last time is asked first.
        asked = [each.accepted for each in sentinels]
        right.answer = names(replica)
        replica.answer, master.answer = in_role(b"master"), error("READONLY You can't write against a replica")
        assert await client.call("SET", b"foo", 1, key=b"foo", timeout=10) == b"OK"
        assert replica.count(b"SET") == 1
        assert [each.accepted for each in sentinels[:4]] == asked[:4]


async def test_a_change_of_master_is_noticed_while_the_old_one_still_serves(make_client: MakeClient) -> None:
    async with FakeServer() as one, FakeServer() as other, FakeServer() as old, FakeServer() as new:
        one.answer = other.answer = names(old)
        old.answer = new.answer = in_role(b"master")
        client = make_client(f"redis+sentinel://127.0.0.1:{one.port},127.0.0.1:{other.port}/main")
        assert await client.call("SET", b"foo", 1, key=b"foo", timeout=10) == b"OK"
        one.answer = other.answer = names(new)
        # Whoever was asked first is gone; the other is asked a second later.
        await one.stop()
        deadline = time.monotonic() + 10
        while not new.count(b"SET"):
            assert time.monotonic() < deadline
            assert await client.call("SET", b"foo", 1, key=b"foo", timeout=10) == b"OK"
            await asyncio.sleep(0.01)
        # A question that is under way does not outlive the client.
        other.answer = lambda _: None
        asked = other.accepted
        while other.accepted == asked:
            assert await client.call("SET", b"foo", 1, key=b"foo", timeout=10) == b"OK"
            await asyncio.sleep(0.01)
        await client.aclose()


async def test_a_user_who_may_not_ask_for_the_role_is_trusted_to_be_led_right(make_client: MakeClient) -> None:
    async with FakeServer() as sentinel, FakeServer() as master:
        sentinel.answer = names(master)
        master.answer = lambda words: b"-NOPERM no\r\n" if words[0] == b"ROLE" else OK
        client = make_client(f"redis+sentinel://127.0.0.1:{sentinel.port}/main")
        assert await client.call("SET", b"foo", 1, key=b"foo", timeout=10) == b"OK"


@pytest.mark.parametrize(
    "reply",
    [
        b"*1\r\n$1\r\nx\r\n",
        b"*2\r\n$1\r\nx\r\n$1\r\nx\r\n",
        b"*2\r\n$1\r\n\xff\r\n$4\r\n6379\r\n",
        b"*2\r\n$9\r\n127.0.0.1\r\n$5\r\n65536\r\n",
        b"*2\r\n$9\r\n127.0.0.1\r\n$1\r\n0\r\n",
        b"*2\r\n$9\r\n127.0.0.1\r\n$5000\r\n%b\r\n" % (b"1" * 5000),
        b"-NOAUTH no\r\n",
        b"+OK\r\n",
    ],
    ids=["a word", "no port", "no text", "a port too high", "port 0", "an endless port", "an error", "a status"],
)
async def test_what_is_no_sentinel_is_no_help(make_client: MakeClient, reply: bytes) -> None:
    async with FakeServer(lambda _: reply) as sentinel:
        client = make_client(f"redis+sentinel://127.0.0.1:{sentinel.port}/main")
        with pytest.raises(RedisUnavailableError, match=f"127.0.0.1:{sentinel.port}"):
            await client.call("SET", b"foo", 1, key=b"foo", timeout=5)


async def test_no_sentinel_knows(make_client: MakeClient) -> None:
    async with FakeServer(lambda _: b"*-1\r\n") as sentinel:
        client = make_client(f"redis+sentinel://127.0.0.1:{sentinel.port}/main")
        with pytest.raises(RedisUnavailableError, match=r"'main'.*knows no such master"):
            await client.call("SET", b"foo", 1, key=b"foo", timeout=5)


async def test_the_master_does_not_know_the_password(make_client: MakeClient) -> None:
    async with FakeServer() as sentinel, FakeServer() as master:
        sentinel.answer, master.answer = names(master), error("WRONGPASS invalid")
        client = make_client(f"redis+sentinel://:p@127.0.0.1:{sentinel.port}/main?sentinel_password=q")
        with pytest.raises(RedisRefusedError, match="WRONGPASS"):
            await client.call("SET", b"foo", 1, key=b"foo", timeout=5)
        assert sentinel.seen[0] == [b"AUTH", b"q"]
        assert master.seen[0] == [b"AUTH", b"p"]


# ---------------------------------------------------------------------------------------------- real ones

COUNT = Script("count", "return redis.call('INCR', KEYS[1])")


def cluster_url(cluster: Cluster) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes)


async def test_a_cluster(redis_cluster: Cluster, make_client: MakeClient) -> None:
    for url in (cluster_url(redis_cluster), redis_cluster.url):
        client = make_client(url)
        keys = [b"{%d}:n" % number for number in range(200)]
        calls = [client.run(COUNT, [key], [], timeout=30) for key in keys for _ in range(3)]
        replies = await asyncio.gather(*calls)
        assert sum(reply for reply in replies if isinstance(reply, int)) == 200 * 6
        assert len(client.servers) == 3
        await client.call("FLUSHALL", key=keys[0], timeout=30)
        redis_cluster.flush()


@one_kind
async def test_a_slot_that_moves_loses_nothing(redis_cluster: Cluster, make_client: MakeClient) -> None:
    client = make_client(cluster_url(redis_cluster))
    keys = [b"{foo}%d" % number for number in range(10)]
    slot = key_slot(b"foo")
    stop = asyncio.Event()
    done = dict.fromkeys(keys, 0)

    async def count(key: bytes) -> None:
        while not stop.is_set():
            assert await client.run(COUNT, [key], [], timeout=30) == done[key] + 1
            done[key] += 1

    counting = [asyncio.create_task(count(key)) for key in keys]
    owner = redis_cluster.owner_of(slot)
    target = next(node for node in redis_cluster.masters if node is not owner)
    for to in (target, owner):
        await asyncio.to_thread(redis_cluster.move_slot, slot, to)
    stop.set()
    await asyncio.gather(*counting)
    assert all(done.values())


@one_kind
async def test_a_failover_in_a_cluster(own_redis_cluster: Cluster, make_client: MakeClient) -> None:
    client = make_client(cluster_url(own_redis_cluster))
    master = own_redis_cluster.nodes[0]
    first, _, _ = next(entry for entry in master.slots if entry[2] == master.port)
    key = next(b"%d" % number for number in range(100_000) if key_slot(b"%d" % number) == first)
    assert await client.call("SET", key, 1, key=key, timeout=10) == b"OK"
    own_redis_cluster.kill(master)
    assert await client.call("SET", key, 2, key=key, timeout=60, repeatable=True) == b"OK"


@one_kind
async def test_a_failover_by_sentinels(redis_sentinel: SentinelSet, make_client: MakeClient) -> None:
    client = make_client(f"redis+sentinel://127.0.0.1:{redis_sentinel.sentinel_port}/{redis_sentinel.master_name}")
    assert await client.call("SET", b"k", 1, key=b"k", timeout=10) == b"OK"
    old = await asyncio.to_thread(redis_sentinel.graceful_failover)
    assert redis_sentinel.master is not old
    # The old master takes writes until the sentinels have made a replica of it, which takes them 10 seconds.
    deadline = time.monotonic() + 6
    while client.servers != (f"127.0.0.1:{redis_sentinel.master.port}",):
        assert time.monotonic() < deadline
        assert await client.call("SET", b"k", 2, key=b"k", timeout=60, repeatable=True) == b"OK"
        await asyncio.sleep(0.01)


@one_kind
async def test_a_master_that_dies(redis_sentinel: SentinelSet, make_client: MakeClient) -> None:
    client = make_client(f"redis+sentinel://127.0.0.1:{redis_sentinel.sentinel_port}/{redis_sentinel.master_name}")
    assert await client.call("SET", b"k", 1, key=b"k", timeout=10) == b"OK"
    redis_sentinel.master.kill()
    assert await client.call("SET", b"k", 2, key=b"k", timeout=60, repeatable=True) == b"OK"
