"""One member of a group of a RedisLog."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Final

from connector_sdk.bus.log import Claim, Delivery, Loss
from connector_sdk.bus.redis_letters import RedisLetters
from connector_sdk.bus.redis_retention import Places
from connector_sdk.bus.redis_storage import Storage, told_as_bus_errors
from connector_sdk.errors import BusClosedError, BusUnavailableError, ClientStateError
from connector_sdk.streams.entries import GroupClaim, GroupEntry
from connector_sdk.streams.group_reader import GroupReader

__all__ = ["RedisMember"]

#: Seconds after which a member asks at the latest what retention took from its group.
_ASK_INTERVAL: Final = 1.0
_LONGEST_RENEWAL: Final = 3600.0  # seconds
#: Fewer entries in one claim are no sign of a group that is behind.
_FEW: Final = 10
_NO_FIELDS: Final[list[bytes]] = []


class RedisMember:
    """A `LogMember` of a `RedisLog`; made by its `member`."""

    def __init__(
        self,
        storage: Storage,
        places: Places,
        letters: RedisLetters,
        position_at: Callable[[str, datetime], Awaitable[str]],
        *,
        group: str,
        consumer: str,
        hold: float,
    ) -> None:
        self._storage = storage
        self._places = places
        self._letters = letters
        self._position_at = position_at
        self._group = group
        self._reader = GroupReader(
            storage.client,
            group.encode(),
            consumer.encode(),
            hold=hold,
            connect_timeout=storage.connect_timeout,
            response_timeout=storage.response_timeout,
        )
        #: Topics by stream: those that are followed, and where what was redriven of them comes from.
        self._topics: dict[bytes, str] = {}
        self._again: dict[bytes, str] = {}
        #: The least backlog of which retention takes something.
        self._bound = sys.maxsize
        self._losses: list[Loss] = []
        #: Topics of which the storage lost the stream (True), or only that of what was redriven.
        self._gone: dict[str, bool] = {}
        #: What was claimed and not handed out yet.
        self._held: list[Delivery] = []
        self._checked = self._recovered = 0
        self._ask_at = 0.0
        #: Seconds between two renewals of the expiry of the streams, and when the next one is.
        self._renew_every = _LONGEST_RENEWAL
        self._renew_at = math.inf
        self.is_closed = False

    async def follow(self, topic: str, start: str | datetime) -> bool:
        """See `LogMember.follow`."""
        self._check_open()
        if isinstance(start, datetime):
            start = await self._position_at(topic, start)
        stream, again = await self._join(topic)
        # Before the reader follows them: a claim that waits may get their entries at once.
        self._topics[stream] = topic
        self._again[again] = topic
        rules = self._places[topic].retention
        self._bound = min(self._bound, rules.max_backlog)
        self._renew_every = min(self._renew_every, rules.group_lifetime / 10_000)
        self._renew_at = min(self._renew_at, time.monotonic() + self._renew_every)
        with told_as_bus_errors():
            made = await self._reader.follow(stream, start.encode() or b"0")
            await self._reader.follow(again, b"0")
        return made

    async def _join(self, topic: str, *, lost: bool = False) -> tuple[bytes, bytes]:
        """Make the streams, and keep them as long as those of a group are kept. *lost*: the storage came back without them."""
        place = self._places[topic]
        again = self._storage.keys.again_for(self._group, topic)
        arguments = (topic, self._group, place.retention.group_lifetime, int(lost))
        await self._storage.run(self._storage.scripts.join, (place.key, again), arguments)
        return place.key, again

    # -- taking

    async def claim(self, limit: int, *, wait: float) -> Claim:
        """See `LogMember.claim`."""
        self._check_open()
        if not self._held:
            await self._rejoin()
            if time.monotonic() >= self._ask_at:
                await self._ask()
            with told_as_bus_errors():
                found = await self._reader.claim(limit, 0.0 if self._losses else wait)
            if not found.losses and len(found.entries) < _FEW and not self._losses:
                return Claim(deliveries=self._deliveries(found), checked=found.checked, recovered=found.recovered)
            await self._look_into(found, limit)
        return self._handed_out(limit)

    async def recover(self, limit: int, idle: float) -> Claim:
        """See `LogMember.recover`."""
        self._check_open()
        with told_as_bus_errors():
            found = await self._reader.recover(limit, idle)
        # Without a pause: what is held goes to whoever claims, and a claim may be under way. It tells of the losses.
        self._note_losses(found)
        return Claim(deliveries=self._deliveries(found), checked=found.checked, recovered=found.recovered)

    async def _look_into(self, found: GroupClaim, limit: int) -> None:
        """Find out what is missing. What was claimed is held meanwhile: a caller that is cancelled here gets it next time."""
        self._held += self._deliveries(found)
        self._checked += found.checked
        self._recovered += found.recovered
        self._note_losses(found)
        behind = len(found.entries) >= max(_FEW, min(limit, self._bound) // 2)
        try:
            await self._rejoin()
            if behind:
                await self._ask()
        except BusUnavailableError:
            self._ask_at = 0.0  # the next claim tells

    def _note_losses(self, found: GroupClaim) -> None:
        for loss in found.losses:
            topic = self._topics.get(loss.stream)
            if loss.reason == "lost":
                name = self._again[loss.stream] if topic is None else topic
                self._gone[name] = self._gone.get(name, False) or topic is not None
            if topic is not None:
                self._losses.append(Loss(topic=topic, reason=loss.reason, count=loss.count, group=self._group))

    def _handed_out(self, limit: int) -> Claim:
        deliveries, self._held = self._held[:limit], self._held[limit:]
        losses, self._losses = self._losses, []
        recovered = min(self._recovered, len(deliveries))
        checked, self._checked, self._recovered = self._checked, 0, 0
        return Claim(deliveries=deliveries, checked=checked, recovered=recovered, losses=losses)

    def _deliveries(self, found: GroupClaim) -> list[Delivery]:
        topics = self._topics
        return [
            Delivery(topic, entry.id.decode(), entry.fields[1], entry.attempt, entry.notes)
            if (topic := topics.get(entry.stream)) is not None
            else self._redriven(entry)
            for entry in found.entries
        ]

    def _redriven(self, entry: GroupEntry) -> Delivery:
        fields = dict(zip(entry.fields[::2], entry.fields[1::2], strict=True))
        return Delivery(
            self._again[entry.stream],
            fields[b"p"].decode(),
            fields[b"b"],
            entry.attempt,
            entry.notes or fields[b"e"],
            entry.id.decode(),
        )

    # -- what is missing

    async def _rejoin(self) -> None:
        """The storage came back without a stream: the reader has made it anew, and the catalogue is to have it."""
        for topic, lost in list(self._gone.items()):
            await self._join(topic, lost=lost)
            await self._places.tend(self._places[topic])
            del self._gone[topic]

    async def _ask(self) -> None:
        """Ask what retention took from the group before it was given it."""
        topics = list(self._topics.values())
        self._ask_at = time.monotonic() + _ASK_INTERVAL
        if not topics:
            return
        fields = [self._storage.keys.lost(topic, self._group) for topic in topics]
        counts = await self._storage.run(self._storage.scripts.losses, (), fields, repeatable=False)
        assert isinstance(counts, list)
        self._losses += [
            Loss(topic=topic, reason="trimmed", count=count, group=self._group)
            for topic, count in zip(topics, counts, strict=True)
            if isinstance(count, int) and count
        ]

    # -- settling

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """See `LogMember.acknowledge`."""
        with told_as_bus_errors():
            await self._reader.acknowledge(map(self._entry, deliveries))
        redriven: dict[bytes, list[str]] = {}
        for delivery in deliveries:
            if delivery.origin:
                redriven.setdefault(self._again_key(delivery.topic), []).append(delivery.origin)
        for stream, ids in redriven.items():
            await self._storage.call("XDEL", stream, *ids)

    async def postpone(self, delivery: Delivery, delay: float, notes: bytes) -> None:
        """See `LogMember.postpone`."""
        with told_as_bus_errors():
            await self._reader.postpone(self._entry(delivery), delay, notes)

    async def bury(self, delivery: Delivery, evidence: bytes) -> str:
        """See `LogMember.bury`."""
        assert isinstance(delivery.body, bytes)
        entry = self._entry(delivery)
        keys = self._reader.keys_of(entry.stream)
        letter = await self._letters.bury(
            delivery.topic,
            delivery.position,
            delivery.body,
            evidence,
            keys=(keys.stream, keys.due, keys.notes),
            whose=(self._group, entry.id, 1 if delivery.origin else 0),
            repeatable=True,
        )
        self._reader.forget((entry,))
        return letter

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """See `LogMember.give_back`."""
        with told_as_bus_errors():
            await self._reader.give_back(map(self._entry, deliveries))

    def _entry(self, delivery: Delivery) -> GroupEntry:
        """Return what the reader knows a delivery by."""
        if delivery.origin:
            stream, entry_id = self._again_key(delivery.topic), delivery.origin
        else:
            stream, entry_id = self._places[delivery.topic].key, delivery.position
        return GroupEntry(stream, entry_id.encode(), _NO_FIELDS, delivery.attempt, delivery.notes)

    def _again_key(self, topic: str) -> bytes:
        return self._storage.keys.again_for(self._group, topic)

    # -- living

    async def beat(self) -> None:
        """See `LogMember.beat`."""
        self._check_open()
        with told_as_bus_errors():
            await self._reader.beat()
            await self._reader.return_unclaimed()
        renew = time.monotonic() >= self._renew_at
        if renew:
            self._renew_at = time.monotonic() + self._renew_every
        for topic in list(self._topics.values()):
            if renew:
                await self._join(topic)
            if self._places.is_due(self._places[topic]):
                await self._places.tend(self._places[topic])

    async def aclose(self) -> None:
        """See `LogMember.aclose`."""
        self.is_closed = True
        held, self._held = self._held, []
        with suppress(ClientStateError):  # the log was closed before
            with suppress(BusUnavailableError, BusClosedError):
                await self.give_back(held)  # never handed out, so it was no attempt
            await self._reader.aclose()

    def _check_open(self) -> None:
        if self.is_closed:
            raise BusClosedError(f"a member of the group {self._group!r} was closed")
