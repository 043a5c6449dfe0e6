"""The sentinel promotes the replica."""

from __future__ import annotations

import redis

from tests.servers.sentinel import MASTER_NAME, SentinelSet


def ask_for_the_master(sentinel_port: int) -> tuple[tuple[str, int], tuple[str, int]]:
    """As clients do, by either of the two questions."""
    with redis.Redis(port=sentinel_port, decode_responses=True) as client:
        told = client.sentinel_get_master_addr_by_name(MASTER_NAME)
        assert isinstance(told, tuple)
        listed = client.sentinel_masters()[MASTER_NAME]
        return told, (listed["ip"], listed["port"])


def test_the_replica_is_promoted_when_the_master_is_killed(redis_sentinel: SentinelSet) -> None:
    first, second = redis_sentinel.servers
    assert ask_for_the_master(redis_sentinel.sentinel_port) == (("127.0.0.1", first.port),) * 2
    with redis.Redis(port=first.port) as client:
        client.set("a", "kept")
        assert client.wait(1, 5000) == 1

    assert redis_sentinel.failover() is first

    assert not first.running
    assert redis_sentinel.master is second
    assert ask_for_the_master(redis_sentinel.sentinel_port) == (("127.0.0.1", second.port),) * 2
    with redis.Redis(port=second.port) as client:
        assert client.get("a") == b"kept"
        assert client.set("b", "taken")


def test_the_replica_is_promoted_on_request(redis_sentinel: SentinelSet) -> None:
    first, second = redis_sentinel.servers
    assert redis_sentinel.graceful_failover() is first
    assert first.running
    assert (redis_sentinel.master, redis_sentinel.replica) == (second, first)
    with redis.Redis(port=second.port) as client:
        assert client.set("b", "taken")
