"""Leases of the in-memory buffer: events handed out that nobody else gets until they are acknowledged or come back."""

from __future__ import annotations

import enum
import weakref
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from types import TracebackType
from typing import Final, Protocol, Self

from connector_sdk.buffers.dead_letters import Evidence
from connector_sdk.buffers.window import Batch
from connector_sdk.errors import LeaseError, LeaseExpiredError
from connector_sdk.options import check_seconds
from connector_sdk.payloads import Payload

__all__ = ["AsyncLease", "Lease", "LeaseState", "Lessor", "Loan", "expired_error"]


class Lessor(Protocol):
    """What a lease asks of its buffer; each call is one critical section."""

    def open_lease(self, loan: Loan) -> None:
        """Take events out for *loan*, and start it."""

    def acknowledge(self, loan: Loan, events: Iterable[Payload] | None) -> None:
        """Count *events* of *loan* (None: all that remain) as delivered."""

    def bury(self, loan: Loan, event: Payload, error: BaseException | Evidence) -> None:
        """Move *event* of *loan* to the dead letters."""

    def extend_lease(self, loan: Loan, timeout: float) -> None:
        """Move the end of *loan*."""

    def return_lease(self, loan: Loan) -> None:
        """Put back what was not acknowledged."""


class LeaseState(enum.Enum):
    """Where a lease is: NEW -> OPEN -> one of the others, which are final."""

    NEW = "not entered yet"
    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    RETURNED = "given back"
    EXPIRED = "expired"


_NOTHING: Final = Batch()
_NONE: Final[AbstractSet[int]] = frozenset()


class Loan:
    """
    The buffer's side of a lease; all of it is read and changed under the buffer's lock only.

    It does not keep its `Lease` alive: one that nobody has any more (a generator that was dropped in the middle of its
    block after its event loop had gone, say) is never left, and so is not renewed.
    """

    __slots__ = (
        "_acked",
        "_holder",
        "_places",
        "batch",
        "deadline",
        "max_events",
        "renew",
        "state",
        "timeout",
        "types",
    )

    def __init__(
        self, holder: Lease, max_events: int, timeout: float, *, renew: bool, types: AbstractSet[str] | None
    ) -> None:
        self._holder = weakref.ref(holder)
        self._places: dict[int, list[int]] | None = None
        self._acked: AbstractSet[int] = _NONE
        self.batch = _NOTHING
        self.max_events = max_events
        self.types = types
        self.timeout = timeout
        self.renew = renew
        self.state = LeaseState.NEW
        self.deadline = 0.0

    def require_new(self) -> None:
        """Raise if the lease was entered before."""
        if self.state is not LeaseState.NEW:
            raise LeaseError(f"a lease can be entered once, and this one is {self.state.value}")

    def start(self, batch: Batch, now: float) -> None:
        """Begin, with what was taken out."""
        self.batch, self.deadline, self.state = batch, now + self.timeout, LeaseState.OPEN

    def require_open(self) -> None:
        """Raise unless the lease is open."""
        if self.state is LeaseState.EXPIRED:
            raise expired_error()
        if self.state is not LeaseState.OPEN:
            raise LeaseError(f"the lease is {self.state.value}")

    def extend(self, timeout: float, now: float) -> None:
        """Move the end, and the pace of renewal."""
        self.timeout, self.deadline = timeout, now + timeout

    def runs_out(self, now: float) -> bool:
        """Whether it is over by *now*; if not then it is renewed when it was due."""
        if self.deadline > now:
            return False
        if not self.renew or self._holder() is None:
            return True
        self.deadline = now + self.timeout
        return False

    def pending(self) -> int:
        """Return how many events are not acknowledged."""
        return len(self.batch.items) - len(self._acked)

    def rest(self) -> Batch:
        """Return what was not acknowledged."""
        return self.batch.without(self._acked) if self._acked else self.batch

    def settle(self, events: list[Payload]) -> int:
        """Note *events* as done with; return how many were not before. The same object twice is two events."""
        if self._places is None:
            self._places, self._acked = {}, set()
            for position, payload in enumerate(self.batch.items):
                self._places.setdefault(id(payload), []).append(position)
        found: set[int] = set()
        for payload in events:
            places = self._places.get(id(payload))
            if places is None:
                raise LeaseError("only events that this lease handed out can be acknowledged or given up")
            found.update([place for place in places if place not in found and place not in self._acked][:1])
        self._acked |= found
        return len(found)


class Lease:
    """
    Events on loan from an `EventBuffer`: a context manager, with `with` as well as `async with`.

    Entering takes up to *max_events* out of the buffer, oldest first; an empty buffer gives an empty lease. Leaving the
    block acknowledges them; an exception or a cancellation gives them back to the front, in order. They count as
    `in_flight` meanwhile, and nobody else gets them, however long the block runs.

    A lease with `renew=False` runs out after *timeout* seconds, in the middle of its block too: its events go back, and
    acknowledging (leaving the block included) raises LeaseExpiredError, for somebody else may have them by then. One that
    is renewed runs out so only when its block can never end, because no object of the program holds the lease any more.

    Methods may be called from any thread. None of them blocks.
    """

    __slots__ = ("__weakref__", "_buffer", "_loan")

    def __init__(
        self,
        buffer: Lessor,
        max_events: int,
        timeout: float,
        *,
        renew: bool = True,
        types: AbstractSet[str] | None = None,
    ) -> None:
        self._buffer = buffer
        self._loan = Loan(self, max_events, timeout, renew=renew, types=types)

    @property
    def state(self) -> LeaseState:
        """Where it is."""
        return self._loan.state

    @property
    def events(self) -> list[Payload]:
        """All events of this lease, oldest first, acknowledged or not."""
        return list(self._loan.batch.items)

    def __iter__(self) -> Iterator[Payload]:
        return iter(self._loan.batch.items)

    def __len__(self) -> int:
        return len(self._loan.batch.items)

    def __repr__(self) -> str:
        return f"<Lease of {len(self)} events, {self.state.value}>"

    def ack(self, events: Iterable[Payload] | None = None) -> None:
        """
        Acknowledge *events* of this lease, or (None) all that remain, which ends it.

        Events are told apart by identity; the very objects that the lease handed out are meant. One that was
        acknowledged or given up before is passed over. Those acknowledged count as delivered and do not come back.

        Raises:
            LeaseExpiredError: the lease ran out; nothing more was acknowledged.
            LeaseError: it ended before, was not entered, or one of *events* is not of it (none was acknowledged).
        """
        self._buffer.acknowledge(self._loan, events)

    def fail(self, event: Payload, error: BaseException | Evidence) -> None:
        """
        Give one event of this lease up: in one atomic step it leaves the lease and is among `EventBuffer.dead_letters`.

        *error* is what it failed with, or the evidence of all its attempts. The event counts as dropped ("dead_letter";
        `on_drop` is not called) and does not come back unless it is replayed. One that was acknowledged or given up
        before is passed over.

        Raises what `ack` raises; then nothing was done. ConfigurationError when *error* is neither.
        """
        self._buffer.bury(self._loan, event, error)

    def extend(self, timeout: float) -> None:
        """
        Let the lease run out *timeout* seconds (above 0) from now, instead of when it would.

        One that is renewed does not run out while its block runs, extended or not.

        Raises LeaseExpiredError when it ran out already, LeaseError when it ended or was not entered.
        """
        self._buffer.extend_lease(self._loan, check_seconds("timeout", timeout, above=0))

    def give_back(self) -> None:
        """
        End the lease and put the events that were not acknowledged back at their place in the order of arrival.

        A lease that ran out has given them back already. Raises LeaseError when it ended otherwise or was not entered.
        """
        self._buffer.return_lease(self._loan)

    def __enter__(self) -> Self:
        self._buffer.open_lease(self._loan)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        state = self._loan.state
        if state is LeaseState.EXPIRED and error is None:
            raise expired_error()
        if state is not LeaseState.OPEN:
            return
        if error is None:
            self._buffer.acknowledge(self._loan, None)
        else:
            self.give_back()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)


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

    async def fail(self, event: Payload, error: BaseException | Evidence) -> None:
        """Give one event up, to the dead letters: see `Lease.fail`."""
        self._lease.fail(event, error)

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
