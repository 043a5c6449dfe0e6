"""The event bus on MemoryLog passes the public contract suite, on asyncio and trio."""

from __future__ import annotations

import asyncio
import functools
from typing import Unpack

import anyio
import pytest

from connector_sdk import AsyncConnectorClient
from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.events import Event
from connector_sdk.bus.handlers import Message
from connector_sdk.bus.memory import MemoryLog
from connector_sdk.errors import EventBusError
from connector_sdk.payloads import SummaryPayload
from connector_sdk.testing import ConnectorServer, EventBusContract, LogOptions
from connector_sdk.testing.bus_case import TOPIC, Seen, event, number, until


class TestBusInMemory(EventBusContract):
    hold = 0.4

    async def make_log(self, **options: Unpack[LogOptions]) -> MemoryLog:
        if not hasattr(self, "log"):
            self.log = MemoryLog(**options)
        return self.log


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_handler_that_ends_with_a_cancellation_of_its_own_has_failed() -> None:
    """On asyncio anything that was awaited may have been cancelled: that is not a wish that the bus ends."""
    seen = Seen()

    async def handle(one: Event) -> None:
        if number(one) == 0:
            raise asyncio.CancelledError
        if number(one) == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
        await seen(one)

    async with EventBus(MemoryLog()) as bus:
        await bus.subscribe(TOPIC, handle, max_attempts=1)
        await bus.publish(TOPIC, [event(n) for n in range(4)])
        await bus.settle(30)
        assert seen.numbers == [2, 3]
        assert len(await bus.dead_letters.list()) == 2


@pytest.mark.anyio
async def test_a_cancelled_block_still_ends_the_bus_in_order() -> None:
    done: list[int] = []
    entered = anyio.Event()

    async def handle(one: Event) -> None:
        entered.set()
        await anyio.sleep(0.05)
        done.append(number(one))

    with anyio.CancelScope() as scope:
        async with EventBus(MemoryLog()) as bus:
            await bus.subscribe(TOPIC, handle)
            await bus.publish(TOPIC, event(1))
            await entered.wait()
            scope.cancel()
            await anyio.sleep_forever()
    assert done == [1]
    assert (await bus.close()).clean


@pytest.mark.anyio
async def test_every_handler_shape() -> None:
    got: list[object] = []

    def with_default(one: Event, extra: str = "mine") -> None:
        got.append(extra)

    def with_message(one: Event, message: Message) -> None:
        got.append(message.attempt)

    async def three(prefix: str, one: Event) -> None:
        got.append(prefix)

    class Projection:
        def handle(self, one: Event) -> None:
            got.append("object")

    async with EventBus(MemoryLog()) as bus:
        for handler in (with_default, with_message, functools.partial(three, "partial"), Projection()):
            await bus.subscribe(TOPIC, handler)
        await bus.publish(event(1))
        await bus.settle(30)
    assert sorted(got, key=str) == [1, "mine", "object", "partial"]


@pytest.mark.anyio
async def test_settle_makes_delivery_observable_at_once() -> None:
    seen = Seen()
    async with EventBus(MemoryLog()) as bus:
        await bus.subscribe("*", seen)
        for n in range(100):
            await bus.publish(TOPIC, event(n))
            await bus.settle()
            assert len(seen.events) == n + 1


@pytest.mark.anyio
async def test_a_topic_made_by_a_burst_reaches_who_waits_for_it() -> None:
    """Far more than are kept, in one call, to a subscription that is quick enough."""
    seen = Seen()
    async with EventBus(MemoryLog()) as bus:
        await bus.subscribe("burst", seen)
        await bus.publish("burst", [event(n, "burst") for n in range(10_000)])
        await bus.settle(30)
        assert seen.numbers == list(range(10_000))
        assert not bus.stats().lost


@pytest.mark.anyio
async def test_a_client_streams_into_a_bus() -> None:
    seen = Seen()
    payloads = [SummaryPayload(product_id="shop", session_id=f"s{n}", summary=f"text {n}") for n in range(5)]
    with ConnectorServer() as server:
        for payload in payloads:
            server.publish(payload)
        async with EventBus(MemoryLog()) as bus, AsyncConnectorClient(server.url) as client:
            await bus.subscribe("connector:shop", seen)
            client.into(bus.topic("connector:{product_id}"))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.run)
                await until(lambda: len(seen.events) >= 5)
                await client.stop()
    assert sorted(one.payload.summary for one in seen.events if isinstance(one.payload, SummaryPayload)) == [
        f"text {n}" for n in range(5)
    ]


@pytest.mark.anyio
async def test_subscribing_twice_at_the_same_time_and_closing_meanwhile() -> None:
    bus = EventBus(MemoryLog())
    refused: list[Exception] = []
    async with bus:

        async def subscribe() -> None:
            try:
                await bus.subscribe("*", Seen())
            except EventBusError as error:
                refused.append(error)

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(subscribe)
            tasks.start_soon(bus.close)
    assert bus.subscriber_count() == 0
    assert not bus._subscriptions
