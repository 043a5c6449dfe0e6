"""
The decisions of the in-memory buffer, each once, for the sync and the async face.

Nothing here waits. Whatever may have to is split into a look under the lock (`look_for_items`, `look_for_room`) that
answers or says how long to sleep, and a sleep that the faces supply.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from connector_sdk.buffers.arguments import check_evidence
from connector_sdk.buffers.dead_letters import DeadLetter, Evidence, evidence_of
from connector_sdk.buffers.leases import LeaseState, Loan
from connector_sdk.buffers.state import BufferState, Overflow
from connector_sdk.buffers.stats import BufferStats
from connector_sdk.buffers.waiting import Sleeper, Turn, Waiter
from connector_sdk.errors import BufferClosedError, BufferFullError
from connector_sdk.ledger import DropReason, Ledger
from connector_sdk.options import check_integer, check_seconds
from connector_sdk.payloads import Payload, encode_payload

__all__ = ["BufferCore"]


class BufferCore(BufferState):
    """What an `EventBuffer` does; see there for what each promises."""

    __slots__ = ()

    # -- adding

    def take_in(self, payload: Payload, size: int) -> bool:
        """Take or refuse a payload by the overflow policy; False means: no room, and the policy is to wait."""
        return self._in_section(lambda now: self._admit(payload, size, None, now))

    @property
    def blocks(self) -> bool:
        """Whether an add may have to wait."""
        return self._overflow == "block"

    def waiter_for_room(self, sleeper: Sleeper, size: int) -> Waiter:
        """Return a caller that will wait for room for *size* bytes."""
        deadline = None if self._block_timeout is None else self._clock() + self._block_timeout
        return Waiter(sleeper, deadline, size=size)

    def look_for_room(self, payload: Payload, waiter: Waiter) -> Turn:
        """Take a payload in when it is its turn; else stand in line. Past the deadline raise BufferFullError."""
        waiter.sleeper.rearm()
        with self._section() as now:
            waiter.woken = False
            if self._admit(payload, waiter.size, waiter, now):
                return Turn(True)
            if waiter.deadline is not None and now >= waiter.deadline:
                self._waiting.leave(waiter)
                self._reject("no room came free within block_timeout")
            if waiter not in self._waiting.for_room:
                self._waiting.for_room.append(waiter)
            # Room also comes when the oldest event is too old.
            return Turn(None, self._pause(now, waiter.deadline, self._next_expiry()))

    def leave(self, waiter: Waiter) -> None:
        """Take a caller out who waits no more, for whatever reason."""
        with self._section():
            self._waiting.leave(waiter)

    def size_of(self, payload: Payload) -> int:
        """Return the bytes that count against `max_bytes`; 0 when there is no such bound."""
        return len(encode_payload(payload)) if self._window.max_bytes is not None else 0

    def _admit(self, payload: Payload, size: int, waiter: Waiter | None, now: float) -> bool:
        if self._closed:
            raise BufferClosedError("the buffer is closed: it takes no more events")
        line = self._waiting.for_room
        if (line and line[0] is not waiter) or not self._window.has_room(size):
            if self._overflow == "block":
                return False
            if self._overflow == "raise":
                self._reject("the buffer is full")
            if self._overflow == "drop_newest":
                self._received += 1
                self._refused += 1
                self._give_up(DropReason.OVERFLOW, [payload])
                return True
            self._give_up(DropReason.OVERFLOW, self._window.evict_for(size))
        if waiter is not None:
            self._waiting.leave(waiter)
        if self._window.mark_due(self._entered):
            self._window.mark(self._entered, now)
        self._received += 1
        self._window.push(payload, size, now)
        return True

    def _reject(self, why: str) -> None:
        self._received += 1
        self._refused += 1
        self._teller.count(DropReason.REJECTED, None)
        raise BufferFullError(f"{why}: {len(self._items)} events wait, max_size={self._window.max_size}")

    # -- taking

    def take_out(self, limit: int | None, types: AbstractSet[str] | None) -> list[Payload]:
        """Take out the oldest events, all or of some types, and count them as delivered."""

        def take(_now: float) -> list[Payload]:
            if types is not None:
                taken = self._window.take_types(types, limit, self._entered)
            else:
                taken = self._window.take_all() if limit is None else self._window.take(limit)
            self._delivered += len(taken)
            return taken

        return self._in_section(take)

    def discard(self) -> None:
        """Drop everything that waits, as cleared."""
        with self._section():
            if discarded := len(self._window.take_all()):
                self._teller.count(DropReason.CLEARED, None, discarded)

    def waiter_for_items(self, sleeper: Sleeper, min_items: int, timeout: float | None) -> Waiter:
        """Return a caller that will wait for *min_items* events."""
        check_integer("min_items", min_items, minimum=1, maximum=self._window.max_size or None)
        deadline = None if timeout is None else self._clock() + check_seconds("timeout", timeout)
        return Waiter(sleeper, deadline, min_items=min_items)

    def look_for_items(self, waiter: Waiter) -> Turn:
        """Say whether enough events wait; else put the caller on the list of those to wake."""
        waiter.sleeper.rearm()
        with self._section() as now:
            size = len(self._items)
            self._waiting.for_items.pop(waiter, None)
            if size >= waiter.min_items or self._waiting.is_stuck(size, self._window.has_room):
                return Turn(True)
            if self._closed or (waiter.deadline is not None and now >= waiter.deadline):
                return Turn(False)
            self._waiting.for_items[waiter] = None
            # A lease that runs out brings events.
            lease_end = min((loan.deadline for loan in self._loans), default=None)
            return Turn(None, self._pause(now, waiter.deadline, lease_end))

    def look(self, limit: int | None) -> list[Payload]:
        """Return the newest events, oldest first."""
        self._tidy()
        with self._lock:
            return self._window.last(limit)

    def count(self) -> int:
        """Return how many events wait."""
        self._tidy()
        with self._lock:
            return len(self._items)

    def shut(self) -> None:
        """Take nothing more in, and wake everybody."""
        with self._section():
            self._closed = True

    def read_stats(self) -> BufferStats:
        """Take one reading."""
        with self._section() as now:
            dropped = self._teller.dropped.copy()
            if self._overflowed:
                dropped[DropReason.OVERFLOW] = dropped.get(DropReason.OVERFLOW, 0) + self._overflowed
            oldest = self._window.oldest_time(self._entered)
            return BufferStats(
                ledger=Ledger(
                    received=self._received,
                    delivered=self._delivered,
                    buffered=len(self._items),
                    in_flight=self._in_flight,
                    dropped=dropped,
                ),
                size=len(self._items),
                bytes=self._window.bytes if self._window.max_bytes is not None else None,
                max_size=self._window.max_size,
                oldest_age=None if oldest is None else max(0.0, now - oldest),
                leases=len(self._loans),
                dead_letters=len(self._shelf),
                waiting_adds=len(self._waiting.for_room),
                untold_drops=self._teller.untold,
                hook_errors=self._teller.hook_errors,
                observer_errors=self._teller.observer_errors,
                closed=self._closed,
            )

    # -- leases; called by `Lease`

    @property
    def overflow(self) -> Overflow:
        """What a full buffer does with one more event."""
        return self._overflow

    def open_lease(self, loan: Loan) -> None:
        """Take events out for a lease and start it."""

        def open_it(now: float) -> None:
            loan.require_new()
            if loan.types is None:
                batch = self._window.take_batch(loan.max_events, self._entered)
            else:
                batch = self._window.take_batch_of(loan.types, loan.max_events, self._entered)
            loan.start(batch, now)
            self._in_flight += len(batch.items)
            if batch.items:
                self._loans.add(loan)

        self._in_section(open_it, recheck=True)

    def acknowledge(self, loan: Loan, events: Iterable[Payload] | None) -> None:
        """Count events of a lease as delivered."""
        if events is None and self._acknowledge_all(loan):
            return
        named = None if events is None else list(events)

        def settle(_now: float) -> None:
            loan.require_open()
            done = loan.pending() if named is None else loan.settle(named)
            self._in_flight -= done
            self._delivered += done
            if named is None:
                loan.state = LeaseState.ACKNOWLEDGED
            if named is None or not loan.pending():
                self._loans.discard(loan)

        self._in_section(settle)

    def _acknowledge_all(self, loan: Loan) -> bool:
        """End a lease that has not run out, in half the time; False when more is to be looked at, for others."""
        with self._lock:
            if loan.state is not LeaseState.OPEN or loan.deadline <= self._clock():
                return False
            if self._loans != {loan} or self._measured or self._shelf.remembers:
                return False
            try:
                done = loan.pending()
                loan.state = LeaseState.ACKNOWLEDGED
                self._loans.discard(loan)
                self._in_flight -= done
                self._delivered += done
            except BaseException:
                self._book_interrupted()
                raise
        return True

    def bury(self, loan: Loan, event: Payload, error: BaseException | Evidence) -> None:
        """Move one event of a lease to the dead letters, and count it as dropped."""
        died_at = time.time()
        evidence = evidence_of(check_evidence(error), at=died_at)
        with self._section():
            loan.require_open()
            if not loan.settle([event]):
                return
            self._in_flight -= 1
            self._teller.count(DropReason.DEAD_LETTER, None)
            self._shelf.put(event, evidence, died_at)
            if not loan.pending():
                self._loans.discard(loan)

    def extend_lease(self, loan: Loan, timeout: float) -> None:
        """Move the end of a lease."""
        with self._section(recheck=True) as now:
            loan.require_open()
            loan.extend(timeout, now)

    def return_lease(self, loan: Loan) -> None:
        """Put the rest of a lease back."""
        with self._section(recheck=True):
            if loan.state is LeaseState.EXPIRED:
                return
            loan.require_open()
            self._put_back([loan], LeaseState.RETURNED)

    # -- dead letters; called by `MemoryDeadLetters`

    def letters(self, limit: int | None = None) -> list[DeadLetter]:
        """Return the dead letters, those that died first, all or *limit*."""
        with self._lock:
            return self._shelf.first(limit)

    def letter(self, name: str) -> DeadLetter | None:
        """Return one dead letter."""
        with self._lock:
            return self._shelf.get(name)

    def letter_count(self) -> int:
        """Return how many dead letters there are."""
        with self._lock:
            return len(self._shelf)

    def redrive(self, name: str) -> bool | None:
        """
        Let a dead letter wait again as an event that has just come. None when there is none of that name (any more).

        False when there is no room: no overflow policy gives anything up for it, for what dies twice is not lost for that.
        """
        letter = self.letter(name)
        if letter is None:
            return None
        payload = copy.copy(letter.payload)  # an object of its own, for identity tells events apart
        size = self.size_of(payload)
        with self._section() as now:
            if self._shelf.get(name) is not letter:
                return None
            if not self._closed and (self._waiting.for_room or not self._window.has_room(size)):
                return False
            if not self._admit(payload, size, None, now):
                return False
            self._shelf.remove_replayed(letter, payload)
            return True

    def discard_letters(self, names: Iterable[str]) -> int:
        """Discard dead letters for good."""
        with self._lock:
            return sum(self._shelf.discard(name) for name in names)
