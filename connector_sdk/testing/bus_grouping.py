"""Promises of a bus: groups that share work, at least once, and the work of the dead taken over by the living."""

from __future__ import annotations

from collections import Counter, defaultdict

import anyio
import pytest

from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.events import Event
from connector_sdk.bus.handlers import Message
from connector_sdk.errors import ConfigurationError
from connector_sdk.testing.bus_case import TOPIC, BusCase, event, number, until

__all__ = ["GroupingContract"]


class GroupingContract(BusCase):
    """Consumer groups."""

    @pytest.mark.anyio
    async def test_two_groups_get_everything_and_members_share_it(self) -> None:
        """Each group gets each event, one of its members handles it."""
        got: dict[str, list[int]] = defaultdict(list)
        async with self.bus() as bus, self.bus() as other:
            for where, name, group in ((bus, "a", "one"), (other, "b", "one"), (bus, "c", "two")):

                async def take(one: Event, name: str = name) -> None:
                    got[name].append(number(one))
                    await anyio.sleep(0.001)

                await where.subscribe(TOPIC, take, group=group)
            await bus.publish(TOPIC, [event(n) for n in range(100)])
            await until(lambda: len(got["a"]) + len(got["b"]) >= 100 and len(got["c"]) >= 100, self.patience)
            await bus.settle(self.patience)
        assert sorted(got["a"] + got["b"]) == list(range(100))
        assert got["a"]
        assert got["b"]
        assert got["c"] == list(range(100))

    @pytest.mark.anyio
    async def test_a_group_begins_where_it_is_told_and_goes_on_where_it_was(self) -> None:
        """What was published while no member lived is delivered later."""
        async with self.bus() as bus:
            await bus.publish(TOPIC, [event(0), event(1)])
            late, early = self.seen(), self.seen()
            first = await bus.subscribe(TOPIC, late, group="late")
            second = await bus.subscribe(TOPIC, early, group="early", start="beginning")
            await bus.publish(TOPIC, event(2))
            assert list(await early.wait_for(3)) == [0, 1, 2]
            assert list(await late.wait_for(1)) == [2]
            await bus.settle(self.patience)
            await first.cancel()
            await second.cancel()
            await bus.publish(TOPIC, event(3))  # nobody listens
            await bus.subscribe(TOPIC, late, group="late")
            assert list(await late.wait_for(2)) == [2, 3]

    @pytest.mark.anyio
    async def test_an_event_is_acknowledged_after_its_handler(self) -> None:
        """It is pending as long as the handler runs."""
        entered, release = anyio.Event(), anyio.Event()

        async def slow(one: Event) -> None:
            entered.set()
            await release.wait()

        async with self.bus() as bus:
            await bus.subscribe(TOPIC, slow, group="G")
            await bus.publish(TOPIC, event(1))
            await entered.wait()
            assert await self._pending(bus) == 1
            release.set()
            await bus.settle(self.patience)
            assert await self._pending(bus) == 0

    @pytest.mark.anyio
    async def test_work_of_a_live_member_is_never_taken(self) -> None:
        """X19: a handler that takes far longer than the hold, and entries that wait behind it, run once."""
        calls: Counter[int] = Counter()

        async def slow(one: Event) -> None:
            calls[number(one)] += 1
            await anyio.sleep(self.hold * 6 if number(one) == 0 else 0)

        async with self.bus(hold=self.hold * 2) as bus, self.bus(hold=self.hold * 2) as other:
            await bus.publish(TOPIC, [event(n) for n in range(6)])
            await bus.subscribe(TOPIC, slow, group="G", start="beginning")
            await until(lambda: bool(calls), self.patience)
            await other.subscribe(TOPIC, slow, group="G")
            await bus.settle(self.patience)
            assert calls == Counter(range(6))
            assert not other.stats().messages_recovered

    @pytest.mark.anyio
    async def test_what_waits_behind_a_handler_that_hangs_goes_to_others(self) -> None:
        """It was taken in advance, by a member that lives and comes to no end."""
        entered, release, first, second = anyio.Event(), anyio.Event(), self.seen(), self.seen()

        async def hangs(one: Event) -> None:
            if number(one) == 50:
                entered.set()
                await release.wait()
            await first(one)

        async with self.bus(hold=self.hold * 2) as bus, self.bus(hold=self.hold * 2) as other:
            await bus.publish(TOPIC, [event(n) for n in range(300)])
            subscription = await bus.subscribe(TOPIC, hangs, group="G", start="beginning")
            await entered.wait()
            await other.subscribe(TOPIC, second, group="G")
            assert sorted(await second.wait_for(249)) == list(range(51, 300))
            release.set()
            await bus.settle(self.patience)
            assert first.numbers == list(range(51))
            assert subscription.stats.balanced

    @pytest.mark.anyio
    async def test_work_of_the_dead_is_taken_over_without_being_asked(self) -> None:
        """Within the hold, by whoever lives."""
        entered, seen = anyio.Event(), self.seen()

        async def dies(one: Event) -> None:
            entered.set()
            await anyio.sleep_forever()

        async with self.bus(hold=self.hold, close_timeout=0) as dead:
            subscription = await dead.subscribe(TOPIC, dies, group="G", queue_size=10)
            await dead.publish(TOPIC, [event(n) for n in range(5)])
            await entered.wait()
            _kill(dead)
            async with self.bus(hold=self.hold) as bus:
                await bus.subscribe(TOPIC, seen, group="G")
                assert sorted(await seen.wait_for(5)) == list(range(5))
                await bus.settle(self.patience)
                assert bus.stats().messages_recovered >= 1
            await subscription.cancel(wait=False)

    @pytest.mark.anyio
    async def test_recovery_on_request_counts_honestly(self) -> None:
        """X17: what failed again is not called reprocessed."""
        entered = anyio.Event()

        async def dies(one: Event) -> None:
            entered.set()
            await anyio.sleep_forever()

        async def third_fails(one: Event, message: Message) -> None:
            if number(one) == 1:
                raise LookupError("on purpose")
            if number(one) == 2:
                await message.reject("no good")

        async with self.bus(close_timeout=0) as dead:
            await dead.publish(TOPIC, [event(n) for n in range(3)])
            await dead.subscribe(TOPIC, dies, group="G", start="beginning", concurrency=3)
            await until(lambda: dead.stats().running == 3, self.patience)
            _kill(dead)
            async with self.bus() as bus:
                subscription = await bus.subscribe(TOPIC, third_fails, group="G", retry_delays=(600.0,))
                report = await bus.recover("G", idle=0.0)
                assert (report.checked, report.claimed) == (3, 3)
                assert (report.reprocessed, report.failed, report.dead_lettered) == (1, 1, 1)
                assert subscription.stats.recovered == 3
                assert subscription.stats.balanced
                with pytest.raises(ConfigurationError):
                    await bus.recover("another")

    @pytest.mark.anyio
    async def test_close_lets_handlers_finish_and_acknowledges_them(self) -> None:
        """X20: a handler in flight; what nobody began goes to the others."""
        entered, done, seen = anyio.Event(), [], self.seen()

        async def slow(one: Event) -> None:
            entered.set()
            await anyio.sleep(0.2)
            done.append(number(one))

        async with self.bus() as bus, self.bus() as other:
            await bus.publish(TOPIC, [event(n) for n in range(4)])
            subscription = await bus.subscribe(TOPIC, slow, group="G", start="beginning", concurrency=2)
            await entered.wait()
            report = await bus.close()
            assert report.clean
            assert sorted(done) == list(range(len(done)))
            assert subscription.stats.balanced
            await other.subscribe(TOPIC, seen, group="G")
            await seen.wait_for(4 - len(done))
            await other.settle(self.patience)
            assert sorted(done + seen.numbers) == list(range(4))

    @pytest.mark.anyio
    async def test_close_has_a_deadline(self) -> None:
        """A handler that hangs is cut off, and its event comes again."""
        entered, seen = anyio.Event(), self.seen()

        async def hangs(one: Event) -> None:
            entered.set()
            await anyio.sleep_forever()

        async with self.bus() as other:
            async with self.bus() as bus:
                await bus.subscribe(TOPIC, hangs, group="G")
                await bus.publish(TOPIC, event(1))
                await entered.wait()
                with anyio.fail_after(self.patience):
                    report = await bus.close(timeout=0.1)
                assert report.cut_off == 1
                assert not report.clean
            await other.subscribe(TOPIC, seen, group="G")
            assert list(await seen.wait_for(1)) == [1]

    @pytest.mark.anyio
    async def test_events_of_one_key_keep_their_order(self) -> None:
        """Also when one of them fails and is tried again; other keys go on."""
        got: dict[int, list[int]] = defaultdict(list)
        most = running = 0

        async def take(one: Event) -> None:
            nonlocal most, running
            running += 1
            most = max(most, running)
            await anyio.sleep(0.002)
            running -= 1
            if number(one) == 4 and 4 not in failed:
                failed.append(4)
                raise LookupError("once")
            got[number(one) % 3].append(number(one))

        failed: list[int] = []
        for group in ("G", None):
            got.clear()
            failed.clear()
            async with self.bus() as bus:
                await bus.subscribe(
                    TOPIC, take, group=group, concurrency=8, key=lambda one: number(one) % 3, retry_delays=(0.1,)
                )
                await bus.publish(TOPIC, [event(n) for n in range(60)])
                await bus.settle(self.patience)
            assert got == {rest: list(range(rest, 60, 3)) for rest in range(3)}
        assert most > 1

    @pytest.mark.anyio
    async def test_concurrency_is_bounded(self) -> None:
        """As many handlers at once as asked for, and no more."""
        most = running = 0

        async def take(one: Event) -> None:
            nonlocal most, running
            running += 1
            most = max(most, running)
            await anyio.sleep(0.005)
            running -= 1

        async with self.bus() as bus:
            await bus.subscribe(TOPIC, take, group="G", concurrency=4)
            await bus.publish(TOPIC, [event(n) for n in range(40)])
            await bus.settle(self.patience)
            assert most == 4

    async def _pending(self, bus: EventBus) -> int:
        info = await bus.info(TOPIC)
        assert info is not None
        return sum(group.pending for group in info.groups)


def _kill(bus: EventBus) -> None:
    """Let nobody hear of *bus* any more, as if its process were gone."""
    for loop in bus._loops:
        loop.cancel()
    for subscription in bus._subscriptions.values():
        for loop in subscription._running:
            loop.cancel()
