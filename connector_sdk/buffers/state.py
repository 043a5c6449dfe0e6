"""
The state of the in-memory buffer: one lock, one account, and the shape of every critical section.

A section begins with `_begin` (leases that ran out and events that are too old are dealt with first) and ends with
`_settle` (who must be woken, how far the fast path of `add` may go). After the lock is released `_speak` wakes callers
and tells about drops: no code of the user ever runs under the lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias, TypeVar

from connector_sdk.buffers.drops import DropHook, DropTeller
from connector_sdk.buffers.forks import start_empty_after_fork
from connector_sdk.buffers.leases import LeaseState, Loan
from connector_sdk.buffers.memory_dead_letters import Shelf
from connector_sdk.buffers.waiting import WaitingRoom
from connector_sdk.buffers.window import MARK_EVERY, Window
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import Payload

__all__ = ["BufferState", "Overflow"]

ResultT = TypeVar("ResultT")

#: What a full buffer does with one more event.
Overflow: TypeAlias = Literal["drop_oldest", "drop_newest", "block", "raise"]


class BufferState:
    """What an `EventBuffer` knows, and how it is changed safely."""

    __slots__ = (
        "__weakref__",
        "_acquire",
        "_block_timeout",
        "_clock",
        "_closed",
        "_delivered",
        "_evict_until",
        "_evicting_since",
        "_hook",
        "_in_flight",
        "_items",
        "_loans",
        "_lock",
        "_max_age",
        "_max_dead_letters",
        "_measured",
        "_observer",
        "_overflow",
        "_overflowed",
        "_plain_until",
        "_received",
        "_refused",
        "_release",
        "_shelf",
        "_teller",
        "_waiting",
        "_window",
    )

    def __init__(
        self,
        *,
        max_size: int,
        max_bytes: int | None,
        max_age: float | None,
        overflow: Overflow,
        block_timeout: float | None,
        max_dead_letters: int,
        on_drop: DropHook | None,
        observer: object | None,
        clock: Callable[[], float],
    ) -> None:
        self._max_age = max_age
        self._overflow = overflow
        self._block_timeout = block_timeout
        self._max_dead_letters = max_dead_letters
        self._hook = on_drop
        self._observer = observer
        self._clock = clock
        self._measured = max_bytes is not None or max_age is not None
        self._window = Window(max_size, max_bytes, keep_times=max_age is not None)
        self._start_empty()
        start_empty_after_fork(self)

    def _start_empty(self) -> None:
        """Begin an account and a lock: when made, and again in the child of a fork."""
        # Re-entrant only so that its release() tells whether this thread holds it: see `EventBuffer.add`.
        self._lock = threading.RLock()
        self._acquire = self._lock.acquire
        self._release = self._lock.release
        self._teller = DropTeller(self._hook, self._observer, self._lock)
        self._window.take_all()
        self._items = self._window.items
        self._waiting = WaitingRoom()
        self._loans: set[Loan] = set()
        self._shelf = Shelf(self._max_dead_letters)
        self._closed = False
        self._received = 0  # everything that was added, refused included
        self._refused = 0  # what never entered the window
        self._delivered = 0
        self._in_flight = 0
        # The fast path of `add`: it may append without a further look while `_received` is below the first, and push
        # out the oldest for each event while it is below the second. 0 sends every add through `take_in`.
        self._plain_until = 0
        self._evict_until = 0
        # It counts the events received; those it pushed out are as many as came in since `_evicting_since`, and are
        # added to `_overflowed` when the path is closed. The teller counts all other drops.
        self._evicting_since: int | None = None
        self._overflowed = 0

    # -- sections

    @property
    def _entered(self) -> int:
        return self._received - self._refused

    @contextmanager
    def _section(self, *, recheck: bool = False) -> Iterator[float]:
        """Enter a critical section; *recheck* when the end of a lease, which sleepers go by, may change in it."""
        wakes: list[Callable[[], None]] = []
        try:
            with self._lock:
                now = self._begin()
                try:
                    yield now
                finally:
                    if recheck and self._waiting.for_items:
                        wakes = self._waiting.recheck()
                    wakes += self._settle(now)
        except Exception:
            raise
        except BaseException:
            self._book_interrupted()
            raise
        finally:
            self._speak(wakes)

    def _in_section(self, step: Callable[[float], ResultT], *, recheck: bool = False) -> ResultT:
        """Take a step in a critical section: what `_section` does, without its generator, which costs more than most steps."""
        wakes: list[Callable[[], None]] = []
        try:
            with self._lock:
                now = self._begin()
                try:
                    return step(now)
                finally:
                    if recheck and self._waiting.for_items:
                        wakes = self._waiting.recheck()
                    wakes += self._settle(now)
        except Exception:
            raise
        except BaseException:
            self._book_interrupted()
            raise
        finally:
            if wakes or self._teller.notices:
                self._speak(wakes)

    def _tidy(self) -> None:
        if self._loans or self._max_age is not None:
            with self._section():
                pass

    def _begin(self) -> float:
        self._close_fast_path()
        now = self._clock()
        if self._loans and (expired := [loan for loan in self._loans if loan.runs_out(now)]):
            self._put_back(expired, LeaseState.EXPIRED)
        if self._max_age is not None:
            self._give_up(DropReason.EXPIRED, self._window.evict_older(now - self._max_age))
        return now

    def _settle(self, now: float) -> list[Callable[[], None]]:
        wakes: list[Callable[[], None]] = []
        if self._shelf.remembers and not self._items and not self._in_flight:
            self._shelf.forget_replayed()  # none of those is here that could die again
        if self._waiting.for_items or self._waiting.for_room:
            wakes = self._waiting.due(len(self._items), self._window.has_room, closed=self._closed)
        if not self._measured:
            self._window.mark_on_read(self._entered, now)
            self._open_fast_path()
        return wakes

    def _speak(self, wakes: list[Callable[[], None]]) -> None:
        for wake in wakes:
            wake()
        if self._teller.notices and self._teller.tell() and not self._measured:
            with self._lock:  # what was left to tell kept the fast path shut
                self._open_fast_path()

    def _open_fast_path(self) -> None:
        """Say for how many adds nothing has to be looked at: no bound reached, nobody to wake, no mark to leave."""
        self._close_fast_path()
        window = self._window
        size = len(self._items)
        if self._closed or self._waiting.for_room or size == len(window.keys):
            return
        adds = MARK_EVERY - (self._entered - window.marks[-1][0])
        if not window.max_size or size < window.max_size:
            if window.max_size:
                adds = min(adds, window.max_size - size)
            wanted = self._waiting.fewest_wanted()
            if wanted is not None:
                adds = min(adds, wanted - size - 1)
            self._plain_until = self._received + adds
        elif self._overflow == "drop_oldest" and not window.keys and not self._teller.notices:
            self._evicting_since = self._received
            self._evict_until = self._received + adds

    def _close_fast_path(self) -> None:
        self._plain_until = self._evict_until = 0
        if self._evicting_since is not None:
            self._overflowed += self._received - self._evicting_since
            self._evicting_since = None

    def _pause(self, now: float, *deadlines: float | None) -> float | None:
        return min((max(0.0, deadline - now) for deadline in deadlines if deadline is not None), default=None)

    def _next_expiry(self) -> float | None:
        times = self._window.times
        return times[0] + self._max_age if self._max_age is not None and times else None

    def _book_interrupted(self) -> None:
        """Make the account balance after a KeyboardInterrupt inside a section: what it made vanish was dropped."""
        with self._lock:
            self._close_fast_path()
            dropped = self._overflowed + sum(self._teller.dropped.values())
            missing = self._received - (self._delivered + len(self._items) + self._in_flight + dropped)
            if missing > 0:
                self._teller.count(DropReason.ABANDONED, None, missing)
            else:
                self._received -= missing  # one was let in and not counted yet

    def _give_up(self, reason: DropReason, payloads: list[Payload]) -> None:
        for payload in payloads:
            self._teller.count(reason, payload)

    def after_fork_in_child(self) -> None:
        """Start empty and unlocked, with a new account."""
        for loan in self._loans:
            loan.state = LeaseState.RETURNED  # it is the parent's; leaving its block here does nothing
        self._start_empty()

    def _put_back(self, loans: list[Loan], state: LeaseState) -> None:
        for loan in loans:
            rest = loan.rest()
            loan.state = state
            self._loans.discard(loan)
            self._in_flight -= len(rest.items)
            self._window.put_back(rest)
        if self._overflow == "drop_oldest":  # only now, so that the oldest of all of them goes first
            self._give_up(DropReason.OVERFLOW, self._window.evict_excess())
