"""The cluster is one, moves slots and survives its nodes."""

from __future__ import annotations

import re

import pytest
import redis
from redis.cluster import RedisCluster

from tests.servers.cluster import NODE_TIMEOUT, SLOTS, Cluster, wait_until
from tests.servers.fixtures import one_kind


def test_three_masters_share_the_slots(redis_cluster: Cluster) -> None:
    assert [node.state for node in redis_cluster.nodes] == ["ok"] * 3
    for node in redis_cluster.nodes:
        assert sum(last - first + 1 for first, last, _ in node.slots) == SLOTS
        assert {port for _, _, port in node.slots} == {node.port for node in redis_cluster.nodes}
    with RedisCluster.from_url(redis_cluster.url) as client:
        for number in range(100):
            client.set(f"key-{number}", number)
    assert all(node.do("DBSIZE") for node in redis_cluster.nodes)


def test_the_wrong_node_says_where_a_key_is(redis_cluster: Cluster) -> None:
    slot = redis_cluster.slot_of("key")
    owner = redis_cluster.owner_of(slot)
    other = next(node for node in redis_cluster.nodes if node is not owner)
    with pytest.raises(redis.exceptions.MovedError) as moved:
        other.do("GET", "key")
    assert (moved.value.slot_id, moved.value.port) == (slot, owner.port)


def test_a_slot_moves_with_its_keys(redis_cluster: Cluster) -> None:
    slot = redis_cluster.slot_of("{tag}")
    owner = redis_cluster.owner_of(slot)
    to = next(node for node in redis_cluster.nodes if node is not owner)
    for number in range(250):
        owner.do("SET", f"{{tag}}:{number}", number)

    assert redis_cluster.begin_move(slot, to) is owner
    with pytest.raises(redis.exceptions.AskError):
        owner.do("GET", "{tag}:not there")
    assert owner.do("GET", "{tag}:7") == "7"
    assert redis_cluster.move_keys(slot, owner, to) == 250
    redis_cluster.end_move(slot, to)

    assert redis_cluster.owner_of(slot) is to
    assert to.do("GET", "{tag}:7") == "7"
    with pytest.raises(redis.exceptions.MovedError):
        owner.do("GET", "{tag}:7")


@one_kind
def test_the_others_go_on_when_a_node_is_killed_and_a_shared_cluster_is_mended(redis_cluster: Cluster) -> None:
    lost, first, second = redis_cluster.nodes
    redis_cluster.kill(lost)
    assert not lost.server.running
    failed = re.compile(rf"{lost.id} \S+ master,fail ")
    wait_until(lambda: bool(failed.search(str(first.do("CLUSTER", "NODES")))), "the others have noticed")
    key = next(f"key-{number}" for number in range(100) if _is_of(redis_cluster, second.port, f"key-{number}"))
    assert second.do("SET", key, "1")
    redis_cluster.mend()
    assert [node.state for node in redis_cluster.nodes] == ["ok"] * 3
    assert [node.do("DBSIZE") for node in redis_cluster.nodes] == [0] * 3


def _is_of(cluster: Cluster, port: int, key: str) -> bool:
    slot = cluster.slot_of(key)
    return any(first <= slot <= last and owner == port for first, last, owner in cluster.nodes[1].slots)


def test_a_replica_takes_over_from_a_master_that_is_killed(own_redis_cluster: Cluster) -> None:
    master, _, _, replica = own_redis_cluster.nodes
    assert not replica.is_master
    key = next(f"key-{number}" for number in range(100) if _is_of(own_redis_cluster, master.port, f"key-{number}"))
    master.do("SET", key, "kept")
    assert master.do("WAIT", 1, 5000) == 1
    own_redis_cluster.kill(master)
    own_redis_cluster.wait_for_master(replica)
    assert replica.do("GET", key) == "kept"
    own_redis_cluster.restart(master)
    wait_until(lambda: master.is_replica_in_step, "the old master follows", timeout=30 * NODE_TIMEOUT)


@one_kind
def test_a_replica_takes_over_by_agreement(own_redis_cluster: Cluster) -> None:
    master, _, _, replica = own_redis_cluster.nodes
    own_redis_cluster.fail_over(replica)
    assert replica in own_redis_cluster.masters
    assert master not in own_redis_cluster.masters
    assert master.server.running
