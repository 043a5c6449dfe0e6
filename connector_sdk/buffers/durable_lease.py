"""Leases of a durable buffer: events handed out that nobody else gets until they are acknowledged or come back."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import NoReturn, Self

import anyio
import msgspec

from connector_sdk.buffers.arguments import check_evidence, check_span
from connector_sdk.buffers.dead_letters import Evidence, evidence_of
from connector_sdk.buffers.durable_lease_part import LeasePart
from connector_sdk.buffers.durable_renewal import Renewal
from connector_sdk.buffers.engine import Engine
from connector_sdk.buffers.leases import LeaseState, expired_error
from connector_sdk.buffers.taking import Haul, HeldPage, Selection, Source, Taken, Terms, give_back, merge
from connector_sdk.errors import BufferUnavailableError, EventBufferError, LeaseError
from connector_sdk.payloads import Payload

__all__ = ["DurableLease"]


class DurableLease:
    """
    Events on loan from a `DurableBuffer`: an `async with` block.

    Entering takes up to `max_events` out of the buffer, oldest first; an empty buffer gives an empty lease. Leaving the
    block acknowledges them; an exception or a cancellation gives them back.

    While the block runs the lease is renewed, by a task that ends with it, so nobody else gets the events. It runs out when
    the process dies, or is stopped, or does not reach the store, for as long as the time-out; and with `renew=False`, or
    when the event loop in which it was entered has ended, after the time-out in any case. Then its events go back, and
    acknowledging (leaving the block included) raises LeaseExpiredError, for somebody else may have them by then. In the
    child of a fork it cannot be used: it is the parent's.

    Every method but `give_back` raises BufferUnavailableError when the store does not answer. Then the lease is as it was,
    and one may try again; an event that was acknowledged without an answer may come again.
    """

    def __init__(
        self, engine: Callable[[], Engine], max_events: int, terms: Terms, selection: Selection, *, renew: bool = True
    ) -> None:
        self._get_engine = engine
        self._renews = renew
        self._renewal: Renewal | None = None
        self._process = os.getpid()
        self._max_events = max_events
        self._terms = terms
        self._selection = selection
        self._parts: list[LeasePart] = []
        self._events: list[Payload] = []
        self._places: dict[int, list[tuple[LeasePart, Taken]]] = {}
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
        acknowledged or given up before is passed over. Those acknowledged count as delivered and do not come back.

        Raises:
            LeaseExpiredError: the lease ran out; nothing more was acknowledged.
            LeaseError: it ended before, was not entered, or one of *events* is not of it (none was acknowledged).
            BufferUnavailableError: the store did not answer. `in_doubt` says whether it may have been done all the same.
        """
        self._require_open()
        if events is None:
            for part in self._parts:
                await self._settle(part, list(part.pending.values()))
            self._end(LeaseState.ACKNOWLEDGED)
            return
        for part, chosen in self._find(list(events)):
            await self._settle(part, chosen)

    async def fail(self, event: Payload, error: BaseException | Evidence) -> None:
        """
        Give one event of this lease up: in one atomic step it leaves the lease and is among `DurableBuffer.dead_letters`.

        *error* is what it failed with, or the evidence of all its attempts. In the account of the store it counts as
        dropped ("dead_letter"); `on_drop` is not called. It does not come back unless it is replayed. One that was
        acknowledged or given up before is passed over.

        Raises what `ack` raises; ConfigurationError when *error* is neither. Without an answer of the store the event is
        still of this lease: acknowledging the rest would acknowledge it, so try again, or leave the block with an error.
        """
        check_evidence(error)
        self._require_open()
        evidence = msgspec.json.encode(evidence_of(error, at=time.time()))
        for part, chosen in self._find([event]):
            engine = self._get_engine()
            for taken in chosen:
                if not await part.bury(engine, taken, evidence):
                    self._run_out()
            if not part.pending:
                await engine.give_back([part.lease(engine)])  # an empty lease would wait for its time to be up

    async def extend(self, timeout: float) -> None:
        """
        Let the lease run out *timeout* seconds (above 0) from now, instead of when it would.

        One that is renewed goes on to be, with the longer of *timeout* and what it had.

        Raises LeaseExpiredError when it ran out already, LeaseError when it ended or was not entered,
        BufferUnavailableError when the store did not answer.
        """
        timeout = check_span("timeout", timeout, above=0)
        self._require_open()
        engine = self._get_engine()
        if self._renewal is not None:
            timeout = max(timeout, self._renewal.hold)
        for part in self._parts:
            if part.pending and not await part.extend(engine, timeout):
                self._run_out()
        if self._renewal is not None:
            self._renewal.hold = timeout
            self._renewal.start(engine)  # it ended with its event loop if this is another one

    async def give_back(self) -> None:
        """
        End the lease and let the events that were not acknowledged wait again, at their old places.

        A lease that ran out has given them back already; if the store does not answer, they come again when it runs out.
        Raises LeaseError when it ended otherwise or was not entered.
        """
        if self.state is LeaseState.EXPIRED:
            return
        self._require_open()
        self._end(LeaseState.RETURNED)
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
        parts: dict[HeldPage | None, LeasePart] = {page: LeasePart(page) for page in haul.pages if page.taken}
        self._parts = list(parts.values())
        for taken in merge([page.taken for page in haul.pages]):
            self._events.append(taken.payload)
            self._places.setdefault(id(taken.payload), []).append((parts[taken.page], taken))
        for page in haul.pages:
            page.let_go()
        self.state = LeaseState.OPEN
        self._process = os.getpid()
        if self._renews and self._parts:
            self._renewal = Renewal(self, self._parts, self._terms.hold)
            self._renewal.start(engine)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._leave(error)
        finally:
            if self._renewal is not None:
                await self._renewal.stop()

    # -- inner

    async def _leave(self, error: BaseException | None) -> None:
        if self._is_of_parent():
            return
        self._note_loss()
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

    async def _take(self, engine: Engine, haul: Haul) -> None:
        found = 0
        errors: list[BufferUnavailableError] = []
        # Who gets the events must have time left for them, so what cannot be had by then stays for the next lease.
        until = time.monotonic() + self._terms.hold / 2
        for gate in engine.in_turn():
            if found >= self._max_events or (found and time.monotonic() >= until):
                break
            if self._terms.holder:
                try:
                    await engine.call_back_strays(self._terms.holder, gate)
                except BufferUnavailableError as error:
                    errors.append(error)
                    continue  # what they may have comes before all others of this shard
            source = Source(engine, gate, haul, self._selection)
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

    def _find(self, events: list[Payload]) -> list[tuple[LeasePart, list[Taken]]]:
        """Return the places of *events* that are pending, by shard. The same object twice is two events."""
        chosen: dict[LeasePart, list[Taken]] = {}
        used: set[int] = set()
        for payload in events:
            places = self._places.get(id(payload))
            if places is None:
                raise LeaseError("only events that this lease handed out can be acknowledged or given up")
            for part, taken in places:
                if id(taken) not in used and id(taken) in part.pending:
                    used.add(id(taken))
                    chosen.setdefault(part, []).append(taken)
                    break
        return list(chosen.items())

    async def _settle(self, part: LeasePart, chosen: list[Taken]) -> None:
        if chosen and not await part.acknowledge(self._get_engine(), chosen):
            self._run_out()

    def _end(self, state: LeaseState) -> None:
        self.state = state
        if self._renewal is not None:
            self._renewal.cancel()

    def _run_out(self) -> NoReturn:
        self._end(LeaseState.EXPIRED)
        raise expired_error()

    def _note_loss(self) -> None:
        if self.state is LeaseState.OPEN and self._renewal is not None and self._renewal.is_lost:
            self._end(LeaseState.EXPIRED)

    def _is_of_parent(self) -> bool:
        return self.state is not LeaseState.NEW and self._process != os.getpid()

    def _require_open(self) -> None:
        if self._is_of_parent():
            raise LeaseError("the lease belongs to another process, of which this one is a fork")
        self._note_loss()
        if self.state is LeaseState.EXPIRED:
            raise expired_error()
        if self.state is not LeaseState.OPEN:
            raise LeaseError(f"the lease is {self.state.value}")
