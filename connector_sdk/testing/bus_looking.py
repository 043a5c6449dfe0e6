"""Promises of a bus: what it says of itself, and `settle`."""

from __future__ import annotations

import anyio
import msgspec
import pytest

from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.events import Event
from connector_sdk.errors import BusClosedError, EventBusError
from connector_sdk.testing.bus_case import TOPIC, BusCase, event, number

__all__ = ["LookingContract"]


class LookingContract(BusCase):
    """Statistics, topic information, health."""

    @pytest.mark.anyio
    async def test_the_account_balances(self) -> None:
        """Every entry that was received has one end."""

        async def handle(one: Event) -> None:
            if number(one) % 10 == 0:
                raise LookupError("on purpose")

        async with self.bus() as bus:
            subscriptions = [
                await bus.subscribe(TOPIC, handle, group=group, max_attempts=2, retry_delays=(0.01,))
                for group in (None, "G")
            ]
            await bus.publish(TOPIC, [event(n) for n in range(50)])
            await bus.settle(self.patience)
            stats = bus.stats()
            assert stats.events_published == 50
            assert stats.events_processed_success == 90
            assert stats.events_processed_failed == 20
            assert stats.handler_errors == 20
            assert stats.messages_sent_to_dlq == 10
            assert stats.waiting == stats.running == stats.unsettled == 0
            assert all(one.stats.balanced for one in subscriptions)
            assert msgspec.json.encode(stats)
            await subscriptions[0].cancel()
            assert bus.stats().events_processed_success == 90
            assert bus.stats().subscriptions == 1

    @pytest.mark.anyio
    async def test_topics_and_groups_can_be_looked_at(self) -> None:
        """`topics` and `info`."""
        async with self.bus() as bus:
            assert await bus.info(TOPIC) is None
            positions = await bus.publish(TOPIC, [event(n) for n in range(3)])
            await bus.publish("users", event(3, "users"))
            assert await bus.topics() == [TOPIC, "users"]
            await bus.subscribe(TOPIC, self.seen(), group="G", start="beginning")
            await bus.settle(self.patience)
            info = await bus.info(TOPIC)
            assert info is not None
            assert (info.length, info.first, info.last) == (3, positions[0], positions[-1])
            (group,) = info.groups
            assert (group.name, group.consumers, group.pending) == ("G", 1, 0)
            assert group.lag in (0, None)

    @pytest.mark.anyio
    async def test_subscribers_are_counted(self) -> None:
        """By topic, and those for all."""
        async with self.bus() as bus:
            made = [await bus.subscribe(topic, self.seen()) for topic in (TOPIC, "orders:*", "*", "users")]
            assert bus.subscriber_count() == 4
            assert bus.subscriber_count(TOPIC) == 3
            assert bus.wildcard_subscriber_count() == 1
            assert made[0].pattern is None
            assert made[1].pattern == "orders:*"
            assert len({one.id for one in made}) == 4
            await made[2].cancel()
            assert bus.subscriber_count() == 3
            assert bus.wildcard_subscriber_count() == 0

    @pytest.mark.anyio
    async def test_health(self) -> None:
        """Before, during and after the life of a bus."""

        async def fails(one: Event) -> None:
            raise LookupError("on purpose")

        bus = EventBus(await self.make_log())
        assert not await bus.health()
        with pytest.raises(BusClosedError):
            await bus.publish(TOPIC, event(1))
        async with bus:
            connected = bus.is_connected
            assert connected
            health = await bus.health()
            assert (health.healthy, health.connected, health.consuming) == (True, True, False)
            await bus.subscribe(TOPIC, fails, group="G", max_attempts=1)
            await bus.publish(TOPIC, event(1))
            await bus.settle(self.patience)
            health = await bus.health()
            assert (health.healthy, health.consuming, health.pending, health.dead_letters) == (True, True, 0, 1)
        assert not bus.is_connected, bus
        assert not await bus.health()

    @pytest.mark.anyio
    async def test_settle_waits_for_what_handlers_publish(self) -> None:
        """A chain of events is settled at its end."""
        seen = self.seen()
        async with self.bus() as bus:

            async def forward(one: Event) -> None:
                await anyio.sleep(0.005)
                if number(one) < 10:
                    await bus.publish(TOPIC, event(number(one) + 1))
                else:
                    await bus.publish("last", event(11, "last"))

            await bus.subscribe(TOPIC, forward, group="G")
            await bus.subscribe("last", seen)
            await bus.publish(TOPIC, event(0))
            await bus.settle(self.patience)
            assert seen.numbers == [11]

    @pytest.mark.anyio
    async def test_settle_gives_up_in_time(self) -> None:
        """TimeoutError while a handler runs."""
        release = anyio.Event()

        async def slow(one: Event) -> None:
            await release.wait()

        async with self.bus() as bus:
            await bus.subscribe(TOPIC, slow)
            await bus.publish(TOPIC, event(1))
            with pytest.raises(TimeoutError):
                await bus.settle(0.1)
            release.set()
            await bus.settle(self.patience)

    @pytest.mark.anyio
    async def test_close_inside_a_handler_is_refused(self) -> None:
        """It would wait for itself."""
        refused: list[Exception] = []
        async with self.bus() as bus:

            async def handle(one: Event) -> None:
                try:
                    await bus.close()
                except EventBusError as error:
                    refused.append(error)

            await bus.subscribe(TOPIC, handle)
            await bus.publish(TOPIC, event(1))
            await bus.settle(self.patience)
            assert len(refused) == 1
