"""What was lost, held up or told wrongly when things happened at the worst moment: one test for each."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Mapping

import anyio
import psycopg
import pytest

from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.events import Event
from connector_sdk.bus.log import START, Claim, Delivery, Reading
from connector_sdk.bus.memory import MemoryLog
from connector_sdk.bus.memory_member import MemoryMember
from connector_sdk.bus.postgres import PostgresLog
from connector_sdk.bus.redis import RedisLog
from connector_sdk.errors import BusClosedError, BusUnavailableError
from connector_sdk.testing.bus_case import Seen, event, number, until
from tests.bus.redis_place import AgingRedisLog
from tests.servers.fixtures import Server, one_kind
from tests.servers.proxy import Proxy

pytestmark = pytest.mark.anyio

PATIENCE = 30.0
on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


class LateLog(MemoryLog):
    """Answers some requests only when it is let, as a network may."""

    def __init__(self) -> None:
        super().__init__()
        self.ends, self.readings = anyio.Event(), anyio.Event()
        self.ends.set()
        self.readings.set()
        self.asked_for_end = False

    async def end(self, topic: str) -> str:
        found = await super().end(topic)
        self.asked_for_end = True
        await self.ends.wait()
        return found

    async def read(
        self, cursors: Mapping[str, str], *, catalogue: str | None = None, limit: int = 1000, wait: float = 0.0
    ) -> Reading:
        found = await super().read(cursors, catalogue=catalogue, limit=limit, wait=wait)
        await self.readings.wait()
        return found


async def test_a_topic_created_while_a_pattern_is_subscribed_to_is_heard() -> None:
    log, witness, seen = LateLog(), Seen(PATIENCE), Seen(PATIENCE)
    async with EventBus(log) as bus:
        await bus.publish("t:0", event(0, "t:0"))
        await bus.subscribe("t:*", witness, group="G")
        log.ends, log.asked_for_end = anyio.Event(), False
        async with anyio.create_task_group() as group:
            group.start_soon(bus.subscribe, "t:*", seen)
            await until(lambda: log.asked_for_end, PATIENCE)
            await bus.publish("t:new", event(1, "t:new"))
            await witness.wait_for(1)  # the bus knows of the topic
            log.ends.set()
        await bus.publish("t:new", event(2, "t:new"))
        await until(lambda: 2 in seen.numbers, PATIENCE)
        assert seen.numbers == [1, 2]


async def test_a_pattern_gets_the_first_events_of_a_topic_that_another_subscribes_to_meanwhile() -> None:
    log, every, some = LateLog(), Seen(PATIENCE), Seen(PATIENCE)
    async with EventBus(log) as bus:
        await bus.subscribe("t:*", every)
        log.readings = anyio.Event()
        await bus.publish("t:new", event(1, "t:new"))
        await bus.subscribe("t:new", some)
        log.readings.set()
        await bus.publish("t:new", event(2, "t:new"))
        await until(lambda: bool(some.numbers) and 2 in every.numbers, PATIENCE)
        assert every.numbers == [1, 2]
        assert some.numbers == [2]


@on_asyncio
async def test_a_loop_over_events_that_gives_up_waiting_at_any_moment_loses_none() -> None:
    count = 1500
    got: list[int] = []
    async with EventBus(MemoryLog(max_events=100_000)) as bus, bus.events("t") as events:

        async def publish() -> None:
            for value in range(count):
                await bus.publish("t", event(value, "t"))
                await asyncio.sleep(0)

        publishing = asyncio.create_task(publish())
        with anyio.fail_after(PATIENCE):
            while not publishing.done():
                try:
                    async with asyncio.timeout(0.00003 * (1 + len(got) % 7)):
                        got.append(number(await anext(events)))
                except TimeoutError:
                    continue
            await publishing
        with anyio.move_on_after(5.0):  # for nothing, if some are lost
            while len(got) < count:
                got.append(number(await anext(events)))
        assert got == list(range(count))


async def test_an_event_that_waits_for_another_attempt_holds_up_only_its_key() -> None:
    got: list[int] = []

    async def handle(one: Event) -> None:
        if number(one) == 0 and gate:
            raise ValueError
        got.append(number(one))

    gate = [True]
    async with EventBus(MemoryLog()) as bus:
        # Long enough for the test to time out if it holds up the others.
        subscription = await bus.subscribe(
            "t", handle, group="G", key=lambda one: number(one) % 5, retry_delays=[10 * PATIENCE]
        )
        await bus.publish("t", [event(value, "t") for value in range(50)])
        await until(lambda: len(got) == 40, PATIENCE)
        assert got == [value for value in range(50) if value % 5]
        assert not subscription.is_idle
        gate.clear()


async def test_the_queue_size_bounds_what_waits_behind_attempts_to_come() -> None:
    async def handle(_: Event) -> None:
        raise ValueError

    async with EventBus(MemoryLog()) as bus:
        subscription = await bus.subscribe(
            "t", handle, group="G", key=number, retry_delays=[10 * PATIENCE], queue_size=10
        )
        await bus.publish("t", [event(value, "t") for value in range(50)])
        await until(lambda: subscription.stats.failures >= 10, PATIENCE)
        await anyio.wait_all_tasks_blocked()
        assert subscription.stats.waiting == 10


class LateMember(MemoryMember):
    async def recover(self, limit: int, idle: float) -> Claim:
        claim = await super().recover(limit, idle)
        assert isinstance(self._log, LateMembers)
        self._log.recovered.set()
        await self._log.answer.wait()
        return claim


class LateMembers(MemoryLog):
    """Its members get the answer to a recovery when they are let."""

    def __init__(self) -> None:
        super().__init__()
        self.recovered, self.answer = anyio.Event(), anyio.Event()

    def member(self, group: str, consumer: str, *, hold: float) -> MemoryMember:
        return LateMember(self, group, consumer, hold, self._fellowships.setdefault(group, {}))


async def test_a_recovery_for_a_subscription_that_ends_meanwhile_ends_and_keeps_nothing() -> None:
    log = LateMembers()
    async with EventBus(log, hold=600.0) as bus:
        silent = log.member("G", "silent", hold=600.0)
        await silent.follow("t", START)
        await bus.publish("t", [event(value, "t") for value in range(5)])
        await silent.claim(5, wait=0.0)
        subscription = await bus.subscribe("t", Seen(), group="G")
        async with anyio.create_task_group() as group:
            group.start_soon(bus.recover, "G", 0.0)
            await log.recovered.wait()
            await subscription.cancel()
            log.answer.set()
            group.cancel_scope.deadline = anyio.current_time() + PATIENCE
        assert not group.cancel_scope.cancelled_caught
        assert not subscription.stats.waiting
        assert len((await silent.claim(10, wait=0.0)).deliveries) == 5


class SlowlyLeaving(MemoryMember):
    async def aclose(self) -> None:
        self._closed = True
        await anyio.sleep(0.5)
        await super().aclose()


class SlowlyLeft(MemoryLog):
    def member(self, group: str, consumer: str, *, hold: float) -> MemoryMember:
        return SlowlyLeaving(self, group, consumer, hold, self._fellowships.setdefault(group, {}))


async def test_a_member_that_leaves_is_no_outage() -> None:
    states: list[str] = []

    class Observer:
        def bus_state(self, *, bus: str, state: str) -> None:
            states.append(state)

    async with EventBus(SlowlyLeft(), hold=0.2, observer=Observer()) as bus:
        subscription = await bus.subscribe("t", Seen(), group="G")
        await subscription.cancel()
        assert bus.is_connected
    assert not states


@on_asyncio
async def test_a_claim_on_postgres_that_fails_half_way_loses_nothing(postgres_url: str) -> None:
    """It had entries, and found that a group was gone that it could not make anew."""
    log = PostgresLog(postgres_url, response_timeout=2.0)
    await log.connect()
    try:
        member = log.member("G", "one", hold=600.0)
        await member.follow("a", START)
        await member.follow("b", START)
        await log.append([("a", b"1")])
        other = "SELECT id FROM events_topics WHERE topic = 'b'"
        with psycopg.connect(postgres_url) as connection:
            connection.execute(f"DELETE FROM events_groups WHERE topic_id = ({other})")
            connection.commit()
            connection.execute(f"{other} FOR UPDATE")
            with pytest.raises(BusUnavailableError):
                await member.claim(10, wait=0.0)
            connection.rollback()
        found: list[object] = []
        with anyio.fail_after(PATIENCE):
            while not found:
                try:
                    found += (await member.claim(10, wait=1.0)).deliveries
                except BusUnavailableError:
                    continue
        assert [delivery.body for delivery in found] == [b"1"]  # type: ignore[attr-defined]
        await member.aclose()
    finally:
        await log.aclose()


@on_asyncio
async def test_publishing_on_postgres_from_another_event_loop_is_refused_and_not_cancelled(postgres_url: str) -> None:
    errors: list[BaseException] = []
    async with EventBus(PostgresLog(postgres_url)) as bus:
        await bus.publish("t", event(0, "t"))

        async def elsewhere() -> None:
            try:
                await bus.publish("t", event(1, "t"))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
        assert [type(error) for error in errors] == [BusClosedError]
        await bus.publish("t", event(2, "t"))


@on_asyncio
async def test_what_a_postgres_member_was_given_and_never_handed_out_is_no_attempt(postgres_url: str) -> None:
    """Its claim was cancelled, and it leaves: after some such restarts a handler that never ran would have failed."""
    log = PostgresLog(postgres_url)
    await log.connect()
    try:
        last = log.member("G", "last", hold=600.0)
        await last.follow("t", START)
        await log.append([("t", b"1")])
        for turn in range(3):
            member = log.member("G", f"m{turn}", hold=600.0)
            await member.follow("t", START)
            claiming = asyncio.create_task(member.claim(10, wait=0.0))
            await asyncio.sleep(0)  # it has asked
            claiming.cancel()
            await asyncio.wait((claiming,))
            assert claiming.cancelled()
            await member.aclose()
        with anyio.fail_after(PATIENCE):
            while not (found := (await last.claim(10, wait=1.0)).deliveries):
                continue
        assert [delivery.attempt for delivery in found] == [1]
        await last.aclose()
    finally:
        await log.aclose()


@on_asyncio
@one_kind
async def test_what_a_redis_member_was_given_and_never_got_is_no_attempt(
    redis_server: Server, redis_proxy: Proxy
) -> None:
    """The reply was lost, and it leaves before it has looked for it."""
    proxy, prefix = redis_proxy, f"review-{secrets.token_hex(4)}"
    far = RedisLog(f"redis://127.0.0.1:{proxy.port}", prefix, response_timeout=20.0)
    near = RedisLog(redis_server.url, prefix, connect_timeout=20.0, response_timeout=20.0)
    await far.connect()
    await near.connect()

    async def has_pending() -> bool:
        with anyio.move_on_after(5.0):
            while (info := await near.info("t")) is not None and not info.groups[0].pending:
                await anyio.sleep(0.01)
            return True
        return False

    try:
        for turn in range(10):  # a request that blocks may end just before the event comes
            member = far.member("G", f"m{turn}", hold=600.0)
            await member.follow("t", START)
            with anyio.move_on_after(0.3):
                await member.claim(10, wait=20.0)  # its request is blocked on the server
            proxy.swallow("to_client")
            await near.append([("t", b"1")])
            was_given = await has_pending()
            proxy.restore()
            await member.aclose()
            if was_given:
                break
        other = near.member("G", "other", hold=600.0)
        await other.follow("t", START)
        with anyio.fail_after(PATIENCE):
            while not (found := (await other.claim(10, wait=1.0)).deliveries):
                continue
        assert was_given
        assert {delivery.attempt for delivery in found} == {1}
        await other.aclose()
    finally:
        await far.aclose()
        await near.aclose()


@on_asyncio
@one_kind
async def test_what_retention_took_while_a_handler_had_it_is_counted_when_it_is_to_come_again(
    redis_server: Server,
) -> None:
    prefix = f"review-{secrets.token_hex(4)}"
    log = RedisLog(redis_server.url, prefix, max_events=10, max_backlog=10, connect_timeout=20.0, response_timeout=20.0)
    await log.connect()
    try:
        member = log.member("G", "one", hold=600.0)
        await member.follow("t", START)
        published = 3
        await log.append([("t", b"x")] * 3)
        first: list[Delivery] = []
        with anyio.fail_after(PATIENCE):
            while len(first) < 3:
                first += (await member.claim(3, wait=1.0)).deliveries
            while (info := await log.info("t")) is not None and info.first == first[0].position:
                await log.append([("t", b"x")] * 20)
                published += 20
        await member.postpone(first[0], 0.0, b"")
        await member.give_back(first[1:])
        handled = lost = 0
        with anyio.move_on_after(PATIENCE):
            while handled + lost < published:
                claim = await member.claim(100, wait=0.5)
                await member.acknowledge(claim.deliveries)
                handled += len(claim.deliveries)
                lost += sum(loss.count or 0 for loss in claim.losses)
        assert handled + lost == published
        await member.aclose()
    finally:
        await log.aclose()


@on_asyncio
@one_kind
async def test_a_slow_subscription_is_told_of_a_loss_when_nothing_came_after_it(redis_server: Server) -> None:
    got: list[int] = []
    gate = anyio.Event()

    async def handle(one: Event) -> None:
        got.append(number(one))
        await gate.wait()

    log = AgingRedisLog(
        redis_server.url,
        f"review-{secrets.token_hex(4)}",
        ttl_seconds=1.0,
        connect_timeout=20.0,
        response_timeout=20.0,
    )
    async with EventBus(log) as bus:
        await bus.subscribe("t", handle, queue_size=2)
        await bus.publish("t", [event(value, "t") for value in range(50)])
        await until(lambda: bool(got), PATIENCE)
        with anyio.fail_after(PATIENCE):
            while (info := await bus.info("t")) is not None and info.length:
                await bus.publish("other", event(0, "other"))  # whoever publishes lets go what is old, in all topics
                await anyio.sleep(0.1)
        gate.set()
        await until(lambda: len(got) < 50 and "trimmed" in bus.stats().lost, PATIENCE)


@on_asyncio
@one_kind
async def test_a_recovery_on_redis_reports_what_it_took_while_the_bus_claims_other_events(redis_server: Server) -> None:
    prefix, got = f"review-{secrets.token_hex(4)}", set[int]()

    async def handle(one: Event) -> None:
        got.add(number(one))

    def log() -> RedisLog:
        return RedisLog(redis_server.url, prefix, max_events=50_000, connect_timeout=20.0, response_timeout=20.0)

    other = log()
    await other.connect()
    async with EventBus(log(), hold=600.0) as bus:
        for turn in range(3):
            topic, count = f"t{turn}", 600
            await bus.publish(topic, [event(value, topic) for value in range(count)])
            silent = other.member("G", f"silent{turn}", hold=600.0)
            await silent.follow(topic, START)
            held = 0
            with anyio.fail_after(PATIENCE):
                while held < count:
                    held += len((await silent.claim(200, wait=1.0)).deliveries)
            got.clear()
            subscription = await bus.subscribe(topic, handle, group="G", concurrency=4)
            ended = anyio.Event()

            async def publish(topic: str, ended: anyio.Event) -> None:
                while not ended.is_set():
                    await bus.publish(topic, [event(10_000, topic)] * 40)

            async with anyio.create_task_group() as group:
                group.start_soon(publish, topic, ended)
                await until(lambda: 10_000 in got, PATIENCE)
                with anyio.fail_after(PATIENCE):
                    report = await bus.recover("G", 0.0)
                handled = got - {10_000}
                ended.set()
            assert (report.claimed, report.reprocessed, len(handled)) == (count, count, count)
            assert subscription.stats.recovered == count
            await subscription.cancel()
            await silent.aclose()
    await other.aclose()
