"""Promises of the bus that its other tests take for granted, on each kind of log."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from datetime import UTC, datetime

import anyio
import msgspec
import psycopg
import pytest
import redis

from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.events import Event
from connector_sdk.bus.handlers import Message
from connector_sdk.bus.log import GroupInfo
from connector_sdk.bus.postgres_calls import Calls
from connector_sdk.bus.registry import EventRegistry
from connector_sdk.testing import PostgresServer, RedisServer
from connector_sdk.testing.bus_case import TOPIC, Seen, event, number, until
from connector_sdk.testing.topic_cases import TOPIC_CASES
from tests.bus.places import PATIENCE, Place
from tests.bus.processes import publish_all
from tests.servers.fixtures import one_kind

pytestmark = [pytest.mark.anyio, one_kind]

durable = pytest.mark.parametrize("place", ["redis", "postgres"], indirect=True)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def group_of(bus: EventBus, topic: str = TOPIC) -> GroupInfo:
    """What is known of the one group of a topic."""
    info = await bus.info(topic)
    assert info is not None
    (group,) = info.groups
    return group


# -- the past and the present


async def test_from_a_position_or_a_time_nothing_is_missed_or_doubled_while_others_publish(place: Place) -> None:
    """X28, X29, for every kind of start: each gets all that came after it, once and in order, with a group or without."""
    count = 900
    async with place.bus() as bus, place.bus() as other:
        positions = await bus.publish(TOPIC, [event(n) for n in range(100)])
        await anyio.sleep(0.05)
        noon = datetime.fromtimestamp(time.time(), UTC)
        await anyio.sleep(0.05)
        everything = Seen(PATIENCE)
        await bus.subscribe(TOPIC, everything, start="beginning")
        seen: list[tuple[int, Seen]] = []
        async with anyio.create_task_group() as tasks:
            for writer in ("one", "two"):
                tasks.start_soon(publish_all, other, writer, count, 3)
            for share in range(4):
                await until(lambda share=share: len(everything.events) >= 100 + share * 150, PATIENCE)  # type: ignore[misc]
                for start, first in ((positions[39], 40), (noon, 100)):
                    for group in (None, f"{share} {first}".replace(" ", "-")):
                        seen.append((first, Seen(PATIENCE)))
                        await bus.subscribe(
                            TOPIC, seen[-1][1], start=start, group=group, queue_size=(1000, 20)[share % 2]
                        )
        await everything.wait_for(100 + 2 * count)
        await bus.settle(PATIENCE)
        ids = [one.event_id for one in everything.events]
        assert len(set(ids)) == len(ids) == 100 + 2 * count
        for first, handler in seen:
            assert [one.event_id for one in handler.events] == ids[first:]


# -- attempts


async def test_a_postponed_event_does_not_come_early_and_holds_up_no_other(place: Place) -> None:
    """`nack(delay)`, measured: with a group and without."""
    calls: dict[int, list[tuple[float, int]]] = defaultdict(list)

    async def handle(one: Event, message: Message) -> None:
        calls[number(one)].append((time.monotonic(), message.attempt))
        if number(one) == 0 and len(calls[0]) < 2:
            await message.nack(1.0)

    for group in ("G", None):
        calls.clear()
        async with place.bus() as bus:
            await bus.subscribe(TOPIC, handle, group=group, max_attempts=1)
            await bus.publish(TOPIC, [event(n) for n in range(20)])
            await bus.settle(PATIENCE)
            assert not await bus.dead_letters.list()
        times = [at for at, _ in calls[0]]
        assert len(times) == 2
        assert times[1] - times[0] >= 0.99
        assert max(calls[n][0][0] for n in range(1, 20)) < times[1]


@durable
async def test_signs_of_life_of_a_handler_keep_its_event(place: Place) -> None:
    """`in_progress` alone, when the bus itself gives no sign: as long as it is called nobody takes the event over."""
    hold, began, release, calls, others = 3.0, anyio.Event(), anyio.Event(), list[int](), Seen(PATIENCE)

    async def handle(one: Event, message: Message) -> None:
        calls.append(number(one))
        began.set()
        while not release.is_set():
            await message.in_progress()
            await anyio.sleep(hold / 20)

    async with place.bus(hold=hold) as bus, place.bus(hold=hold) as other:
        subscription = await bus.subscribe(TOPIC, handle, group="G")
        await bus.publish(TOPIC, event(1))
        await began.wait()
        for loop in (bus._loops[1], *subscription._running[1:]):  # what beats, and what claims
            loop.cancel()
        await other.subscribe(TOPIC, others, group="G")
        await anyio.sleep(hold * 1.6)
        assert not others.events
        release.set()
        await until(lambda: subscription.stats.succeeded == 1, PATIENCE)
        assert calls == [1]
        await until(lambda: subscription.is_idle, PATIENCE)
        assert (await group_of(other)).pending == 0


# -- looking


async def test_the_lag_of_a_group_is_exact(place: Place) -> None:
    """In entries, at every step: what waits, what is in hand, what is done; and of a group that begins in the middle."""
    entered, release = anyio.Event(), anyio.Event()

    async def hangs(one: Event) -> None:
        entered.set()
        await release.wait()

    async with place.bus() as bus, place.bus() as other:
        positions = await other.publish(TOPIC, [event(n) for n in range(10)])
        await bus.subscribe(TOPIC, hangs, group="G", start=positions[3], queue_size=1)
        await entered.wait()

        async def reading() -> tuple[int, int | None, int]:
            group = await group_of(other)
            return group.pending, group.lag, group.consumers

        assert await reading() == (1, 5, 1)
        await other.publish(TOPIC, [event(n) for n in range(10, 17)])
        assert await reading() == (1, 12, 1)
        release.set()
        await bus.settle(PATIENCE)
        assert await reading() == (0, 0, 1)


async def test_every_counter_counts(place: Place) -> None:
    """E50: each of the eight, under its name, in JSON; D17: what a subscription says of itself."""
    dead = [True]

    async def handle(one: Event) -> None:
        if number(one) == 0 and dead[0]:
            raise LookupError("on purpose")

    before = time.time()
    async with place.bus() as bus:
        subscription = await bus.subscribe(
            "any", handle, pattern="orders:*", group="G", max_attempts=2, retry_delays=(0.01,)
        )
        assert (subscription.topic, subscription.pattern, subscription.group) == ("any", "orders:*", "G")
        assert before - 1 <= subscription.created_at <= time.time() + 1
        await bus.subscribe(TOPIC, handle, max_attempts=1)
        await bus.publish(TOPIC, [event(n) for n in range(5)])
        await bus.publish("any", event(5, "any"))
        await bus.settle(PATIENCE)
        stats = msgspec.json.decode(msgspec.json.encode(bus.stats()))
        assert {name: count for name, count in stats.items() if count} == {
            "events_published": 6, "events_consumed": 11, "events_processed_success": 8, "events_processed_failed": 3,
            "handler_errors": 3, "messages_sent_to_dlq": 2, "retried": 1, "subscriptions": 2,
        }  # fmt: skip
        assert {"messages_recovered", "reconnections"} <= set(stats)
        info = await bus.info(TOPIC)
        assert info is not None
        assert (info.length, info.dead_letters) == (5, 2)


# -- what outlives what


@pytest.mark.parametrize("kind", ["redis", "postgres"])
async def test_a_postponed_event_outlives_the_server_and_is_not_early(
    kind: str, own_redis_server: RedisServer, postgres_server: PostgresServer
) -> None:
    """Row 48: the server is killed while the event waits; the delay and the number of the attempt are those of before."""
    delay = 4.0
    server = own_redis_server if kind == "redis" else postgres_server
    place = Place(kind, server.url, "outlives")
    calls: list[tuple[int, int, float]] = []

    async def handle(one: Event, message: Message) -> None:
        calls.append((number(one), message.attempt, time.monotonic()))
        if message.attempt == 1 and number(one) == 0:
            await message.nack(delay)
        if message.attempt == 1 and number(one) == 1:
            raise LookupError("on purpose")

    async with place.bus() as bus:
        await bus.subscribe(TOPIC, handle, group="G", retry_delays=(delay,))
        await bus.publish(TOPIC, [event(n) for n in range(3)])
        await until(lambda: len(calls) == 3 and not bus.stats().unsettled, PATIENCE)
        await anyio.to_thread.run_sync(server.kill)
        await anyio.to_thread.run_sync(server.restart)
        await until(lambda: len(calls) == 5, PATIENCE)
        await bus.settle(PATIENCE)
        assert sorted(call[:2] for call in calls) == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1)]
        for value in (0, 1):
            first, second = (at for one, _, at in calls if one == value)
            assert second - first >= delay - 0.01
        assert not bus.stats().lost


@durable
async def test_a_group_that_somebody_deleted_is_made_anew_and_told(place: Place) -> None:
    """Row 55: nothing but the group is gone: its member goes on with what the topic still has, and its loss is told."""
    losses: list[tuple[str, str | None, str]] = []
    members, watching = Seen(PATIENCE), Seen(PATIENCE)

    class Observer:
        def bus_loss(self, *, topic: str, group: str | None, reason: str, count: int | None) -> None:
            losses.append((topic, group, reason))

    async with place.bus(observer=Observer()) as bus:
        await bus.subscribe(TOPIC, members, group="G")
        await bus.subscribe(TOPIC, watching)
        await bus.publish(TOPIC, [event(n) for n in range(5)])
        await bus.settle(PATIENCE)
        await anyio.to_thread.run_sync(delete_the_group, place)
        await bus.publish(TOPIC, [event(n) for n in range(5, 10)])
        await until(lambda: set(range(5, 10)) <= set(members.numbers), PATIENCE)
        await bus.settle(PATIENCE)
        assert watching.numbers == list(range(10))
        assert losses == [(TOPIC, "G", "lost")]
        assert "lost" in bus.stats().lost
        group = await group_of(bus)
        assert (group.name, group.consumers, group.pending, group.lag) == ("G", 1, 0, 0)


def delete_the_group(place: Place) -> None:
    """Delete the group "G", and nothing else."""
    if place.kind == "redis":
        with redis.Redis.from_url(place.url) as client:
            keys = [key for key in client.scan_iter(f"*{place.prefix}*", _type="stream") if client.xinfo_groups(key)]
            assert keys  # the topic, and what came back to the group alone
            assert all(client.xgroup_destroy(key, "G") for key in keys)
        return
    with psycopg.connect(place.url, autocommit=True) as connection:
        deleted = connection.execute(f'DELETE FROM "{place.prefix}_groups" WHERE grp = %s'.encode(), ("G",))
        assert deleted.rowcount == 1


async def test_who_dies_again_after_a_redrive_has_the_evidence_of_both_lives(place: Place) -> None:
    """Row 51: the lineage: where it was first, and every attempt since, whoever made it."""

    async def fails(one: Event) -> None:
        raise LookupError(f"attempt of {len(letters)}")

    letters: list[str] = []
    async with place.bus() as bus:
        first = await bus.subscribe(TOPIC, fails, group="G", max_attempts=2, retry_delays=(0.01,))
        published = event(1)
        (position,) = await bus.publish(TOPIC, published)
        await bus.settle(PATIENCE)
        (letter,) = await bus.dead_letters.list()
        letters.append(letter.id)
        await first.cancel()
        second = await bus.subscribe(TOPIC, fails, group="G", max_attempts=1)
        assert (await bus.dead_letters.redrive(letter.id)).ids == [letter.id]
        await until(lambda: bus.stats().messages_sent_to_dlq == 2, PATIENCE)
        await bus.settle(PATIENCE)
        (again,) = await bus.dead_letters.list()
        evidence = again.evidence
        assert again.event == published
        assert (evidence.deaths, evidence.total_attempts) == (2, 3)
        assert [one.consumer for one in evidence.attempts] == [first.consumer, first.consumer, second.consumer]
        assert [one.message for one in evidence.attempts] == ["attempt of 0", "attempt of 0", "attempt of 1"]
        assert (evidence.origin.topic, evidence.origin.position) == (TOPIC, position)
        assert evidence.origin.event_id == published.event_id


# -- order


async def test_as_many_keys_as_there_is_room_for_are_handled_at_the_same_time(place: Place) -> None:
    """Row 65: four keys, four at once: handlers that wait for each other all get on, with a group and without."""
    for group in ("G", None):
        rounds, inside = 3, set[int]()
        met = [anyio.Event() for _ in range(rounds)]

        async def meet(one: Event, inside: set[int] = inside, met: list[anyio.Event] = met) -> None:
            turn = number(one) // 4
            inside.add(number(one))
            if {turn * 4 + key for key in range(4)} <= inside:
                met[turn].set()
            await met[turn].wait()

        async with place.bus() as bus:
            subscription = await bus.subscribe(TOPIC, meet, group=group, concurrency=4, key=lambda one: number(one) % 4)
            await bus.publish(TOPIC, [event(n) for n in range(rounds * 4)])
            await bus.settle(PATIENCE)
            assert subscription.stats.succeeded == rounds * 4


@durable
async def test_an_heir_goes_on_with_each_key_where_the_dead_stopped(place: Place) -> None:
    """Row 65, across redelivery: what the dead member had comes in the order of each key, once."""
    entered, done = anyio.Event(), defaultdict[int, list[int]](list)

    async def hangs(one: Event) -> None:
        entered.set()
        await anyio.sleep_forever()

    async def handle(one: Event) -> None:
        await anyio.sleep(0.001 * (number(one) % 5))
        done[number(one) % 3].append(number(one))

    def key(one: Event) -> int:
        return number(one) % 3

    async with EventBus(place.log(), hold=1.0, close_timeout=0) as dead, place.bus(hold=1.0) as bus:
        await bus.publish(TOPIC, [event(n) for n in range(60)])
        held = await dead.subscribe(TOPIC, hangs, group="G", start="beginning", concurrency=9, key=key)
        await entered.wait()
        await until(lambda: held.stats.received >= 9, PATIENCE)
        for loop in (*dead._loops, *held._running):  # as if its process were gone
            loop.cancel()
        await bus.subscribe(TOPIC, handle, group="G", concurrency=8, key=key)
        await bus.settle(PATIENCE)
        had = held.stats.received
        assert bus.stats().messages_recovered == had
        for one in range(3):
            assert sorted(done[one]) == list(range(one, 60, 3))
            inherited = [n for n in done[one] if n < had]
            assert inherited == sorted(inherited)


# -- versions


async def test_what_was_parked_for_its_version_is_handled_once_that_is_known(place: Place) -> None:
    """Row 74: the old program parks it, the new one redrives it: in the order of its class, and nothing is lost."""

    @dataclasses.dataclass
    class Order:
        id: int

    @dataclasses.dataclass
    class NewOrder:
        id: int
        country: str

    old, new = EventRegistry(), EventRegistry()
    old.register(Order, name="order", version=1)
    new.register(NewOrder, name="order", version=2, upcasters={1: lambda payload: {**payload, "country": "?"}})
    got: list[object] = []

    async def take(one: Event) -> None:
        got.append(one.payload)

    async with place.bus(registry=new) as newer:
        async with EventBus(place.log(), registry=old) as older:
            await older.subscribe(Order, take, group="G")
            await newer.publish(TOPIC, [NewOrder(1, "eu"), NewOrder(2, "us")])
            await older.publish(TOPIC, Order(3))
            await until(lambda: got == [Order(3)] and older.stats().messages_sent_to_dlq == 2, PATIENCE)
            await older.settle(PATIENCE)
            letters = await older.dead_letters.list()
            assert {letter.evidence.reason for letter in letters} == {"unknown"}
            assert older.stats().events_processed_success == 1
        await newer.subscribe(NewOrder, take, group="G")
        await newer.publish(TOPIC, Event("order", TOPIC, {"id": 4}, version=1))
        assert (await newer.dead_letters.redrive()).redriven == 2
        await newer.settle(PATIENCE)
        assert sorted(got[1:], key=str) == [NewOrder(1, "eu"), NewOrder(2, "us"), NewOrder(4, "?")]
        assert not await newer.dead_letters.list()


# -- patterns


async def test_patterns_of_groups_match_as_all_others_do(place: Place) -> None:
    """Row 69: the two hundred topics and patterns, each pattern a group; half of the topics are there before it."""
    topics = sorted({topic for topic, _, _ in TOPIC_CASES})
    patterns = sorted({pattern for _, pattern, _ in TOPIC_CASES})
    got: dict[str, list[str]] = {pattern: [] for pattern in patterns}
    async with place.bus() as bus:
        for topic in topics[::2]:
            await bus.publish(topic, event(1, topic))
        for at, pattern in enumerate(patterns):

            async def take(one: Event, pattern: str = pattern) -> None:
                got[pattern].append(one.topic)

            await bus.subscribe(pattern, take, group=f"G{at}", start="beginning")
        for topic in topics[1::2]:
            await bus.publish(topic, event(1, topic))
        await bus.settle(2 * PATIENCE)
    wrong = [case for case in TOPIC_CASES if got[case[1]].count(case[0]) != case[2]]
    assert not wrong


# -- waiting


@durable
async def test_who_waits_does_not_ask(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Topics that are there and topics to come are waited for: the server is asked a few times in four seconds."""
    seen, members, statements = Seen(PATIENCE), Seen(PATIENCE), list[str]()
    rows = Calls.rows

    async def counted(calls: Calls, statement: str, *arguments: object, **options: object) -> object:
        statements.append(statement)
        return await rows(calls, statement, *arguments, **options)  # type: ignore[arg-type]  # as they came

    def asked() -> int:
        if place.kind == "postgres":
            return len(statements)
        with redis.Redis.from_url(place.url) as client:
            calls = client.info("commandstats")
        assert isinstance(calls, dict)
        return sum(calls.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "xread", "xreadgroup"))

    monkeypatch.setattr(Calls, "rows", counted)
    async with place.bus() as bus, place.bus() as other:
        for n in range(30):
            await other.publish(f"orders:{n}", event(n, f"orders:{n}"))
        for pattern in ("orders:*", "*", "orders:1*", "orders:2?"):
            await bus.subscribe(pattern, seen)
        await bus.subscribe("orders:*", members, group="G")
        await bus.settle(PATIENCE)
        before = await anyio.to_thread.run_sync(asked)
        await anyio.sleep(4)
        assert await anyio.to_thread.run_sync(asked) - before <= 40
        await other.publish("orders:new", event(100, "orders:new"))
        assert list(await members.wait_for(1)) == [100]
        assert list(await seen.wait_for(1)) == [100]
