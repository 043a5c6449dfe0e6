"""RedisCheckpoint: what it promises of any checkpoint, the fence, and a Redis that is away or has lost it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
import redis

from connector_sdk import AsyncConnectorClient, CheckpointError, CheckpointStore, ConfigurationError, RedisCheckpoint
from connector_sdk.client.checkpoint import Disconnecting, FencedCheckpoint
from connector_sdk.testing import ConnectorServer, RedisServer
from tests.client.harness import PATIENCE, summary
from tests.client.test_leader_client import Votes
from tests.servers.cluster import Cluster
from tests.servers.fixtures import Server, one_kind

STREAM = "http://connector.example/stream/shop"


@pytest.fixture
def anyio_backend() -> str:
    """It sits on the sockets of asyncio."""
    return "asyncio"


@asynccontextmanager
async def connected(*stores: RedisCheckpoint) -> AsyncIterator[None]:
    """Close their connections afterwards, as a client does."""
    try:
        yield
    finally:
        for store in stores:
            await store.disconnect()


@pytest.mark.anyio
async def test_each_stream_has_its_own_id(redis_server: Server, redis_prefix: str) -> None:
    store = RedisCheckpoint(redis_server.url, redis_prefix)
    assert isinstance(store, CheckpointStore)
    assert isinstance(store, FencedCheckpoint)
    assert isinstance(store, Disconnecting)
    assert await store.load(STREAM) is None
    await store.save(STREAM, "1")
    await store.save(STREAM + "/other", "é 2")
    await store.save(STREAM, "3")
    await store.disconnect()
    other = RedisCheckpoint(redis_server.url, redis_prefix)
    elsewhere = RedisCheckpoint(redis_server.url, redis_prefix + "-2")
    async with connected(store, other, elsewhere):
        assert await other.load(STREAM) == "3", "another process finds it"
        assert await store.load(STREAM + "/other") == "é 2"
        assert await elsewhere.load(STREAM) is None


@pytest.mark.anyio
async def test_an_older_token_is_refused(redis_server: Server, redis_prefix: str) -> None:
    store = RedisCheckpoint(redis_server.url, redis_prefix)
    big = 1_795_257_950_904_786
    await store.save_fenced(STREAM, "1", big)
    await store.save_fenced(STREAM, "2", big + 1)
    with pytest.raises(CheckpointError, match="later leader"):
        await store.save_fenced(STREAM, "1", big)
    assert await store.load(STREAM) == "2"
    await store.save_fenced(STREAM, "3", big + 1)
    await store.save(STREAM, "4")  # a client without a leader
    with pytest.raises(CheckpointError, match="later leader"):
        await store.save_fenced(STREAM, "1", big)
    assert await store.load(STREAM) == "4"
    await store.disconnect()


@one_kind
@pytest.mark.anyio
async def test_the_ttl_is_that_of_an_idle_stream(redis_server: Server, redis_prefix: str) -> None:
    passing, lasting = (RedisCheckpoint(redis_server.url, redis_prefix, ttl=ttl) for ttl in (100, None))
    async with connected(passing, lasting):
        await passing.save(STREAM, "1")
        with redis.Redis(port=redis_server.port, decode_responses=True) as client:
            (key,) = client.scan_iter(f"{redis_prefix}*")
            assert 90 < int(str(client.ttl(key))) <= 100
            await lasting.save(STREAM, "2")
            assert client.ttl(key) == -1
            assert client.hgetall(key) == {"stream": STREAM, "id": "2", "token": "0"}


@one_kind
@pytest.mark.anyio
async def test_redis_away_is_an_error_and_back_it_works(own_redis_server: RedisServer) -> None:
    store = RedisCheckpoint(own_redis_server.url, load_timeout=0)
    await store.save(STREAM, "1")
    own_redis_server.kill()
    with pytest.raises(CheckpointError, match="cannot be written"):
        await store.save(STREAM, "2")
    with pytest.raises(CheckpointError, match="cannot be read"):
        await store.load(STREAM)
    own_redis_server.restart()
    assert await store.load(STREAM) == "1"
    await store.save(STREAM, "2")
    assert await store.load(STREAM) == "2"
    await store.disconnect()


@one_kind
@pytest.mark.anyio
async def test_loading_waits_for_redis(own_redis_server: RedisServer) -> None:
    store = RedisCheckpoint(own_redis_server.url, load_timeout=PATIENCE)
    await store.save(STREAM, "1")
    own_redis_server.kill()
    loaded: list[str | None] = []

    async def load() -> None:
        loaded.append(await store.load(STREAM))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(load)
        await anyio.sleep(0.5)
        assert not loaded
        own_redis_server.restart()
    assert loaded == ["1"]
    await store.disconnect()


@one_kind
@pytest.mark.anyio
async def test_a_redis_that_lost_it_knows_nothing(redis_server: Server, redis_prefix: str) -> None:
    store = RedisCheckpoint(redis_server.url, redis_prefix)
    await store.save_fenced(STREAM, "1", 5)
    with redis.Redis(port=redis_server.port) as client:
        client.flushall()
    assert await store.load(STREAM) is None
    await store.save_fenced(STREAM, "2", 6)
    assert await store.load(STREAM) == "2"
    await store.disconnect()


@one_kind
@pytest.mark.anyio
async def test_one_object_serves_many_and_closes_when_the_last_is_done(redis_server: Server, redis_prefix: str) -> None:
    store = RedisCheckpoint(redis_server.url, redis_prefix)

    async def save(number: int) -> None:
        await store.save(f"{STREAM}/{number}", str(number))
        await store.disconnect()

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(save, number)
    assert [await store.load(f"{STREAM}/{number}") for number in range(20)] == [str(number) for number in range(20)]
    await store.disconnect()


@one_kind
@pytest.mark.anyio
async def test_a_cluster_has_it(redis_cluster: Cluster) -> None:
    store = RedisCheckpoint(redis_cluster.url)
    for number in range(5):
        await store.save_fenced(f"{STREAM}/{number}", str(number), number + 1)
    assert [await store.load(f"{STREAM}/{number}") for number in range(5)] == ["0", "1", "2", "3", "4"]
    await store.disconnect()


@one_kind
@pytest.mark.anyio
async def test_no_secret_of_the_stream_is_stored(redis_server: Server, redis_prefix: str) -> None:
    with ConnectorServer([summary(1)], end="stop") as server:
        url = server.url.replace("http://", "http://user:hidden@") + "?key=hidden"
        client = AsyncConnectorClient(url, checkpoint=RedisCheckpoint(redis_server.url, redis_prefix))
        with anyio.fail_after(PATIENCE):
            await client.on_summary(lambda payload: None).run()
    with redis.Redis(port=redis_server.port, decode_responses=True) as direct:
        (key,) = direct.scan_iter(f"{redis_prefix}*")
        stored = direct.hgetall(key)
    assert isinstance(stored, dict)
    assert stored["id"] == "1"
    assert "hidden" not in key + str(stored)


@one_kind
@pytest.mark.anyio
async def test_a_stopped_redis_holds_up_a_save_for_the_response_timeout(own_redis_server: RedisServer) -> None:
    store = RedisCheckpoint(own_redis_server.url, response_timeout=0.2)
    await store.save(STREAM, "1")
    own_redis_server.pause()
    began = time.monotonic()
    with pytest.raises(CheckpointError):
        await store.save(STREAM, "2")
    assert time.monotonic() - began < 5.0
    own_redis_server.resume()
    await store.disconnect()


@one_kind
@pytest.mark.anyio
async def test_a_save_that_failed_in_a_term_is_repeated_without_another_event(own_redis_server: RedisServer) -> None:
    votes, failed = Votes(), anyio.Event()
    votes.give()
    with ConnectorServer([summary(1)]) as server:
        store = RedisCheckpoint(own_redis_server.url)
        client = AsyncConnectorClient(server.url, leader=votes, checkpoint=store)
        client.on_summary(lambda payload: None).on_error(lambda error, payload: failed.set())
        async with client:
            client.run_in_background()
            with anyio.fail_after(PATIENCE):
                while client.stats().checkpoint_event_id != "1":
                    await anyio.sleep(0.01)
                own_redis_server.kill()
                server.publish(summary(2))
                await failed.wait()
                own_redis_server.restart()
                while client.stats().checkpoint_event_id != "2":
                    await anyio.sleep(0.01)


def test_trio_is_told() -> None:
    with pytest.raises(ConfigurationError, match="asyncio"):
        anyio.run(RedisCheckpoint("redis://127.0.0.1:1/0").load, STREAM, backend="trio")


@pytest.mark.parametrize(
    ("option", "value"),
    [("key_prefix", ""), ("key_prefix", "{a}"), ("ttl", 0), ("response_timeout", 0), ("load_timeout", -1)],
)
def test_options_are_checked(option: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=option):
        RedisCheckpoint("redis://127.0.0.1:1/0", **{option: value})  # type: ignore[arg-type]  # wrong on purpose
