"""Streams that are spread over the nodes of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis

from connector_sdk.streams import Consumer, GroupConsumer
from tests.servers.cluster import Cluster
from tests.servers.fixtures import one_kind
from tests.streams.stream_place import PATIENCE, number

pytestmark = [pytest.mark.anyio, one_kind]

STREAMS = ["a", "b", "c", "{a}2"]


@pytest.fixture
async def raw(redis_cluster: Cluster) -> AsyncIterator[redis.RedisCluster]:
    client = redis.RedisCluster.from_url(redis_cluster.url)
    yield client
    client.close()


def fill(raw: redis.RedisCluster, first: int) -> set[int]:
    for at, stream in enumerate(STREAMS):
        for n in range(10):
            raw.xadd(stream, {"n": first + 10 * at + n})
    return set(range(first, first + 10 * len(STREAMS)))


def url(cluster: Cluster) -> str:
    return cluster.url.replace("redis://", "redis+cluster://").removesuffix("/0")


async def test_a_consumer_reads_streams_of_all_nodes(redis_cluster: Cluster, raw: redis.RedisCluster) -> None:
    assert len({redis_cluster.owner_of(redis_cluster.slot_of(stream)).port for stream in STREAMS}) > 1
    expected = fill(raw, 0)
    async with Consumer(url(redis_cluster), STREAMS, start="beginning", connect_timeout=PATIENCE) as consumer:
        seen = [number(entry) async for _, entry in consumer]
        assert sorted(seen) == sorted(expected)
        for turn in range(3):
            waiting = asyncio.create_task(consumer.get_entry(PATIENCE))
            await asyncio.sleep(0.02)
            raw.xadd(STREAMS[turn], {"n": 1000 + turn})
            entry = (await waiting)[1]
            assert entry is not None
            assert number(entry) == 1000 + turn


async def test_a_group_shares_streams_of_all_nodes(redis_cluster: Cluster, raw: redis.RedisCluster) -> None:
    expected = fill(raw, 0)

    def member() -> GroupConsumer:
        return GroupConsumer(
            url(redis_cluster), STREAMS, "g", connect_timeout=PATIENCE, response_timeout=PATIENCE, buffer_size=3
        )

    async def drain(consumer: GroupConsumer) -> list[int]:
        seen = []
        async for _, entry in consumer.until_idle(1.5):
            seen.append(number(entry))
            if entry.attempt == 1 and number(entry) % 10 == 5:
                await consumer.nack(entry)
                seen.pop()
            else:
                await consumer.acknowledge(entry)
        return seen

    async with (
        member() as one,
        member() as two,
    ):
        found = await asyncio.gather(drain(one), drain(two))
        assert sorted([*found[0], *found[1]]) == sorted(expected)
        assert (await one.lag("a")).entries == 0
    assert [raw.xpending(stream, "g")["pending"] for stream in STREAMS] == [0] * len(STREAMS)
    assert [raw.xinfo_consumers(stream, "g") for stream in STREAMS if any(
        row["pending"] for row in raw.xinfo_consumers(stream, "g"))] == []  # fmt: skip
