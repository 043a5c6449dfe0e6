"""EventBuffer: holds events in memory until they are pulled. For one process; what it holds dies with it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator
from typing import get_args

from connector_sdk.buffers.arguments import check_flag, check_limit, check_types, check_wanted_types, names_of
from connector_sdk.buffers.core import BufferCore
from connector_sdk.buffers.dead_letters import BlockingDeadLetters
from connector_sdk.buffers.drops import DropHook, DropTeller, check_drop_hook
from connector_sdk.buffers.leases import Lease
from connector_sdk.buffers.memory_dead_letters import MemoryDeadLetters
from connector_sdk.buffers.state import Overflow
from connector_sdk.buffers.stats import BufferStats
from connector_sdk.buffers.view import EventBufferView
from connector_sdk.buffers.waiting import ThreadSleeper, Turn, Waiter
from connector_sdk.callbacks import quick
from connector_sdk.errors import ConfigurationError
from connector_sdk.ledger import DropReason
from connector_sdk.options import check_choice, check_integer, check_seconds
from connector_sdk.payloads import ActionsPayload, Payload, SummaryPayload, UnknownPayload, require_payload

__all__ = ["EventBuffer"]


class EventBuffer(BufferCore):
    """
    A bounded queue of payloads, oldest first, for sync code and any number of threads.

    ::

        buffer = EventBuffer(max_size=1000, on_drop=lost.append)
        client.on_actions(buffer.add).on_summary(buffer.add)
        ...
        for payload in buffer.drain(): ...

    Every method is one atomic step: threads never see a half-done one, no event is handed out twice, and
    `stats().ledger` balances at every moment. Events that a lease holds are outside: they count neither as waiting nor
    against the bounds. `as_backend()` gives the same buffer to async code. After `os.fork()` the child's buffer is
    empty, with a new account, and unlocked; the parent's is as it was. Methods must not be called from signal handlers
    or finalizers. A `KeyboardInterrupt` in the middle of a call leaves the buffer unlocked and its account balanced; events
    that the call had in hand are counted as "abandoned".

    Args:
        max_size: how many events may wait; 0 for no bound (not for production).
        on_drop: called as `on_drop(payload)` for each event given up because the buffer was full or the event too old:
            once each, in the order of the drops, outside the lock, by one thread at a time (a thread that drops while
            another one tells leaves it to that one; `stats().untold_drops` counts what waits to be told). It may call
            any method of the buffer, and take its time. An error it raises is counted and logged. Events discarded by
            `clear()` or refused with an error are only counted: the caller knows. None logs a warning at most every
            30 s.
        overflow: what a full buffer does with one more event: "drop_oldest" pushes the oldest out, "drop_newest" gives
            the new one up, "raise" raises BufferFullError, "block" waits for room, first come, first served.
        block_timeout: seconds that "block" waits before it raises BufferFullError; None, the default, waits for ever.
        max_bytes: how many bytes of encoded JSON may wait, beside `max_size`; None for no bound. One event larger than
            that is let in when nothing else waits. Costs one encoding an event.
        max_age: seconds after which a waiting event is dropped as expired, checked whenever the buffer is written or
            read; None keeps events for ever. Time on lease counts.
        max_dead_letters: how many events that were given up (`Lease.fail`) are kept, 0 or more; the oldest go.
        observer: an `Observer`; told `events_dropped(source="buffer", reason=..., count=...)`.

    When a lease gives events back to a buffer that has filled up meanwhile, "drop_oldest" pushes out the oldest (the
    ones given back, as a rule); the other policies never give up what they accepted, and stay over the bound until it is
    drained.

    Raises:
        ConfigurationError: an option has a value that cannot work, such as a negative `max_size`.
    """

    __slots__ = ()

    def __init__(
        self,
        max_size: int = 1000,
        on_drop: DropHook | None = None,
        *,
        overflow: Overflow = "drop_oldest",
        block_timeout: float | None = None,
        max_bytes: int | None = None,
        max_age: float | None = None,
        max_dead_letters: int = 10_000,
        observer: object | None = None,
        _clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_choice("overflow", overflow, get_args(Overflow))
        if block_timeout is not None:
            if overflow != "block":
                raise ConfigurationError("block_timeout", block_timeout, 'None unless overflow is "block"')
            block_timeout = check_seconds("block_timeout", block_timeout)
        super().__init__(
            max_size=check_integer("max_size", max_size, minimum=0),
            max_bytes=None if max_bytes is None else check_integer("max_bytes", max_bytes, minimum=1),
            max_age=None if max_age is None else check_seconds("max_age", max_age, above=0),
            overflow=overflow,
            block_timeout=block_timeout,
            max_dead_letters=check_integer("max_dead_letters", max_dead_letters, minimum=0),
            on_drop=check_drop_hook(on_drop),
            observer=observer,
            clock=_clock,
        )

    # -- adding

    @property
    def add_waits(self) -> bool:
        """Whether `add` may take its time (it blocks when full, or calls your `on_drop`): see `quick`."""
        return self._overflow == "block" or self._teller.has_hook

    @quick
    def add(self, payload: Payload) -> None:
        """
        Put a payload at the end, or do with it what `overflow` says.

        Blocks only with overflow "block", and then for `block_timeout` seconds at most; async code uses `as_backend()`.

        Raises:
            PayloadError: *payload* is no payload; nothing was added or counted.
            BufferFullError: there was no room, with overflow "raise" or "block". The caller still has the payload; it
                counts as received and as dropped ("rejected"), and `on_drop` is not called.
            BufferClosedError: `close()` was called. The payload is not counted.
        """
        kind = type(payload)
        if kind is not ActionsPayload and kind is not SummaryPayload and kind is not UnknownPayload:
            require_payload(payload)
        teller: DropTeller | None = None
        # `with` would cost a third more (60 ns of 200). What it gives, a lock released wherever a KeyboardInterrupt
        # strikes, `_recover` gives too, for a re-entrant lock refuses a release by a thread that does not hold it.
        try:
            self._acquire()
            received = self._received
            if received < self._plain_until:
                self._received = received + 1
                self._items.append(payload)
                self._release()
                return
            if received < self._evict_until:
                self._received = received + 1
                items = self._items
                items.append(payload)
                oldest = items.popleft()
                ours = self._teller
                if ours.telling:
                    ours.notices.append((DropReason.OVERFLOW, oldest, 1))
                    self._evict_until = 0  # whoever comes next must not overtake this one
                    self._release()
                    return
                ours.telling = True
                teller = ours
                self._release()
                ours.on_overflow(oldest)
                ours.telling = False
                if not ours.notices:
                    return
            else:
                self._release()
        except BaseException as error:
            if teller is not None:
                teller.telling = False
            self._recover()
            if teller is None or not isinstance(error, Exception):
                raise
            teller.hook_failed(error)
        if teller is None:
            self._add_slowly(payload)
        else:
            self._speak([])

    # -- taking

    def drain(self, max_items: int | None = None, *, types: Collection[str] | None = None) -> list[Payload]:
        """
        Take events out, oldest first, and hand them over; they count as delivered.

        If the process dies before it has handled them they are gone: `lease` is for those who must not lose them.

        Args:
            max_items: how many at most, 0 or more; None, the default, takes all.
            types: take only payloads whose `type` is in it, for example `{"actions"}` or a type of your own; the others
                stay, in order. None, the default, takes every type.

        Returns:
            The events; an empty list means that none was waiting.

        Raises:
            ConfigurationError: an argument cannot work.
        """
        return self.take_out(check_limit("max_items", max_items), None if types is None else check_types(types))

    def drain_by_type(self, *, actions: bool = True, summaries: bool = True) -> list[Payload]:
        """
        Take out the events of the chosen types, oldest first; all others stay, in order.

        Types that this version does not know always stay: `drain(types=...)` takes those too.
        """
        return self.take_out(None, names_of(actions=actions, summaries=summaries))

    def clear(self) -> None:
        """Discard every waiting event. They count as dropped ("cleared"); `on_drop` is not called for them."""
        self.discard()

    def lease(
        self,
        max_events: int = 500,
        timeout: float = 60.0,
        *,
        renew: bool = True,
        types: Collection[str] | None = None,
    ) -> Lease:
        """
        Return a lease for up to *max_events* (1 or more) of the oldest events; enter it to take them.

        ::

            with buffer.lease() as lease:
                index(lease.events)  # an error gives them back, in order

        With *renew*, the default, it does not run out while its block runs. Without, it runs out *timeout* seconds (above
        0) after it was entered unless it is extended; then its events go back. That is noticed by the next operation on
        the buffer except an `add` with room, and wakes those who wait. `async with` works too.

        With *types*, one name or more, it takes only payloads whose `type` is in it; the others stay, in order.

        Raises ConfigurationError when an argument cannot work.
        """
        return Lease(
            self,
            check_integer("max_events", max_events, minimum=1),
            check_seconds("timeout", timeout, above=0),
            renew=check_flag("renew", renew),
            types=check_wanted_types(types),
        )

    def pages(self, max_items: int = 500) -> Iterator[list[Payload]]:
        """
        Drain page by page, waiting for more: lists of 1 to *max_items* (1 or more) events, until the buffer is closed.

        Several threads may iterate at once; each event goes to one of them. What was waiting when the buffer was closed
        still comes. (The buffer itself is not iterable: `payload in buffer` would consume it.)
        """
        return self._pages(check_integer("max_items", max_items, minimum=1))

    def events(self) -> Iterator[Payload]:
        """Drain event by event, waiting for more, until the buffer is closed; leaving the loop loses none. See `pages`."""
        return (payload for (payload,) in self._pages(1))

    # -- looking

    def peek(self, n: int | None = None) -> list[Payload]:
        """
        Return the *n* newest events (0 or more; None, the default, for all), oldest first, and leave them where they are.

        The cost grows with *n*, not with the number of events that wait.

        Raises ConfigurationError when *n* is no such number.
        """
        return self.look(check_limit("n", n))

    def wait(self, min_items: int = 1, timeout: float | None = None) -> bool:
        """
        Wait until *min_items* events are there, *timeout* seconds at most (0 only looks; None, the default, for ever).

        Returns True when they are there (another consumer may be faster: `drain` may then give fewer), and also when
        fewer are but no more can come, because callers wait for room in a buffer full by bytes. False when time ran out
        or the buffer was closed with fewer. Wakes without polling, for an event added by any thread or given back by a
        lease that ran out.

        Raises ConfigurationError when *min_items* is not from 1 to `max_size`, or *timeout* is negative.
        """
        sleeper = ThreadSleeper()
        waiter = self.waiter_for_items(sleeper, min_items, timeout)
        return self._sleep_until(sleeper, waiter, lambda: self.look_for_items(waiter))

    @property
    def size(self) -> int:
        """How many events wait."""
        return self.count()

    @property
    def is_empty(self) -> bool:
        """Whether no event waits."""
        return not self.count()

    @property
    def max_size(self) -> int:
        """How many events may wait; 0 for no bound."""
        return self._window.max_size

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self._closed

    def __len__(self) -> int:
        return self.count()

    def __repr__(self) -> str:
        return f"<EventBuffer size={self.count()} max_size={self.max_size}{' closed' if self._closed else ''}>"

    def stats(self) -> BufferStats:
        """
        Return one reading of the account and the state.

        `oldest_age` is exact with `max_age`. Without it, it is never too low, and too high by no more than the time in
        which 1024 events arrived (or the time between two reading operations, when that is more than a second and
        shorter).
        """
        return self.read_stats()

    # -- the rest

    @property
    def dead_letters(self) -> BlockingDeadLetters:
        """
        The events that were given up, with the evidence: see `Lease.fail`. Any thread may use them.

        A replay takes the room there is and gives nothing up for more: what has none stays a dead letter, whatever
        `overflow` is, and `replayed` tells. It raises BufferClosedError when the buffer is closed.
        """
        return MemoryDeadLetters(self)

    def close(self) -> None:
        """
        Take no more events. May be called twice.

        Callers that wait in `add` get BufferClosedError, those in `wait` an answer, and iteration ends after the events
        that still wait; they can also be drained, and leases settled, as before.
        """
        self.shut()

    def as_backend(self) -> EventBufferView:
        """Return the async face of this buffer, a `BufferBackend` with every ability; it holds nothing of its own."""
        return EventBufferView(self, self.add)

    # -- inner

    def _add_slowly(self, payload: Payload) -> None:
        size = self.size_of(payload)
        if self.take_in(payload, size):
            return
        sleeper = ThreadSleeper()
        waiter = self.waiter_for_room(sleeper, size)
        self._sleep_until(sleeper, waiter, lambda: self.look_for_room(payload, waiter))

    def _sleep_until(self, sleeper: ThreadSleeper, waiter: Waiter, look: Callable[[], Turn]) -> bool:
        try:
            while True:
                answer, pause = look()
                if answer is not None:
                    return answer
                sleeper.sleep(pause)
        except BaseException:  # KeyboardInterrupt, say: nobody may wake or let in a caller who has gone
            self.leave(waiter)
            raise

    def _pages(self, max_items: int) -> Iterator[list[Payload]]:
        while self.wait():
            if page := self.take_out(max_items, None):
                yield page

    def _recover(self) -> None:
        """Put right what an interrupt in the middle of `add` left: it may strike after any call there."""
        if not self._lock.acquire(blocking=False):
            return  # another thread holds the lock, so `add` had not taken it or had released it
        if self._evict_until and len(self._items) > self.max_size:
            self._teller.notices.append((DropReason.OVERFLOW, self._items.popleft(), 1))
            self._evict_until = 0
        self._release()
        with contextlib.suppress(RuntimeError):  # not held
            self._release()
