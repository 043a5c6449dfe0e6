"""From the options of `EventBus.subscribe` to a Subscription: checks, names, and the parts put together."""

from __future__ import annotations

import os
import secrets
import socket
import string
from collections.abc import Callable, Sequence
from typing import Final

import anyio
import msgspec

from connector_sdk.background import OwnedTasks
from connector_sdk.bus.broadcast import BroadcastIntake, Overflow
from connector_sdk.bus.delivery import RetrySchedule
from connector_sdk.bus.feed import Feed
from connector_sdk.bus.handlers import BoundHandler, Handler
from connector_sdk.bus.log import EventLog, Loss
from connector_sdk.bus.members import GroupIntake
from connector_sdk.bus.outages import Outages
from connector_sdk.bus.registry import EventRegistry, RegisteredEvent
from connector_sdk.bus.settling import BroadcastSettling, GroupSettling, Settling
from connector_sdk.bus.sources import Start, check_start
from connector_sdk.bus.subscription import Losses, Subscription
from connector_sdk.bus.topics import Pattern
from connector_sdk.bus.work import Key, Work
from connector_sdk.errors import ConfigurationError
from connector_sdk.observe import Notifier
from connector_sdk.options import check_choice, check_integer

__all__ = ["Subscribing", "Wanted"]

_LONGEST_GROUP: Final = 128


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `EventBus.subscribe`, as they were given."""

    topic: str | type
    handler: Handler
    pattern: str | None
    group: str | None
    start: Start
    concurrency: int
    key: Key | None
    max_attempts: int | None
    retry_delays: Sequence[float]
    queue_size: int
    overflow: Overflow


class Subscribing(msgspec.Struct, frozen=True, kw_only=True):
    """What all subscriptions of a bus share."""

    log: EventLog
    feed: Feed
    tasks: OwnedTasks
    outages: Outages
    notifier: Notifier
    registry: EventRegistry
    hold: float
    limiter: Callable[[], anyio.CapacityLimiter]
    tell_loss: Callable[[Loss, str | None], None]
    ended: Callable[[Subscription], None]

    def make(self, wanted: Wanted) -> Subscription:
        """Return a subscription that does nothing yet. Raises ConfigurationError for an option that cannot work."""
        entry = self.registry.entry_of(wanted.topic) if isinstance(wanted.topic, type) else None
        topic = wanted.topic if isinstance(wanted.topic, str) else _topic_of(entry)
        pattern = Pattern(topic) if wanted.pattern is None else Pattern(wanted.pattern)
        Pattern(topic)
        start = check_start(wanted.start, is_wild=pattern.is_wild)
        self._check_position(start)
        check_integer("concurrency", wanted.concurrency, minimum=1)
        check_integer("queue_size", wanted.queue_size, minimum=1)
        check_choice("overflow", wanted.overflow, ("catch_up", "drop_oldest", "drop_newest"))
        if wanted.key is not None and not callable(wanted.key):
            raise ConfigurationError("key", wanted.key, "a function of an event that gives what orders it")
        schedule = RetrySchedule(wanted.max_attempts, wanted.retry_delays)
        handler = BoundHandler(wanted.handler, self.limiter)
        group = wanted.group
        consumer = f"{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(4)}"
        losses = Losses(lambda loss: self.tell_loss(loss, group))
        event_type = None if entry is None else entry.name
        if group is None:
            intake, settling = self._broadcast(wanted, pattern, (handler.identity, event_type), losses)
        else:
            intake, settling = self._group(
                wanted, pattern, _members_of(_check_group(group), event_type), consumer, losses
            )
        work = Work(
            handler, settling, self.tasks, schedule=schedule, consumer=consumer, group=group, registry=self.registry,
            event_type=event_type, concurrency=wanted.concurrency, key=wanted.key,
        )  # fmt: skip
        intake.feeds(work)
        return Subscription(
            topic=topic, pattern=pattern.text if pattern.is_wild else None, group=group, consumer=consumer,
            tasks=self.tasks, intake=intake, work=work, settling=settling, losses=losses, ended=self.ended,
        )  # fmt: skip

    def _broadcast(
        self,
        wanted: Wanted,
        pattern: Pattern,
        who: tuple[object, str | None],
        losses: Losses,
    ) -> tuple[BroadcastIntake | GroupIntake, Settling]:
        intake = BroadcastIntake(
            self.log, self.feed, self.tasks, self.outages, pattern=pattern, queue_size=wanted.queue_size,
            overflow=wanted.overflow, event_type=who[1], identity=who[0], on_loss=losses.add,
        )  # fmt: skip
        return intake, BroadcastSettling(f"subscription {pattern.text}", self.outages, self.notifier, self.log)

    def _group(
        self, wanted: Wanted, pattern: Pattern, group: str, consumer: str, losses: Losses
    ) -> tuple[BroadcastIntake | GroupIntake, Settling]:
        intake = GroupIntake(
            self.log, self.feed, self.outages, group=group, consumer=consumer, pattern=pattern, hold=self.hold,
            concurrency=wanted.concurrency, queue_size=wanted.queue_size, on_loss=losses.add,
        )  # fmt: skip
        name = f"subscription {pattern.text} of group {group}"
        return intake, GroupSettling(name, self.outages, self.notifier, intake.member)

    def _check_position(self, start: Start) -> None:
        if isinstance(start, str) and start not in ("now", "beginning"):
            try:
                self.log.order(start)
            except (ValueError, TypeError) as error:
                allowed = (
                    f'"now", "beginning", a datetime with a zone, or a position that the log on {self.log.name} gave'
                )
                raise ConfigurationError("start", start, allowed) from error


def _check_group(group: object) -> str:
    if isinstance(group, str) and 1 <= len(group) <= _LONGEST_GROUP and group.isprintable() and " " not in group:
        return group
    raise ConfigurationError("group", group, f"1 to {_LONGEST_GROUP} printable characters without a space")


def _members_of(group: str, event_type: str | None) -> str:
    """
    Return what the log knows the members by that share events.

    Those for an event class share with their like alone: an event that one of them passed over would be gone for the others.
    """
    return group if event_type is None else f"{group} {event_type}"


def _topic_of(entry: RegisteredEvent | None) -> str:
    """Where events of a class go: all topics, unless it was registered with one."""
    if entry is None or entry.template is None:
        return "*"
    parts = string.Formatter().parse(entry.template.template)
    return "".join(literal + ("" if name is None else "*") for literal, name, _, _ in parts)
