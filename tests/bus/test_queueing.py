"""What waits for another attempt is counted at once, however much it is."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Hashable

import pytest

from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.events import Event
from connector_sdk.bus.log import Record
from connector_sdk.bus.memory import MemoryLog
from connector_sdk.bus.queueing import Keyed, Waiting
from connector_sdk.testing.bus_case import event, number, until

PATIENCE = 30.0


@pytest.mark.parametrize("seed", range(10))
def test_the_count_of_what_is_held_is_right_whatever_happens(seed: int) -> None:
    chance = random.Random(seed)
    waiting = Waiting()
    at_work: list[int] = []
    held: deque[int] = deque()  # keys, in the order in which they are due
    blocked: Counter[int] = Counter()
    for step in range(2000):
        choice = chance.choice(("come", "come", "succeed", "fail", "again"))
        entry = Record("t", str(step), b"")
        if choice == "come":
            key = chance.randrange(5)
            if waiting.has_turn(entry, key):
                at_work.append(key)
            else:
                blocked[key] += 1
        elif choice == "again" and held:
            waiting.bring_again()
            at_work.append(held.popleft())
            assert isinstance(waiting.ready.popleft(), Keyed)
        elif choice in ("succeed", "fail") and at_work:
            key = at_work.pop(chance.randrange(len(at_work)))
            if choice == "fail":
                waiting.hold(entry, key, float(step))
                held.append(key)
            elif waiting.release(key):
                blocked[key] -= 1
                at_work.append(key)
                waiting.ready.popleft()
        assert waiting.held == sum(1 + blocked[key] for key in held)
        assert len(waiting) == blocked.total() + len(held)
    waiting.take_all()
    assert waiting.held == len(waiting) == 0


@pytest.mark.anyio
async def test_what_waits_for_another_attempt_costs_the_others_nothing() -> None:
    held, count = 300, 100
    looks = 0

    class Key:
        def __init__(self, value: Hashable) -> None:
            self._value = value

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Key) and self._value == other._value

        def __hash__(self) -> int:
            nonlocal looks
            looks += 1
            return hash(self._value)

    async def handle(one: Event) -> None:
        if number(one) < held:
            raise ValueError

    async with EventBus(MemoryLog()) as bus:
        subscription = await bus.subscribe(
            "t", handle, group="G", key=lambda one: Key(number(one)), retry_delays=[10 * PATIENCE]
        )
        await bus.publish("t", [event(value, "t") for value in range(held)])
        await until(lambda: subscription.stats.failures == held, PATIENCE)
        looks = 0
        for value in range(held, held + count):
            await bus.publish("t", event(value, "t"))
        await until(lambda: subscription.stats.succeeded == count, PATIENCE)
        assert looks < 20 * count
