"""What a subscription has in hand, and the tasks that run its handler."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Final, TypeAlias, final

import anyio
import anyio.lowlevel

from connector_sdk.background import OwnedTask, OwnedTasks
from connector_sdk.bus.delivery import Dead, Origin, Retry, RetrySchedule, unreadable
from connector_sdk.bus.events import Event, decode
from connector_sdk.bus.fate import Fate, Tally
from connector_sdk.bus.handlers import BoundHandler, Message, is_delay
from connector_sdk.bus.log import Delivery, Record
from connector_sdk.bus.queueing import NO_KEY, Entry, Keyed, Waiting
from connector_sdk.bus.registry import EventRegistry
from connector_sdk.callbacks import is_own_failure

__all__ = ["Key", "Work", "running_work"]

#: Gives what orders an event: events of one key are handled one after the other.
Key: TypeAlias = Callable[[Event], Hashable]

#: Entries between two moments in which other tasks may run, if handlers never wait.
_FAIR_SHARE: Final = 256
_FIRST: Final = 1

#: The subscription whose handler the caller is in, None outside of every handler.
running_work: contextvars.ContextVar[Work | None] = contextvars.ContextVar("running_work", default=None)


@final
class Work:
    """
    Runs a handler for entries, up to *concurrency* at once. Belongs to one event loop.

    A worker takes one entry after the other without a task switch; another starts only if the first is held up. An entry that
    waits for another attempt, or for its key, holds up nobody else.
    """

    def __init__(
        self,
        handler: BoundHandler,
        fate: Fate,
        tasks: OwnedTasks,
        *,
        schedule: RetrySchedule,
        consumer: str,
        group: str | None,
        registry: EventRegistry,
        event_type: str | None,
        concurrency: int,
        key: Key | None,
    ) -> None:
        self._handler = handler
        self._fate = fate
        self._tasks = tasks
        self._schedule = schedule
        self._consumer = consumer
        self._group = group
        self._registry = registry
        self._event_type = event_type
        self._concurrency = concurrency
        self._key = key
        self._acknowledges = group is not None
        #: Handles an entry at its first attempt: a coroutine function of the event alone, if that is all.
        self._plain = handler.fast if key is None and event_type is None else None
        self._waiting = Waiting()
        self._queue = self._waiting.ready
        self._sooner = anyio.Event()
        self._workers: list[OwnedTask] = []
        self._timer: OwnedTask | None = None
        self._idle: list[anyio.Event] = []
        self._rousing = False
        self._room_mark = -1
        self._room = anyio.Event()
        self._tallies: dict[int, Tally] = {}
        self._ends_seen = -1
        self.stopping = False
        self.finished = anyio.Event()
        self.running = 0
        self.received = self.succeeded = self.passed_over = self.retried = self.given_back = 0
        self.dead_lettered = self.failures = self.handler_errors = self.cut_off = 0
        self.dropped: dict[str, int] = {}

    # What is in hand

    @property
    def waiting(self) -> int:
        """Entries that wait for the handler, for their key or for another attempt."""
        return len(self._waiting)

    @property
    def in_hand(self) -> int:
        """Entries that wait or that the handler has."""
        return len(self._waiting) + self.running

    @property
    def active(self) -> int:
        """Entries in hand but for those that wait for the time of another attempt."""
        return self.in_hand - self._waiting.held

    def add(self, entries: Sequence[Entry]) -> None:
        """Take entries, in order."""
        self.received += len(entries)
        self._queue.extend(entries)
        if not self._rousing:
            self._rouse()

    def watch(self, entries: Sequence[Entry]) -> Tally:
        """Return the tally of *entries*, before they are added."""
        tally = Tally()
        tally.open = len(entries)
        for entry in entries:
            self._tallies[id(entry)] = tally
        return tally

    def drop_oldest(self, count: int) -> None:
        """Give up to *count* of the entries that wait, oldest first."""
        for _ in range(min(count, len(self._queue))):
            self._waiting.drop_oldest()
            self.drop("overflow", 1)

    def drop(self, reason: str, count: int) -> None:
        """Count entries that were received and are given up."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count

    async def wait_for_room(self, mark: int, *, most: int | None = None) -> None:
        """Wait until at most *mark* entries wait; with *most*: are active, and fewer than *most* in hand."""
        while not self.stopping and (
            len(self._waiting) > mark if most is None else self.active > mark or self.in_hand >= most
        ):
            self._room_mark = max(self._room_mark, mark)
            if self._room.is_set():
                self._room = anyio.Event()
            await self._room.wait()

    def take_idle(self) -> list[Delivery]:
        """Take out what waits in line, when the handler came to no end since the last call and nothing has a key."""
        ends = self.succeeded + self.failures
        is_stuck, self._ends_seen = ends == self._ends_seen and self.running >= self._concurrency, ends
        if not is_stuck or self._key is not None or self._tallies:
            return []
        taken = [entry for entry in self._queue if isinstance(entry, Delivery)]
        self._queue.clear()
        self.given_back += len(taken)
        return taken

    def put_back(self, entries: Sequence[Delivery]) -> None:
        """Undo `take_idle`."""
        self.given_back -= len(entries)
        self._queue.extendleft(reversed(entries))
        self._rouse()

    # The end

    def stop(self) -> None:
        """Begin nothing new; `finished` is set when the handlers have ended."""
        self.stopping = True
        for tally in self._tallies.values():
            tally.done.set()
        self._room.set()
        if self._timer is not None:
            self._timer.cancel()
        for idle in self._idle:
            idle.set()
        self._idle.clear()
        if not self._workers:
            self.finished.set()

    def abort(self) -> None:
        """Cancel the handlers."""
        self.stop()
        for worker in list(self._workers):
            worker.cancel()

    def take_unstarted(self) -> tuple[list[Entry], list[tuple[float, Entry]]]:
        """Take what waits out of its hands: entries in order, and those to be tried again with their monotonic times."""
        return self._waiting.take_all()

    # Workers

    def _rouse(self) -> None:
        if self.stopping:
            return
        if self._idle:
            self._rousing = True
            self._idle.pop().set()
        elif len(self._workers) < self._concurrency:
            self._rousing = True
            worker: OwnedTask | None = None

            def ended() -> None:
                if worker in self._workers:
                    self._workers.remove(worker)
                self._rousing = False
                if self.stopping and not self._workers:
                    self.finished.set()

            worker = self._tasks.start(self._work, f"bus handler {self._handler.name}", ended)
            self._workers.append(worker)

    async def _work(self) -> None:
        running_work.set(self)
        queue = self._queue
        self._rousing = False
        share = _FAIR_SHARE
        # Without calls in between: of a handler that does little they would take a part of the time.
        plain, read = self._plain, self._read
        entry: Entry
        while not self.stopping:
            if not queue:
                idle = anyio.Event()
                self._idle.append(idle)
                self._see_room()
                await idle.wait()
                self._rousing = False
                continue
            if self._concurrency > 1 and len(queue) > 1 and not self._rousing:
                self._rouse()
            item = queue.popleft()
            self.running += 1
            try:
                if plain is not None and (type(item) is Record or item.attempt == _FIRST):  # type: ignore[union-attr]
                    event = None
                    entry = item  # type: ignore[assignment]  # without a key there is no Keyed
                    try:
                        event = read(entry)
                        await plain(event)
                    except BaseException as error:
                        if not is_own_failure(error):
                            self._cut_off()
                            raise
                        self._plain_failed(entry, event, error)
                    else:
                        self.succeeded += 1
                        if self._acknowledges:
                            self._acknowledge(entry)
                else:
                    await self._run(item)
            finally:
                self.running -= 1
            if len(queue) <= self._room_mark:
                self._see_room()
            share -= 1
            if not share:
                share = _FAIR_SHARE
                await anyio.lowlevel.checkpoint()

    def _acknowledge(self, entry: Entry) -> None:
        self._fate.acknowledge(entry)
        self._count(entry, "succeeded")

    def _see_room(self) -> None:
        if self._room_mark >= 0 and self.waiting - self._waiting.held <= self._room_mark:
            self._room_mark = -1
            self._room.set()

    def _plain_failed(self, entry: Entry, event: Event | None, error: BaseException) -> None:
        if event is None:
            self._unreadable(entry, error)
        else:
            self._failed(entry, event, error, NO_KEY)

    async def _run(self, item: Entry | Keyed) -> None:
        key: Hashable
        key, entry = (item.key, item.entry) if type(item) is Keyed else (NO_KEY, item)
        try:
            event = self._read(entry)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the bytes, they are kept
            self._unreadable(entry, error)
            return
        if self._event_type is not None and event.type != self._event_type:
            self.passed_over += 1
            self._acknowledge(entry)
            return
        if self._key is not None and key is NO_KEY:
            try:
                key = self._key(event)
                has_turn = self._waiting.has_turn(entry, key)
            except Exception as error:  # noqa: BLE001 - the application's function
                self._failed(entry, event, error, NO_KEY)
                return
            if not has_turn:
                return
        await self._attempt(entry, event, key)

    async def _attempt(self, entry: Entry, event: Event, key: Hashable) -> None:
        delivery = entry if type(entry) is Delivery else Delivery(entry.topic, entry.position, entry.body)
        dead = self._schedule.before(
            delivery.attempt, delivery.notes, now=time.time(), consumer=self._consumer, origin=_origin(entry, event)
        )
        if dead is not None:
            self._bury(entry, dead, key)
            return
        owner = _Owner(self, entry, key)
        message = Message(owner, event, delivery, self._group)
        try:
            if self._event_type is not None:
                self._registry.check(event)
            await self._handler.call(event, message)
        except BaseException as error:
            if not is_own_failure(error):
                if not message.settled:
                    self._cut_off()
                raise
            if message.settled:
                self.handler_errors += 1
                self._fate.failed(event, error, dead=False)
            else:
                self._failed(entry, event, error, key)
            return
        if not message.settled:
            self.succeed(entry, key)

    # Outcomes

    def succeed(self, entry: Entry, key: Hashable) -> None:
        """The handler is done with it."""
        self.succeeded += 1
        self._acknowledge(entry)
        self._release(key)

    def fail(self, entry: Entry, event: Event, error: BaseException, key: Hashable) -> None:
        """The attempt failed with *error*, which the handler did not raise."""
        self._judge(entry, event, error, key)

    async def renew(self) -> None:
        """Say that who has the entries lives."""
        await self._fate.renew()

    def _failed(self, entry: Entry, event: Event, error: BaseException, key: Hashable) -> None:
        if not is_delay(error):
            self.handler_errors += 1
        self._judge(entry, event, error, key)

    def _judge(self, entry: Entry, event: Event, error: BaseException, key: Hashable) -> None:
        attempt, notes = (entry.attempt, entry.notes) if type(entry) is Delivery else (_FIRST, b"")
        verdict = self._schedule.verdict(
            attempt, error, notes, now=time.time(), consumer=self._consumer, origin=_origin(entry, event)
        )
        self.failures += 1
        self._fate.failed(event, error, dead=isinstance(verdict, Dead))
        if isinstance(verdict, Dead):
            self._bury(entry, verdict, key)
        elif key is NO_KEY and self._fate.postpone(entry, verdict.after, verdict.notes):
            self.retried += 1
            self._count(entry, "failed")
        else:
            self._hold(entry, verdict, attempt + 1, key)

    def _unreadable(self, entry: Entry, error: BaseException) -> None:
        self.failures += 1
        notes = entry.notes if type(entry) is Delivery else b""
        dead = unreadable(
            error,
            notes,
            now=time.time(),
            consumer=self._consumer,
            origin=Origin(topic=entry.topic, position=entry.position),
        )
        self._fate.failed(None, error, dead=True)
        self._bury(entry, dead, NO_KEY)

    def _bury(self, entry: Entry, dead: Dead, key: Hashable) -> None:
        self.dead_lettered += 1
        self._fate.bury(entry, dead.evidence)
        self._release(key)
        self._count(entry, "dead_lettered")

    def _hold(self, entry: Entry, retry: Retry, attempt: int, key: Hashable) -> None:
        """Keep it here until its next attempt, and with it the others of its key."""
        origin = entry.origin if type(entry) is Delivery else ""
        again = Delivery(entry.topic, entry.position, entry.body, attempt, retry.notes, origin)
        self._count(entry, "failed")
        due = time.monotonic() + retry.after
        is_first = self._waiting.hold(again, key, due)
        if self.stopping:
            return
        if self._timer is None or self._timer.is_over:
            self._timer = self._tasks.start(self._bring_again, "bus retries")
        elif is_first:
            self._sooner.set()

    async def _bring_again(self) -> None:
        while (due := self._waiting.next_due) is not None:
            pause = due - time.monotonic()
            if pause > 0:
                self._sooner = anyio.Event()
                with anyio.move_on_after(pause):
                    await self._sooner.wait()
                continue
            self._waiting.bring_again()
            if not self._rousing:
                self._rouse()

    def _release(self, key: Hashable) -> None:
        """Let the next entry of *key* have its turn."""
        if key is not NO_KEY and self._waiting.release(key) and not self._rousing:
            self._rouse()

    def _cut_off(self) -> None:
        self.cut_off += 1
        if self._group is None:
            self.drop("cut_off", 1)
        else:
            self.retried += 1  # the log gives it to another member, as one more attempt

    def _count(self, entry: Entry, outcome: str) -> None:
        tally = self._tallies.pop(id(entry), None) if self._tallies else None
        if tally is not None:
            setattr(tally, outcome, getattr(tally, outcome) + 1)
            tally.close_one()

    def _read(self, entry: Entry) -> Event:
        body = entry.body
        if type(body) is bytes:
            return decode(body, entry.topic, self._registry)
        return body.bound(entry.topic, self._registry)  # type: ignore[union-attr]  # what is no bytes is an event


class _Owner:
    """What the Message of one attempt belongs to."""

    __slots__ = ("_entry", "_key", "_work")

    def __init__(self, work: Work, entry: Entry, key: Hashable) -> None:
        self._work = work
        self._entry = entry
        self._key = key

    def decide(self, message: Message, error: Exception | None) -> None:
        if error is None:
            self._work.succeed(self._entry, self._key)
        else:
            self._work.fail(self._entry, message.event, error, self._key)

    async def renew(self) -> None:
        await self._work.renew()


def _origin(entry: Entry, event: Event) -> Origin:
    return Origin(topic=entry.topic, position=entry.position, event_id=event.event_id)
