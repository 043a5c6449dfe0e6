"""
PostgresStore: an EventStore in a PostgreSQL database, shared by many processes and machines.

Each step is one call of a function of `sql/postgres_steps.sql`, and so one transaction; what the tables are is told in
`sql/postgres_tables.sql`. Works on PostgreSQL 13 and later, also through a pooler in transaction mode.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final, TypeAlias

from msgspec import UNSET

from connector_sdk.buffers.postgres_queries import CENSUS, LETTER, LETTER_PAGE, NEWEST, QUARANTINED, SESSIONS, SETTINGS
from connector_sdk.buffers.postgres_rows import bytes_of, event_of, label_of, letter_of, name_of
from connector_sdk.buffers.postgres_schema import prepare
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
from connector_sdk.forks import start_empty_after_fork
from connector_sdk.ledger import DropReason, Ledger
from connector_sdk.postgres_client import (
    Connection,
    PostgresClient,
    PostgresRefusedError,
    PostgresUnavailableError,
)

__all__ = ["PostgresStore", "PostgresStoreOptions"]

#: What a statement returns; psycopg knows the types only when it runs.
_Row: TypeAlias = tuple[Any, ...]

_LOOK: Final = 60.0  # seconds between looks at the least
_REMEMBERED: Final = 600.0
_QUARANTINED: Final = 1000
_PAGE_BYTES: Final = 4 * 1024 * 1024  # after which a page ends
_PAGE_EVENTS: Final = 20_000
#: No such table, function or schema: somebody has removed them.
_GONE: Final = frozenset({"42P01", "42883", "3F000"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresStoreOptions:
    """What a PostgresStore keeps and for how long; all times in seconds. See `PostgresEventBuffer` for each."""

    key_prefix: str = "default"
    max_events: int | None = None
    max_bytes: int | None = None
    max_age: float | None = None
    dedupe: float = 600.0
    max_dead_letters: int = 10_000
    dead_letter_life: float = 7 * 86_400.0


class PostgresStore:
    """
    An `EventStore` of one shard in a database; see there for what each method promises.

    A step that is confirmed is on the server's disk, unless the server is told otherwise (`inspect` says so). Batches go to
    the server by *adder*, a client with one connection: so they arrive in the order of the calls. The clients are the
    store's: `aclose` closes them.
    """

    def __init__(
        self, client: PostgresClient, options: PostgresStoreOptions, *, adder: PostgresClient | None = None
    ) -> None:
        self._client = client
        self._adder = client if adder is None else adder
        self._options = options
        self._bounds = [
            inf if bound is None else float(bound)
            for bound in (
                options.max_events,
                options.max_bytes,
                options.max_age,
                options.dedupe,
                options.max_dead_letters,
                options.dead_letter_life,
            )
        ]
        self._writer = uuid.uuid4().hex
        self._is_ready = False
        start_empty_after_fork(self)

    @property
    def name(self) -> str:
        """Kind and place, no secrets."""
        return f"{self._client.address} {self._options.key_prefix!r}"

    @property
    def shards(self) -> int:
        """One: changes of one buffer come one after the other."""
        return 1

    @property
    def look_every(self) -> float:
        """Often enough that what is too old is noticed, and ids are forgotten."""
        max_age = self._options.max_age
        return _LOOK if max_age is None else min(_LOOK, max(0.05, max_age / 4))

    @property
    def remembers_batches(self) -> float:
        """Ten minutes."""
        return _REMEMBERED

    def shard_of(self, session: str | None) -> int:
        """Return 0."""
        del session
        return 0

    # -- in

    async def append(self, shard: int, records: Sequence[Record], *, batch: int, timeout: float) -> Appended:
        """Store a batch, in one transaction."""
        del shard
        stored, duplicates, size, expired, overflow = await self._step(
            "SELECT * FROM connector_buffers.append(%b, %b::float8[], %b, %b::bigint, %b::float8[], %b::bytea[], %b::bytea[], "
            "%b::bytea[], %b::bytea[], %b::bytea[])",
            (
                self._writer,
                batch,
                [float(record.time) for record in records],
                [label_of(record.session) for record in records],
                [bytes_of(record.kind) for record in records],
                [label_of(record.event_id) for record in records],
                [bytes_of(record.origin) for record in records],
                [record.body for record in records],
            ),
            timeout,
            repeatable=True,  # the number of the batch tells
            client=self._adder,
        )
        return Appended(
            stored=stored, duplicates=duplicates, size=size, dropped=_dropped(EXPIRED=expired, OVERFLOW=overflow)
        )

    # -- out

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
        """Take events, in order in any case."""
        del shard, in_order
        is_filtered = session is not UNSET or kinds is not None
        time, _, arrival = cursor.partition(" ") if is_filtered else ("", "", "")
        *columns, left, more, expired = await self._step(
            "SELECT * FROM connector_buffers.take(%b, %b::float8[], %b, %b::int, %b::bigint, %b::float8, %b::bytea, "
            "%b::bytea[], %b::float8, %b::bigint, %b)",
            (
                lease,
                min(limit, _PAGE_EVENTS),
                _PAGE_BYTES,
                float(hold),
                None if session is UNSET else label_of(session),
                None if kinds is None else [bytes_of(kind) for kind in kinds],
                float(time or -inf),
                int(arrival or -1),
                holder,
            ),
            timeout,
        )
        events = [event_of(row) for row in zip(*columns, strict=True)] if columns[0] else []
        following = f"{events[-1].time!r} {events[-1].arrival}" if more and events else ""
        return Page(events=events, left=left, cursor=following, dropped=_dropped(EXPIRED=expired))

    async def acknowledge(
        self,
        shard: int,
        lease: str,
        events: Sequence[StoredEvent] | None,
        *,
        timeout: float,
        reason: DropReason | None = None,
    ) -> bool:
        """Let events go."""
        del shard
        return await self._done(
            "SELECT connector_buffers.acknowledge(%b, %b::float8[], %b, %b::bigint[], %b)",
            (lease, None if events is None else [event.ticket for event in events], reason and reason.value),
            timeout,
        )

    async def extend(self, shard: int, lease: str, *, hold: float, timeout: float) -> bool:
        """Move the end of a lease."""
        del shard
        query = "SELECT connector_buffers.extend(%b, %b::float8[], %b, %b::float8)"
        return await self._done(query, (lease, hold), timeout, repeatable=True)

    async def give_back(self, shard: int, lease: str, *, timeout: float) -> bool:
        """Return events."""
        del shard
        return await self._done("SELECT connector_buffers.give_back(%b, %b::float8[], %b)", (lease,), timeout)

    async def quarantine(self, shard: int, lease: str, events: Sequence[StoredEvent], *, timeout: float) -> bool:
        """Put events aside."""
        del shard
        tickets = list(dict.fromkeys(event.ticket for event in events))
        query = "SELECT connector_buffers.set_aside(%b, %b::float8[], %b, %b::bigint[], %b::bigint)"
        return await self._done(query, (lease, tickets, _QUARANTINED), timeout)

    # -- dead letters

    async def bury(
        self, shard: int, lease: str, letters: Sequence[tuple[StoredEvent, bytes]], *, timeout: float
    ) -> bool:
        """Move events to the dead letters."""
        del shard
        chosen: dict[int, bytes] = {}
        for event, evidence in letters:
            chosen.setdefault(event.ticket, evidence)
        query = "SELECT connector_buffers.bury(%b, %b::float8[], %b, %b::bigint[], %b::bytea[])"
        return await self._done(query, (lease, list(chosen), list(chosen.values())), timeout)

    async def dead_letters(
        self, shard: int, limit: int, *, cursor: str = "", timeout: float
    ) -> tuple[list[Buried], str]:
        """Return a page of dead letters."""
        del shard
        rows = await self._look(
            LETTER_PAGE,
            (self._options.key_prefix, int(cursor or 0), limit + 1, _PAGE_BYTES),
            timeout,
        )
        page = [row[1:] for row in rows[:limit]]
        are_more = bool(page) and rows[0][0] > len(page)
        return [letter_of((*row,)) for row in page], str(page[-1][0]) if are_more else ""

    async def dead_letter(self, shard: int, arrival: int, *, timeout: float) -> Buried | None:
        """Return one dead letter."""
        del shard
        rows = await self._look(LETTER, (self._options.key_prefix, arrival), timeout)
        return letter_of(rows[0]) if rows else None

    async def redrive(self, shard: int, arrivals: Sequence[int], *, timeout: float) -> list[int]:
        """Let dead letters wait again."""
        del shard
        query = "SELECT connector_buffers.redrive(%b, %b::float8[], %b::bigint[])"
        (found,) = await self._step(query, (list(arrivals),), timeout)
        redriven: list[int] = found
        return redriven

    async def purge(self, shard: int, arrivals: Sequence[int] | None, *, timeout: float) -> int:
        """Discard dead letters."""
        del shard
        query = "SELECT connector_buffers.purge(%b, %b::float8[], %b::bigint[])"
        (count,) = await self._step(query, (None if arrivals is None else list(arrivals),), timeout)
        return int(count)

    # -- looking

    async def quarantined(self, shard: int, *, timeout: float) -> list[Quarantined]:
        """Return what was put aside."""
        del shard
        rows = await self._look(QUARANTINED, (self._options.key_prefix,), timeout)
        return [Quarantined(name_of(session), body) for session, body in rows]

    async def peek(self, shard: int, limit: int | None, *, timeout: float) -> list[StoredEvent]:
        """Show the newest."""
        del shard
        rows = await self._look(NEWEST, (self._options.key_prefix, limit), timeout)
        return [event_of((*row,)) for row in reversed(rows)]

    async def sessions(self, shard: int, *, timeout: float) -> dict[str | None, int]:
        """Return the sessions."""
        del shard
        rows = await self._look(SESSIONS, (self._options.key_prefix,), timeout)
        return {name_of(label): count for label, count in rows}

    async def census(self, shard: int, *, timeout: float) -> Census:
        """Count, in one statement."""
        del shard
        dropped: dict[DropReason, int] = {}
        rows = await self._look(CENSUS, (self._options.key_prefix,), timeout, dropped)
        if not rows:
            return Census(ledger=Ledger())
        received, delivered, waiting, in_flight, sessions, leases, quarantined, letters, age, reasons, counts = rows[0]
        return Census(
            ledger=Ledger(
                received=received,
                delivered=delivered,
                buffered=waiting,
                in_flight=in_flight,
                dropped={DropReason(reason): count for reason, count in zip(reasons, counts, strict=True)},
            ),
            sessions=sessions,
            leases=leases,
            quarantined=quarantined,
            dead_letters=letters,
            oldest_age=None if age is None else max(0.0, age),
            dropped=dropped,
        )

    async def inspect(self, *, timeout: float) -> list[str]:
        """Say what of the server's settings may cost events."""
        rows = await self._ask(SETTINGS, (), timeout, repeatable=True)
        findings = []
        if rows[0][0] == "off":
            findings.append("fsync is off: a crash of the server's machine may damage everything; set fsync = on")
        if rows[0][1] == "off":
            findings.append(
                "synchronous_commit is off: a crash of the server may cost events of the last moments, which were confirmed; "
                "set synchronous_commit = on for this user"
            )
        return findings

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()
        await self._adder.aclose()

    def after_fork_in_child(self) -> None:
        """Number batches anew: the parent goes on with its own."""
        self._writer = uuid.uuid4().hex

    def __repr__(self) -> str:
        return f"<PostgresStore {self.name}>"

    # -- inner

    async def _done(
        self, query: str, parameters: Sequence[object], timeout: float, *, repeatable: bool = False
    ) -> bool:
        (answer,) = await self._step(query, parameters, timeout, repeatable=repeatable)
        return bool(answer)

    async def _step(
        self,
        query: str,
        parameters: Sequence[object],
        timeout: float,
        *,
        repeatable: bool = False,
        client: PostgresClient | None = None,
    ) -> _Row:
        """Call a function; who waits for others gives up a little before we do, so that it is known to be undone."""
        head = (self._options.key_prefix, [*self._bounds, 900.0 * timeout])
        rows = await self._ask(query, (*head, *parameters), timeout, repeatable=repeatable, client=client)
        return rows[0]

    async def _look(
        self,
        query: str,
        parameters: Sequence[object],
        timeout: float,
        dropped: dict[DropReason, int] | None = None,
    ) -> list[_Row]:
        """Send a query that only reads; what has run out is seen to before."""
        try:
            (expired,) = await self._step(
                "SELECT connector_buffers.tidy(%b, %b::float8[])", (), timeout, repeatable=True
            )
        except BufferUnavailableError as error:
            if not error.full:
                raise
        else:
            if dropped is not None:
                dropped.update(_dropped(EXPIRED=expired))
        return await self._ask(query, parameters, timeout, repeatable=True)

    async def _ask(
        self,
        query: str,
        parameters: Sequence[object],
        timeout: float,
        *,
        repeatable: bool = False,
        client: PostgresClient | None = None,
    ) -> list[_Row]:
        client = self._client if client is None else client

        async def work(connection: Connection) -> list[_Row]:
            if not self._is_ready:
                await prepare(connection)
                self._is_ready = True
            cursor = await connection.execute(query.encode(), parameters or None, binary=True)
            return await cursor.fetchall()

        try:
            was_ready = self._is_ready
            try:
                return await client.run(work, timeout=timeout, repeatable=repeatable)
            except PostgresRefusedError as error:
                if error.code not in _GONE or not was_ready:
                    raise
            self._is_ready = False
            return await client.run(work, timeout=timeout, repeatable=repeatable)
        except PostgresRefusedError as error:
            raise BufferUnavailableError(str(error), in_doubt=error.in_doubt, full=error.full) from error
        except PostgresUnavailableError as error:
            raise BufferUnavailableError(str(error), in_doubt=error.in_doubt) from error


def _dropped(**counts: int) -> Mapping[DropReason, int]:
    return {DropReason[name]: count for name, count in counts.items() if count}
