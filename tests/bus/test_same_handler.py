"""Subscriptions with the same handler: it is called once for an event, whichever of them ends before it has read it."""

from __future__ import annotations

import random
from collections.abc import Mapping

import anyio
import anyio.lowlevel
import pytest

from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.events import Event
from connector_sdk.bus.log import Reading
from connector_sdk.bus.memory import MemoryLog
from connector_sdk.testing.bus_case import event, number, until

pytestmark = pytest.mark.anyio

PATIENCE = 30.0


async def test_what_a_slow_subscription_left_unread_goes_to_another_with_the_same_handler() -> None:
    got: list[int] = []
    gate = anyio.Event()

    async def handle(one: Event) -> None:
        got.append(number(one))
        if len(got) == 3:
            await gate.wait()

    async with EventBus(MemoryLog()) as bus:
        older = await bus.subscribe("t", handle, queue_size=2)
        await bus.subscribe("t", handle)
        await bus.publish("t", [event(value, "t") for value in range(200)])
        await until(lambda: len(got) == 3, PATIENCE)
        await older.cancel(wait=False)
        gate.set()
        await bus.publish("t", event(200, "t"))
        await bus.settle(PATIENCE)
        assert sorted(got) == list(range(201))
        assert not bus.stats().lost


async def test_a_topic_that_came_while_a_subscription_was_behind_goes_to_its_heir() -> None:
    got: list[int] = []
    gate = anyio.Event()

    async def handle(one: Event) -> None:
        got.append(number(one))
        await gate.wait()

    async with EventBus(MemoryLog()) as bus:
        older = await bus.subscribe("t:*", handle, queue_size=2)
        await bus.subscribe("t:*", handle)
        await bus.publish("t:old", [event(value, "t:old") for value in range(20)])
        await until(lambda: bool(got), PATIENCE)
        await bus.publish("t:new", [event(value, "t:new") for value in range(20, 40)])
        await anyio.wait_all_tasks_blocked()  # the younger one has passed over it
        await older.cancel(wait=False)
        gate.set()
        await bus.settle(PATIENCE)
        assert sorted(got) == list(range(40))


async def test_what_an_ended_subscription_had_does_not_come_again_to_one_that_is_behind() -> None:
    got: list[int] = []
    gate = anyio.Event()

    async def handle(one: Event) -> None:
        if number(one) == 5:
            await gate.wait()
        got.append(number(one))

    async with EventBus(MemoryLog()) as bus:
        await bus.publish("t", [event(value, "t") for value in range(50)])
        older = await bus.subscribe("t", handle)
        await bus.subscribe("t", handle, start="beginning", queue_size=2)
        await bus.publish("t", [event(value, "t") for value in range(50, 100)])
        await until(lambda: 99 in got, PATIENCE)
        await older.cancel()
        gate.set()
        await bus.settle(PATIENCE)
        assert sorted(got) == list(range(100))


async def test_what_an_heir_had_not_read_goes_to_the_next_heir() -> None:
    got: list[int] = []
    gate = anyio.Event()

    async def handle(one: Event) -> None:
        got.append(number(one))
        if len(got) in (3, 4):  # one of the first subscription, and one of the second
            await gate.wait()

    async with EventBus(MemoryLog()) as bus:
        first = await bus.subscribe("t", handle, queue_size=2)
        second = await bus.subscribe("t", handle, queue_size=2)
        await bus.subscribe("t", handle)
        await bus.publish("t", [event(value, "t") for value in range(200)])
        await until(lambda: len(got) == 3, PATIENCE)
        await first.cancel(wait=False)
        await until(lambda: len(got) == 4, PATIENCE)
        await anyio.wait_all_tasks_blocked()  # the third has passed over what is the second's
        await second.cancel(wait=False)
        gate.set()
        await bus.settle(PATIENCE)
        assert sorted(got) == list(range(200))


class FitfulLog(MemoryLog):
    """Answers after some turns of the event loop."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance

    async def read(
        self, cursors: Mapping[str, str], *, catalogue: str | None = None, limit: int = 1000, wait: float = 0.0
    ) -> Reading:
        found = await super().read(cursors, catalogue=catalogue, limit=limit, wait=wait)
        await turns(self._chance.choice((0, 0, 1, 3, 10)))
        return found


async def turns(count: int) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("seed", range(20))
async def test_a_handler_is_called_once_for_an_event_whichever_of_its_subscriptions_come_and_go(seed: int) -> None:
    chance = random.Random(seed)
    got: list[int] = []
    published = 0

    async def handle(one: Event) -> None:
        got.append(number(one))
        await turns(chance.choice((0, 0, 0, 1, 5)))

    async with EventBus(FitfulLog(chance)) as bus:
        others = []
        for topic, start in (("t:*", "beginning"), ("t:a", "now"), ("t:*", "now"), ("t:[ab]", "beginning")):
            others.append(await bus.subscribe(topic, handle, start=start, queue_size=chance.choice((1, 2, 50))))
        chance.shuffle(others)
        await bus.subscribe("t:*", handle, start="beginning", queue_size=chance.choice((1, 2, 50)))  # stays
        while others:
            for _ in range(chance.randrange(80)):
                topic = chance.choice(("t:a", "t:b", "t:c"))
                await bus.publish(topic, event(published, topic))
                published += 1
            await turns(chance.choice((0, 1, 3, 20)))
            await others.pop().cancel(wait=chance.random() < 0.3)
        await bus.settle(PATIENCE)
        assert sorted(got) == list(range(published))
