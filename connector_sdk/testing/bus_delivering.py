"""Promises of a bus: who gets what, each once and in order, whatever other handlers do."""

from __future__ import annotations

import threading

import anyio
import pytest

from connector_sdk.bus.events import Event
from connector_sdk.bus.subscription import Subscription
from connector_sdk.callbacks import quick
from connector_sdk.errors import BusClosedError, ConfigurationError
from connector_sdk.testing.bus_case import TOPIC, BusCase, event, number, until
from connector_sdk.testing.topic_cases import TOPIC_CASES

__all__ = ["DeliveringContract"]


class DeliveringContract(BusCase):
    """Publish and subscribe, without groups."""

    @pytest.mark.anyio
    async def test_every_subscriber_gets_every_event_in_order(self) -> None:
        """An exact one and a pattern get everything, in order; another topic nothing."""
        first, second, other = self.seen(), self.seen(), self.seen()
        async with self.bus() as bus:
            await bus.subscribe(TOPIC, first)
            await bus.subscribe("orders:*", second)
            await bus.subscribe("orders", other)
            positions = await bus.publish(TOPIC, [event(n) for n in range(50)])
            positions += await bus.publish(TOPIC, event(50))
            assert list(await first.wait_for(51)) == list(range(51))
            assert list(await second.wait_for(51)) == list(range(51))
            await bus.settle(self.patience)
            assert not other.events
            order = (await self.make_log()).order
            assert sorted(positions, key=order) == positions
            assert len(set(positions)) == 51
            assert bus.stats().events_published == 51

    @pytest.mark.anyio
    async def test_events_arrive_as_they_were_published(self) -> None:
        """Every field survives, and nothing of it can be changed."""
        seen = self.seen()
        sent = Event(
            "created", TOPIC, {"number": 1, "text": "é\u2028", "list": [1, 2.5, None, True]},
            source="shop", correlation_id="c-1", metadata={"trace": "abc"}, version=None,
        )  # fmt: skip
        async with self.bus() as bus:
            await bus.subscribe(TOPIC, seen)
            await bus.publish(sent)
            await seen.wait_for(1)
        got = seen.events[0]
        assert got == sent
        with pytest.raises(TypeError):
            got.payload["text"] = "changed"  # type: ignore[index]

    @pytest.mark.anyio
    async def test_large_payloads_arrive(self) -> None:
        """64 kB and 5 MB."""
        seen = self.seen()
        async with self.bus() as bus:
            await bus.subscribe(TOPIC, seen)
            for size in (64_000, 5_000_000):
                await bus.publish(TOPIC, Event("created", TOPIC, {"number": size, "text": "x" * size}))
            assert list(await seen.wait_for(2)) == [64_000, 5_000_000]
        assert len(seen.events[1].payload["text"]) == 5_000_000  # type: ignore[index]

    @pytest.mark.anyio
    async def test_nothing_from_before_and_everything_after_subscribing(self) -> None:
        """`subscribe` draws the line when it returns."""
        async with self.bus() as bus, self.bus() as other:
            await other.publish(TOPIC, event(0))
            for n in range(1, 6):
                seen = self.seen()
                subscription = await bus.subscribe(TOPIC, seen)
                await other.publish(TOPIC, event(n))
                assert list(await seen.wait_for(1)) == [n]
                await subscription.cancel()

    @pytest.mark.anyio
    async def test_topics_match_patterns_alike_everywhere(self) -> None:
        """The two hundred topics and patterns of `topic_cases`."""
        topics = sorted({topic for topic, _, _ in TOPIC_CASES})
        patterns = sorted({pattern for _, pattern, _ in TOPIC_CASES})
        got: dict[str, set[str]] = {pattern: set() for pattern in patterns}
        async with self.bus() as bus:
            for pattern in patterns:

                async def take(one: Event, pattern: str = pattern) -> None:
                    got[pattern].add(one.topic)

                await bus.subscribe(pattern, take)
            for topic in topics:
                await bus.publish(topic, event(1, topic))
            await bus.settle(self.patience * 2)
        wrong = [case for case in TOPIC_CASES if (case[0] in got[case[1]]) is not case[2]]
        assert not wrong

    @pytest.mark.anyio
    async def test_new_topics_are_found_by_patterns_without_a_gap(self) -> None:
        """The first event of a new topic is delivered, too."""
        seen, members = self.seen(), self.seen()
        async with self.bus() as bus, self.bus() as other:
            await bus.subscribe("new:*", seen)
            await bus.subscribe("new:*", members, group="G")
            for n in range(20):
                await other.publish(f"new:{n}", [event(n, f"new:{n}"), event(100 + n, f"new:{n}")])
            expected = sorted([*range(20), *range(100, 120)])
            assert sorted(await seen.wait_for(40)) == expected
            assert sorted(await members.wait_for(40)) == expected

    @pytest.mark.anyio
    async def test_one_handler_is_called_once_for_an_event(self) -> None:
        """X31: an exact subscription and a pattern that overlaps with it."""
        seen = self.seen()
        async with self.bus() as bus:
            exact = await bus.subscribe(TOPIC, seen)
            await bus.subscribe("orders:*", seen)
            await bus.subscribe("*", seen)
            await bus.publish(TOPIC, [event(n) for n in range(10)])
            await bus.settle(self.patience)
            assert seen.numbers == list(range(10))
            await bus.publish("orders:deleted", event(10, "orders:deleted"))
            await bus.publish("users", event(11, "users"))
            await bus.settle(self.patience)
            assert sorted(seen.numbers) == list(range(12))
            await exact.cancel()
            await bus.publish(TOPIC, event(12))
            await bus.settle(self.patience)
            assert sorted(seen.numbers) == list(range(13))

    @pytest.mark.anyio
    async def test_what_an_ended_subscription_left_goes_to_another_with_its_handler(self) -> None:
        """X31, at the end of the older one: nothing that both match is lost or handled twice."""
        entered, release, got = anyio.Event(), anyio.Event(), list[int]()

        async def handle(one: Event) -> None:
            if number(one) == 0:
                entered.set()
                await release.wait()
            got.append(number(one))

        async with self.bus() as bus:
            older = await bus.subscribe(TOPIC, handle)
            await bus.subscribe("orders:*", handle)
            await bus.publish(TOPIC, [event(n) for n in range(5)])
            await entered.wait()
            await bus.publish("orders:deleted", event(5, "orders:deleted"))
            await until(lambda: got == [5], self.patience)
            await older.cancel(wait=False)
            await until(lambda: sorted(got) == [1, 2, 3, 4, 5], self.patience)
            release.set()
            await bus.settle(self.patience)
            await until(lambda: sorted(got) == list(range(6)), self.patience)

    @pytest.mark.anyio
    async def test_a_handler_that_hangs_harms_nobody(self) -> None:
        """X32: each subscription has a worker of its own."""
        release, entered, seen = anyio.Event(), anyio.Event(), self.seen()

        async def hang(one: Event) -> None:
            entered.set()
            await release.wait()

        async with self.bus() as bus:
            await bus.subscribe(TOPIC, hang)
            await bus.subscribe(TOPIC, seen)
            await bus.subscribe("orders:deleted", seen)
            await bus.publish(TOPIC, event(0))
            await entered.wait()
            await bus.publish(TOPIC, event(1))
            await bus.publish("orders:deleted", event(2, "orders:deleted"))
            assert sorted(await seen.wait_for(3)) == [0, 1, 2]
            release.set()

    @pytest.mark.anyio
    async def test_handlers_that_raise_cancel_and_call_back_harm_nobody(self) -> None:
        """Handlers may raise, cancel, publish, subscribe and end subscriptions, their own too."""
        seen, later = self.seen(), self.seen()
        async with self.bus() as bus:
            subscriptions: list[Subscription] = []

            async def raises(one: Event) -> None:
                raise LookupError("on purpose")

            async def cancels_itself(one: Event) -> None:
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await anyio.sleep(10)

            async def calls_back(one: Event) -> None:
                if number(one) == 0:
                    subscriptions.append(await bus.subscribe("later", later))
                    await bus.publish("later", event(100, "later"))
                if number(one) == 1:
                    await later.wait_for(1)
                    await subscriptions[0].cancel()
                    await own[0].cancel()

            await bus.subscribe(TOPIC, raises, max_attempts=1)
            await bus.subscribe(TOPIC, cancels_itself)
            own = [await bus.subscribe(TOPIC, calls_back)]
            await bus.subscribe(TOPIC, seen)
            await bus.publish(TOPIC, [event(0), event(1), event(2)])
            assert list(await seen.wait_for(3)) == [0, 1, 2]
            await bus.settle(self.patience)
            assert later.numbers == [100]
            await until(lambda: bus.subscriber_count() == 3, self.patience)

    @pytest.mark.anyio
    async def test_handlers_of_every_kind(self) -> None:
        """Plain functions in a thread, quick ones on the loop, objects that subscribe themselves."""
        got: list[str] = []
        loop_thread = threading.get_ident()

        def plain(one: Event) -> None:
            got.append("thread" if threading.get_ident() != loop_thread else "loop")

        @quick
        def quickly(one: Event) -> None:
            got.append("quick" if threading.get_ident() == loop_thread else "thread")

        class Projection:
            def subscribed_to(self) -> list[str]:
                return [TOPIC, "other"]

            async def handle(self, one: Event) -> None:
                got.append(f"object {one.topic}")

        async with self.bus() as bus:
            await bus.subscribe(TOPIC, plain)
            await bus.subscribe(TOPIC, quickly)
            made = await bus.subscribe_all(Projection())
            assert [one.topic for one in made] == [TOPIC, "other"]
            await bus.publish(TOPIC, event(1))
            await bus.publish("other", event(2, "other"))
            await bus.settle(self.patience)
        assert sorted(got) == ["object orders:created", "object other", "quick", "thread"]

    @pytest.mark.anyio
    async def test_cancel_waits_for_the_handler_and_lets_nothing_more_begin(self) -> None:
        """What was not begun is counted."""
        entered, release = anyio.Event(), anyio.Event()
        done: list[int] = []

        async def slow(one: Event) -> None:
            entered.set()
            await release.wait()
            done.append(number(one))

        async with self.bus() as bus, anyio.create_task_group() as tasks:
            subscription = await bus.subscribe(TOPIC, slow)
            await bus.publish(TOPIC, [event(0), event(1)])
            await entered.wait()

            async def cancel() -> None:
                await subscription.cancel(wait=True)
                assert done == [0]

            tasks.start_soon(cancel)
            await until(lambda: not subscription.is_active, self.patience)
            assert not done
            release.set()
        assert done == [0]
        assert subscription.stats.balanced
        assert subscription.stats.dropped == {"cancelled": 1}

    @pytest.mark.anyio
    async def test_publishers_that_are_cancelled_harm_no_others(self) -> None:
        """Those that were not cancelled have their events stored, once."""
        seen = self.seen()
        async with self.bus() as bus:
            await bus.subscribe(TOPIC, seen)
            kept: list[str] = []

            async def publish(value: int) -> None:
                kept.extend(await bus.publish(TOPIC, event(value)))

            async with anyio.create_task_group() as tasks:
                for value in range(60):
                    if value % 3:
                        tasks.start_soon(publish, value)
                        continue
                    scope = anyio.CancelScope()

                    async def give_up(value: int = value, scope: anyio.CancelScope = scope) -> None:
                        with scope:
                            await bus.publish(TOPIC, event(value))

                    tasks.start_soon(give_up)
                    if value % 2:
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()
            await bus.settle(self.patience)
            assert len(set(kept)) == 40
            assert {value for value in range(60) if value % 3} <= set(seen.numbers)
            assert len(set(seen.numbers)) == len(seen.numbers)
            assert list(await bus.publish(TOPIC, event(60)))

    @pytest.mark.anyio
    async def test_what_cannot_work_is_refused(self) -> None:
        """Wrong options raise ConfigurationError, a closed bus BusClosedError."""
        async with self.bus() as bus:
            with pytest.raises(ConfigurationError, match="topic"):
                await bus.publish("orders:*", event(1))
            with pytest.raises(ConfigurationError):
                await bus.publish(TOPIC, object())
            for wrong in ({"concurrency": 0}, {"queue_size": 0}, {"overflow": "block"}, {"max_attempts": 0}, {"key": 1},
                          {"retry_delays": ()}, {"start": "tomorrow"}, {"group": ""}):  # fmt: skip
                with pytest.raises(ConfigurationError):
                    await bus.subscribe(TOPIC, self.seen(), **wrong)
            with pytest.raises(ConfigurationError):
                await bus.subscribe(TOPIC, 7)  # type: ignore[arg-type]
            assert not bus.subscriber_count()
        for refused in (bus.publish(TOPIC, event(1)), bus.subscribe(TOPIC, self.seen()), bus.connect()):
            with pytest.raises(BusClosedError):
                await refused
