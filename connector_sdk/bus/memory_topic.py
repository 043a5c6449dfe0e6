"""What a `MemoryLog` keeps of one topic: its entries, its groups, and what retention lets go."""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from connector_sdk.bus.log import START, Body, Delivery, GroupInfo, Loss, Record, TopicInfo

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["Holder", "MemoryGroup", "MemoryTopic", "Retention", "Waiter", "number_of", "position_of"]


def position_of(number: int) -> str:
    """Return the position of the entry with that number, START for 0."""
    return str(number) if number else START


def number_of(position: str) -> int:
    """Return the number of an entry, 0 for START."""
    return int(position) if position else 0


class Waiter(Protocol):
    """Somebody who waits for news of a topic."""

    def wake(self) -> None:
        """There is something; called in the event loop, and must not block."""


class Holder(Waiter, Protocol):
    """A member of a group, as its topics know it."""

    consumer: str
    lives_until: float  #: by the monotonic clock


class Retention(msgspec.Struct, frozen=True):
    """How much of a topic is kept."""

    max_events: int
    ttl_seconds: float
    max_backlog: int  #: of events that a group has not finished
    max_backlog_seconds: float


class _Pending:
    """An entry that a group was given and has not finished."""

    __slots__ = ("body", "deliveries", "due", "holder", "key", "notes", "number", "position", "stored_at")

    def __init__(self, key: str, number: int, position: str, body: Body, stored_at: float) -> None:
        self.key = key
        self.number = number
        self.position = position
        self.body = body
        self.stored_at = stored_at
        self.deliveries = 0
        self.notes = b""
        self.holder: Holder | None = None
        #: When it comes again, by the monotonic clock; None while a member has it, or had it when it died.
        self.due: float | None = None


class MemoryGroup:
    """One group of one topic: how far it is, what is not finished, and who has it."""

    def __init__(self, topic: MemoryTopic, name: str, delivered: int) -> None:
        self.topic = topic
        self.name = name
        self.delivered = delivered
        self.members: set[Holder] = set()
        self.lost = 0
        #: Entries of the topic, in its order; and those that were redriven, which it may have no more.
        self._pending: dict[str, _Pending] = {}
        self._again: dict[str, _Pending] = {}
        self._due: list[tuple[float, int, _Pending]] = []
        self._orphans: deque[_Pending] = deque()
        self._turns = itertools.count()

    # -- giving out

    def next_due(self) -> float | None:
        """When the next entry comes again, by the monotonic clock; None without one."""
        due = self._due
        while due and not self._is_due(*due[0]):
            heapq.heappop(due)
        return due[0][0] if due else None

    def take_due(self, member: Holder, limit: int, now: float) -> list[Delivery]:
        """Take entries whose time has come."""
        taken: list[Delivery] = []
        while len(taken) < limit:
            when = self.next_due()
            if when is None or when > now:
                break
            taken.append(self._give(heapq.heappop(self._due)[2], member))
        taken.sort(key=lambda delivery: number_of(delivery.position))
        return taken

    def take_orphans(self, member: Holder, limit: int) -> list[Delivery]:
        """Take entries of members that died."""
        taken: list[Delivery] = []
        while self._orphans and len(taken) < limit:
            entry = self._orphans.popleft()
            if entry.holder is None and entry.due is None and self._find(entry.key) is entry:
                taken.append(self._give(entry, member))
        return taken

    def take_new(self, member: Holder, limit: int) -> list[Delivery]:
        """Take entries that nobody had before."""
        topic = self.topic
        index = self.delivered + 1 - topic.first
        records = topic.records[index : index + limit]
        if not records:
            return []
        pending = self._pending
        number = self.delivered
        taken: list[Delivery] = []
        for record, stored_at in zip(records, topic.times[index : index + limit], strict=True):
            number += 1
            position = record.position
            entry = _Pending(position, number, position, record.body, stored_at)
            entry.deliveries = 1
            entry.holder = member
            pending[position] = entry
            taken.append(Delivery(topic.name, position, record.body))
        self.delivered = number
        return taken

    def take_from(self, holders: set[Holder], member: Holder, limit: int) -> list[Delivery]:
        """Take what these members have, oldest first."""
        found = [entry for entry in self._unfinished() if entry.holder in holders]
        return [self._give(entry, member) for entry in found[:limit]]

    def take_losses(self) -> list[Loss]:
        """Return what was lost since the last call."""
        if not self.lost:
            return []
        count, self.lost = self.lost, 0
        return [Loss(topic=self.topic.name, reason="trimmed", count=count, group=self.name)]

    # -- taking back

    def finish(self, delivery: Delivery) -> None:
        """Forget an entry: it is finished."""
        key = delivery.origin or delivery.position
        if self._pending.pop(key, None) is None:
            self._again.pop(key, None)

    def postpone(self, delivery: Delivery, member: Holder, due: float, notes: bytes) -> None:
        """Let an entry come again at *due*, unless another member has it by now."""
        entry = self._find(delivery.origin or delivery.position)
        if entry is not None and entry.holder in (None, member):
            entry.notes = notes
            self._release(entry, due)

    def give_back(self, delivery: Delivery, member: Holder, now: float) -> None:
        """Let an entry come again at once, as if it had not been given out."""
        entry = self._find(delivery.origin or delivery.position)
        if entry is not None and entry.holder is member:
            entry.deliveries -= 1
            self._release(entry, now)

    def redrive(self, position: str, body: Body, notes: bytes, now: float, stored_at: float) -> None:
        """Let a dead letter come to this group, as if for the first time."""
        entry = _Pending(f"again-{next(self._turns)}", number_of(position), position, body, stored_at)
        entry.notes = notes
        self._again[entry.key] = entry
        self._release(entry, now)

    def leave(self, member: Holder, now: float, *, died: bool) -> None:
        """A member is no more: others get what it had."""
        self.members.discard(member)
        self.topic.waiters.pop(member, None)
        for entry in self._unfinished():
            if entry.holder is member:
                if died:
                    entry.holder = None
                    self._orphans.append(entry)
                else:
                    self._release(entry, now)
        self.wake()

    def wake(self) -> None:
        """Let members look again."""
        for member in self.members:
            member.wake()

    # -- looking

    def oldest_needed(self) -> int:
        """Return the number of the first entry that is not finished."""
        for entry in self._pending.values():
            return entry.number
        return self.delivered + 1

    def info(self, now: float, clock: float) -> GroupInfo:
        """Return what is known; *now* by the wall clock, *clock* by the monotonic one."""
        unfinished = list(self._unfinished())
        oldest = min((entry.stored_at for entry in unfinished), default=None)
        return GroupInfo(
            name=self.name,
            consumers=sum(member.lives_until > clock for member in self.members),
            pending=len(unfinished),
            lag=self.topic.last - self.delivered,
            last_delivered=position_of(self.delivered),
            oldest_pending_age=None if oldest is None else max(0.0, now - oldest),
        )

    def lose_before(self, first: int) -> None:
        """The hard bound let everything before entry *first* go. What a member has in hand it may finish."""
        gone = [entry for entry in self._pending.values() if entry.number < first and entry.holder is None]
        for entry in gone:
            del self._pending[entry.key]
        self.lost += len(gone)
        if self.delivered < first - 1:
            self.lost += first - 1 - self.delivered
            self.delivered = first - 1
        self.wake()

    # -- inside

    def _unfinished(self) -> Iterator[_Pending]:
        return itertools.chain(self._pending.values(), self._again.values())

    def _find(self, key: str) -> _Pending | None:
        return self._pending.get(key) or self._again.get(key)

    def _is_due(self, due: float, _: int, entry: _Pending) -> bool:
        return entry.due == due and self._find(entry.key) is entry

    def _release(self, entry: _Pending, due: float) -> None:
        entry.holder = None
        entry.due = due
        heapq.heappush(self._due, (due, next(self._turns), entry))
        self.wake()

    def _give(self, entry: _Pending, member: Holder) -> Delivery:
        entry.holder = member
        entry.due = None
        entry.deliveries += 1
        origin = entry.key if entry.key != entry.position else ""
        return Delivery(self.topic.name, entry.position, entry.body, entry.deliveries, entry.notes, origin)


class MemoryTopic:
    """
    The entries of one topic, numbered without gaps from 1.

    Lists and not deques: a reader may stand anywhere, and the middle of a deque is far from its ends. The front is cut off in
    steps.
    """

    def __init__(self, name: str, retention: Retention) -> None:
        self.name = name
        self.first = 1  #: number of the first entry that is kept
        self.records: list[Record] = []
        self.times: list[float] = []  #: when each was stored, by the wall clock, never falling
        self.groups: dict[str, MemoryGroup] = {}
        self.waiters: dict[Waiter, None] = {}  #: in the order in which they are woken
        self._retention = retention
        self._step = max(1, retention.max_events // 10)
        #: How many entries, and what time, make it worth while to look again.
        self._crowded_at = retention.max_events + self._step
        self._stale_at = 0.0

    @property
    def last(self) -> int:
        """Return the number of the newest entry that there ever was, 0 for none."""
        return self.first + len(self.records) - 1

    def append(self, bodies: Sequence[Body], now: float) -> list[str]:
        """Store entries, and wake whoever waits."""
        name = self.name
        number = self.last
        positions = [str(number) for number in range(number + 1, number + 1 + len(bodies))]
        self.records += [Record(name, position, body) for position, body in zip(positions, bodies, strict=True)]
        times = self.times
        times += [max(now, times[-1]) if times else now] * len(bodies)
        self._tell(now)
        return positions

    def append_one(self, body: Body, now: float) -> str:
        """Do the same with one entry, in half the time."""
        records, times = self.records, self.times
        position = str(self.first + len(records))
        records.append(Record(self.name, position, body))
        times.append(now if not times or now > times[-1] else times[-1])
        self._tell(now)
        return position

    def _tell(self, now: float) -> None:
        times = self.times
        if len(times) >= self._crowded_at or (times[0] < now - self._retention.ttl_seconds and now >= self._stale_at):
            self.trim(now)
        for waiter in self.waiters:
            waiter.wake()

    def send_to_the_end(self, waiter: Waiter) -> None:
        """Whoever got something is woken last: or one member would get all that comes one by one."""
        if len(self.waiters) > 1 and waiter in self.waiters:
            del self.waiters[waiter]
            self.waiters[waiter] = None

    def trim(self, now: float) -> None:
        """Let go what is too much or too old, but nothing that a group has not finished; then what the hard bound forbids."""
        rules = self._retention
        expired = bisect_left(self.times, now - rules.ttl_seconds)
        surplus = max(len(self.records) - rules.max_events, expired)
        for group in self.groups.values():
            surplus = min(surplus, group.oldest_needed() - self.first)
        hopeless = bisect_left(self.times, now - rules.max_backlog_seconds)
        excess = max(len(self.records) - rules.max_backlog, hopeless)
        self._cut(max(surplus, excess))
        self._crowded_at = max(rules.max_events, len(self.records)) + self._step
        self._stale_at = now + rules.ttl_seconds / 20
        if surplus < excess:
            for group in self.groups.values():
                group.lose_before(self.first)

    def _cut(self, count: int) -> None:
        if count > 0:
            del self.records[:count]
            del self.times[:count]
            self.first += count

    def expire(self, now: float) -> None:
        """Let go what is too old by now."""
        if self.times and self.times[0] < now - self._retention.ttl_seconds and now >= self._stale_at:
            self.trim(now)

    def after(self, number: int, limit: int) -> list[Record]:
        """Return up to *limit* entries after that with this number."""
        index = max(0, number + 1 - self.first)
        return self.records[index : index + limit]

    def position_at(self, time: datetime) -> str:
        """Return the position before the first entry that was stored at *time* or later."""
        return position_of(self.first - 1 + bisect_left(self.times, time.timestamp()))

    def group(self, name: str, start: str | datetime) -> tuple[MemoryGroup, bool]:
        """Return the group of that name, and whether it was made."""
        known = self.groups.get(name)
        if known is not None:
            return known, False
        number = number_of(start if isinstance(start, str) else self.position_at(start))
        group = self.groups[name] = MemoryGroup(self, name, min(max(number, self.first - 1), self.last))
        return group, True

    def info(self, now: float, clock: float, dead_letters: int) -> TopicInfo:
        """Return what is known; *now* by the wall clock, *clock* by the monotonic one."""
        return TopicInfo(
            topic=self.name,
            length=len(self.records),
            first=position_of(self.first) if self.records else None,
            last=position_of(self.last) if self.records else None,
            oldest_age=max(0.0, now - self.times[0]) if self.records else None,
            groups=[group.info(now, clock) for _, group in sorted(self.groups.items())],
            dead_letters=dead_letters,
        )
