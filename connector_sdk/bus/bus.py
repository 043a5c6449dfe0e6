"""EventBus: publish and subscribe over any EventLog, with groups, replay, retries, dead letters and recovery."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Final, Self, TypeAlias

import anyio

from connector_sdk.background import OwnedTask, OwnedTasks, current_event_loop
from connector_sdk.bus.broadcast import Overflow
from connector_sdk.bus.closing import end_subscriptions
from connector_sdk.bus.dead_letters import DeadLetters
from connector_sdk.bus.events import Event, encode
from connector_sdk.bus.feed import Feed
from connector_sdk.bus.handlers import Handler, Subscriber
from connector_sdk.bus.iteration import EventStream
from connector_sdk.bus.log import Body, EventLog, Loss
from connector_sdk.bus.members import GroupIntake, beat_all
from connector_sdk.bus.once import once
from connector_sdk.bus.publishing import Publisher
from connector_sdk.bus.readings import LEFT_TO_THE_PARENT, BusReadings
from connector_sdk.bus.registry import EventRegistry
from connector_sdk.bus.sink import TopicSink
from connector_sdk.bus.sources import Start
from connector_sdk.bus.stats import CloseReport, RecoveryReport
from connector_sdk.bus.subscribing import Subscribing, Wanted
from connector_sdk.bus.subscription import Subscription
from connector_sdk.bus.topics import TopicTemplate, check_topic
from connector_sdk.bus.waiting import wait_until_settled
from connector_sdk.bus.work import Key, running_work
from connector_sdk.errors import BusUnavailableError, ConfigurationError, EventBusError
from connector_sdk.observe import RateLimitedLogger
from connector_sdk.options import check_integer, check_seconds

__all__ = ["EventBus", "Publishable"]

logger = logging.getLogger("connector_sdk.bus")

#: An event, a payload of a connector, or an object of a registered class.
Publishable: TypeAlias = object

_RETRY_DELAYS: Final = (0.2, 2.0, 15.0)
#: States in which handlers may publish what they found.
_PUBLISHING: Final = frozenset({"open", "closing"})
_LONGEST_HOLD: Final = 86_400.0
_ABORT_GRACE: Final = 5.0  # seconds for handlers that were cancelled


class EventBus(BusReadings):
    """
    Fans events out: to everyone, or to one member of each group; live, or from any point in the past.

    ::

        async with EventBus(MemoryLog()) as bus:
            await bus.subscribe("orders:*", index, group="search")
            await bus.publish("orders:eu", Event("created", "orders:eu", {"id": 7}))

    In a group an event is acknowledged after its handler succeeded, at least once; without a group each subscriber of
    each process gets it, as long as that process lives. Belongs to one event loop, asyncio's or (with a log that
    runs there) trio's.

    Args:
        log: where events are kept: MemoryLog, RedisLog, PostgresLog, or your own `EventLog`. It is connected and
            closed with the bus.
        registry: the event classes that are known; by default those of the connector's payloads.
        source: what events that say nothing about it are given as their source.
        observer: a hook for metrics: an Observer, or any object with some of its methods.
        hold: seconds, 0.2 to 86,400, after the last sign of life until other members of a group take over what a
            member had. The bus
            gives three signs in that time, whatever handlers do, as long as its event loop runs. Default 60.
        queue_size: entries that a subscription may have in hand, 1 or more. Default 1,000.
        close_timeout: seconds that `close` and the end of `async with` give to running handlers. Default 30.
        max_threads: plain handlers that may run at once, 1 or more. Default 32.

    Raises:
        ConfigurationError: an option has a value that cannot work. Nothing is sent before `connect`.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        registry: EventRegistry | None = None,
        source: str | None = None,
        observer: object | None = None,
        hold: float = 60.0,
        queue_size: int = 1000,
        close_timeout: float = 30.0,
        max_threads: int = 32,
    ) -> None:
        super().__init__(log, observer)
        self._keeps_objects = log.keeps_objects
        self._registry = EventRegistry() if registry is None else registry
        self._source = source
        self._hold = check_seconds("hold", hold, minimum=0.2, maximum=_LONGEST_HOLD)
        self._queue_size = check_integer("queue_size", queue_size, minimum=1)
        self._close_timeout = check_seconds("close_timeout", close_timeout)
        self._max_threads = check_integer("max_threads", max_threads, minimum=1)
        self._warnings = RateLimitedLogger(logger)
        self._feed = Feed(log, self._outages)
        self._streams: dict[EventStream, None] = {}
        self._closed = anyio.Event()
        self._report = CloseReport()
        self._tasks: OwnedTasks
        self._sending: Publisher
        self._loops: list[OwnedTask] = []
        self._limiter: anyio.CapacityLimiter
        #: Dead letters: list, look at, redrive, purge.
        self.dead_letters = DeadLetters(log, self._registry, self._check_open)

    # Life

    async def connect(self) -> None:
        """
        Reach the storage, and begin. Does nothing when it has begun.

        Raises BusUnavailableError when the storage is away, BusClosedError after `close`, and ConfigurationError for
        what waiting
        cannot mend.
        """
        if self._state == "open":
            return
        if self._state == "connecting":
            raise EventBusError(f"the event bus on {self._log.name} is being connected by another task")
        if self._state != "new":
            self._check_open()
        self._state = "connecting"
        try:
            await self._log.connect()
            self._tasks = OwnedTasks(current_event_loop())
        except BaseException:
            self._state = "new"
            raise
        self._limiter = anyio.CapacityLimiter(self._max_threads)
        self._publisher = self._sending = Publisher(self._log, self._tasks)
        self._loops = [
            self._tasks.start(self._feed.run, "bus feed"),
            self._tasks.start(lambda: beat_all(self._members, self._hold, self._outages), "bus beats"),
        ]
        self._state = "open"

    async def close(self, timeout: float | None = None) -> CloseReport:
        """
        End: begin nothing new, let running handlers finish for up to *timeout* seconds (default `close_timeout`),
        acknowledge what they did.

        Entries that nobody began go to the other members of their groups at once. Handlers that are still running at
        the deadline
        are cancelled; their entries come again. May be called again, and waits for the first call then. Cancelling it
        does not leave the bus half closed: the end goes on. EventBusError in a handler of this bus, for which it
        would wait.
        """
        if self._state in ("new", "closed", LEFT_TO_THE_PARENT):
            self._state = "closed"
            return self._report
        if any(running_work.get() is one.work for one in self._subscriptions.values()):
            raise EventBusError("close() inside a handler of the same bus would wait for itself: call it elsewhere")
        if self._state != "closing":
            limit = self._close_timeout if timeout is None else check_seconds("timeout", timeout)
            self._state = "closing"
            self._tasks.start(lambda: self._close(limit), "bus closing")
        await self._closed.wait()
        with anyio.move_on_after(_ABORT_GRACE):
            await self._tasks.wait()
        return self._report

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self.close()

    # Publishing

    async def publish(
        self, topic: str | Publishable, event: Publishable | Sequence[Publishable] | None = None
    ) -> list[str]:
        """
        Store one event, or several in this order, and return their positions in the topic.

        Args:
            topic: its name, without wildcards. May be left out for an Event, and for a class that was registered
                with a topic.
            event: an Event, a connector's payload, an object of a registered class, or a list of these.

        When it returns the log has them. Callers that publish at the same time share requests; one that is cancelled
        harms no other.

        Raises:
            BusUnavailableError: the storage did not take them. With `in_doubt` they, or the first of them, may be
            stored all the same.
            BusClosedError: the bus is not open.
            ConfigurationError: a topic with wildcards, an object of no registered class, a payload that JSON cannot
            say.
        """
        if self._state not in _PUBLISHING:
            self._check_open()
        where: str | None
        if event is None and not isinstance(topic, str):
            event, where = topic, None
        elif type(event) is Event and event.topic == topic:
            where = event.topic  # which is a topic for sure
        else:
            where = check_topic(topic)
        if type(event) is Event:
            topic = where or event.topic
            body = event.bound(topic, self._registry) if self._keeps_objects else encode(event)
            return await self._sending.append([(topic, body)])
        several = event if isinstance(event, list | tuple) else [event]
        entries = [self._entry(where, one) for one in several]
        return await self._sending.append(entries) if entries else []

    def topic(self, template: str) -> TopicSink:
        """
        Return a sink for `client.into(...)`: it publishes each payload to *template*, whose places it fills from the
        payload.

        `bus.topic("connector:{product_id}")`. Raises ConfigurationError for a template that cannot work.
        """
        return TopicSink(self.publish, TopicTemplate(template))

    # Subscribing

    async def subscribe(
        self,
        topic: str | type,
        handler: Handler,
        *,
        pattern: str | None = None,
        group: str | None = None,
        start: Start = "now",
        concurrency: int = 1,
        key: Key | None = None,
        max_attempts: int | None = 3,
        retry_delays: Sequence[float] = _RETRY_DELAYS,
        queue_size: int | None = None,
        overflow: Overflow = "catch_up",
    ) -> Subscription:
        """
        Call *handler* for each event; once this returns, for every one that is published.

        Args:
            topic: a topic, a pattern ("orders:*", "*" for all), or an event class, for events of its type alone, in
                the topic it was
                registered with or else in all.
            handler: a function, plain or async, of the event, or of the event and a `Message`; or an object with
                `handle`. Plain
                functions run in a worker thread, unless they are `quick`. The same handler in several subscriptions
                without a group
                is called once for an event.
            pattern: what topics are matched with, in place of *topic*.
            group: its members share the events, each is delivered to one of them, at least once. Without, each
                subscriber gets all. Subscriptions to different event classes share nothing: each class is a group of
                its own, which the log calls "group class".
            start: "now", "beginning", a position, or a datetime with a zone. A group begins there when it is made, and
                goes on where it was from then on.
            concurrency: events that may be handled at once, 1 or more.
            key: gives what orders an event; events of one key are handled one after the other in their order, also
                when one
                of them is to be tried again. With concurrency 1 and without failures all are.
            max_attempts: failed attempts after which an event goes to the dead letters, 1 or more; None never gives up.
            retry_delays: seconds before the second, third, ... attempt; the last one repeats. Other events are not
                held up.
            queue_size: entries that it may have in hand; the bus's by default.
            overflow: what to do without a group when the handler is slower than events come: "catch_up" reads them
                from the log
                later, "drop_oldest" and "drop_newest" give them up, counted.

        Raises:
            ConfigurationError: an option has a value that cannot work.
            BusUnavailableError: the storage is away; nothing is subscribed.
            BusClosedError: the bus is not open.
        """
        self._check_open()
        wanted = Wanted(
            topic=topic, handler=handler, pattern=pattern, group=group, start=start, concurrency=concurrency, key=key,
            max_attempts=max_attempts, retry_delays=retry_delays, overflow=overflow,
            queue_size=self._queue_size if queue_size is None else queue_size,
        )  # fmt: skip
        subscription = self._subscribing().make(wanted)
        self._subscriptions[subscription.id] = subscription
        return await self._begin(subscription, start)

    async def subscribe_all(
        self, subscriber: Subscriber, *, group: str | None = None, start: Start = "now"
    ) -> list[Subscription]:
        """Subscribe `subscriber.handle` to everything that `subscriber.subscribed_to()` lists, all or nothing."""
        if not isinstance(subscriber, Subscriber):
            raise ConfigurationError("subscriber", subscriber, "an object with the methods subscribed_to and handle")
        made: list[Subscription] = []
        try:
            for topic in subscriber.subscribed_to():
                made.append(await self.subscribe(topic, subscriber, group=group, start=start))
        except BaseException:
            with anyio.CancelScope(shield=True):
                for subscription in made:
                    await subscription.cancel(wait=False)
            raise
        return made

    def events(self, topic: str | type = "*", *, start: Start = "now", queue_size: int | None = None) -> EventStream:
        """
        Return events as an async iterator: `async for event in bus.events("orders:*")`.

        The subscription begins with the first step, or with `async with`; an event counts as handled when it is
        taken. Ends with
        the bus. The log keeps what the loop is too slow for, see `overflow="catch_up"`.
        """
        self._check_open()
        return EventStream(self, topic, start, self._queue_size if queue_size is None else queue_size, self._streams)

    def once(self, key: str, ttl: float) -> AbstractAsyncContextManager[bool]:
        """
        Guard an effect against redelivery: `async with bus.once(event.event_id, ttl=3600) as first: ...`

        *first* is True for one block among all buses on this log, and False for *ttl* seconds (1 to 604,800) after it ended
        without an error. One that ends by an error or a cancellation frees *key* (any text of 1 to 512 characters), and so
        does, after `hold` seconds, the death of its process: the next one is the first again.

        What it cannot do: who dies after the effect and before the end of the block leaves no mark, and the effect comes
        again. A process that was paused or cut off for `hold` seconds inside the block has lost the key, which is logged.

        Raises:
            RetryAfter: another block is at it. In a handler: the event comes again soon, and the attempt does not count.
            BusUnavailableError: the storage is away; at the end of the block: the mark could not be made.
            BusClosedError: the bus is not open.
        """
        if self._state not in _PUBLISHING:
            self._check_open()
        return once(key, ttl, log=self._log, tasks=self._tasks, hold=self._hold, warnings=self._warnings)

    async def recover(self, group: str, idle: float | None = None) -> RecoveryReport:
        """
        Take over now what members of *group* had that gave no sign of life for *idle* seconds (default `hold`).

        Not needed: it happens by itself. Returns when the handlers of this bus are done with it. Raises
        ConfigurationError when this
        bus has no member in the group, BusUnavailableError when the storage is away.
        """
        self._check_open()
        if idle is not None:
            check_seconds("idle", idle, maximum=_LONGEST_HOLD)
        subscribed = [one.intake for one in self._subscriptions.values() if one.group == group]
        intakes = [intake for intake in subscribed if isinstance(intake, GroupIntake)]
        if not intakes:
            raise ConfigurationError("group", group, "a group that this bus has a subscription in")
        return RecoveryReport.sum([await intake.recover(idle) for intake in intakes])

    async def settle(self, timeout: float | None = None) -> None:
        """
        Wait until everything that was published, or that this bus was given, has been handled: retries and groups
        included.

        For tests and for the end of programs. Raises TimeoutError after *timeout* seconds, None waits for ever.
        """
        self._check_open()
        with anyio.fail_after(None if timeout is None else check_seconds("timeout", timeout)):
            await wait_until_settled(self._log, self._feed, self._sending, lambda: list(self._subscriptions.values()))

    def __repr__(self) -> str:
        return f"<EventBus on {self._log.name} {self._state}, {len(self._subscriptions)} subscriptions>"

    # Parts

    def _entry(self, topic: str | None, event: object) -> tuple[str, Body]:
        if type(event) is not Event:
            event = Event.of(event, topic, self._registry, source=self._source)
        where = event.topic if topic is None else topic
        return where, event.bound(where, self._registry) if self._keeps_objects else encode(event)

    def _members(self) -> list[GroupIntake]:
        return [one.intake for one in self._subscriptions.values() if isinstance(one.intake, GroupIntake)]

    def _subscribing(self) -> Subscribing:
        return Subscribing(
            log=self._log, feed=self._feed, tasks=self._tasks, outages=self._outages, notifier=self._notifier,
            registry=self._registry, hold=self._hold, limiter=lambda: self._limiter, tell_loss=self._tell_loss,
            ended=self._forget,
        )  # fmt: skip

    async def _begin(self, subscription: Subscription, start: Start) -> Subscription:
        intake = subscription.intake
        try:
            await intake.begin(start)
        except BaseException:
            subscription.close()
            raise
        loops: Iterable[Callable[[], object]] = ()
        if isinstance(intake, GroupIntake):
            loops = (intake.claim, intake.follow_new_topics)
        subscription.start(*loops)
        if self._state != "open":
            subscription.close()
            self._check_open()
        return subscription

    def _forget(self, subscription: Subscription) -> None:
        if self._subscriptions.pop(subscription.id, None) is not None:
            self._totals.keep(subscription)

    def _tell_loss(self, loss: Loss, group: str | None) -> None:
        count = "an unknown number of" if loss.count is None else str(loss.count)
        self._warnings.warning(
            f"{loss.topic} {loss.reason}", "%s events of topic %s are lost (%s)", count, loss.topic, loss.reason
        )
        self._notifier.tell("bus_loss", topic=loss.topic, group=group, reason=loss.reason, count=loss.count)

    async def _close(self, timeout: float) -> None:
        try:
            for stream in list(self._streams):
                stream.end()
            self._report = await end_subscriptions(list(self._subscriptions.values()), self._sending, timeout)
        finally:
            with anyio.CancelScope(shield=True):
                await self._let_go()

    async def _let_go(self) -> None:
        self._state = "closed"
        for subscription in list(self._subscriptions.values()):
            self._forget(subscription)
        for loop in self._loops:
            loop.cancel()
        for loop in self._loops:
            await loop.wait()
        try:
            with anyio.move_on_after(_ABORT_GRACE):
                await self._log.aclose()
        except BusUnavailableError as error:
            logger.debug("the log could not be closed in order: %s", error)
        finally:
            self._closed.set()
            self._tasks.cancel()
