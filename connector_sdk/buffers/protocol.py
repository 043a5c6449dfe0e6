"""
What a buffer backend is: three coroutines, and abilities it may have besides, each its own small protocol.

A backend for Kafka, a database or a test double implements `BufferBackend` and whichever of `Leasing`, `Peeking`,
`Typed` and `Paged` it can do well. Callers do not ask which; they call the functions of this module, which use the
ability or do the same with `add` and `drain`. Those fallbacks work on every backend and promise less; each docstring
says what.

`connector_sdk.testing.contracts.BufferBackendContract` is the test suite that a backend must pass.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol, Self, runtime_checkable

import anyio

from connector_sdk.buffers.arguments import check_limit, check_types, names_of
from connector_sdk.errors import EventBufferError, LeaseError
from connector_sdk.options import check_integer, check_seconds
from connector_sdk.payloads import Payload

__all__ = [
    "BackendLease",
    "BufferBackend",
    "Leasing",
    "Paged",
    "Peeking",
    "PutBackError",
    "Typed",
    "drain_by_type",
    "drain_page",
    "drain_types",
    "lease",
    "peek",
]


@runtime_checkable
class BufferBackend(Protocol):
    """
    Holds payloads until they are drained. `isinstance` looks at the names of the methods only.

    Any number of tasks call these at once; no event may be handed out twice, none may vanish. What comes out equals what
    went in, `event_id` and fields unknown to this version included.
    """

    async def add(self, payload: Payload) -> None:
        """Store *payload*. A backend that cannot tells its drop hook, or raises; it does not forget silently."""

    async def drain(self) -> list[Payload]:
        """Take out everything, oldest first, and return it; an empty list means that nothing was waiting."""

    async def size(self) -> int:
        """Return how many payloads wait; those on lease do not."""


class BackendLease(Protocol):
    """
    Events on loan: nobody else gets them until the lease ends.

    Acknowledged events are gone for good; all others come back in order when the lease is given back or runs out.
    """

    @property
    def events(self) -> Sequence[Payload]:
        """All events of this lease, oldest first, acknowledged or not."""

    def __iter__(self) -> Iterator[Payload]:
        """Iterate over `events`."""

    def __len__(self) -> int:
        """Return the number of `events`."""

    async def ack(self, events: Iterable[Payload] | None = None) -> None:
        """
        Acknowledge *events*, the very objects handed out, or (None) all that remain, which ends the lease.

        Raises LeaseExpiredError when it ran out, LeaseError when it ended otherwise or an event is not of it.
        """

    async def extend(self, timeout: float) -> None:
        """Let the lease run out *timeout* seconds from now. Raises as `ack` does."""

    async def give_back(self) -> None:
        """End the lease and put back what was not acknowledged; does nothing when it ran out. Else raises as `ack`."""


@runtime_checkable
class Leasing(Protocol):
    """The ability to hand events out on loan, so that a crash loses none: at least once."""

    def lease(self, max_events: int = 500, timeout: float = 60.0) -> AbstractAsyncContextManager[BackendLease]:
        """
        Return a context manager: entering takes up to *max_events* of the oldest events, none if none wait.

        Leaving the block acknowledges, an exception or a cancellation gives back. After *timeout* seconds the lease runs
        out: its events come back, and acknowledging raises LeaseExpiredError.
        """


@runtime_checkable
class Peeking(Protocol):
    """The ability to show events and leave them where they are."""

    async def peek(self, n: int | None = None) -> list[Payload]:
        """Return the *n* newest events (0 or more; None for all), oldest first."""


@runtime_checkable
class Typed(Protocol):
    """The ability to take events of some types and leave the others in order."""

    async def drain_types(self, types: Collection[str], max_items: int | None = None) -> list[Payload]:
        """Take out the oldest events whose `type` is in *types*, at most *max_items* (0 or more; None for all)."""


@runtime_checkable
class Paged(Protocol):
    """The ability to take some events and leave the rest, for buffers larger than memory."""

    async def drain_page(self, max_items: int) -> list[Payload]:
        """Take out the oldest events, at most *max_items* (0 or more)."""


class PutBackError(EventBufferError):
    """
    A fallback took events out of a backend for a moment, and the backend refused some on their way back.

    `events` are those that are not in the backend any more, oldest first: they are the caller's now. Of the first one
    that was refused it is not known whether the backend took it. The refusal is `__cause__`.
    """

    def __init__(self, events: Sequence[Payload]) -> None:
        self.events = list(events)
        super().__init__(f"{len(self.events)} events could not be put back; `events` of this error holds them")

    def __reduce__(self) -> tuple[type[Self], tuple[list[Payload]]]:
        return type(self), (self.events,)


async def peek(backend: BufferBackend, n: int | None = None) -> list[Payload]:
    """
    Return the *n* newest events of any backend (0 or more; None for all), oldest first, and leave them there.

    Without `Peeking` everything is drained and added again. Then, and only then: other callers find the backend empty
    meanwhile; an event added meanwhile comes before those that were there; a crash or a cancelled task (a native
    `Task.cancel()`; cancel scopes wait) in between loses what was not added again; the backend counts each event twice.

    Raises:
        ConfigurationError: *n* is no such number.
        PutBackError: the backend refused an event on its way back; the error holds all that are not in the backend.
    """
    limit = check_limit("n", n)
    if isinstance(backend, Peeking):
        return await backend.peek(limit)
    everything = await backend.drain()
    await _put_back(backend, everything)
    return everything if limit is None else everything[max(0, len(everything) - limit) :]


async def drain_types(backend: BufferBackend, types: Collection[str], max_items: int | None = None) -> list[Payload]:
    """
    Take out of any backend the oldest events whose `type` is in *types*, at most *max_items* (None for all).

    Without `Typed` everything is drained and the rest added again, with the weaknesses of the fallback of `peek`.

    Raises:
        ConfigurationError: an argument cannot work.
        PutBackError: the backend refused an event of the rest; the error holds the events taken as well.
    """
    names, limit = check_types(types), check_limit("max_items", max_items)
    if isinstance(backend, Typed):
        return await backend.drain_types(names, limit)
    taken: list[Payload] = []
    rest: list[Payload] = []
    for payload in await backend.drain():
        wanted = payload.type in names and (limit is None or len(taken) < limit)
        (taken if wanted else rest).append(payload)
    await _put_back(backend, rest, held=taken)
    return taken


async def drain_by_type(backend: BufferBackend, *, actions: bool = True, summaries: bool = True) -> list[Payload]:
    """Take out of any backend the events of the chosen types: `drain_types` with the names of the known types."""
    return await drain_types(backend, names_of(actions=actions, summaries=summaries))


async def drain_page(backend: BufferBackend, max_items: int) -> list[Payload]:
    """
    Take out of any backend the oldest events, at most *max_items* (0 or more).

    Without `Paged` a lease is taken and acknowledged. Without `Leasing` everything is drained and the rest added again,
    with the weaknesses of the fallback of `peek`.

    Raises:
        ConfigurationError: *max_items* is no such number.
        PutBackError: the backend refused an event of the rest; the error holds the events taken as well.
    """
    limit = check_integer("max_items", max_items, minimum=0)
    if isinstance(backend, Paged):
        return await backend.drain_page(limit)
    if limit == 0:
        return []
    if isinstance(backend, Leasing):
        async with backend.lease(limit) as loan:
            return list(loan.events)
    everything = await backend.drain()
    await _put_back(backend, everything[limit:], held=everything[:limit])
    return everything[:limit]


@asynccontextmanager
async def lease(backend: BufferBackend, max_events: int = 500, timeout: float = 60.0) -> AsyncIterator[BackendLease]:
    """
    Lease from any backend up to *max_events* (1 or more) of the oldest events: see `Leasing.lease`.

    Without `Leasing` the events are drained and, if the block fails, those not acknowledged are added again. Then, and
    only then: they live in this process alone, so a crash loses them (at most once, not at least once); the lease never
    runs out, whatever *timeout* says; what is given back comes after what was added meanwhile.

    Raises:
        ConfigurationError: an argument cannot work.
        LeaseExpiredError: the lease ran out before the block ended; its events come again.
        PutBackError: the backend refused an event that was given back; the error holds it and the rest.
    """
    check_integer("max_events", max_events, minimum=1)
    check_seconds("timeout", timeout, above=0)
    if isinstance(backend, Leasing):
        async with backend.lease(max_events, timeout) as loan:
            yield loan
        return
    fallback = _DrainedLease(backend, await drain_page(backend, max_events))
    try:
        yield fallback
    except BaseException:
        if fallback.is_open:
            await fallback.give_back()
        raise
    if fallback.is_open:
        await fallback.ack()


class _DrainedLease:
    """Events that were drained, and are added again unless they are acknowledged."""

    def __init__(self, backend: BufferBackend, events: list[Payload]) -> None:
        self._backend = backend
        self.events: Sequence[Payload] = events
        self._pending = list(events)
        self.is_open = True

    def __iter__(self) -> Iterator[Payload]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)

    async def ack(self, events: Iterable[Payload] | None = None) -> None:
        self._require_open()
        if events is None:
            self.is_open = False
            self._pending.clear()
            return
        ours = {id(payload) for payload in self.events}
        done = {id(payload) for payload in events}
        if not done <= ours:
            raise LeaseError("only events that this lease handed out can be acknowledged")
        self._pending = [payload for payload in self._pending if id(payload) not in done]

    async def extend(self, timeout: float) -> None:
        check_seconds("timeout", timeout, above=0)
        self._require_open()

    async def give_back(self) -> None:
        self._require_open()
        self.is_open = False
        pending, self._pending = self._pending, []
        await _put_back(self._backend, pending)

    def _require_open(self) -> None:
        if not self.is_open:
            raise LeaseError("the lease was acknowledged or given back")


async def _put_back(backend: BufferBackend, payloads: list[Payload], *, held: Sequence[Payload] = ()) -> None:
    # Shielded: half of it done would lose the other half.
    with anyio.CancelScope(shield=True):
        for index, payload in enumerate(payloads):
            try:
                await backend.add(payload)
            except Exception as error:
                raise PutBackError([*held, *payloads[index:]]) from error
