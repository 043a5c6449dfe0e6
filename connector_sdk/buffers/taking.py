"""Taking events out of one shard of a store, page by page, each page on a lease of its own."""

from __future__ import annotations

import math
import operator
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence

import anyio
import anyio.lowlevel
import msgspec
from msgspec import UNSET

from connector_sdk.buffers.codec import decode_body
from connector_sdk.buffers.engine import Engine
from connector_sdk.buffers.gate import MISUSE, Gate
from connector_sdk.buffers.store import Page, SessionFilter, StoredEvent
from connector_sdk.errors import BufferUnavailableError, PayloadError
from connector_sdk.payloads import Payload

__all__ = [
    "Haul",
    "HeldPage",
    "Selection",
    "Source",
    "Taken",
    "Terms",
    "decode_events",
    "give_back",
    "merge",
    "new_lease_name",
]


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which events are wanted."""

    kinds: Collection[str] | None = None
    session: SessionFilter = UNSET

    @property
    def is_filtered(self) -> bool:
        """Whether not every event is wanted."""
        return self.kinds is not None or self.session is not UNSET

    @property
    def is_in_order(self) -> bool:
        """Whether a store gives the wanted events oldest first."""
        return self.kinds is None or self.session is not UNSET


class Terms(msgspec.Struct, frozen=True):
    """On what terms events are taken."""

    hold: float  #: seconds after which they wait again unless they are acknowledged
    page: int  #: events in one step at most
    holder: str = ""  #: what the names of its leases begin with; with one, nothing is taken while others have leases


class Taken(msgspec.Struct, frozen=True, gc=False):
    """One decoded event. The first three fields are the order of the buffer; no two events have them in common."""

    time: float
    arrival: int
    shard: int
    payload: Payload
    event_id: str | None
    origin: str
    ticket: int
    page: HeldPage | None

    @property
    def event(self) -> StoredEvent:
        """What the store needs to know it by: without the body, for two of each would be in memory."""
        return StoredEvent(self.time, self.arrival, b"", "", self.event_id, self.origin, self.ticket)


class HeldPage:
    """
    Events of one shard that were taken in one step.

    Each page has a lease of its own: had a drain one name for all, and were it held up for so long that the lease ran
    out, the next page would begin another lease of that name, and events of the first could come twice.
    """

    def __init__(self, engine: Engine, gate: Gate, hold: float, holder: str = "") -> None:
        self._engine = engine
        self._gate = gate
        self.name = holder + new_lease_name()
        self.hold = hold
        self.runs_out = time.monotonic() + hold  #: never later than in the store
        self.taken: list[Taken] = []
        self.bad: list[StoredEvent] = []
        self.events: Sequence[StoredEvent] | None = None  #: None without an answer: then anything may be on the lease
        self.count = 0
        self._decoded = False

    @property
    def shard(self) -> int:
        """The shard."""
        return self._gate.shard

    @property
    def lease(self) -> tuple[str, Gate]:
        """What `Engine.give_back` is to give back."""
        return self.name, self._gate

    @property
    def may_hold(self) -> bool:
        """Whether events may be on the lease."""
        return not self._decoded or bool(self.taken or self.bad)

    def decode(self) -> None:
        """Decode what was taken."""
        if self.events is not None:
            self.taken, self.bad = decode_events(self.events, self.shard, self)
            self.count = len(self.events)
            self.events = None
            self._decoded = True

    def let_go(self) -> None:
        """Forget the events: they refer to this page, and what no garbage collector looks at would stay for ever."""
        self.taken = []

    async def put_bad_aside(self) -> bool:
        """Quarantine what is no payload; return whether that was done, or there was none."""
        if not self.bad:
            return True
        store, timeout = self._engine.store, self._engine.timeout
        try:
            done = await self._gate.call(
                "quarantine", lambda: store.quarantine(self.shard, self.name, self.bad, timeout=timeout), len(self.bad)
            )
        except BufferUnavailableError:
            return False
        if done:
            self._engine.account.undecodable(len(self.bad))
            self.bad = []
        return done

    async def acknowledge(self, kept: Sequence[Taken]) -> bool:
        """
        Let the events in *kept* go for good, and give back the others.

        Returns whether they are the caller's: False when they come again. What is in doubt is the caller's, and counted.
        """
        whole = await self.put_bad_aside() and len(kept) == len(self.taken)
        ours = True
        if kept:
            ours = await self._acknowledge(None if whole else [taken.event for taken in kept], len(kept))
        if not whole or not ours or not self._decoded:
            await self.give_back()
        return ours

    async def extend(self) -> None:
        """Let the lease run out later than it would."""
        store, timeout = self._engine.store, self._engine.timeout
        try:
            await self._gate.call(
                "extend", lambda: store.extend(self.shard, self.name, hold=self.hold, timeout=timeout)
            )
        except (BufferUnavailableError, *MISUSE):
            return  # it may still be in time; what is wrong with the program, the next page tells

    async def give_back(self) -> None:
        """Let what is left of the page wait again, as well as can be."""
        await give_back(self._engine, [self])

    async def _acknowledge(self, events: list[StoredEvent] | None, count: int) -> bool:
        account, store, timeout = self._engine.account, self._engine.store, self._engine.timeout
        try:
            done = await self._gate.call(
                "acknowledge", lambda: store.acknowledge(self.shard, self.name, events, timeout=timeout), count
            )
        except BufferUnavailableError as error:
            account.read_failed("drain", str(error))
            if error.in_doubt:
                account.in_doubt += count
            return error.in_doubt
        if not done:
            account.warnings.warning("late", "events could not be drained within %g s", self.hold)
        return done


class Haul:
    """All pages of one drain. Those taken long ago are kept from running out while more are taken."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.pages: list[HeldPage] = []
        #: Events taken so far.
        self.found = 0
        self._renewal = time.monotonic() + terms.hold / 3

    async def renew(self) -> None:
        """Extend the leases if they have not been for a third of their time."""
        now = time.monotonic()
        if now < self._renewal:
            return
        self._renewal = now + self.terms.hold / 3
        for page in [page for page in self.pages if page.may_hold]:
            await page.extend()


class Source:
    """One shard, as one drain takes from it. `error` is set when a step failed; nothing more is taken then."""

    def __init__(self, engine: Engine, gate: Gate, haul: Haul, selection: Selection) -> None:
        self._engine = engine
        self._haul = haul
        self._selection = selection
        self._cursor = ""
        self._budget: int | None = None
        self._any_order = False
        self.gate = gate
        self.pages: list[HeldPage] = []
        self.exhausted = False
        self.error: BufferUnavailableError | None = None
        self._misuse: Exception | None = None

    @property
    def taken(self) -> list[Taken]:
        """What was taken."""
        return [taken for page in self.pages for taken in page.taken]

    @property
    def in_order(self) -> bool:
        """Whether `taken` is in the order of the buffer: events that come in between pages may be older."""
        return self._selection.is_in_order and len(self.pages) <= 1 and not self._any_order

    @property
    def may_have_more(self) -> bool:
        """Whether another page is worth asking for."""
        return not self.exhausted and self.error is None and self._misuse is None

    async def take(self, count: int, *, until: float = math.inf) -> None:
        """
        Take up to *count* more events (1 or more), or as many as were there at the first page if they are fewer.

        A page may be shorter than asked though more wait. When something was found, no page but the first is asked for
        after *until*, a time of the monotonic clock.
        """
        while count > 0 and self.may_have_more and (not self.pages or not self._haul.found or time.monotonic() < until):
            held = await self._next_page(count)
            held.decode()
            count -= held.count
        self._raise_misuse()

    async def take_all(self) -> None:
        """
        Take as much as was there at the first page, in any order: all of it unless others add meanwhile.

        Each page is decoded while the next one is on its way.
        """
        self._any_order = True
        held = await self._next_page(self._haul.terms.page)
        while self.may_have_more:
            fetched: list[HeldPage] = []

            async def fetch(fetched: list[HeldPage] = fetched) -> None:
                fetched.append(await self._next_page(self._haul.terms.page))

            async with anyio.create_task_group() as group:
                group.start_soon(fetch)
                await anyio.lowlevel.checkpoint()  # the request is written before this thread is busy
                held.decode()
            (held,) = fetched
        held.decode()
        self._raise_misuse()

    def _raise_misuse(self) -> None:
        # Not where it came up: that may be in a task group, which would wrap it.
        if self._misuse is not None:
            raise self._misuse

    async def _next_page(self, count: int) -> HeldPage:
        await self._haul.renew()
        terms = self._haul.terms
        held = HeldPage(self._engine, self.gate, terms.hold, terms.holder)
        # On the list before anything is sent: if there is no answer, the events may be on this lease.
        self.pages.append(held)
        self._haul.pages.append(held)
        limit = min(count, terms.page)
        try:
            page = await self.gate.call("take", lambda: self._request(held, limit), lambda page: len(page.events))
        except BufferUnavailableError as error:
            self.error = error
            if not error.in_doubt:
                held.events = ()
            return held
        except MISUSE as error:
            self._misuse = error
            return held
        held.events = page.events
        self._haul.found += len(page.events)
        if page.dropped:
            self._engine.account.evicted_by_store(page.dropped)
        self._cursor = page.cursor
        self._budget = page.left if self._budget is None else self._budget - len(page.events)
        found_all = not page.cursor if self._selection.is_filtered else not page.events
        self.exhausted = found_all or self._budget <= 0
        return held

    async def _request(self, held: HeldPage, limit: int) -> Page:
        return await self._engine.store.take(
            self.gate.shard,
            held.name,
            limit,
            hold=held.hold,
            timeout=self._engine.timeout,
            session=self._selection.session,
            kinds=self._selection.kinds,
            cursor=self._cursor,
            in_order=not self._any_order,
            holder="" if self._selection.is_filtered else self._haul.terms.holder,
        )


async def give_back(engine: Engine, pages: Iterable[HeldPage]) -> None:
    """Let what is left of *pages* wait again, as well as can be; a cancellation does not keep any of them."""
    pages = list(pages)
    try:
        await engine.give_back([page.lease for page in pages if page.may_hold])
    finally:
        for page in pages:
            page.let_go()


def new_lease_name() -> str:
    """Return a name that no other lease has, in any process, at any time."""
    return uuid.uuid4().hex


def decode_events(
    events: Iterable[StoredEvent], shard: int, page: HeldPage | None = None
) -> tuple[list[Taken], list[StoredEvent]]:
    """Decode *events*; return also those that are no payloads."""
    taken: list[Taken] = []
    bad: list[StoredEvent] = []
    for event in events:
        try:
            payload = decode_body(event.body, kind=event.kind, event_id=event.event_id)
        except PayloadError:
            bad.append(event)
        else:
            taken.append(
                Taken(event.time, event.arrival, shard, payload, event.event_id, event.origin, event.ticket, page)
            )
    return taken, bad


def merge(parts: Sequence[Sequence[Taken]], *, in_order: bool = False) -> list[Taken]:
    """Return the events of all *parts* in the order of the buffer; *in_order*: each part is sorted already."""
    if in_order and len(parts) == 1:
        return list(parts[0])
    whole: list[Taken] = []
    for part in parts:
        whole += part
    whole.sort(key=order_of)
    return whole


#: Returns what the order of the buffer is by.
order_of: Callable[[Taken], tuple[float, int, int]] = operator.attrgetter("time", "arrival", "shard")
