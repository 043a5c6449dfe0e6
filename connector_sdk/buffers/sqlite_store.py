"""
SQLiteStore: an EventStore in one file, shared by the processes of one machine.

Each step is one transaction, done by the thread of sqlite_worker.py on the file of sqlite_file.py. What the tables are is
told in `sql/schema.sql`. Needs SQLite 3.25 or later.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final, TypeVar

from msgspec import UNSET
from msgspec.structs import replace

from connector_sdk.buffers.forks import start_empty_after_fork
from connector_sdk.buffers.redis_batches import BatchNumbers
from connector_sdk.buffers.sqlite_clock import StoreClock
from connector_sdk.buffers.sqlite_file import StoreFile, Synchronous
from connector_sdk.buffers.sqlite_letters import LetterSteps
from connector_sdk.buffers.sqlite_steps import SQLiteStoreOptions, Steps
from connector_sdk.buffers.sqlite_worker import Worker
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
from connector_sdk.ledger import DropReason

__all__ = ["SQLiteStore", "SQLiteStoreOptions"]

AnswerT = TypeVar("AnswerT")

_LOOK: Final = 60.0  # seconds between looks at the least
_REMEMBERED: Final = 600.0


class SQLiteStore:
    """
    An `EventStore` of one shard in a file; see there for what each method promises.

    A step that is confirmed is on the disk, with `synchronous` "full". Only who has which event on lease is not: after a
    loss of power events on lease come again.
    """

    def __init__(
        self,
        path: Path,
        options: SQLiteStoreOptions,
        *,
        synchronous: Synchronous = "full",
        clock: StoreClock | None = None,
    ) -> None:
        self._path = path
        self._options = options
        clock = StoreClock() if clock is None else clock
        self._steps = Steps(options, clock)
        self._letters = LetterSteps(self._steps, options, clock)
        self._worker = Worker(StoreFile(path, synchronous, clock))
        self._batches = BatchNumbers()
        start_empty_after_fork(self)

    @property
    def name(self) -> str:
        """Kind and place."""
        return f"sqlite {self._path}"

    @property
    def shards(self) -> int:
        """One: a file has one writer at a time."""
        return 1

    @property
    def look_every(self) -> float:
        """Often enough that what is too old is noticed, and ids are forgotten."""
        max_age = self._options.max_age
        return _LOOK if max_age is None else min(_LOOK, max(0.05, max_age / 4))

    @property
    def remembers_batches(self) -> float:
        """Ten minutes, and much longer while the writer writes."""
        return _REMEMBERED

    def shard_of(self, session: str | None) -> int:
        """Return 0."""
        del session
        return 0

    # -- in

    async def append(self, shard: int, records: Sequence[Record], *, batch: int, timeout: float) -> Appended:
        """Store a batch; those that wait at the same time share a transaction."""
        del shard
        writer, number, kept = self._batches.writer, self._batches.number(batch), tuple(records)
        return await self._worker.ask(
            lambda db: self._steps.append(db, kept, writer, number), timeout, events=max(1, len(kept))
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
        chosen = None if kinds is None else tuple(kinds)
        return await self._worker.ask(
            lambda db: self._steps.take(
                db, lease, limit, hold=hold, session=session, kinds=chosen, cursor=cursor, holder=holder
            ),
            timeout,
            synced=False,
        )

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
        tickets = None if events is None else [event.ticket for event in events]
        return await self._worker.ask(lambda db: self._steps.acknowledge(db, lease, tickets, reason), timeout)

    async def extend(self, shard: int, lease: str, *, hold: float, timeout: float) -> bool:
        """Move the end of a lease."""
        del shard
        return await self._worker.ask(lambda db: self._steps.extend(db, lease, hold), timeout, synced=False)

    async def give_back(self, shard: int, lease: str, *, timeout: float) -> bool:
        """Return events."""
        del shard
        return await self._worker.ask(lambda db: self._steps.give_back(db, lease), timeout, synced=False)

    async def quarantine(self, shard: int, lease: str, events: Sequence[StoredEvent], *, timeout: float) -> bool:
        """Put events aside."""
        del shard
        tickets = [event.ticket for event in events]
        return await self._worker.ask(lambda db: self._steps.quarantine(db, lease, tickets), timeout)

    # -- dead letters

    async def bury(
        self, shard: int, lease: str, letters: Sequence[tuple[StoredEvent, bytes]], *, timeout: float
    ) -> bool:
        """Move events to the dead letters."""
        del shard
        chosen: dict[int, bytes] = {}
        for event, evidence in letters:
            chosen.setdefault(event.ticket, evidence)
        return await self._worker.ask(lambda db: self._letters.bury(db, lease, chosen), timeout)

    async def dead_letters(
        self, shard: int, limit: int, *, cursor: str = "", timeout: float
    ) -> tuple[list[Buried], str]:
        """Return a page of dead letters."""
        del shard
        return await self._look(lambda db: self._letters.page(db, limit, cursor), timeout)

    async def dead_letter(self, shard: int, arrival: int, *, timeout: float) -> Buried | None:
        """Return one dead letter."""
        del shard
        return await self._look(lambda db: self._letters.one(db, arrival), timeout)

    async def redrive(self, shard: int, arrivals: Sequence[int], *, timeout: float) -> list[int]:
        """Let dead letters wait again."""
        del shard
        chosen = tuple(arrivals)
        return await self._worker.ask(lambda db: self._letters.redrive(db, chosen), timeout)

    async def purge(self, shard: int, arrivals: Sequence[int] | None, *, timeout: float) -> int:
        """Discard dead letters."""
        del shard
        chosen = None if arrivals is None else tuple(arrivals)
        return await self._worker.ask(lambda db: self._letters.purge(db, chosen), timeout)

    # -- looking

    async def quarantined(self, shard: int, *, timeout: float) -> list[Quarantined]:
        """Return what was put aside."""
        del shard
        return await self._look(self._steps.quarantined, timeout)

    async def peek(self, shard: int, limit: int | None, *, timeout: float) -> list[StoredEvent]:
        """Show the newest."""
        del shard
        return await self._look(lambda db: self._steps.peek(db, limit), timeout)

    async def sessions(self, shard: int, *, timeout: float) -> dict[str | None, int]:
        """Return the sessions."""
        del shard
        return await self._look(self._steps.sessions, timeout)

    async def census(self, shard: int, *, timeout: float) -> Census:
        """Count."""
        del shard
        dropped: dict[DropReason, int] = {}
        census = await self._look(self._steps.census, timeout, dropped)
        return replace(census, dropped=dropped) if dropped else census

    async def inspect(self, *, timeout: float) -> list[str]:
        """Say which files are set aside because they were damaged."""
        rows = await self._worker.ask(
            lambda db: db.execute("SELECT name, why FROM set_aside ORDER BY at").fetchall(), timeout, writes=False
        )
        return [
            f"a damaged file ({why}) was set aside as {name}: look whether its events can be recovered with "
            "`sqlite3 FILE .recover`, look after the disk, and remove it"
            for name, why in rows
            if os.path.exists(name)  # noqa: ASYNC240 - a look at a name, once in the life of a store
        ]

    async def aclose(self) -> None:
        """Write what is in the log to its place and close the file."""
        await self._worker.close()

    def after_fork_in_child(self) -> None:
        """Number batches anew: the parent goes on with its own."""
        self._batches = BatchNumbers()

    def __repr__(self) -> str:
        return f"<SQLiteStore {self._path}>"

    # -- inner

    async def _look(
        self,
        work: Callable[[sqlite3.Connection], AnswerT],
        timeout: float,
        dropped: dict[DropReason, int] | None = None,
    ) -> AnswerT:
        """Do *work*, which only reads; what has run out is seen to before."""

        def read(db: sqlite3.Connection) -> tuple[AnswerT] | None:
            return None if self._steps.is_due(db) else (work(db),)

        def upkeep_and_read(db: sqlite3.Connection) -> tuple[AnswerT, dict[DropReason, int]]:
            self._steps.give_late_back(db)
            expired = self._steps.expire(db)
            if self._steps.sweeps():
                self._steps.sweep(db)
                self._letters.sweep(db)
            return work(db), expired

        found = await self._worker.ask(read, timeout, writes=False)
        if found is not None:
            return found[0]
        try:
            answer, expired = await self._worker.ask(upkeep_and_read, timeout)
        except BufferUnavailableError as error:
            if not error.full:
                raise
            return await self._worker.ask(work, timeout, writes=False)
        if dropped is not None:
            dropped.update(expired)
        return answer
