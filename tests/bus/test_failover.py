"""An event bus whose Redis becomes another server: a master that sentinels watch, and a node of a cluster."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
import redis

from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.events import Event
from connector_sdk.bus.handlers import Message
from connector_sdk.bus.redis import RedisLog
from connector_sdk.errors import BusUnavailableError
from connector_sdk.testing.bus_case import TOPIC, Seen, event, number, until
from tests.servers.cluster import Cluster
from tests.servers.fixtures import one_kind
from tests.servers.sentinel import SentinelSet

pytestmark = [pytest.mark.anyio, one_kind]

PATIENCE = 30.0


@pytest.fixture
def anyio_backend() -> str:
    """The Redis client works in asyncio alone."""
    return "asyncio"


def log_of(servers: SentinelSet) -> RedisLog:
    url = f"redis+sentinel://127.0.0.1:{servers.sentinel_port}/{servers.master_name}"
    return RedisLog(url, connect_timeout=2.0, response_timeout=2.0)


class Publisher:
    """Publishes numbered events one by one until it is told to stop; what the log refuses is not tried again."""

    def __init__(self, bus: EventBus, first: int) -> None:
        self._bus = bus
        self._next = first
        self.confirmed: list[int] = []
        self.refused = 0
        self.is_over = False

    async def run(self) -> None:
        while not self.is_over:
            try:
                await self._bus.publish(TOPIC, event(self._next))
            except BusUnavailableError:
                self.refused += 1
            else:
                self.confirmed.append(self._next)
            self._next += 1
            await anyio.sleep(0.01)


async def until_settled(bus: EventBus) -> None:
    """Wait until the log knows that the group has finished everything."""
    with anyio.fail_after(PATIENCE):
        while True:
            info = await bus.info(TOPIC)
            assert info is not None
            if [(group.pending, group.lag) for group in info.groups] == [(0, 0)]:
                return
            await anyio.sleep(0.02)


async def keep_going(buses: tuple[EventBus, EventBus, EventBus], fail_over: Callable[[], object]) -> None:
    """Publish, to one subscriber and to two members of a group, while *fail_over* replaces the server by its replica."""
    publishing, one, two = buses
    live, members = Seen(PATIENCE), (Seen(PATIENCE), Seen(PATIENCE))
    await one.subscribe(TOPIC, live)
    await one.subscribe(TOPIC, members[0], group="G")
    await two.subscribe(TOPIC, members[1], group="G")
    publisher = Publisher(publishing, 0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(publisher.run)
        await until(lambda: len(publisher.confirmed) >= 50, PATIENCE)
        before = set(publisher.confirmed[:40])
        await anyio.to_thread.run_sync(fail_over)
        promoted = len(publisher.confirmed)
        await until(lambda: len(publisher.confirmed) >= promoted + 100, PATIENCE)
        publisher.is_over = True
    assert publisher.refused, "publishers hear of the outage"
    # What the last moments before the death had is with the replica or not; everything else is handled.
    sure = before | set(publisher.confirmed[promoted:])
    await until(lambda: sure <= set(live.numbers), PATIENCE)
    await until(lambda: sure <= {*members[0].numbers, *members[1].numbers}, PATIENCE)
    await until_settled(one)
    assert live.numbers == sorted(set(live.numbers)), "in order, and nothing twice"
    for bus in buses:
        await until(lambda bus=bus: bus.is_connected, PATIENCE)  # type: ignore[misc]
    # Both members go on.
    counts = [len(seen.events) for seen in members]
    last = 100_000
    while not all(len(seen.events) > count for seen, count in zip(members, counts, strict=True)):
        await publishing.publish(TOPIC, [event(last + n) for n in range(20)])
        last += 20
        await anyio.sleep(0.02)
        assert last < 130_000


async def test_all_go_on_when_the_master_is_killed(redis_sentinel: SentinelSet) -> None:
    async with (
        EventBus(log_of(redis_sentinel)) as publishing,
        EventBus(log_of(redis_sentinel)) as one,
        EventBus(log_of(redis_sentinel)) as two,
    ):
        await keep_going((publishing, one, two), redis_sentinel.failover)


class Gate:
    """A handler that remembers attempts, and keeps the event 1 until it is let go."""

    def __init__(self) -> None:
        self.began: list[tuple[int, int]] = []
        self.finished: list[int] = []
        self.open = anyio.Event()

    async def __call__(self, one: Event, message: Message) -> None:
        self.began.append((number(one), message.attempt))
        if number(one) == 1:
            await self.open.wait()
        self.finished.append(number(one))


async def test_what_the_replica_did_not_hear_of_comes_again_or_is_told(redis_sentinel: SentinelSet) -> None:
    """
    The replica is cut off while the master confirms an event, an acknowledgement and a group in a new topic, and dies.

    Who had that event keeps it, nobody else can get it; what was acknowledged comes again; the group is told of its loss.
    """
    live, members, others = Seen(PATIENCE), Gate(), Seen(PATIENCE)
    losses: list[tuple[str, str | None, str]] = []

    class Observer:
        def bus_loss(self, *, topic: str, group: str | None, reason: str, count: int | None) -> None:
            losses.append((topic, group, reason))

    async with EventBus(log_of(redis_sentinel), observer=Observer()) as bus:
        await bus.subscribe(TOPIC, live)
        await bus.subscribe(TOPIC, members, group="G", concurrency=4)
        await bus.subscribe("others:*", others, group="H")
        await bus.publish(TOPIC, [event(0), event(1)])
        await until(lambda: (1, 1) in members.began and members.finished == [0], PATIENCE)
        await until_replica_has_all(redis_sentinel)
        replica, master = redis_sentinel.replica, redis_sentinel.master
        replica.pause()
        with redis.Redis(port=master.port) as raw:
            raw.client_kill_filter(_type="replica")  # what it is sent would wait in its socket
        members.open.set()
        await bus.publish(TOPIC, event(2))
        await bus.publish("others:new", event(7, "others:new"))
        await until(lambda: 2 in live.numbers and {1, 2} <= set(members.finished) and others.numbers == [7], PATIENCE)
        await until_settled(bus)
        master.kill()
        replica.resume()
        with pytest.raises(BusUnavailableError):
            await bus.publish(TOPIC, event(3))
        await anyio.to_thread.run_sync(redis_sentinel.wait_for_another_than, master)
        await publish_until_stored(bus, TOPIC, 4)
        await publish_until_stored(bus, "others:new", 8)
        await until(lambda: 4 in live.numbers and 4 in members.finished and 8 in others.numbers, PATIENCE)
        await until(lambda: members.finished.count(1) == 2, PATIENCE)
        await until_settled(bus)
        assert [n for n in live.numbers if n in (0, 1, 2)] == [0, 1, 2]
        assert members.finished.count(0) == members.finished.count(2) == 1
        assert ("others:new", "H", "lost") in losses


async def until_replica_has_all(servers: SentinelSet) -> None:
    with redis.Redis(port=servers.master.port) as master, anyio.fail_after(PATIENCE):
        while master.wait(1, 1000) != 1:
            await anyio.sleep(0.01)


async def publish_until_stored(bus: EventBus, topic: str, value: int) -> None:
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                await bus.publish(topic, event(value, topic))
            except BusUnavailableError:
                await anyio.sleep(0.05)
            else:
                return


async def test_a_failover_by_agreement_leaves_nothing_pending(redis_sentinel: SentinelSet) -> None:
    """The old master goes on taking acknowledgements, in vain: what it swallowed must not stay pending for ever."""
    count = 200
    finished: list[int] = []
    begin = anyio.Event()

    async def handle(one: Event) -> None:
        await begin.wait()
        await anyio.sleep(max(0, number(one)) * 0.015)  # acknowledgements are on their way all through the failover
        finished.append(number(one))

    async with EventBus(log_of(redis_sentinel)) as bus:
        subscription = await bus.subscribe(TOPIC, handle, group="G", concurrency=count)
        await bus.publish(TOPIC, [event(n) for n in range(count)])
        await until(lambda: subscription.stats.running == count, PATIENCE)
        await until_replica_has_all(redis_sentinel)
        begin.set()
        await anyio.to_thread.run_sync(redis_sentinel.graceful_failover)
        await until(lambda: set(range(count)) <= set(finished), PATIENCE)
        async with EventBus(RedisLog(redis_sentinel.master.url)) as other:
            await publish_until_stored(other, TOPIC, -1)
            await until(lambda: -1 in finished, PATIENCE)
            await until_settled(other)
    assert max(finished.count(n) for n in range(count)) <= 2


async def test_a_bus_goes_on_when_its_node_of_a_cluster_is_killed(own_redis_cluster: Cluster) -> None:
    cluster = own_redis_cluster
    node, replica = cluster.nodes[0], cluster.nodes[3]
    prefix = next(
        name for n in range(100) if cluster.owner_of(cluster.slot_of(f"{{{(name := f'bus{n}')}}}:catalogue")) is node
    )

    def make() -> EventBus:
        # By nodes that live on: a client must know one.
        seeds = ",".join(f"127.0.0.1:{other.port}" for other in cluster.nodes[1:3])
        return EventBus(RedisLog(f"redis+cluster://{seeds}", prefix, connect_timeout=2.0, response_timeout=2.0))

    def fail_over() -> None:
        cluster.kill(node)
        cluster.wait_for_master(replica)

    async with make() as publishing, make() as one, make() as two:
        await keep_going((publishing, one, two), fail_over)
