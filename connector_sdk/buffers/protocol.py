"""
What a buffer backend is: three coroutines, and abilities it may have besides, each its own small protocol.

A backend for Kafka, a database or a test double implements `BufferBackend` and whichever of `Leasing`, `DeadLettering`,
`Peeking`, `Typed` and `Paged` it can do well. Callers do not ask which; they call the functions of this module, which use
the ability or do the same with `add` and `drain`. Those fallbacks work on every backend and promise less; each docstring
says what.

`connector_sdk.testing.contracts.BufferBackendContract` is the test suite that a backend must pass.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Protocol, Self, cast, runtime_checkable

import anyio

from connector_sdk.buffers.arguments import (
    check_flag,
    check_holder,
    check_limit,
    check_types,
    check_wanted_types,
    names_of,
)
from connector_sdk.buffers.dead_letters import DeadLetters, Evidence
from connector_sdk.buffers.loans import BorrowedLoan, DrainedLoan, renewed, takes
from connector_sdk.errors import ConfigurationError, EventBufferError
from connector_sdk.options import check_integer, check_seconds
from connector_sdk.payloads import Payload

__all__ = [
    "BackendLease",
    "BufferBackend",
    "DeadLettering",
    "Leasing",
    "Paged",
    "Peeking",
    "PutBackError",
    "Typed",
    "check_types_of_lease",
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

    async def fail(self, event: Payload, error: BaseException | Evidence) -> None:
        """
        Give one event up: it moves to the dead letters of the backend with its evidence and counts as dropped.

        One atomic step, or it raises as `ack` does and the event is still on the lease. An event that was acknowledged or
        given up before is passed over. EventBufferError when the backend keeps no dead letters.
        """

    async def extend(self, timeout: float) -> None:
        """Let the lease run out *timeout* seconds from now. Raises as `ack` does."""

    async def give_back(self) -> None:
        """End the lease and put back what was not acknowledged; does nothing when it ran out. Else raises as `ack`."""


@runtime_checkable
class Leasing(Protocol):
    """The ability to hand events out on loan, so that a crash loses none: at least once."""

    def lease(
        self, max_events: int = 500, timeout: float = 60.0, *, renew: bool = True
    ) -> AbstractAsyncContextManager[BackendLease]:
        """
        Return a context manager: entering takes up to *max_events* of the oldest events, none if none wait.

        Leaving the block acknowledges, an exception or a cancellation gives back. With *renew* the lease of a living
        process does not run out while its block runs; that of a dead one does after *timeout* seconds, and its events
        come back. Without, it runs out after *timeout* seconds though its block runs, and acknowledging then raises
        LeaseExpiredError.

        A backend that knows neither *renew* nor `BackendLease.fail` is `Leasing` too: `connector_sdk.buffers.protocol.lease`
        does what can be done for it. One that can leave events of other types where they are has a parameter *types*: a
        collection of the types to take, or None for all.
        """


@runtime_checkable
class DeadLettering(Protocol):
    """The ability to keep the events that were given up (`BackendLease.fail`), with the evidence."""

    @property
    def dead_letters(self) -> DeadLetters:
        """The dead letters of this backend."""


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


def check_types_of_lease(backend: BufferBackend, types: Collection[str] | None) -> frozenset[str] | None:
    """
    Return *types* if `lease` can take events of these types, 1 or more, out of *backend*; None for every type.

    Raises:
        ConfigurationError: it is no such collection, or the backend has leases, which know no types.
    """
    names = check_wanted_types(types)
    if names is not None and isinstance(backend, Leasing) and not takes(backend.lease, "types"):
        raise ConfigurationError(
            "types",
            types,
            f"None for {type(backend).__name__}, whose leases take every type: let its `lease` have a parameter `types`",
        )
    return names


@asynccontextmanager
async def lease(
    backend: BufferBackend,
    max_events: int = 500,
    timeout: float = 60.0,
    *,
    renew: bool = True,
    holder: str | None = None,
    types: Collection[str] | None = None,
) -> AsyncIterator[BackendLease]:
    """
    Lease from any backend up to *max_events* (1 or more) of the oldest events: see `Leasing.lease`.

    A backend whose `lease` has no parameter `renew` is renewed from outside: a task calls `extend` of the lease each third
    of *timeout* while the block runs. A block that keeps the event loop to itself for longer keeps that task from it.

    Without `Leasing` the events are drained and, if the block fails, those not acknowledged are added again. Then, and
    only then: they live in this process alone, so a crash loses them (at most once, not at least once); the lease never
    runs out, whatever *timeout* and *renew* say; what is given back comes after what was added meanwhile.

    *holder* is passed on to a backend that knows it (see `DurableBuffer.lease`), and has no effect on others.

    With *types*, a collection of one name or more, only events of these types are taken. Without `Leasing` that is
    `drain_types`, with its weaknesses on a backend that is not `Typed`.

    `fail` of a lease whose backend has none, and of one without `Leasing`, raises EventBufferError, and the event is still
    on the lease: there is no place for its evidence.

    Raises:
        ConfigurationError: an argument cannot work, or leases of the backend know no *types*.
        LeaseExpiredError: the lease ran out before the block ended; its events come again.
        PutBackError: the backend refused an event that was given back; the error holds it and the rest.
    """
    check_integer("max_events", max_events, minimum=1)
    check_seconds("timeout", timeout, above=0)
    check_flag("renew", renew)
    names = check_types_of_lease(backend, types)
    if isinstance(backend, Leasing):
        named = {"holder": check_holder(holder) and holder, "types": names}
        async with _lease_of(backend, max_events, timeout, renew=renew, named=named) as loan:
            yield loan
        return
    if names is None:
        events = await drain_page(backend, max_events)
    else:
        events = await drain_types(backend, names, max_events)
    fallback = DrainedLoan(backend, events, partial(_put_back, backend))
    try:
        yield fallback
    except BaseException:
        if fallback.is_open:
            await fallback.give_back()
        raise
    if fallback.is_open:
        await fallback.ack()


@asynccontextmanager
async def _lease_of(
    backend: Leasing, max_events: int, timeout: float, *, renew: bool, named: Mapping[str, object]
) -> AsyncIterator[BackendLease]:
    named = {name: value for name, value in named.items() if value and takes(backend.lease, name)}
    enter = cast("Callable[..., AbstractAsyncContextManager[BackendLease]]", backend.lease)
    if takes(backend.lease, "renew"):
        async with enter(max_events, timeout, renew=renew, **named) as loan:
            yield loan if hasattr(loan, "fail") else BorrowedLoan(backend, loan, timeout)
        return
    async with enter(max_events, timeout, **named) as loan:
        borrowed = BorrowedLoan(backend, loan, timeout)
        if not renew:
            yield borrowed
            return
        async with renewed(borrowed):
            yield borrowed


async def _put_back(backend: BufferBackend, payloads: list[Payload], *, held: Sequence[Payload] = ()) -> None:
    # Shielded: half of it done would lose the other half.
    with anyio.CancelScope(shield=True):
        for index, payload in enumerate(payloads):
            try:
                await backend.add(payload)
            except Exception as error:
                raise PutBackError([*held, *payloads[index:]]) from error
