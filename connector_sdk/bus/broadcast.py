"""How a subscription without a group gets its entries: by reading from the past, then live, without a seam."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeAlias

import msgspec

from connector_sdk.background import OwnedTask, OwnedTasks
from connector_sdk.bus.events import decode
from connector_sdk.bus.feed import Feed
from connector_sdk.bus.log import START, EventLog, Loss, Reading, Record
from connector_sdk.bus.outages import Outages, Patience
from connector_sdk.bus.sources import Start, for_each, resolve_start
from connector_sdk.bus.topics import Pattern
from connector_sdk.bus.work import Work
from connector_sdk.errors import BusUnavailableError, PayloadError

__all__ = ["BroadcastIntake", "Overflow"]

logger = logging.getLogger("connector_sdk.bus")

#: What happens when a subscription without a group is slower than its events come.
Overflow: TypeAlias = Literal["catch_up", "drop_oldest", "drop_newest"]

_PAGE: Final = 500


class _Estate(msgspec.Struct, frozen=True, eq=False):
    """What subscriptions that ended had not read: what all of *wanted* want and none of *taken* takes."""

    cursors: dict[str, str]  #: what comes after these; they are moved as it is read
    until: dict[str, str]
    wanted: list[Callable[[Record], bool]]
    taken: list[Callable[[Record], bool]]


class BroadcastIntake:
    """
    Fills the queue of a subscription without a group.

    It is *live* when the feed hands it what is new, else it is behind and reads by itself from its own cursors. It goes live in
    the one step in which it has everything that the feed has read; what it has beyond that it skips when the feed gets there.
    """

    def __init__(
        self,
        log: EventLog,
        feed: Feed,
        tasks: OwnedTasks,
        outages: Outages,
        *,
        pattern: Pattern,
        queue_size: int,
        overflow: Overflow,
        event_type: str | None,
        identity: object,
        on_loss: Callable[[Loss], None],
    ) -> None:
        self._log = log
        self._feed = feed
        self._tasks = tasks
        self._outages = outages
        self._pattern = pattern
        self._queue_size = queue_size
        self._overflow = overflow
        self._event_type = event_type
        self._identity = identity
        self._tell_loss = on_loss
        self._cursors: dict[str, str] = {}
        self._begins: dict[str, str] = {}
        self._skip: dict[str, str] = {}
        self._created: list[str] = []
        #: Older ones with the same handler. Those that ended stay for a while: what they had is not to be had again.
        self._elders: list[BroadcastIntake] = []
        #: How far it came, once it has ended.
        self._ends: dict[str, str] | None = None
        self._reader: OwnedTask | None = None
        self._inheriting: list[tuple[OwnedTask, _Estate]] = []
        self._work: Work
        self.is_live = False
        self.group = None
        #: Nothing is taken over from anybody without a group.
        self.recovered = 0

    def matches(self, topic: str) -> bool:
        """Whether its subscription is for *topic*."""
        return self._pattern.matches(topic)

    def feeds(self, work: Work) -> None:
        """Put what comes into *work*."""
        self._work = work

    async def begin(self, start: Start) -> None:
        """Find the place to begin at, and begin. What is published after this returned is delivered."""
        log = self._log
        ends: dict[str, str] = {}

        async def find(topic: str) -> None:
            end = await log.end(topic)
            self._cursors[topic] = end if start == "now" else await resolve_start(log, topic, start)
            ends[topic] = end

        try:
            topics = [self._pattern.text]
            if self._pattern.is_wild:
                self._feed.watch(self)
                topics = [topic for topic in await self._feed.list_topics() if self.matches(topic)]
            await for_each(topics, find)
        finally:
            self._feed.unwatch(self)
        for topic in self._created:
            if topic not in ends:
                self._cursors[topic] = ends[topic] = START
        self._begins = dict(self._cursors)
        living = [one for one in self._feed.intakes if one._identity == self._identity]
        for one in living:
            one._forget_elders()
        self._elders = list(dict.fromkeys([*living, *(elder for one in living for elder in one._elders)]))
        self._feed.join(self, ends)
        if not self._go_live():
            self._read_by_oneself()

    def topic_created(self, topic: str) -> None:
        """Note a topic that comes into being while the place to begin at is looked for."""
        if self.matches(topic):
            self._created.append(topic)

    def end(self) -> None:
        """Take nothing more; what others with the same handler left to this one is theirs from now on."""
        # Of topics that came while it was behind it may not even know.
        self._ends = {topic: START for topic in self._feed.cursors if self.matches(topic)} | self._reached
        self._elders = self._living_elders
        self.is_live = False
        for task in (*(task for task, _ in self._inheriting), *([] if self._reader is None else [self._reader])):
            task.cancel()
        self._feed.leave(self)

    def heirs(self) -> list[BroadcastIntake]:
        """The younger ones with the same handler, which left to this one what both match."""
        return [one for one in self._feed.intakes if self in one._elders]

    def inherit(self, elder: BroadcastIntake, records: Sequence[Record]) -> None:
        """Take what *elder*, which has ended, had not begun, and what it had not read."""
        assert elder._ends is not None
        older = [one._wants for one in self._living_elders]  # they inherit before this one
        self._work.add([record for record in records if self._wants(record) and not _any(older, record)])
        # What it had not read was passed over here as far as this one has come.
        order = self._log.order
        reached = self._reached
        behind = {
            topic: cursor
            for topic, cursor in elder._ends.items()
            if self.matches(topic) and order(cursor) < order(reached.get(topic, START))
        }
        until = {topic: reached[topic] for topic in behind}
        others = [one._took for one in self._elders if one._ends is not None]
        self._take_over(_Estate(behind, until, [elder._wants], [*older, *others]))
        for task, left in elder._inheriting:
            if not task.is_over:
                wanted, taken = [*left.wanted, elder._wants], [*left.taken, *older]
                self._take_over(_Estate(dict(left.cursors), left.until, wanted, taken))

    def _take_over(self, estate: _Estate) -> None:
        self._inheriting = [(task, one) for task, one in self._inheriting if not task.is_over]
        if estate.cursors:
            name = f"bus inheritance of {self._pattern.text}"
            self._inheriting.append((self._tasks.start(lambda: self._read_estate(estate), name), estate))

    async def _read_estate(self, estate: _Estate) -> None:
        order = self._log.order
        cursors = estate.cursors
        until = {topic: order(position) for topic, position in estate.until.items()}
        patience = Patience(self._outages)
        try:
            while cursors:
                await self._work.wait_for_room(self._queue_size - min(_PAGE, max(1, self._queue_size // 2)))
                room = max(1, self._queue_size - self._work.waiting)
                try:
                    reading = await self._log.read(cursors, limit=min(room, _PAGE), wait=0.0)
                except Exception as error:  # noqa: BLE001 - as in the feed
                    await patience.wait(error)
                    continue
                patience.succeeded()
                for loss in reading.losses:
                    self.lost(loss)
                for record in reading.records:
                    cursors[record.topic] = record.position
                self._work.add([record for record in reading.records if self._inherits(record, estate, until)])
                for topic in list(cursors):
                    if not reading.records and topic not in reading.cursors:
                        self._found_nothing(topic, cursors[topic], reading)
                    # A topic that began anew has nothing of it any more.
                    is_gone = not reading.records or topic in reading.cursors
                    if is_gone or order(cursors[topic]) >= until[topic]:
                        del cursors[topic]
        finally:
            patience.give_up()

    def _inherits(self, record: Record, estate: _Estate, until: dict[str, tuple[int, ...]]) -> bool:
        return (
            self._log.order(record.position) <= until[record.topic]
            and self._wants(record)
            and all(wants(record) for wants in estate.wanted)
            and not _any(estate.taken, record)
        )

    def offer(self, topic: str, run: Sequence[Record]) -> None:
        """Take what the feed has read of *topic*, or as much as there is room for."""
        floor = self._skip.pop(topic, None) if self._skip else None
        if floor is not None:
            run = self._beyond(topic, run, floor)
        if self._elders:
            run = self._without_elders(run)
        if not run:
            return
        room = self._queue_size - self._work.waiting
        if len(run) <= room:
            self._work.add(run)
        elif self._overflow == "catch_up":
            self._detach(topic, run, room, floor)
        else:
            self._drop(run, room)

    def began_anew(self, topic: str, cursor: str) -> None:
        """The storage lost *topic*, which begins again."""
        self._skip.pop(topic, None)
        self._begins.pop(topic, None)
        for elder in self._elders:
            if elder._ends is not None:
                elder._ends.pop(topic, None)
        if topic in self._cursors and not self.is_live:
            self._cursors[topic] = cursor

    def lost(self, loss: Loss) -> None:
        """Entries are gone that this subscription should have had."""
        self._tell_loss(loss)

    def reached(self, ends: dict[str, str]) -> bool:
        """Whether it has taken everything up to *ends*, as far as it is for it."""
        order = self._log.order
        cursors = self._feed.cursors if self.is_live else self._cursors
        if self._is_inheriting:
            return False
        return all(order(cursors.get(topic, START)) >= order(end) for topic, end in ends.items() if self.matches(topic))

    # From the past to the present

    def _read_by_oneself(self) -> None:
        self._reader = self._tasks.start(self._catch_up, f"bus replay of {self._pattern.text}")

    async def _catch_up(self) -> None:
        patience = Patience(self._outages)
        try:
            while not self._go_live():
                await self._work.wait_for_room(self._queue_size - min(_PAGE, max(1, self._queue_size // 2)))
                room = self._queue_size - self._work.waiting
                if room < 1:
                    return  # it ends
                cursors = self._feed.cursors
                before = {topic: cursors[topic] for topic in self._cursors if topic in cursors}
                try:
                    reading = await self._log.read(self._cursors, limit=min(room, _PAGE), wait=0.0)
                except Exception as error:  # as in the feed
                    if not isinstance(error, BusUnavailableError):
                        logger.debug("the log failed", exc_info=True)
                    await patience.wait(error)
                else:
                    patience.succeeded()
                    self._take(reading, before)
        finally:
            patience.give_up()

    def _take(self, reading: Reading, before: dict[str, str]) -> None:
        for loss in reading.losses:
            self.lost(loss)
        records = self._without_elders(reading.records) if self._elders else reading.records
        self._cursors.update(reading.cursors)
        for record in reading.records:
            self._cursors[record.topic] = record.position
        if reading.records:
            self._work.add(records)
        elif not reading.cursors:
            # There was nothing although the feed is further: what lay between is gone.
            order = self._log.order
            for topic, position in before.items():
                if order(position) > order(self._cursors[topic]):
                    self._found_nothing(topic, self._cursors[topic], reading)
                    self._cursors[topic] = position

    def _found_nothing(self, topic: str, cursor: str, reading: Reading) -> None:
        """Tell of a loss after *cursor*, unless the log did, or there was nothing left when it began."""
        if cursor != START and not any(loss.topic == topic for loss in reading.losses):
            self.lost(Loss(topic=topic, reason="trimmed"))

    def _go_live(self) -> bool:
        """Join the feed if everything that it has read was taken; without a pause, so that nothing comes between."""
        order = self._log.order
        skip: dict[str, str] = {}
        is_ready = True
        for topic, fed in self._feed.cursors.items():
            if not self.matches(topic):
                continue
            mine = self._cursors.setdefault(topic, START)
            if mine != fed:
                if order(mine) < order(fed):
                    is_ready = False
                else:
                    skip[topic] = mine
        if is_ready:
            self._skip = skip
            self.is_live = True
            self._feed.reroute()
        return is_ready

    def _detach(self, topic: str, run: Sequence[Record], room: int, floor: str | None) -> None:
        """Leave the feed with what there is room for; the rest is in the log."""
        taken = run[: max(0, room)]
        self._cursors = self._reached
        if floor is not None:
            self._cursors[topic] = floor
        if taken:
            self._work.add(taken)
            self._cursors[topic] = taken[-1].position
        self._skip = {}
        self.is_live = False
        self._feed.reroute()
        self._read_by_oneself()

    def _drop(self, run: Sequence[Record], room: int) -> None:
        over = len(run) - max(0, room)
        if self._overflow == "drop_newest":
            self._work.add(run[: len(run) - over])
            self._work.received += over
            self._work.drop("overflow", over)
        else:
            self._work.add(run)
            self._work.drop_oldest(over)
        self._tell_loss(Loss(topic=run[0].topic, reason="overflow", count=over))

    def _beyond(self, topic: str, run: Sequence[Record], floor: str) -> Sequence[Record]:
        """Leave out what was read before it went live."""
        order = self._log.order
        mark = order(floor)
        if order(run[-1].position) < mark:
            self._skip[topic] = floor
        return [record for record in run if order(record.position) > mark]

    @property
    def _reached(self) -> dict[str, str]:
        """How far it has come in each topic."""
        if not self.is_live:
            return self._cursors
        return {topic: at for topic, at in self._feed.cursors.items() if self.matches(topic)} | self._skip

    @property
    def _living_elders(self) -> list[BroadcastIntake]:
        return [elder for elder in self._elders if elder._ends is None]

    @property
    def _is_inheriting(self) -> bool:
        return not all(task.is_over for task, _ in self._inheriting)

    def _without_elders(self, run: Sequence[Record]) -> Sequence[Record]:
        """Leave out what an older subscription with the same handler takes: one handler is called once for an event."""
        self._forget_elders()
        takes = [elder._wants if elder._ends is None else elder._took for elder in self._elders]
        return [record for record in run if not _any(takes, record)]

    def _forget_elders(self) -> None:
        """Forget those that ended where this one, and whoever may leave something to it, have been since."""
        living = self._living_elders
        if len(living) == len(self._elders):
            return
        readers = [self, *living]
        if any(one._is_inheriting for one in readers):
            return
        order = self._log.order
        places = [(one, one._reached) for one in readers]

        def is_passed(ends: dict[str, str]) -> bool:
            return all(
                order(reached.get(topic, START)) >= order(end)
                for topic, end in ends.items()
                for one, reached in places
                if self.matches(topic) and one.matches(topic)
            )

        self._elders = [one for one in self._elders if one._ends is None or not is_passed(one._ends)]

    def _wants(self, record: Record) -> bool:
        order = self._log.order
        if not self.matches(record.topic) or order(record.position) <= order(self._begins.get(record.topic, START)):
            return False
        if self._event_type is None:
            return True
        body = record.body
        try:
            event = decode(body, record.topic) if isinstance(body, bytes) else body
        except PayloadError:
            return True  # whoever gets it buries it
        return event.type == self._event_type

    def _took(self, record: Record) -> bool:
        """Whether it had *record* before it ended, or has left it to its heirs."""
        assert self._ends is not None
        order = self._log.order
        is_passed = order(record.position) <= order(self._ends.get(record.topic, START))
        return is_passed and self._wants(record) and not any(elder._wants(record) for elder in self._elders)


def _any(predicates: Sequence[Callable[[Record], bool]], record: Record) -> bool:
    return any(predicate(record) for predicate in predicates)
