"""What goes through a bus as a whole, on each log: classes, handlers of every temper, large events, payloads of a connector."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

import anyio
import pytest

from connector_sdk import AsyncConnectorClient
from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.events import Event
from connector_sdk.bus.handlers import Message
from connector_sdk.bus.registry import EventRegistry
from connector_sdk.bus.subscription import Subscription
from connector_sdk.payloads import ActionsPayload, Payload, SummaryPayload
from connector_sdk.testing import ConnectorServer
from connector_sdk.testing.bus_case import TOPIC, Seen, event, number, until
from tests.bus.places import PATIENCE, Place
from tests.servers.fixtures import one_kind

pytestmark = [pytest.mark.anyio, one_kind]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclasses.dataclass
class Ordered:
    number: int


@dataclasses.dataclass
class Shipped:
    number: int


def registry() -> EventRegistry:
    made = EventRegistry()
    made.register(Ordered, name="ordered")
    made.register(Shipped, name="shipped")
    return made


async def test_in_one_group_each_class_gets_all_of_its_events(place: Place) -> None:
    """X21: an event that came to who has no handler for it was acknowledged and gone."""
    got: dict[str, list[int]] = {"ordered": [], "shipped": [], "other": []}

    def taker(name: str) -> Callable[[Event], object]:
        async def take(one: Event) -> None:
            assert isinstance(one.payload, Ordered | Shipped)
            got[name].append(one.payload.number)

        return take

    async with place.bus(registry=registry()) as bus, place.bus(registry=registry()) as other:
        await bus.subscribe(Ordered, taker("ordered"), group="G")
        await bus.subscribe(Shipped, taker("shipped"), group="G")
        await other.subscribe(Ordered, taker("other"), group="G")
        for n in range(40):
            await other.publish(TOPIC, [Ordered(n), Shipped(n)])
        await bus.settle(PATIENCE)
        await other.settle(PATIENCE)
        assert sorted(got["ordered"] + got["other"]) == list(range(40))
        assert got["shipped"] == list(range(40))
        assert (await bus.recover("G", idle=600.0)).claimed == 0
        assert (await bus.health()).pending == 0


async def test_an_event_that_nobody_handles_yet_is_kept(place: Place) -> None:
    """X21: it is there for a handler that comes later."""
    seen: list[object] = []

    async def take(one: Event) -> None:
        seen.append(one.payload)

    async with place.bus(registry=registry()) as bus:
        await bus.subscribe(Ordered, take, group="G")
        await bus.publish(TOPIC, [Ordered(1), Shipped(2)])
        await bus.settle(PATIENCE)
        assert seen == [Ordered(1)]
        await bus.subscribe(Shipped, take, group="G", start="beginning")
        await bus.settle(PATIENCE)
        assert seen == [Ordered(1), Shipped(2)]


async def test_a_dead_letter_of_a_class_comes_back_to_its_class(place: Place) -> None:
    """The log knows the members for a class by a name of their own."""
    broken, got = [True], list[object]()

    async def handle(one: Event, message: Message) -> None:
        assert message.group == "G"
        if broken[0]:
            raise LookupError("on purpose")
        got.append(one.payload)

    async def other(one: Event) -> None:
        got.append("other")

    async with place.bus(registry=registry()) as bus:
        await bus.subscribe(Ordered, handle, group="G", max_attempts=1)
        await bus.subscribe(Shipped, other, group="G")
        await bus.publish(TOPIC, Ordered(1))
        await bus.settle(PATIENCE)
        (letter,) = await bus.dead_letters.list()
        assert letter.group is not None
        assert letter.group.startswith("G")
        broken[0] = False
        assert (await bus.dead_letters.redrive(letter.id)).redriven == 1
        await bus.settle(PATIENCE)
        assert got == [Ordered(1)]


async def test_an_exact_and_a_wild_member_of_one_group_get_an_event_once(place: Place) -> None:
    """X31, in a group: both match, one of them handles it."""
    seen = Seen(PATIENCE)
    async with place.bus() as bus:
        await bus.subscribe(TOPIC, seen, group="G")
        await bus.subscribe("orders:*", seen, group="G")
        await bus.subscribe("*", seen, group="G")
        await bus.publish(TOPIC, [event(n) for n in range(50)])
        await bus.publish("orders:new", event(50, "orders:new"))
        await bus.settle(PATIENCE)
        assert sorted(seen.numbers) == list(range(51))


async def test_members_of_a_group_may_be_slow_raise_cancel_and_call_back(place: Place) -> None:
    """What one event does to its handler harms no other event, and nothing hangs."""
    later, done = Seen(PATIENCE), list[int]()
    made: list[Subscription] = []

    async with place.bus() as bus:

        async def handle(one: Event, message: Message) -> None:
            match number(one):
                case 0:
                    await anyio.sleep(0.3)
                case 1:
                    raise LookupError("on purpose")
                case 2:
                    with anyio.CancelScope() as scope:
                        scope.cancel()
                        await anyio.sleep_forever()
                case 3 if message.attempt == 1:
                    raise anyio.get_cancelled_exc_class()
                case 4:
                    made.append(await bus.subscribe("later", later, group="L"))
                    await bus.publish("later", event(100, "later"))
                    await later.wait_for(1)
                    await made[0].cancel()
                case 5:
                    assert (await bus.info(TOPIC)) is not None
                    await bus.publish(TOPIC, event(6))
            done.append(number(one))

        subscription = await bus.subscribe(TOPIC, handle, group="G", max_attempts=2, retry_delays=(0.05,))
        await bus.publish(TOPIC, [event(n) for n in range(6)])
        await bus.settle(PATIENCE)
        assert sorted(done) == [0, 2, 3, 4, 5, 6]
        assert later.numbers == [100]
        (letter,) = await bus.dead_letters.list()
        assert letter.event is not None
        assert number(letter.event) == 1
        assert subscription.stats.balanced
        assert bus.subscriber_count() == 1

        async def ends_itself(one: Event) -> None:
            await own[0].cancel()

        own = [await bus.subscribe("own", ends_itself, group="O")]
        await bus.publish("own", [event(n, "own") for n in range(3)])
        await until(lambda: not own[0].is_active and bus.subscriber_count() == 1, PATIENCE)


@pytest.mark.parametrize("size", [64_000, 5_000_000])
async def test_large_events_fail_are_buried_and_redriven_like_others(place: Place, size: int) -> None:
    """X34: large payloads could not be published. They come to a group, to a reader of the past, and back from the dead."""
    broken, got = [True], list[int]()

    async def handle(one: Event) -> None:
        if broken[0]:
            raise LookupError("on purpose")
        assert isinstance(one.payload, dict)
        got.append(len(one.payload["text"]))

    async with place.bus() as bus:
        await bus.subscribe(TOPIC, handle, group="G", max_attempts=2, retry_delays=(0.01,))
        await bus.publish(TOPIC, Event("created", TOPIC, {"number": 1, "text": "é" * size}))
        await bus.settle(PATIENCE)
        (letter,) = await bus.dead_letters.list()
        assert letter.event is not None
        assert isinstance(letter.event.payload, dict)
        assert len(letter.event.payload["text"]) == size
        assert len(letter.evidence.attempts) == 2
        broken[0] = False
        assert (await bus.dead_letters.redrive(letter.id)).redriven == 1
        await bus.settle(PATIENCE)
        assert got == [size]
        async with bus.events(TOPIC, start="beginning") as events:
            one = await events.__anext__()
            assert isinstance(one.payload, dict)
            assert one.payload["text"] == "é" * size


async def test_a_connector_streams_into_groups_and_watchers(place: Place) -> None:
    """`client.into(bus.topic(...))`: payloads come out as they went in, each to one of each group."""
    work: list[Event] = []
    audit, watched = list[Event](), list[Event]()
    sent: list[Payload] = [
        SummaryPayload(product_id=f"shop {n % 3}", session_id=f"s{n}", summary=f"text {n}", replaces=n)
        for n in range(30)
    ]
    sent += [ActionsPayload(product_id="shop 1", session_id=f"a{n}", actions=[]) for n in range(5)]

    def taker(where: list[Event]) -> Callable[[Event], object]:
        async def take(one: Event) -> None:
            where.append(one)

        return take

    with ConnectorServer() as server:
        for payload in sent:
            server.publish(payload)
        async with place.bus() as bus, place.bus() as other, AsyncConnectorClient(server.url) as client:
            await bus.subscribe("connector:*", taker(work), group="work")
            await other.subscribe("connector:*", taker(work), group="work")
            await other.subscribe(SummaryPayload, taker(audit), pattern="connector:*", group="audit")
            await bus.subscribe("connector:shop%201", taker(watched))
            client.into(bus.topic("connector:{product_id}"))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.run)
                await until(lambda: len(work) >= 35 and len(audit) >= 30 and len(watched) >= 15, PATIENCE)
                await client.stop()
            await bus.settle(PATIENCE)
            await other.settle(PATIENCE)

    def known(events: list[Event]) -> list[str]:
        return sorted(str(getattr(one.payload, "session_id", None)) for one in events)

    assert known(work) == sorted(str(payload.session_id) for payload in sent)
    assert known(audit) == sorted(f"s{n}" for n in range(30))
    assert known(watched) == sorted([f"s{n}" for n in range(1, 30, 3)] + [f"a{n}" for n in range(5)])
    first = next(one for one in audit if isinstance(one.payload, SummaryPayload) and one.payload.session_id == "s3")
    assert isinstance(first.payload, SummaryPayload)
    assert (first.type, first.topic, first.payload.summary) == ("summary", "connector:shop%200", "text 3")
    assert first.payload.replaces == 3


async def test_an_observer_is_told_and_one_that_raises_harms_nothing(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Failures, whether they were the last, of which type; and calls that raise are counted."""
    told: list[tuple[str, str, bool]] = []

    class Observer:
        def bus_handler_failed(self, *, subscription: str, event_type: str, error: BaseException, dead: bool) -> None:
            told.append((event_type, type(error).__name__, dead))
            raise OSError("the metrics are away")

    async def fails(one: Event) -> None:
        raise LookupError("a s3cret of the application")

    with caplog.at_level(logging.INFO):
        async with place.bus(observer=Observer()) as bus:
            await bus.subscribe(TOPIC, fails, group="G", max_attempts=2, retry_delays=(0.01,))
            await bus.publish(TOPIC, event(1))
            await bus.settle(PATIENCE)
            assert told == [("created", "LookupError", False), ("created", "LookupError", True)]
            assert bus.stats().observer_errors == 2
            assert bus.stats().messages_sent_to_dlq == 1
    assert "LookupError" in caplog.text
    assert "s3cret" not in caplog.text


async def test_retention_takes_nothing_that_a_group_has_not_read(place: Place) -> None:
    """Ten events are kept: a slow group gets all of 300, and afterwards they are gone."""
    release, seen = anyio.Event(), Seen(PATIENCE)

    async def slow(one: Event) -> None:
        await release.wait()
        await seen(one)

    async with place.bus(max_events=10) as bus:
        await bus.subscribe(TOPIC, slow, group="G", queue_size=5)
        for n in range(30):
            await bus.publish(TOPIC, [event(m) for m in range(n * 10, n * 10 + 10)])
        info = await bus.info(TOPIC)
        assert info is not None
        assert info.length == 300
        release.set()
        assert list(await seen.wait_for(300)) == list(range(300))
        await bus.settle(PATIENCE)
        assert not bus.stats().lost

        # A step of retention belongs to publishing: from time to time.
        with anyio.fail_after(PATIENCE):
            while (info := await bus.info(TOPIC)) is not None and info.length > 50:
                await bus.publish(TOPIC, event(1000))
                await bus.settle(PATIENCE)


@pytest.mark.parametrize("first", ["exact", "group"])
async def test_a_group_by_a_pattern_joins_a_new_topic_that_somebody_waits_for_by_name(place: Place, first: str) -> None:
    """The first event of the topic, and all others, come to both, whoever of them came first."""
    exact, members = Seen(PATIENCE), Seen(PATIENCE)
    async with place.bus() as bus, place.bus() as other:
        for who in (first, "group" if first == "exact" else "exact"):
            if who == "exact":
                await bus.subscribe(TOPIC, exact)
            else:
                await bus.subscribe("*", members, group="G")
        for n in range(5):
            await other.publish(TOPIC, event(n))
        assert list(await members.wait_for(5)) == list(range(5))
        assert list(await exact.wait_for(5)) == list(range(5))
        await bus.settle(PATIENCE)


async def test_a_handler_cannot_change_what_others_get(place: Place) -> None:
    """X35: an event that was called immutable could be changed."""
    refused: list[str] = []
    seen = Seen(PATIENCE)

    async def vandal(one: Event) -> None:
        assert isinstance(one.payload, dict)
        for name, change in (
            ("attribute", lambda: setattr(one, "type", "other")),
            ("payload", lambda: one.payload.update(number=7)),
            ("item", lambda: one.payload["list"].append(7)),
            ("metadata", lambda: one.metadata.update(a=7)),
        ):
            try:
                change()
            except (AttributeError, TypeError):
                refused.append(name)

    async with place.bus() as bus:
        await bus.subscribe(TOPIC, vandal)
        await bus.subscribe(TOPIC, seen)
        sent = Event("created", TOPIC, {"number": 1, "list": [1]}, metadata={"a": "b"})
        await bus.publish(sent)
        await bus.settle(PATIENCE)
        assert refused == ["attribute", "payload", "item", "metadata"]
        assert seen.events == [sent]


async def test_close_waits_for_handlers_and_their_acknowledgement_arrives(place: Place) -> None:
    """X20: shutdown returned at once, and the entry stayed pending though its handler finished."""
    entered, finished = anyio.Event(), anyio.Event()

    async def handle(one: Event) -> None:
        entered.set()
        await anyio.sleep(0.3)
        finished.set()

    bus = EventBus(place.log())
    await bus.connect()
    await bus.subscribe(TOPIC, handle, group="G")
    async with place.bus() as other:
        await other.publish(TOPIC, event(1))
        await entered.wait()
        report = await bus.close(timeout=PATIENCE)
        assert finished.is_set()
        assert report.clean
        if place.kind == "memory":
            return  # its log was closed with the bus
        info = await other.info(TOPIC)
        assert info is not None
        assert [(group.consumers, group.pending) for group in info.groups] == [(0, 0)]
