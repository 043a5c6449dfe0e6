"""A group that goes on when another server becomes the master."""

from __future__ import annotations

import anyio
import pytest
import redis

from connector_sdk.streams import GroupConsumer
from tests.servers.fixtures import one_kind
from tests.servers.sentinel import SentinelSet
from tests.streams.stream_place import PATIENCE, number

pytestmark = [pytest.mark.anyio, one_kind]


async def test_a_group_follows_the_master(redis_sentinel: SentinelSet) -> None:
    url = f"redis+sentinel://127.0.0.1:{redis_sentinel.sentinel_port}/{redis_sentinel.master_name}"
    with redis.Redis(port=redis_sentinel.master_port) as master:
        master.xadd("a", {"n": 1})
    async with GroupConsumer(url, "a", "g", connect_timeout=5.0) as consumer:
        _, entry = await consumer.get_entry(PATIENCE)
        assert entry is not None
        await consumer.acknowledge(entry)
        await consumer.flush()
        await anyio.to_thread.run_sync(redis_sentinel.graceful_failover)
        with redis.Redis(port=redis_sentinel.master_port) as master:
            master.xadd("a", {"n": 2})
        seen = 0
        while seen != 2:
            _, entry = await consumer.get_entry(PATIENCE)
            assert entry is not None
            seen = number(entry)  # an acknowledgement that the replica did not have may bring the first one again
            await consumer.acknowledge(entry)
