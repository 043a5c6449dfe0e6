"""Promises of a bus: an effect that is guarded happens once, whatever is delivered again."""

# ruff: noqa: D102 - the name of a test says what must be true

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest

from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.events import Event
from connector_sdk.decisions import RetryAfter
from connector_sdk.testing.bus_case import TOPIC, BusCase, event, until

__all__ = ["OnceContract"]

GROUPS = pytest.mark.parametrize("group", [None, "G"])
_WEEK = 604_800.0


class OnceContract(BusCase):
    """`EventBus.once`, over several buses."""

    @GROUPS
    @pytest.mark.anyio
    async def test_redelivery_inside_the_window_does_not_run_it_again(self, group: str | None) -> None:
        firsts: list[bool] = []

        async def handle(one: Event) -> None:
            async with bus.once(one.event_id, ttl=_WEEK) as first:
                firsts.append(first)
            if len(firsts) < 3:
                raise LookupError("on purpose, after the effect")

        async with self.bus() as bus:
            await bus.subscribe(TOPIC, handle, group=group, retry_delays=(0.01,))
            await bus.publish(TOPIC, event(1))
            await bus.settle(self.patience)
            assert firsts == [True, False, False]

    @GROUPS
    @pytest.mark.anyio
    async def test_an_effect_that_failed_runs_again(self, group: str | None) -> None:
        firsts: list[bool] = []

        async def handle(one: Event) -> None:
            async with bus.once(one.event_id, ttl=_WEEK) as first:
                firsts.append(first)
                if len(firsts) < 3:
                    raise LookupError("on purpose, before the effect")

        async with self.bus() as bus:
            subscription = await bus.subscribe(TOPIC, handle, group=group, retry_delays=(0.01,))
            await bus.publish(TOPIC, event(1))
            await bus.settle(self.patience)
            assert firsts == [True, True, True]
            assert subscription.stats.succeeded == 1

    @pytest.mark.anyio
    async def test_of_many_callers_on_two_buses_one_runs(self) -> None:
        firsts: list[bool] = []

        async def effect() -> None:
            await anyio.sleep(0.05)

        async def call(bus: EventBus) -> None:
            firsts.append(await self._once(bus, effect))

        async with self.bus() as one, self.bus() as other, anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(call, one)
                tasks.start_soon(call, other)
        assert sorted(firsts) == [False] * 15 + [True]

    @pytest.mark.anyio
    async def test_while_another_is_at_it_the_event_waits_and_no_attempt_counts(self) -> None:
        calls = 0
        firsts: list[bool] = []

        async def handle(_: Event) -> None:
            nonlocal calls
            calls += 1
            async with other.once("key", ttl=_WEEK) as first:
                firsts.append(first)

        async with self.bus() as one, self.bus() as other:
            await other.subscribe(TOPIC, handle, group="G", max_attempts=1)
            async with one.once("key", ttl=_WEEK) as first:
                assert first
                await one.publish(TOPIC, event(1))
                await until(lambda: calls >= 2, self.patience)
                assert firsts == []
            await other.settle(self.patience)
            assert firsts == [False]
            assert not await other.dead_letters.list()

    @pytest.mark.anyio
    async def test_a_block_that_is_cancelled_frees_its_key(self) -> None:
        async def effect() -> None:
            with anyio.CancelScope() as scope:
                async with one.once("key", ttl=_WEEK) as first:
                    assert first
                    scope.cancel()
                    await anyio.sleep_forever()
            assert scope.cancelled_caught

        async with self.bus() as one, self.bus() as other:
            await effect()
            async with other.once("key", ttl=_WEEK) as first:
                assert first
            async with one.once("key", ttl=_WEEK) as first:
                assert not first

    @pytest.mark.anyio
    async def test_the_mark_lasts_as_long_as_was_asked_for(self) -> None:
        async with self.bus() as one, self.bus() as other:
            began = time.monotonic()
            async with one.once("key", ttl=1.0) as first:
                assert first
            with anyio.fail_after(self.patience):
                while not await self._once(other, anyio.lowlevel.checkpoint):  # noqa: ASYNC110 - the storage is asked
                    await anyio.sleep(0.1)
            assert time.monotonic() - began >= 0.95

    async def _once(self, bus: EventBus, effect: Callable[[], Awaitable[None]]) -> bool:
        """Call *effect* in a guarded block, when nobody else is at it; return whether it was the first."""
        with anyio.fail_after(self.patience):
            while True:
                try:
                    async with bus.once("key", ttl=_WEEK) as first:
                        if first:
                            await effect()
                        return first
                except RetryAfter:
                    await anyio.sleep(0.02)
