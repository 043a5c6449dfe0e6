"""An EventStore in memory that keeps every promise, and breaks down on demand: what a DurableBuffer is tested over."""

from __future__ import annotations

import bisect
import copy
import itertools
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import anyio
import anyio.lowlevel
import msgspec
from msgspec import UNSET

from connector_sdk.buffers.store import (
    Appended,
    Buried,
    Census,
    Page,
    Quarantined,
    Record,
    SessionFilter,
    StoredEvent,
)
from connector_sdk.errors import BufferUnavailableError
from connector_sdk.ledger import DropReason, Ledger

AnswerT = TypeVar("AnswerT")


class Kept(msgspec.Struct, eq=False):
    """One event in a shard."""

    event: StoredEvent
    session: str | None
    arrived: float

    @property
    def order(self) -> tuple[float, int]:
        return self.event.time, self.event.arrival


class Held(msgspec.Struct, eq=False):
    """A lease."""

    runs_out: float
    events: dict[int, Kept] = msgspec.field(default_factory=dict)


class Letter(msgspec.Struct, eq=False):
    """A dead letter, and its place among them."""

    place: int
    kept: Kept
    evidence: list[bytes]
    buried_at: float

    def shown(self) -> Buried:
        return Buried(self.kept.session, self.kept.event, list(self.evidence), self.buried_at)


class Shard:
    """What one shard holds, and its account."""

    def __init__(self, *, known_ids: bool) -> None:
        self.known_ids = known_ids
        self.letters: dict[int, Letter] = {}  # by arrival, the first buried first
        self.redriven: dict[int, list[bytes]] = {}  # the evidence of those that wait again
        self.burials = 0
        self.waiting: list[Kept] = []
        self.leases: dict[str, Held] = {}
        self.aside: list[Quarantined] = []
        self.batches: dict[tuple[int, int], float] = {}  # number of the store object, and of the batch: since when
        self.ids: set[tuple[str, str]] = set()
        self.arrivals = 0
        self.received = 0
        self.delivered = 0
        self.dropped: dict[DropReason, int] = {}

    def put(self, record: Record, now: float) -> bool:
        self.received += 1
        if record.event_id is not None and self.known_ids:
            key = (record.origin, record.event_id)
            if key in self.ids:
                self.drop(DropReason.DUPLICATE, 1)
                return False
            self.ids.add(key)
        self.arrivals += 1
        number = self.arrivals
        event = StoredEvent(record.time, number, record.body, record.kind, record.event_id, record.origin, number)
        bisect.insort(self.waiting, Kept(event, record.session, now), key=lambda kept: kept.order)
        return True

    def drop(self, reason: DropReason, count: int) -> None:
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def bury(self, kept: Kept, evidence: bytes, most: int) -> None:
        self.burials += 1
        arrival = kept.event.arrival
        deaths = [*self.redriven.pop(arrival, []), evidence]
        self.letters[arrival] = Letter(self.burials, kept, deaths, time.time())
        self.drop(DropReason.DEAD_LETTER, 1)
        while len(self.letters) > most:
            del self.letters[next(iter(self.letters))]

    def redrive(self, letter: Letter, now: float) -> None:
        event = msgspec.structs.replace(letter.kept.event, time=now)
        self.redriven[event.arrival] = letter.evidence
        self.received += 1
        if event.event_id is not None and self.known_ids:
            self.ids.add((event.origin, event.event_id))
        bisect.insort(
            self.waiting, Kept(event, letter.kept.session, time.monotonic()), key=lambda waiting: waiting.order
        )

    def give_back(self, held: Held) -> None:
        self.waiting = sorted([*self.waiting, *held.events.values()], key=lambda kept: kept.order)

    def expire(self, now: float) -> None:
        for name in [name for name, held in self.leases.items() if held.runs_out <= now]:
            self.give_back(self.leases.pop(name))


class Stop:
    """A storage that has stopped: requests wait until `resume`, which carries out also those whose callers gave up."""

    def __init__(self) -> None:
        self._resumed = anyio.Event()
        self._late: list[Callable[[], object]] = []

    def resume(self) -> None:
        for step in self._late:
            step()
        self._resumed.set()

    async def wait(self, step: Callable[[], object], timeout: float) -> None:
        with anyio.move_on_after(timeout) as scope:
            try:
                await self._resumed.wait()
            except BaseException:
                self._late.append(step)
                raise
        if scope.cancelled_caught:
            raise BufferUnavailableError("no answer", in_doubt=True)


class Fault(NamedTuple):
    """What happens to a call: after `seconds` and `stop` it is carried out (`applied`) or not; then `error` is raised."""

    error: Exception | None = None
    applied: bool = True
    stop: Stop | None = None
    seconds: float = 0.0


#: Chooses the fault of a call by its operation and shard; None for none.
Chooser: TypeAlias = Callable[[str, int], Fault | None]


def refused() -> Fault:
    """The storage could not be reached."""
    return Fault(BufferUnavailableError("connection refused"), applied=False)


def unanswered(*, applied: bool) -> Fault:
    """The request was sent and no answer came."""
    return Fault(BufferUnavailableError("connection lost", in_doubt=True), applied=applied)


def full() -> Fault:
    return Fault(BufferUnavailableError("out of memory", full=True), applied=False)


def bug() -> Fault:
    return Fault(ZeroDivisionError("a secret"), applied=False)


class MemoryStore:
    """
    Events in memory. `choose` decides what goes wrong; `calls` has the operations in order, `appends` their batches.

    `timeouts` has the latest time-out of each operation; no page has more than `largest_page` events; numbers of batches are
    forgotten after `memory` seconds.
    """

    def __init__(self, shards: int = 1, *, known_ids: bool = True, max_dead_letters: int = 10_000) -> None:
        self.max_dead_letters = max_dead_letters
        self.memory = 60.0  # seconds for which numbers of batches are known
        self.shard_list = [Shard(known_ids=known_ids) for _ in range(shards)]
        self.writers = itertools.count(1)
        self.writer = next(self.writers)
        self.choose: Chooser = _no_fault
        self.calls: list[str] = []
        self.appends: list[tuple[int, int]] = []  # number and size
        self.timeouts: dict[str, float] = {}
        self.largest_page = 1_000_000
        self.findings: list[str] = []
        self.evict: dict[DropReason, int] = {}
        self.running = 0
        self.most_running = 0
        self.closed = 0

    @property
    def name(self) -> str:
        return "memory"

    @property
    def shards(self) -> int:
        return len(self.shard_list)

    @property
    def look_every(self) -> float | None:
        return None

    @property
    def remembers_batches(self) -> float:
        return self.memory

    def shard_of(self, session: str | None) -> int:
        return sum((session or "").encode()) % len(self.shard_list)

    def another_process(self) -> MemoryStore:
        """Return a second store object over the same events."""
        other = copy.copy(self)
        other.writer = next(self.writers)
        return other

    # -- faults

    def break_down(self, fault: Callable[[], Fault] = refused, *operations: str) -> None:
        """From now on every call (of *operations*, if given) has this fault."""
        self.choose = lambda operation, shard: fault() if not operations or operation in operations else None

    def break_next(self, fault: Fault, operation: str, *, skip: int = 0) -> None:
        """The next call of *operation*, after *skip* of them, has this fault, and no call after it."""
        left = skip

        def choose(called: str, shard: int) -> Fault | None:
            nonlocal left
            if called != operation:
                return None
            left -= 1
            if left >= 0:
                return None
            self.recover()
            return fault

        self.choose = choose

    def stop(self, *operations: str) -> Stop:
        """Answer nothing from now on; `recover` and `resume` end that."""
        stop = Stop()
        self.break_down(lambda: Fault(stop=stop), *operations)
        return stop

    def recover(self) -> None:
        self.choose = _no_fault

    # -- what was stored

    def bodies(self) -> list[bytes]:
        """Return what waits or is on lease."""
        held = [kept for shard in self.shard_list for lease in shard.leases.values() for kept in lease.events.values()]
        waiting = [kept for shard in self.shard_list for kept in shard.waiting]
        return [kept.event.body for kept in waiting + held]

    def put_garbage(self, body: bytes = b"garbage", *, time: float = 0.0, shard: int = 0) -> None:
        self.shard_list[shard].put(Record(None, time, "actions", body), 0.0)

    def run_out(self) -> None:
        """Let the time of every lease be up."""
        for shard in self.shard_list:
            for held in shard.leases.values():
                held.runs_out = 0.0

    # -- the protocol

    async def append(self, shard: int, records: Sequence[Record], *, batch: int, timeout: float) -> Appended:
        def step() -> Appended:
            target = self.shard_list[shard]
            forgotten = time.monotonic() - self.memory
            target.batches = {name: since for name, since in target.batches.items() if since > forgotten}
            if (self.writer, batch) in target.batches:
                return Appended(stored=len(records))
            stored = sum([target.put(record, time.monotonic()) for record in records])
            target.batches[self.writer, batch] = time.monotonic()
            return Appended(stored, len(records) - stored, len(target.waiting), dropped=dict(self.evict))

        self.appends.append((batch, len(records)))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._do("append", shard, timeout, step)
        finally:
            self.running -= 1

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
        assert limit >= 1

        def wanted(kept: Kept) -> bool:
            return (session is UNSET or kept.session == session) and (kinds is None or kept.event.kind in kinds)

        def step() -> Page:
            target = self._shard(shard)
            if holder and any(held.events for name, held in target.leases.items() if not name.startswith(holder)):
                return Page([], len(target.waiting))
            chosen = [kept for kept in target.waiting if wanted(kept)]
            if kinds is not None or not in_order:  # session by session, as a store with a key for each does it
                chosen.sort(key=lambda kept: (kept.session or "", kept.order))
            most = min(limit, self.largest_page)
            page, more = chosen[:most], chosen[most:]
            gone = {id(kept) for kept in page}
            target.waiting = [kept for kept in target.waiting if id(kept) not in gone]
            if page or lease in target.leases:
                held = target.leases.setdefault(lease, Held(0.0))
                held.runs_out = time.monotonic() + hold
                held.events.update((kept.event.ticket, kept) for kept in page)
            filtered = session is not UNSET or kinds is not None
            return Page(
                [kept.event for kept in page],
                len(target.waiting),
                "more" if more and (filtered or most < limit) else "",
            )

        return await self._do("take", shard, timeout, step)

    async def acknowledge(
        self,
        shard: int,
        lease: str,
        events: Sequence[StoredEvent] | None,
        *,
        timeout: float,
        reason: DropReason | None = None,
    ) -> bool:
        def step() -> bool:
            target = self._shard(shard)
            held = target.leases.get(lease)
            if held is None:
                return False
            tickets = list(held.events) if events is None else [event.ticket for event in events]
            gone = [held.events.pop(ticket) for ticket in tickets if ticket in held.events]
            if reason is None:
                target.delivered += len(gone)
            else:
                target.drop(reason, len(gone))
            if events is None:
                del target.leases[lease]
            return True

        return await self._do("acknowledge", shard, timeout, step)

    async def extend(self, shard: int, lease: str, *, hold: float, timeout: float) -> bool:
        def step() -> bool:
            held = self._shard(shard).leases.get(lease)
            if held is not None:
                held.runs_out = time.monotonic() + hold
            return held is not None

        return await self._do("extend", shard, timeout, step)

    async def give_back(self, shard: int, lease: str, *, timeout: float) -> bool:
        def step() -> bool:
            target = self._shard(shard)
            held = target.leases.pop(lease, None)
            if held is not None:
                target.give_back(held)
            return held is not None

        return await self._do("give_back", shard, timeout, step)

    async def quarantine(self, shard: int, lease: str, events: Sequence[StoredEvent], *, timeout: float) -> bool:
        def step() -> bool:
            target = self._shard(shard)
            held = target.leases.get(lease)
            if held is None:
                return False
            gone = [held.events.pop(event.ticket) for event in events if event.ticket in held.events]
            target.aside += [Quarantined(kept.session, kept.event.body) for kept in gone]
            del target.aside[:-1000]
            target.drop(DropReason.UNDECODABLE, len(gone))
            if not held.events:
                del target.leases[lease]
            return True

        return await self._do("quarantine", shard, timeout, step)

    async def quarantined(self, shard: int, *, timeout: float) -> list[Quarantined]:
        return await self._do("quarantined", shard, timeout, lambda: list(self._shard(shard).aside))

    async def bury(
        self, shard: int, lease: str, letters: Sequence[tuple[StoredEvent, bytes]], *, timeout: float
    ) -> bool:
        def step() -> bool:
            target = self._shard(shard)
            held = target.leases.get(lease)
            if held is None:
                return False
            for event, evidence in letters:
                kept = held.events.pop(event.ticket, None)
                if kept is not None:
                    target.bury(kept, evidence, self.max_dead_letters)
            return True

        return await self._do("bury", shard, timeout, step)

    async def dead_letters(
        self, shard: int, limit: int, *, cursor: str = "", timeout: float
    ) -> tuple[list[Buried], str]:
        def step() -> tuple[list[Buried], str]:
            after = int(cursor or 0)
            found = [letter for letter in self._shard(shard).letters.values() if letter.place > after]
            page, more = found[:limit], found[limit:]
            return [letter.shown() for letter in page], str(page[-1].place) if more else ""

        return await self._do("dead_letters", shard, timeout, step)

    async def dead_letter(self, shard: int, arrival: int, *, timeout: float) -> Buried | None:
        def step() -> Buried | None:
            letter = self._shard(shard).letters.get(arrival)
            return None if letter is None else letter.shown()

        return await self._do("dead_letter", shard, timeout, step)

    async def redrive(self, shard: int, arrivals: Sequence[int], *, timeout: float) -> list[int]:
        def step() -> list[int]:
            target = self._shard(shard)
            chosen = [target.letters.pop(arrival) for arrival in dict.fromkeys(arrivals) if arrival in target.letters]
            now = time.time()
            for letter in chosen:
                target.redrive(letter, now)
            return [letter.kept.event.arrival for letter in chosen]

        return await self._do("redrive", shard, timeout, step)

    async def purge(self, shard: int, arrivals: Sequence[int] | None, *, timeout: float) -> int:
        def step() -> int:
            letters = self._shard(shard).letters
            chosen = [arrival for arrival in letters if arrivals is None or arrival in arrivals]
            for arrival in chosen:
                del letters[arrival]
            return len(chosen)

        return await self._do("purge", shard, timeout, step)

    async def peek(self, shard: int, limit: int | None, *, timeout: float) -> list[StoredEvent]:
        def step() -> list[StoredEvent]:
            waiting = self._shard(shard).waiting
            return [kept.event for kept in (waiting if limit is None else waiting[max(0, len(waiting) - limit) :])]

        return await self._do("peek", shard, timeout, step)

    async def sessions(self, shard: int, *, timeout: float) -> dict[str | None, int]:
        def step() -> dict[str | None, int]:
            return dict(Counter(kept.session for kept in self._shard(shard).waiting))

        return await self._do("sessions", shard, timeout, step)

    async def census(self, shard: int, *, timeout: float) -> Census:
        def step() -> Census:
            target = self._shard(shard)
            now = time.monotonic()
            return Census(
                ledger=Ledger(
                    received=target.received,
                    delivered=target.delivered,
                    buffered=len(target.waiting),
                    in_flight=sum(len(held.events) for held in target.leases.values()),
                    dropped=dict(target.dropped),
                ),
                sessions=len({kept.session for kept in target.waiting}),
                leases=len(target.leases),
                quarantined=len(target.aside),
                dead_letters=len(target.letters),
                oldest_age=now - min(kept.arrived for kept in target.waiting) if target.waiting else None,
            )

        return await self._do("census", shard, timeout, step)

    async def inspect(self, *, timeout: float) -> list[str]:
        return await self._do("inspect", 0, timeout, lambda: list(self.findings))

    async def aclose(self) -> None:
        self.closed += 1

    # -- inner

    def _shard(self, shard: int) -> Shard:
        target = self.shard_list[shard]
        target.expire(time.monotonic())
        return target

    async def _do(self, operation: str, shard: int, timeout: float, step: Callable[[], AnswerT]) -> AnswerT:
        self.calls.append(operation)
        self.timeouts[operation] = timeout
        fault = self.choose(operation, shard)
        await anyio.lowlevel.checkpoint()
        if fault is None:
            return step()
        if fault.seconds:
            await anyio.sleep(fault.seconds)
        if fault.stop is not None:
            await fault.stop.wait(step, timeout)
        if fault.error is None:
            return step()
        if fault.applied:
            step()
        raise fault.error


def _no_fault(operation: str, shard: int) -> None:
    return None
