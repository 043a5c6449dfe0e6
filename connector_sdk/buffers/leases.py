"""Leases of the in-memory buffer: events handed out that nobody else gets until they are acknowledged or come back."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Protocol, Self

from connector_sdk.buffers.window import Batch
from connector_sdk.errors import LeaseError, LeaseExpiredError
from connector_sdk.payloads import Payload

__all__ = ["AsyncLease", "Lease", "LeaseState", "Lessor", "expired_error"]


class Lessor(Protocol):
    """What a lease asks of its buffer; each call is one critical section."""

    def open_lease(self, lease: Lease) -> None:
        """Take events out for *lease*, and start it."""

    def acknowledge(self, lease: Lease, events: Iterable[Payload] | None) -> None:
        """Count *events* of *lease* (None: all that remain) as delivered."""

    def extend_lease(self, lease: Lease, timeout: float) -> None:
        """Move the end of *lease*."""

    def return_lease(self, lease: Lease) -> None:
        """Put back what was not acknowledged."""


class LeaseState(enum.Enum):
    """Where a lease is: NEW -> OPEN -> one of the others, which are final."""

    NEW = "not entered yet"
    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    RETURNED = "given back"
    EXPIRED = "expired"


class Lease:
    """
    Events on loan from an `EventBuffer`: a context manager, with `with` as well as `async with`.

    Entering takes up to *max_events* out of the buffer, oldest first; an empty buffer gives an empty lease. Leaving the
    block acknowledges them; an exception or a cancellation gives them back to the front, in order. They count as
    `in_flight` meanwhile. After *timeout* seconds the lease runs out: its events go back, and acknowledging (leaving the
    block included) raises LeaseExpiredError, for somebody else may have them by then.

    Methods may be called from any thread. None of them blocks.
    """

    __slots__ = ("_acked", "_batch", "_buffer", "_places", "deadline", "max_events", "state", "timeout")

    def __init__(self, buffer: Lessor, max_events: int, timeout: float) -> None:
        self._buffer = buffer
        self._batch = Batch()
        self._places: dict[int, list[int]] | None = None
        self._acked: set[int] = set()
        # What follows belongs to the buffer and is changed under its lock only.
        self.max_events = max_events
        self.timeout = timeout
        self.state = LeaseState.NEW
        self.deadline = 0.0

    @property
    def events(self) -> list[Payload]:
        """All events of this lease, oldest first, acknowledged or not."""
        return list(self._batch.items)

    def __iter__(self) -> Iterator[Payload]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self._batch.items)

    def __repr__(self) -> str:
        return f"<Lease of {len(self)} events, {self.state.value}>"

    def ack(self, events: Iterable[Payload] | None = None) -> None:
        """
        Acknowledge *events* of this lease, or (None) all that remain, which ends it.

        Events are told apart by identity; the very objects that the lease handed out are meant. One that was
        acknowledged before is passed over. Those acknowledged count as delivered and do not come back.

        Raises:
            LeaseExpiredError: the lease ran out; nothing more was acknowledged.
            LeaseError: it ended before, was not entered, or one of *events* is not of it (none was acknowledged).
        """
        self._buffer.acknowledge(self, events)

    def extend(self, timeout: float) -> None:
        """
        Let the lease run out *timeout* seconds (above 0) from now, instead of when it would.

        Raises LeaseExpiredError when it ran out already, LeaseError when it ended or was not entered.
        """
        self._buffer.extend_lease(self, timeout)

    def give_back(self) -> None:
        """
        End the lease and put the events that were not acknowledged back at their place in the order of arrival.

        A lease that ran out has given them back already. Raises LeaseError when it ended otherwise or was not entered.
        """
        self._buffer.return_lease(self)

    def __enter__(self) -> Self:
        self._buffer.open_lease(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.state is LeaseState.EXPIRED and error is None:
            raise expired_error()
        if self.state is not LeaseState.OPEN:
            return
        if error is None:
            self.ack()
        else:
            self.give_back()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    # -- for the buffer, under its lock

    def require_new(self) -> None:
        """Raise if the lease was entered before."""
        if self.state is not LeaseState.NEW:
            raise LeaseError(f"a lease can be entered once, and this one is {self.state.value}")

    def start(self, batch: Batch, deadline: float) -> None:
        """Begin, with what was taken out."""
        self._batch, self.deadline, self.state = batch, deadline, LeaseState.OPEN

    def require_open(self) -> None:
        """Raise unless the lease is open."""
        if self.state is LeaseState.EXPIRED:
            raise expired_error()
        if self.state is not LeaseState.OPEN:
            raise LeaseError(f"the lease is {self.state.value}")

    def pending(self) -> int:
        """Return how many events are not acknowledged."""
        return len(self._batch.items) - len(self._acked)

    def rest(self) -> Batch:
        """Return what was not acknowledged."""
        return self._batch.without(self._acked) if self._acked else self._batch

    def settle(self, events: list[Payload]) -> int:
        """Note *events* as acknowledged; return how many were not before. The same object twice is two events."""
        if self._places is None:
            self._places = {}
            for position, payload in enumerate(self._batch.items):
                self._places.setdefault(id(payload), []).append(position)
        found: set[int] = set()
        for payload in events:
            places = self._places.get(id(payload))
            if places is None:
                raise LeaseError("only events that this lease handed out can be acknowledged")
            found.update([place for place in places if place not in found and place not in self._acked][:1])
        self._acked |= found
        return len(found)


class AsyncLease:
    """
    The same lease with coroutine methods, as `Leasing` backends hand out; see `Lease` for what each does.

    None of the coroutines waits.
    """

    __slots__ = ("_lease",)

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    @property
    def events(self) -> list[Payload]:
        """All events of this lease, oldest first, acknowledged or not."""
        return self._lease.events

    def __iter__(self) -> Iterator[Payload]:
        return iter(self._lease)

    def __len__(self) -> int:
        return len(self._lease)

    def __repr__(self) -> str:
        return f"<Async{repr(self._lease)[1:]}"

    async def ack(self, events: Iterable[Payload] | None = None) -> None:
        """Acknowledge *events*, or (None) all that remain: see `Lease.ack`."""
        self._lease.ack(events)

    async def extend(self, timeout: float) -> None:
        """Let the lease run out *timeout* seconds from now: see `Lease.extend`."""
        self._lease.extend(timeout)

    async def give_back(self) -> None:
        """Put back what was not acknowledged: see `Lease.give_back`."""
        self._lease.give_back()

    async def __aenter__(self) -> Self:
        self._lease.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lease.__exit__(kind, error, traceback)


def expired_error() -> LeaseExpiredError:
    """Return the error of a lease that ran out."""
    return LeaseExpiredError("the lease ran out before it was acknowledged; its events were given back and come again")
