"""Leases of a durable buffer: events handed out that nobody else gets until they are acknowledged or come back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import NoReturn, Self

import anyio

from connector_sdk.buffers.arguments import check_span
from connector_sdk.buffers.engine import Engine
from connector_sdk.buffers.gate import Gate
from connector_sdk.buffers.leases import LeaseState, expired_error
from connector_sdk.buffers.taking import Haul, HeldPage, Selection, Source, Taken, Terms, give_back, merge
from connector_sdk.errors import BufferUnavailableError, EventBufferError, LeaseError
from connector_sdk.payloads import Payload

__all__ = ["DurableLease"]


class DurableLease:
    """
    Events on loan from a `DurableBuffer`: an `async with` block.

    Entering takes up to `max_events` out of the buffer, oldest first; an empty buffer gives an empty lease. Leaving the
    block acknowledges them; an exception or a cancellation gives them back. After the time-out the lease runs out: its
    events go back, and acknowledging (leaving the block included) raises LeaseExpiredError, for somebody else may have
    them by then. If the process dies, the lease runs out too.

    Every method but `give_back` raises BufferUnavailableError when the store does not answer. Then the lease is as it was,
    and one may try again; an event that was acknowledged without an answer may come again.
    """

    def __init__(self, engine: Callable[[], Engine], max_events: int, terms: Terms) -> None:
        self._get_engine = engine
        self._max_events = max_events
        self._terms = terms
        self._parts: list[_Part] = []
        self._events: list[Payload] = []
        self._places: dict[int, list[tuple[_Part, Taken]]] = {}
        #: Where it is.
        self.state = LeaseState.NEW

    @property
    def events(self) -> list[Payload]:
        """All events of this lease, oldest first, acknowledged or not."""
        return list(self._events)

    def __iter__(self) -> Iterator[Payload]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self._events)

    def __repr__(self) -> str:
        return f"<DurableLease of {len(self)} events, {self.state.value}>"

    async def ack(self, events: Iterable[Payload] | None = None) -> None:
        """
        Acknowledge *events* of this lease, or (None) all that remain, which ends it.

        Events are told apart by identity; the very objects that the lease handed out are meant. One that was
        acknowledged before is passed over. Those acknowledged count as delivered and do not come back.

        Raises:
            LeaseExpiredError: the lease ran out; nothing more was acknowledged.
            LeaseError: it ended before, was not entered, or one of *events* is not of it (none was acknowledged).
            BufferUnavailableError: the store did not answer. `in_doubt` says whether it may have been done all the same.
        """
        self._require_open()
        if events is None:
            for part in self._parts:
                await self._settle(part, list(part.pending.values()))
            self.state = LeaseState.ACKNOWLEDGED
            return
        for part, chosen in self._find(list(events)):
            await self._settle(part, chosen)

    async def extend(self, timeout: float) -> None:
        """
        Let the lease run out *timeout* seconds (above 0) from now, instead of when it would.

        Raises LeaseExpiredError when it ran out already, LeaseError when it ended or was not entered,
        BufferUnavailableError when the store did not answer.
        """
        check_span("timeout", timeout, above=0)
        self._require_open()
        for part in self._parts:
            if part.pending and not await part.extend(self._get_engine(), timeout):
                self._run_out()

    async def give_back(self) -> None:
        """
        End the lease and let the events that were not acknowledged wait again, at their old places.

        A lease that ran out has given them back already; if the store does not answer, they come again when it runs out.
        Raises LeaseError when it ended otherwise or was not entered.
        """
        if self.state is LeaseState.EXPIRED:
            return
        self._require_open()
        self.state = LeaseState.RETURNED
        engine = self._get_engine()
        await engine.give_back([part.lease(engine) for part in self._parts if part.pending])

    async def __aenter__(self) -> Self:
        if self.state is not LeaseState.NEW:
            raise LeaseError(f"a lease can be entered once, and this one is {self.state.value}")
        engine = self._get_engine()
        haul = Haul(self._terms)
        try:
            await self._take(engine, haul)
        except BaseException:
            await give_back(engine, haul.pages)
            raise
        parts: dict[HeldPage | None, _Part] = {page: _Part(page) for page in haul.pages if page.taken}
        self._parts = list(parts.values())
        for taken in merge([page.taken for page in haul.pages]):
            self._events.append(taken.payload)
            self._places.setdefault(id(taken.payload), []).append((parts[taken.page], taken))
        self.state = LeaseState.OPEN
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.state is LeaseState.EXPIRED and error is None:
            raise expired_error()
        if self.state is not LeaseState.OPEN:
            return
        if error is not None:
            with contextlib.suppress(EventBufferError):  # closed, say: then the lease runs out
                await self.give_back()
            return
        # The block is done, so its events are: a cancellation that comes now waits, no longer than the store may take.
        with anyio.CancelScope(shield=True):
            await self.ack()

    # -- inner

    async def _take(self, engine: Engine, haul: Haul) -> None:
        found = 0
        errors: list[BufferUnavailableError] = []
        # Who gets the events must have time left for them, so what cannot be had by then stays for the next lease.
        until = time.monotonic() + self._terms.hold / 2
        for gate in engine.in_turn():
            if found >= self._max_events or (found and time.monotonic() >= until):
                break
            source = Source(engine, gate, haul, Selection())
            await source.take(self._max_events - found, until=until)
            for page in source.pages:
                if not await page.put_bad_aside():
                    # What is no payload would be acknowledged with the rest: the whole page comes again instead.
                    await page.give_back()
                    page.taken.clear()
            if source.error is not None:
                errors.append(source.error)
            found += len(source.taken)
        if errors and not found:
            raise errors[0]
        if errors:
            engine.account.read_failed("a lease", str(errors[0]))

    def _find(self, events: list[Payload]) -> list[tuple[_Part, list[Taken]]]:
        """Return the places of *events* that are pending, by shard. The same object twice is two events."""
        chosen: dict[_Part, list[Taken]] = {}
        used: set[int] = set()
        for payload in events:
            places = self._places.get(id(payload))
            if places is None:
                raise LeaseError("only events that this lease handed out can be acknowledged")
            for part, taken in places:
                if id(taken) not in used and id(taken) in part.pending:
                    used.add(id(taken))
                    chosen.setdefault(part, []).append(taken)
                    break
        return list(chosen.items())

    async def _settle(self, part: _Part, chosen: list[Taken]) -> None:
        if chosen and not await part.acknowledge(self._get_engine(), chosen):
            self._run_out()

    def _run_out(self) -> NoReturn:
        self.state = LeaseState.EXPIRED
        raise expired_error()

    def _require_open(self) -> None:
        if self.state is LeaseState.EXPIRED:
            raise expired_error()
        if self.state is not LeaseState.OPEN:
            raise LeaseError(f"the lease is {self.state.value}")


class _Part:
    """A page that the lease holds. The engine comes with each call: the event loop may be another one by then."""

    def __init__(self, page: HeldPage) -> None:
        self._name = page.name
        self._shard = page.shard
        self._runs_out = page.runs_out
        self._in_doubt = False
        self.pending = {id(taken): taken for taken in page.taken}

    def lease(self, engine: Engine) -> tuple[str, Gate]:
        """Return what `Engine.give_back` is to give back."""
        return self._name, engine.gates[self._shard]

    async def acknowledge(self, engine: Engine, chosen: list[Taken]) -> bool:
        """Let events go for good; False when the lease ran out."""
        # The last of them end the lease in the store.
        events = None if len(chosen) == len(self.pending) else [taken.event for taken in chosen]

        async def request() -> bool:
            return await engine.store.acknowledge(self._shard, self._name, events, timeout=engine.timeout)

        try:
            done = await engine.gates[self._shard].call("acknowledge", request, len(chosen))
        except BufferUnavailableError as error:
            self._in_doubt = self._in_doubt or error.in_doubt
            raise
        if not done and not (self._in_doubt and time.monotonic() < self._runs_out):
            return False
        # A lease that is gone before its time was ended by the attempt that had no answer.
        for taken in chosen:
            del self.pending[id(taken)]
        engine.account.drained += len(chosen)
        return True

    async def extend(self, engine: Engine, timeout: float) -> bool:
        """Put off the end; False when the lease ran out."""
        runs_out = time.monotonic() + timeout

        async def request() -> bool:
            return await engine.store.extend(self._shard, self._name, hold=timeout, timeout=engine.timeout)

        done = await engine.gates[self._shard].call("extend", request)
        if done:
            self._runs_out = runs_out
        return done
