"""
Lanes: events of one session in order, sessions apart from each other, all within one bound. Pure: nothing waits here.

A *lane* holds the waiting events of one session. A runner (a task or a thread, see `runners.py`) takes a lane that is
ready, runs its events one after the other, and leaves it when it is empty. `concurrency` is how many runners one lane may
have at a time: 1 keeps the order, more gives it up.

The lanes also keep the client's account and its cursor, because both change in the same critical section: an id is
*finished* when its event and every event before it are.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from connector_sdk.client.delivery import DELIVERED, Delivery, Lane, Mark, Outcome
from connector_sdk.client.options import OverflowPolicy
from connector_sdk.ledger import DropReason, Ledger
from connector_sdk.payloads import Payload

__all__ = ["Lanes"]


class Lanes:
    """
    The bounded queue between the reader and the handlers. Every method is thread-safe and short.

    Args:
        max_size: how many events may wait; those being worked on do not count.
        policy: what `offer` does with an event that finds no place.
        concurrency: runners for each lane.
    """

    def __init__(self, *, max_size: int, policy: OverflowPolicy, concurrency: int) -> None:
        self._lock = threading.RLock()  # re-entrant: a signal handler may ask for readings at any moment
        self._lanes: dict[str, Lane] = {}
        #: Lanes that wait for a runner on the event loop; others may only ask whether there are any.
        self.ready_lanes: deque[Lane] = deque()
        self._ready_threaded: deque[Lane] = deque()
        self._max_size = max_size
        self._low_water = max_size // 2
        self._policy: OverflowPolicy = policy
        self._concurrency = concurrency
        self._in_order: deque[Delivery | Mark] = deque()
        self._most_in_order = _MOST_IN_ORDER
        self._received = 0
        self._delivered = 0
        self._queued = 0
        self._running = 0
        self._dropped: Counter[DropReason] = Counter()
        self._parked: deque[Delivery] = deque()
        #: The id up to which everything is finished; None until the first.
        self.finished_id: str | None = None
        self._on_space: Callable[[], object] | None = None
        self._on_idle: Callable[[], object] | None = None
        self._on_finished_id: Callable[[], object] | None = None
        self._threads_awake = 0
        #: An event was left unfinished: nothing more is handed out in this run, so that its session keeps its order.
        self.is_halted = False
        #: How often a thread took a lane.
        self.taken_by_threads = 0

    # The reader's side

    def offer(self, delivery: Delivery) -> list[Delivery] | None:
        """
        Queue one event. Returns the events dropped for it, [] when none; None when there is no place and the policy is to
        block: wait for `when_space` and offer again.
        """
        payload = delivery.payload
        with self._lock:
            if self._queued >= self._max_size:
                if self._policy == "block":
                    return None
                dropped = self._overflow(delivery)
                if dropped[0] is delivery:
                    return dropped
            else:
                dropped = _NOTHING
            self._received += 1
            self._in_order.append(delivery)
            key = payload.session_id or ""
            lane = self._lanes.get(key)
            if lane is None:
                lane = self._lanes[key] = Lane(key)
            lane.items.append(delivery)
            self._queued += 1
            if lane.runners < self._concurrency:
                lane.runners += 1
                (self._ready_threaded if delivery.plan.is_threaded else self.ready_lanes).append(lane)
        return dropped

    def is_busy(self, session_id: str | None) -> bool:
        """Whether events of this session wait or are worked on: then the next one must queue behind them."""
        return (session_id or "") in self._lanes

    def ran_inline(self, delivery: Delivery, outcome: Outcome) -> None:
        """Count an event that the reader ran itself."""
        with self._lock:
            delivery.started = True
            self._received += 1
            self._in_order.append(delivery)
            if self._count(delivery, outcome):
                self._tell_finished()

    def hold(self, delivery: Delivery) -> None:
        """Count an event that an iteration has in hand."""
        with self._lock:
            delivery.started = True
            self._received += 1
            self._running += 1
            self._in_order.append(delivery)

    def settle(self, delivery: Delivery, outcome: Outcome) -> None:
        """Count the end of an event that was held."""
        with self._lock:
            self._running -= 1
            if self._count(delivery, outcome):
                self._tell_finished()

    def refused(self, reason: DropReason, event_id: str | None = None) -> None:
        """Count an event that was received and given up before it could queue."""
        with self._lock:
            self._received += 1
            self._dropped[reason] += 1
            self._mark(event_id)

    def pass_id(self, event_id: str) -> None:
        """Note an id that came without an event."""
        with self._lock:
            self._mark(event_id)

    def when_space(self, call: Callable[[], object]) -> bool:
        """Call *call* once when the queue has emptied by half; returns False, and calls nothing, if there is place now."""
        with self._lock:
            if self._queued < self._max_size:
                return False
            self._on_space = call
        return True

    def when_idle(self, call: Callable[[], object]) -> bool:
        """Call *call* once when nothing waits or runs; returns False, and calls nothing, if that is so now."""
        with self._lock:
            if not self._queued and not self._running:
                return False
            self._on_idle = call
        return True

    def when_id_finished(self, call: Callable[[], object]) -> None:
        """Call *call* once at the next change of `finished_id`."""
        with self._lock:
            self._on_finished_id = call

    # The runners' side

    def take(self) -> tuple[Lane, Delivery] | None:
        """Hold a ready lane, for a runner on the event loop; None when there is none."""
        with self._lock:
            return self._take(self.ready_lanes)

    def take_threaded(self) -> tuple[Lane, Delivery] | None:
        """Hold a ready lane, for a runner in a thread; None when there is none, and this thread counts as asleep."""
        with self._lock:
            taken = self._take(self._ready_threaded)
            if taken is None:
                self._threads_awake -= 1
        return taken

    def finish(self, lane: Lane, delivery: Delivery, outcome: Outcome) -> tuple[Lane, Delivery] | None:
        """
        Count the event just run, and get the next: of the same lane, or of another that is ready.

        None when there is none for this kind of runner; a thread then counts as asleep.
        """
        calls: list[Callable[[], object]] | None = None
        threaded = delivery.plan.is_threaded
        with self._lock:
            self._running -= 1
            if outcome is DELIVERED:
                self._delivered += 1
                delivery.done = True
                advanced = self._advance()
            else:
                advanced = self._count(delivery, outcome)
            following = self._next_of(lane, threaded)
            if lane.is_stale:
                taken = None
            elif following is not None:
                taken = (lane, following)
            else:
                taken = self._take(self._ready_threaded if threaded else self.ready_lanes)
                if threaded and taken is None:
                    self._threads_awake -= 1
            if self._on_space is not None and self._queued <= self._low_water:
                calls = [self._on_space]
                self._on_space = None
            if advanced and self._on_finished_id is not None:
                calls = [*(calls or ()), self._on_finished_id]
                self._on_finished_id = None
            if self._on_idle is not None and not self._queued and not self._running:
                calls = [*(calls or ()), self._on_idle]
                self._on_idle = None
        if calls:
            for call in calls:
                call()
        return taken

    @property
    def all_threads_asleep(self) -> bool:
        """Whether no thread would find a lane by itself."""
        return not self._threads_awake

    @property
    def ready_threaded(self) -> int:
        """Lanes that wait for a runner in a thread."""
        return len(self._ready_threaded)

    def wake_thread(self, limit: int, *, although_others: bool = False) -> int:
        """
        Count one more thread as awake, if lanes wait for one: returns how many are awake with it, 0 for "not now".

        Not now is when no lane is ready, *limit* threads are awake, or one is (*although_others* lifts that).
        """
        with self._lock:
            awake = self._threads_awake
            if not self._ready_threaded or awake >= limit or (awake and not although_others):
                return 0
            self._threads_awake = awake + 1
            return awake + 1

    # The account

    def ledger(self) -> Ledger:
        """The account of the client."""
        with self._lock:
            return Ledger(
                received=self._received,
                delivered=self._delivered,
                buffered=self._queued + len(self._parked),
                in_flight=self._running,
                dropped=dict(self._dropped),
            )

    @property
    def queued(self) -> int:
        """Events that wait."""
        return self._queued

    @property
    def parked(self) -> int:
        """Events that failed and were put aside."""
        return len(self._parked)

    @property
    def dropped(self) -> int:
        """Events given up, duplicates left out."""
        with self._lock:
            return sum(self._dropped.values()) - self._dropped[DropReason.DUPLICATE]

    def take_parked(self) -> list[Payload]:
        """Hand over what was put aside; it counts as delivered from now on."""
        with self._lock:
            taken = [delivery.payload for delivery in self._parked]
            self._parked.clear()
            self._delivered += len(taken)
        return taken

    def abandon(self) -> None:
        """Give up everything that waits; its ids stay unfinished, and what comes later starts on clean lanes."""
        with self._lock:
            if self._queued:
                self._dropped[DropReason.ABANDONED] += self._queued
            self._queued = 0
            self.is_halted = False
            self._threads_awake = 0
            for lane in self._lanes.values():
                lane.is_stale = True
                lane.items.clear()  # whoever still holds the lane finds it empty
            self._lanes = {}
            self.ready_lanes.clear()
            self._ready_threaded.clear()
            self._in_order.clear()

    def resume_after(self, event_id: str) -> None:
        """Begin anew behind *event_id*, "" for none: give up what waits and forget what was finished here."""
        with self._lock:
            self.abandon()
            self.finished_id = event_id or None

    def oldest_arrival(self) -> float | None:
        """Monotonic time at which the oldest unfinished event arrived."""
        with self._lock:
            return next((entry.at for entry in self._in_order if isinstance(entry, Delivery)), None)

    # Under the lock

    def _take(self, ready: deque[Lane]) -> tuple[Lane, Delivery] | None:
        while ready:
            lane = ready.popleft()
            delivery = self._next_of(lane, ready is self._ready_threaded)
            if delivery is not None:
                if ready is self._ready_threaded:
                    self.taken_by_threads += 1
                return lane, delivery
        return None

    def _next_of(self, lane: Lane, threaded: bool) -> Delivery | None:
        items = lane.items
        if not items or self.is_halted:
            lane.runners -= 1
            if not lane.runners and not items and self._lanes.get(lane.key) is lane:
                del self._lanes[lane.key]
            return None
        if items[0].plan.is_threaded is not threaded:
            (self.ready_lanes if threaded else self._ready_threaded).append(lane)
            return None
        delivery = items.popleft()
        delivery.started = True
        self._queued -= 1
        self._running += 1
        return delivery

    def _count(self, delivery: Delivery, outcome: Outcome) -> bool:
        if outcome is Outcome.DELIVERED:
            self._delivered += 1
        elif outcome is Outcome.FAILED:
            self._dropped[DropReason.HANDLER_FAILED] += 1
        elif outcome is Outcome.PARKED:
            self._parked.append(delivery)
            if len(self._parked) > self._max_size:
                self._parked.popleft()
                self._dropped[DropReason.HANDLER_FAILED] += 1
        else:
            self._dropped[DropReason.ABANDONED] += 1
            self.is_halted = True
            return False
        delivery.done = True
        return self._advance()

    def _advance(self) -> bool:
        in_order = self._in_order
        before = self.finished_id
        while in_order:
            first = in_order[0]
            if not (isinstance(first, Mark) or first.done):
                if len(in_order) > self._most_in_order:
                    self._compact()
                break
            event_id = _id_of(first)
            if event_id is not None:
                self.finished_id = event_id
            in_order.popleft()
        return self.finished_id != before

    def _compact(self) -> None:
        """Behind an event that takes for ever the finished ones would pile up: of each run of them keep the last id."""
        kept: deque[Delivery | Mark] = deque()
        for entry in self._in_order:
            if isinstance(entry, Delivery) and not entry.done:
                kept.append(entry)
                continue
            event_id = _id_of(entry)
            if event_id is None:
                continue
            if kept and isinstance(kept[-1], Mark):
                kept[-1].id = event_id
            else:
                kept.append(Mark(event_id))
        self._in_order = kept
        self._most_in_order = 2 * len(kept) + _MOST_IN_ORDER

    def _mark(self, event_id: str | None) -> None:
        if event_id is not None:
            self._in_order.append(Mark(event_id))
            if self._advance():
                self._tell_finished()

    def _tell_finished(self) -> None:
        if self._on_finished_id is not None:
            call, self._on_finished_id = self._on_finished_id, None
            call()

    def _overflow(self, newest: Delivery) -> list[Delivery]:
        if self._policy == "drop_oldest":
            for entry in self._in_order:
                if isinstance(entry, Delivery) and not entry.started and not entry.done:
                    self._lanes[entry.payload.session_id or ""].items.popleft()
                    entry.done = True
                    self._queued -= 1
                    self._dropped[DropReason.OVERFLOW] += 1
                    return [entry]
        self._received += 1
        self._dropped[DropReason.OVERFLOW] += 1
        self._mark(newest.payload.event_id)
        return [newest]


def _id_of(entry: Delivery | Mark) -> str | None:
    return entry.id if isinstance(entry, Mark) else entry.payload.event_id


_NOTHING: list[Delivery] = []
_MOST_IN_ORDER: Final = 1024  # entries kept in order before a look is worth its while
