"""Promises of a bus: handlers that fail, attempts, dead letters with their evidence, and what is done with these."""

from __future__ import annotations

import dataclasses
import time

import anyio
import pytest

from connector_sdk.bus.events import Event
from connector_sdk.bus.handlers import Message
from connector_sdk.bus.registry import EventRegistry
from connector_sdk.errors import EventBusError
from connector_sdk.testing.bus_case import TOPIC, BusCase, event, number, until

__all__ = ["FailingContract"]

GROUPS = pytest.mark.parametrize("group", [None, "G"])


@dataclasses.dataclass
class Ordered:
    """An event class of the tests."""

    number: int


def _registry(version: int = 1) -> EventRegistry:
    registry = EventRegistry()
    registry.register(Ordered, name="ordered", version=version)
    return registry


class FailingContract(BusCase):
    """Retries and dead letters; the same with a group and without."""

    @GROUPS
    @pytest.mark.anyio
    async def test_a_failing_event_is_tried_again_and_holds_up_no_other(self, group: str | None) -> None:
        """On its schedule, never earlier."""
        calls: list[tuple[int, float]] = []

        async def handle(one: Event) -> None:
            calls.append((number(one), time.monotonic()))
            if number(one) == 0 and sum(value == 0 for value, _ in calls) < 3:
                raise LookupError("on purpose")

        async with self.bus() as bus:
            subscription = await bus.subscribe(TOPIC, handle, group=group, retry_delays=(0.3, 0.3))
            await bus.publish(TOPIC, [event(n) for n in range(5)])
            await bus.settle(self.patience)
            order = [value for value, _ in calls]
            assert order == [0, 1, 2, 3, 4, 0, 0]
            times = [at for value, at in calls if value == 0]
            assert times[1] - times[0] >= 0.28
            assert times[2] - times[1] >= 0.28
            stats = subscription.stats
            assert stats.succeeded == 5
            assert stats.failures == 2
            assert stats.balanced
            assert not await bus.dead_letters.list()

    @GROUPS
    @pytest.mark.anyio
    async def test_what_keeps_failing_becomes_a_dead_letter_with_evidence(self, group: str | None) -> None:
        """X22: error, place, consumer, times."""

        async def handle(one: Event) -> None:
            if number(one) == 0:
                raise LookupError("the shelf is empty")

        async with self.bus() as bus:
            subscription = await bus.subscribe(TOPIC, handle, group=group, max_attempts=2, retry_delays=(0.01,))
            published = event(0)
            positions = await bus.publish(TOPIC, [published, event(1)])
            await bus.settle(self.patience)
            (letter,) = await bus.dead_letters.list(TOPIC)
            assert letter.event == published
            assert (letter.topic, letter.group, letter.position) == (TOPIC, group, positions[0])
            evidence = letter.evidence
            assert evidence.reason == "exhausted"
            assert len(evidence.attempts) == 2
            for attempt in evidence.attempts:
                assert attempt.error_type.endswith("LookupError")
                assert attempt.message == "the shelf is empty"
                assert attempt.traceback_digest
                assert attempt.consumer == subscription.consumer
            assert evidence.attempts[0].at < evidence.attempts[1].at
            assert evidence.origin.event_id == published.event_id
            assert await bus.dead_letters.get(letter.id) == letter
            assert await bus.dead_letters.get("no such letter") is None
            stats = bus.stats()
            assert (stats.messages_sent_to_dlq, stats.handler_errors, stats.events_processed_success) == (1, 2, 1)
            assert subscription.stats.balanced

    @GROUPS
    @pytest.mark.anyio
    async def test_dead_letters_are_redriven_and_purged(self, group: str | None) -> None:
        """One, by a filter, as a dry run; discarded for good."""
        broken, seen = [True], self.seen()

        async def handle(one: Event) -> None:
            if broken[0]:
                raise LookupError("on purpose")
            await seen(one)

        async with self.bus() as bus:
            await bus.subscribe(TOPIC, handle, group=group, max_attempts=1)
            await bus.publish(TOPIC, [event(n) for n in range(5)])
            await bus.settle(self.patience)
            assert len(await bus.dead_letters.list()) == 5
            assert len(await bus.dead_letters.list(limit=2)) == 2
            dry = await bus.dead_letters.redrive(where=lambda letter: number(letter.event) > 2, dry_run=True)  # type: ignore[arg-type]
            assert (dry.checked, dry.redriven) == (5, 2)
            assert len(await bus.dead_letters.list()) == 5
            broken[0] = False
            first = (await bus.dead_letters.list())[0]
            one = await bus.dead_letters.redrive(first.id)
            assert (one.redriven, one.gone) == (1, 0)
            assert (await bus.dead_letters.redrive(first.id)).redriven == 0
            more = await bus.dead_letters.redrive(topic=TOPIC, where=lambda letter: number(letter.event) > 2)  # type: ignore[arg-type]
            assert more.redriven == 2
            await bus.settle(self.patience)
            assert sorted(seen.numbers) == [0, 3, 4]
            assert await bus.dead_letters.purge(limit=1) == 1
            assert await bus.dead_letters.purge() == 1
            assert not await bus.dead_letters.list()

    @GROUPS
    @pytest.mark.anyio
    async def test_a_handler_may_decide_itself(self, group: str | None) -> None:
        """`ack`, `nack`, `reject` and `in_progress` of a Message."""
        attempts: list[tuple[int, int]] = []
        twice: list[str] = []

        async def handle(one: Event, message: Message) -> None:
            attempts.append((number(one), message.attempt))
            assert message.group == group
            assert message.topic == TOPIC
            if number(one) == 0:
                await message.ack()
                raise LookupError("after it was acknowledged: changes nothing")
            if number(one) == 1 and message.attempt == 1:
                await message.nack(0.2)
            if number(one) == 2:
                await message.reject("no good")
                try:
                    await message.ack()
                except EventBusError:
                    twice.append("refused")
            if number(one) == 3:
                await message.in_progress()

        async with self.bus() as bus:
            subscription = await bus.subscribe(TOPIC, handle, group=group)
            await bus.publish(TOPIC, [event(n) for n in range(4)])
            await bus.settle(self.patience)
            assert sorted(attempts) == [(0, 1), (1, 1), (1, 2), (2, 1), (3, 1)]
            assert twice == ["refused"]
            (letter,) = await bus.dead_letters.list()
            assert letter.evidence.reason == "rejected"
            assert letter.evidence.last is not None
            assert letter.evidence.last.message == "no good"
            assert subscription.stats.balanced
            assert subscription.stats.succeeded == 3

    @GROUPS
    @pytest.mark.anyio
    async def test_an_event_class_gets_its_type_and_parks_versions_it_does_not_know(self, group: str | None) -> None:
        """X21: nothing that cannot be understood is acknowledged away."""
        got: list[object] = []

        async def handle(one: Event) -> None:
            got.append(one.payload)

        async with self.bus(registry=_registry()) as bus, self.bus(registry=_registry(version=9)) as newer:
            subscription = await bus.subscribe(Ordered, handle, group=group)
            assert subscription.pattern == "*"
            await newer.publish(TOPIC, Ordered(0))
            await bus.publish(TOPIC, [event(1), Event("ordered", TOPIC, {"number": 2}, version=1)])
            await bus.publish(TOPIC, Ordered(3))
            await bus.publish(TOPIC, Event("ordered", TOPIC, {"number": "three"}, version=1))
            await until(lambda: subscription.stats.received >= 5, self.patience)
            await until(lambda: bus.stats().messages_sent_to_dlq >= 1, self.patience)
            await until(lambda: len(got) >= 2 and not bus.stats().unsettled, self.patience)
            assert got == [Ordered(2), Ordered(3)]
            (letter,) = await bus.dead_letters.list()
            assert letter.evidence.reason == "unknown"
            assert letter.event is not None
            assert letter.event.version == 9
            assert subscription.stats.passed_over == 1
            assert subscription.stats.balanced

    @pytest.mark.anyio
    async def test_what_is_no_event_is_parked(self) -> None:
        """Bytes that nobody can read become dead letters."""
        seen = self.seen()
        log = await self.make_log()
        if log.keeps_objects:
            pytest.skip("this log keeps the events themselves")
        async with self.bus() as bus:
            await bus.subscribe(TOPIC, seen, group="G")
            await bus.subscribe(TOPIC, seen)
            await log.connect()
            await log.append([(TOPIC, b"\xff no JSON")])
            await bus.publish(TOPIC, event(1))
            await bus.settle(self.patience)
            assert seen.numbers == [1, 1]
            letters = await bus.dead_letters.list()
            assert sorted(str(letter.group) for letter in letters) == ["G", "None"]
            for letter in letters:
                assert letter.event is None
                assert letter.body == b"\xff no JSON"
                assert letter.evidence.reason == "unreadable"
            await log.aclose()

    @pytest.mark.anyio
    async def test_attempts_are_counted_across_members(self) -> None:
        """Whoever of a group tries it: three attempts in all."""

        async def fails(one: Event) -> None:
            raise LookupError("on purpose")

        async with self.bus() as bus, self.bus() as other:
            await bus.subscribe(TOPIC, fails, group="G", max_attempts=3, retry_delays=(0.01,))
            await other.subscribe(TOPIC, fails, group="G", max_attempts=3, retry_delays=(0.01,))
            await bus.publish(TOPIC, [event(n) for n in range(4)])
            await until(
                lambda: bus.stats().messages_sent_to_dlq + other.stats().messages_sent_to_dlq == 4, self.patience
            )
            await bus.settle(self.patience)
            letters = await bus.dead_letters.list()
            assert sorted(number(letter.event) for letter in letters if letter.event) == [0, 1, 2, 3]
            assert {len(letter.evidence.attempts) for letter in letters} == {3}

    @pytest.mark.anyio
    async def test_retries_outlive_the_bus(self) -> None:
        """An entry that waits for its next attempt comes to whoever is there then."""
        calls = anyio.Event()
        seen = self.seen()

        async def fails(one: Event) -> None:
            calls.set()
            raise LookupError("on purpose")

        async with self.bus() as bus:
            await bus.subscribe(TOPIC, fails, group="G", retry_delays=(0.5,))
            await bus.publish(TOPIC, event(1))
            await calls.wait()
        async with self.bus() as bus:
            await bus.subscribe(TOPIC, seen, group="G")
            assert list(await seen.wait_for(1)) == [1]
