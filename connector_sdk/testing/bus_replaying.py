"""Promises of a bus: beginning in the past, and going over to the present without a gap or a duplicate; overflow; iteration."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import anyio
import pytest

from connector_sdk.bus.events import Event
from connector_sdk.payloads import SummaryPayload
from connector_sdk.testing.bus_case import TOPIC, BusCase, event, number, until

__all__ = ["ReplayingContract"]


class ReplayingContract(BusCase):
    """Replay then live."""

    @pytest.mark.anyio
    async def test_begin_at_the_beginning_at_a_position_or_at_a_time(self) -> None:
        """X28: the beginning is replayed, too."""
        async with self.bus() as bus:
            positions = await bus.publish(TOPIC, [event(n) for n in range(5)])
            await anyio.sleep(0.02)
            noon = datetime.fromtimestamp(time.time(), UTC)
            await anyio.sleep(0.02)
            await bus.publish(TOPIC, [event(n) for n in range(5, 8)])
            for start, expected in (
                ("beginning", list(range(9))),
                (positions[1], list(range(2, 9))),
                (noon, list(range(5, 9))),
            ):
                seen = self.seen()
                await bus.subscribe(TOPIC, seen, start=start)
                if expected[0] == 0:
                    await bus.publish(TOPIC, event(8))
                await bus.settle(self.patience)
                assert seen.numbers == expected

    @pytest.mark.anyio
    async def test_replay_goes_over_to_live_while_publishers_run(self) -> None:
        """X29: no gap, no duplicate, in order, for one topic and for a pattern."""
        total, seen = 2000, [self.seen() for _ in range(4)]
        async with self.bus(max_events=5000) as bus, self.bus(max_events=5000) as other:
            await other.publish(TOPIC, [event(n) for n in range(500)])
            async with anyio.create_task_group() as tasks:

                async def publish() -> None:
                    for n in range(500, total, 10):
                        await other.publish(TOPIC, [event(m) for m in range(n, n + 10)])
                        await anyio.lowlevel.checkpoint()

                tasks.start_soon(publish)
                for handler, topic in zip(seen, (TOPIC, "orders:*", TOPIC, "*"), strict=True):
                    await bus.subscribe(topic, handler, start="beginning")
                    await anyio.sleep(0.01)
            for handler in seen:
                await handler.wait_for(total)
            await bus.settle(self.patience)
            assert [handler.numbers for handler in seen] == [list(range(total))] * 4

    @pytest.mark.anyio
    async def test_a_slow_subscription_catches_up_from_the_log(self) -> None:
        """Its queue stays bounded and it loses nothing."""
        release, slow, quick = anyio.Event(), self.seen(), self.seen()

        async def wait(one: Event) -> None:
            await release.wait()
            await slow(one)

        async with self.bus(max_events=5000) as bus:
            waiting = await bus.subscribe(TOPIC, wait, queue_size=10)
            await bus.subscribe(TOPIC, quick)
            await bus.publish(TOPIC, [event(n) for n in range(300)])
            await quick.wait_for(300)
            assert waiting.stats.waiting <= 10
            release.set()
            await slow.wait_for(300)
            await bus.publish(TOPIC, event(300))
            await bus.settle(self.patience)
            assert slow.numbers == list(range(301))
            assert not waiting.stats.dropped
            assert waiting.stats.balanced

    @pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
    @pytest.mark.anyio
    async def test_what_overflows_is_counted(self, overflow: str) -> None:
        """In the statistics, and told to the observer."""
        entered, release, slow, quick = anyio.Event(), anyio.Event(), self.seen(), self.seen()
        losses: list[tuple[str, int]] = []

        class Observer:
            def bus_loss(self, *, topic: str, group: str | None, reason: str, count: int) -> None:
                losses.append((reason, count))

        async def wait(one: Event) -> None:
            entered.set()
            await release.wait()
            await slow(one)

        async with self.bus(observer=Observer()) as bus:
            waiting = await bus.subscribe(TOPIC, wait, queue_size=10, overflow=overflow)  # type: ignore[arg-type]
            await bus.subscribe(TOPIC, quick)
            await bus.publish(TOPIC, event(0))
            await entered.wait()
            for n in range(1, 30):
                await bus.publish(TOPIC, event(n))
                await quick.wait_for(n + 1)
            assert waiting.stats.dropped == {"overflow": 19}
            release.set()
            await bus.settle(self.patience)
            expected = [0, *range(20, 30)] if overflow == "drop_oldest" else list(range(11))
            assert slow.numbers == expected
            assert sum(count for _, count in losses) == 19
            assert bus.stats().dropped == {"overflow": 19}
            assert waiting.stats.balanced

    @pytest.mark.anyio
    async def test_a_reader_slower_than_retention_is_told_what_it_lost(self) -> None:
        """What it got and what it lost is all there was."""
        release, slow, quick = anyio.Event(), self.seen(), self.seen()

        async def wait(one: Event) -> None:
            await release.wait()
            await slow(one)

        async with self.bus(max_events=10) as bus:
            await bus.publish(TOPIC, event(-1))
            waiting = await bus.subscribe(TOPIC, wait, queue_size=5)
            await bus.subscribe(TOPIC, quick)
            for n in range(500):
                await bus.publish(TOPIC, event(n))
            release.set()
            await bus.settle(self.patience)
            lost = waiting.stats.lost.get("trimmed", 0)
            assert slow.numbers == sorted(set(slow.numbers))
            assert slow.numbers[-1] == 499
            if len(slow.numbers) < 500:
                assert lost == 500 - len(slow.numbers) or bus.stats().losses_uncounted

    @pytest.mark.anyio
    async def test_events_are_iterated_over(self) -> None:
        """From the past into the present; leaving the block ends the subscription."""
        got: list[int] = []
        async with self.bus() as bus:
            await bus.publish(TOPIC, [event(0), event(1)])
            async with bus.events("orders:*", start="beginning") as events:
                await bus.publish(TOPIC, event(2))
                async for one in events:
                    got.append(number(one))
                    if len(got) == 3:
                        break
            assert got == [0, 1, 2]
            await until(lambda: not bus.subscriber_count(), self.patience)

    @pytest.mark.anyio
    async def test_an_iteration_ends_with_the_bus(self) -> None:
        """The loop ends without an error."""
        got: list[int] = []
        async with anyio.create_task_group() as tasks, self.bus() as bus:
            began = anyio.Event()

            async def iterate() -> None:
                async with bus.events(TOPIC) as events:
                    began.set()
                    async for one in events:
                        got.append(number(one))

            tasks.start_soon(iterate)
            await began.wait()
            await bus.publish(TOPIC, event(1))
            await until(lambda: got == [1], self.patience)

    @pytest.mark.anyio
    async def test_an_iteration_that_was_left_does_not_hold_up_the_end(self) -> None:
        """A plain `async for` that was left by `break`: what nobody took is counted."""
        with anyio.fail_after(self.patience):
            async with self.bus() as bus:
                await bus.publish(TOPIC, [event(n) for n in range(5)])
                async for _ in bus.events(TOPIC, start="beginning"):
                    break
                await until(lambda: bus.stats().running == 1, self.patience)
            assert bus.stats().dropped == {"cancelled": 4}
            assert not bus.stats().messages_sent_to_dlq

    @pytest.mark.anyio
    async def test_payloads_of_a_connector_go_into_a_topic_of_their_product(self) -> None:
        """A topic with a place to fill is a sink for a client."""
        seen = self.seen()
        payload = SummaryPayload(product_id="shop 7", session_id="s", summary="bought", replaces=3)
        async with self.bus() as bus:
            await bus.subscribe("connector:*", seen)
            sink = bus.topic("connector:{product_id}")
            assert sink.overflow != "drop_newest"
            await sink.add(payload)
            await bus.settle(self.patience)
        assert [one.topic for one in seen.events] == ["connector:shop%207"]
        assert seen.events[0].type == "summary"
        assert seen.events[0].payload == payload
