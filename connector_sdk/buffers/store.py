"""
What a storage engine implements: the few methods under a `DurableBuffer`, which does everything else.

A store keeps records in *shards* (one, unless it can spread its work), hands them out on lease and keeps the account of
what became of them. It decides nothing about retries, drops, batching or payloads: it does one step, completely or not at
all, or raises. `connector_sdk.testing.EventStoreContract` is the test suite that a store must pass.

Every method that talks to the storage has a *timeout* in seconds for each request that it makes, one as a rule, and raises
`BufferUnavailableError` when there was no answer by then (a little later is allowed), when the storage cannot be reached,
or when it refuses. `in_doubt` of the error says whether the step may have been done all the same. A cancelled call is like
one in doubt: the step was done completely or not at all, and the store stays usable.

A *lease* is named by its holder with a string that is unique for all processes and all time. Events on lease are seen by
nobody else. When a lease's time is up they wait again, at their old places, as soon as any method that reads or takes is
called by anybody.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from connector_sdk.ledger import DropReason, Ledger

__all__ = [
    "Appended",
    "Buried",
    "Census",
    "EventStore",
    "Page",
    "Quarantined",
    "Record",
    "SessionFilter",
    "StoredEvent",
]

#: One session (None is the session of events without one), or UNSET for every session.
SessionFilter: TypeAlias = str | UnsetType | None


class Record(msgspec.Struct, frozen=True, gc=False):
    """One event on its way into a store."""

    session: str | None
    time: float  #: the event's own time in Unix seconds, finite: the order within the buffer
    kind: str  #: the payload's `type`
    body: bytes  #: what `connector_sdk.buffers.codec` made of the payload
    event_id: str | None = None
    origin: str = ""  #: the `product_id`: event ids are unique for one origin


class StoredEvent(msgspec.Struct, frozen=True, gc=False):
    """One event as it comes out of a store. Sorting by `(time, arrival)` is the order of the buffer."""

    time: float  #: what orders it: the event's time, or that of its arrival in a store that orders by arrival
    arrival: int  #: grows with each event that arrives in the shard; tells ties apart
    body: bytes
    kind: str = ""  #: the payload's `type`
    event_id: str | None = None
    origin: str = ""
    ticket: int = 0  #: names it within its lease and shard


class Appended(msgspec.Struct, frozen=True, gc=False):
    """What became of a batch, and what it pushed out."""

    stored: int = 0
    duplicates: int = 0  #: had an event id that the store knew
    size: int = 0  #: events that wait in the shard now
    skewed: int = 0  #: stored, but stamped later than the store's clock by more than the window
    dropped: Mapping[DropReason, int] = {}  #: events that waited and were given up for this batch, by reason


class Page(msgspec.Struct, frozen=True, gc=False):
    """Some events that a lease took."""

    events: Sequence[StoredEvent] = ()  #: in order
    left: int = 0  #: events that still wait in the shard (whatever the filters)
    cursor: str = ""  #: go on from here with the same filters; "" when there is no more to be found
    dropped: Mapping[DropReason, int] = {}  #: events given up on the way, by reason


class Quarantined(msgspec.Struct, frozen=True, gc=False):
    """What was stored and is no payload, kept for inspection."""

    session: str | None
    body: bytes


class Buried(msgspec.Struct, frozen=True, gc=False):
    """A dead letter as a store keeps it."""

    session: str | None
    event: StoredEvent  #: `arrival` names it within the shard, for good; `ticket` means nothing
    evidence: Sequence[bytes]  #: one for each time that it was buried, oldest first; opaque to the store
    buried_at: float  #: the last time, in Unix seconds of the store's clock


class Census(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One consistent reading of one shard."""

    ledger: Ledger  #: of the shard, over all processes
    sessions: int = 0
    leases: int = 0
    skewed: int = 0
    quarantined: int = 0
    dead_letters: int = 0
    oldest_age: float | None = None  #: seconds since the oldest waiting event arrived at the earliest; None without one
    dropped: Mapping[DropReason, int] = {}  #: events given up just now, because of this look, by reason


class EventStore(Protocol):
    """
    A storage engine. Any number of tasks, processes and machines use the same storage at once.

    Constructors and `shard_of` do no I/O. A store object is used by one event loop at a time; when that has ended another
    one may use it, and close it. In the child of a fork it starts anew: a batch number there is another batch.
    """

    @property
    def name(self) -> str:
        """What to call it in messages and metrics: kind and place, no secrets."""

    @property
    def shards(self) -> int:
        """How many shards it has, 1 or more; they are numbered from 0."""

    @property
    def look_every(self) -> float | None:
        """
        Seconds between two looks (`census`) that a process with nothing else to do should take, None for no need.

        For stores in which something runs out with time: so that it is noticed and counted though nobody comes.
        """

    @property
    def remembers_batches(self) -> float:
        """For how many seconds after its first attempt the number of a batch is known for certain."""

    def shard_of(self, session: str | None) -> int:
        """Return the shard that has the events of *session*; the same in every process."""

    async def append(self, shard: int, records: Sequence[Record], *, batch: int, timeout: float) -> Appended:
        """
        Store *records*, all of this shard, in one atomic step, in order within each session, and trim what left the window.

        *batch* numbers the batches of this store object. The same number again is the same batch again, after an error in
        doubt: it is stored if it was not, and never twice (within a minute at least). Such a call may return zeros
        beside `stored`. A record whose (origin, event_id) the store knows is not stored and counts as a duplicate: ids
        are known while their event waits or is on lease, and for a time after it has gone or was buried.
        """

    async def take(
        self,
        shard: int,
        lease: str,
        limit: int,
        *,
        hold: float,
        timeout: float,
        session: SessionFilter = UNSET,
        kinds: Collection[str] | None = None,
        cursor: str = "",
        in_order: bool = True,
        holder: str = "",
    ) -> Page:
        """
        Move up to *limit* (1 or more) events to *lease*, which from now on runs out in *hold* seconds. A page may be full
        with fewer, when they are large: then its `cursor` is not "".

        Calls with the same name add to the same lease. Without filters the oldest are taken, in order; with *in_order*
        false those that are cheapest to take, in any order, for who takes everything and sorts it himself. With *session*
        only events of that session, in order. With *kinds* only events of those types: a page then may be short or
        empty though more can be found from its `cursor`, and the order holds within a session only. An empty page of a
        new lease makes no lease.

        With a *holder* (only without filters and in order; *lease* begins with it) nothing is taken while a lease of the
        shard whose name does not begin with it has events: what a dead holder had comes before what came after it.
        """

    async def acknowledge(
        self,
        shard: int,
        lease: str,
        events: Sequence[StoredEvent] | None,
        *,
        timeout: float,
        reason: DropReason | None = None,
    ) -> bool:
        """
        Let *events* of *lease* go for good, or (None) all that it still has, which ends it.

        They count as delivered, or as dropped for *reason*. Events that were acknowledged before are passed over; a lease
        all of whose events were named goes on, empty, until it is ended or runs out. False when there is no such lease.
        """

    async def extend(self, shard: int, lease: str, *, hold: float, timeout: float) -> bool:
        """Let *lease* run out *hold* seconds from now; False when there is no such lease."""

    async def give_back(self, shard: int, lease: str, *, timeout: float) -> bool:
        """Let all that *lease* still has wait again at its old places; False when there is no such lease."""

    async def quarantine(self, shard: int, lease: str, events: Sequence[StoredEvent], *, timeout: float) -> bool:
        """
        Put *events* of *lease* aside, counted as dropped ("undecodable"); False when there is no such lease.

        The newest 1,000 are kept, as long as other events are.
        """

    async def quarantined(self, shard: int, *, timeout: float) -> list[Quarantined]:
        """Return what was put aside, oldest first."""

    async def bury(
        self, shard: int, lease: str, letters: Sequence[tuple[StoredEvent, bytes]], *, timeout: float
    ) -> bool:
        """
        Move events of *lease*, each with its evidence, to the dead letters in one atomic step; False without such a lease.

        They count as dropped ("dead_letter"). Dead letters outlive the window and the idle time of the shard; when there
        are more than the store's bound the oldest go. An event that was redriven keeps the evidence of its earlier deaths.
        Events of *lease* that were acknowledged before are passed over.
        """

    async def dead_letters(
        self, shard: int, limit: int, *, cursor: str = "", timeout: float
    ) -> tuple[list[Buried], str]:
        """Return up to *limit* dead letters, the first buried first, and where to go on ("" when there are no more)."""

    async def dead_letter(self, shard: int, arrival: int, *, timeout: float) -> Buried | None:
        """Return one dead letter, None when there is none of that name."""

    async def redrive(self, shard: int, arrivals: Sequence[int], *, timeout: float) -> list[int]:
        """
        Let dead letters wait again in one atomic step, as if they had just come; return those that do.

        They are ordered by the time of this call, and among themselves by arrival, which they keep. They count as received
        once more. Their evidence is kept until they are buried again, or as long as a dead letter would be. What is no
        dead letter (any more) is passed over.
        """

    async def purge(self, shard: int, arrivals: Sequence[int] | None, *, timeout: float) -> int:
        """Discard dead letters (None: all) for good; return how many. They were counted when they were buried."""

    async def peek(self, shard: int, limit: int | None, *, timeout: float) -> list[StoredEvent]:
        """Return the *limit* newest waiting events (None: all) in order, and leave them."""

    async def sessions(self, shard: int, *, timeout: float) -> dict[str | None, int]:
        """Return the sessions that have waiting events, with how many."""

    async def census(self, shard: int, *, timeout: float) -> Census:
        """Count; events of leases that ran out wait again after this, and sessions idle for too long are given up."""

    async def inspect(self, *, timeout: float) -> list[str]:
        """Return what is wrong with the storage's configuration, one sentence each, with the remedy; [] when all is well."""

    async def aclose(self) -> None:
        """Release connections and files. May be called twice."""
