"""A log in PostgreSQL: tables that hold everything, and notifications that only say that there is something to read."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, Literal, cast

from connector_sdk.background import OwnedTasks, current_event_loop
from connector_sdk.bus.bounds import check_kept, check_lifetime, check_retention
from connector_sdk.bus.log import START, Body, GroupInfo, Loss, Reading, Record, Reserved, StoredLetter, TopicInfo
from connector_sdk.bus.postgres_calls import Calls, Row
from connector_sdk.bus.postgres_member import MOST_BYTES, PostgresMember, number_of
from connector_sdk.bus.postgres_publisher import Bounds, Publisher, Retention
from connector_sdk.bus.postgres_schema import Names
from connector_sdk.bus.postgres_wakeups import Listener, Wakeups
from connector_sdk.errors import BusClosedError, BusUnavailableError, ConfigurationError
from connector_sdk.forks import start_empty_after_fork
from connector_sdk.options import check_integer, check_seconds
from connector_sdk.postgres_client import PostgresAddress

__all__ = ["PostgresLog"]

_READ: Final = (
    "SELECT kind, topic, seq, count, body"
    " FROM events_read(%s::text[], %s::bigint[], %s::bigint, %s::integer, %s::bigint)"
)
_LETTER: Final = "id, topic, grp, seq, body, evidence, extract(epoch FROM buried_at)::double precision"
_LETTER_ID: Final = re.compile(r"[0-9]{1,18}")
_FORGOTTEN_AT_ONCE: Final = 10_000
_TENDING: Final = (0.05, 60.0)  # seconds between looks after retention, at least and at most


class PostgresLog:
    """
    An `EventLog` in PostgreSQL 13 or later, over psycopg 3, which the extra `connector_sdk[postgres]` installs; on asyncio.

    Tables are made at `connect`, in the first schema of the search path. Payloads may have any size (PostgreSQL takes up to
    1 GB). Notifications are only wake-ups: readers go by numbers that have no gaps, so nothing is missed when one is lost.
    Times are the server's. A transaction pooler may be between: then events are looked for every *poll_interval* seconds.
    At most 4 connections are open, and one that listens.

    Args:
        dsn: an address, `postgresql://user@host/database` or words of libpq; what it leaves out comes from the environment.
        key_prefix: the beginning of all names of tables, functions and the channel; buses with the same one are one bus.
        max_events: how many events of each topic are kept, 10 to 100,000.
        ttl_seconds: how long, 60 to 604,800 seconds (a week).
        max_backlog: how many events of a topic are kept at most for groups that have not finished them; the oldest of more are
            lost, and the group is told. At least *max_events*; as every bound, it may be passed by a tenth of *max_events*.
        max_backlog_seconds: how long they are kept for them at most; at least *ttl_seconds*.
        retention: (max_events, ttl_seconds) of topics that have others.
        max_dead_letters: how many dead letters of each topic are kept; the oldest go.
        dead_letter_seconds: how long a dead letter is kept.
        connect_timeout: seconds until an attempt to connect is given up.
        response_timeout: seconds until a request without an answer is given up.
        notify: "auto" listens for notifications and finds out at the start whether they arrive; True: they must, or `connect`
            raises; False: it looks every *poll_interval* seconds.
        poll_interval: seconds between looks for new events while nobody tells of them.

    Raises:
        ConfigurationError: an option has a value that cannot work, or psycopg is not installed.
    """

    def __init__(
        self,
        dsn: str,
        key_prefix: str = "events",
        *,
        max_events: int = 1000,
        ttl_seconds: float = 3600.0,
        max_backlog: int = 100_000,
        max_backlog_seconds: float = 604_800.0,
        retention: Mapping[str, tuple[int, float]] | None = None,
        max_dead_letters: int = 10_000,
        dead_letter_seconds: float = 604_800.0,
        connect_timeout: float = 5.0,
        response_timeout: float = 10.0,
        notify: Literal["auto"] | bool = "auto",
        poll_interval: float = 0.5,
    ) -> None:
        usual = Bounds(
            *check_kept(max_events, ttl_seconds),
            check_integer("max_backlog", max_backlog, minimum=max_events),
            check_lifetime("max_backlog_seconds", max_backlog_seconds, minimum=ttl_seconds),
        )
        check_integer("max_dead_letters", max_dead_letters, minimum=0, maximum=2**31 - 1)
        check_lifetime("dead_letter_seconds", dead_letter_seconds)
        check_seconds("connect_timeout", connect_timeout, above=0.0)
        check_seconds("response_timeout", response_timeout, above=0.0)
        check_seconds("poll_interval", poll_interval, minimum=0.01)
        if notify not in ("auto", True, False):
            raise ConfigurationError("notify", notify, '"auto", True or False')
        self._notify = notify
        self._max_dead_letters = max_dead_letters
        self._dead_letter_seconds = dead_letter_seconds
        self._retention = Retention(
            usual,
            {
                topic: Bounds(events, seconds, max(max_backlog, events), max(max_backlog_seconds, seconds))
                for topic, (events, seconds) in check_retention(retention).items()
            },
        )
        self._address = PostgresAddress.parse(dsn)
        self._names = Names(key_prefix)
        self._calls = Calls(
            self._address, self._names, connect_timeout=connect_timeout, response_timeout=response_timeout
        )
        self._poll_interval = poll_interval
        self._closed = False
        self._start_anew()
        start_empty_after_fork(self)

    def _start_anew(self) -> None:
        self._wakeups = Wakeups(self._poll_interval)
        self._tasks: OwnedTasks | None = None
        self._publisher: Publisher | None = None

    def after_fork_in_child(self) -> None:
        """Leave tasks, members and connections to the parent; another bus may connect the log here."""
        self._start_anew()

    @property
    def name(self) -> str:
        """See `EventLog.name`."""
        return f"{self._address} {self._names.prefix}"

    @property
    def keeps_objects(self) -> bool:
        """See `EventLog.keeps_objects`."""
        return False

    @property
    def listening(self) -> bool:
        """Whether notifications wake those who wait; else they look every *poll_interval* seconds."""
        return self._wakeups.listening

    def __repr__(self) -> str:
        return f"<PostgresLog {self.name}>"

    # ------------------------------------------------------------------------------------------ opening and closing

    async def connect(self) -> None:
        """See `EventLog.connect`."""
        if self._closed:
            raise BusClosedError(f"the log {self.name} was closed")
        await self._calls.prepare()
        if self._tasks is not None:
            return
        listener = None
        if self._notify is not False:
            listener = Listener(self._calls, self._wakeups, required=self._notify is True)
            if not await listener.open():
                listener = None
        if listener is not None:
            self._calls.prepare_threshold = 2
        tasks = self._tasks = OwnedTasks(current_event_loop())
        if listener is not None:
            tasks.start(listener.run, f"listening to {self._address}")
        tasks.start(self._tend_for_ever, f"looking after {self._address}")
        self._publisher = Publisher(self._calls, self._retention)

    async def aclose(self) -> None:
        """See `EventLog.aclose`."""
        self._closed = True
        tasks, self._tasks = self._tasks, None
        if tasks is not None:
            tasks.cancel()
        await self._calls.aclose()
        if tasks is not None:
            await tasks.wait()
        if self._publisher is not None:
            await self._publisher.aclose()
        self._wakeups.tell_all()

    async def ping(self) -> None:
        """See `EventLog.ping`."""
        await self._calls.rows("SELECT 1", repeatable=True)

    async def _tend_for_ever(self) -> None:
        shortest, longest = _TENDING
        while True:
            await asyncio.sleep(min(max(shortest, self._retention.tightest[1] / 10), longest))
            try:
                await self.tend()
            except (BusUnavailableError, BusClosedError):
                continue  # whoever publishes or reads hears of it, and the next time comes

    async def tend(self) -> None:
        """Let go what retention does not keep; done by itself from time to time."""
        untidy = await self._calls.rows(
            "SELECT id, topic FROM events_untidy(%s::bigint, %s::double precision)", self._retention.tightest
        )
        for number, topic in untidy:
            await self._calls.rows(
                "SELECT events_tend(%s::bigint, %s::bigint, %s::double precision, %s::bigint, %s::double precision)",
                (number, *self._retention.of(cast(str, topic)).parameters),
            )
        await self._calls.rows(
            "WITH gone AS (DELETE FROM events_letters WHERE buried_at < clock_timestamp() - make_interval(secs => %s)"
            " RETURNING 1) SELECT count(*) FROM gone",
            (self._dead_letter_seconds,),
        )
        # As many as there are: keys may come faster than one step in each of its pauses removes them.
        forget = "SELECT events_forget(%s::integer)"
        while await self._calls.number(forget, (_FORGOTTEN_AT_ONCE,)) == _FORGOTTEN_AT_ONCE:
            continue

    # ------------------------------------------------------------------------------------------ entries

    async def append(self, entries: Sequence[tuple[str, Body]]) -> list[str]:
        """See `EventLog.append`."""
        if self._publisher is None or self._closed:
            raise BusClosedError(f"the log {self.name} is not connected")
        return await self._publisher.append(entries)

    async def read(
        self, cursors: Mapping[str, str], *, catalogue: str | None = None, limit: int = 1000, wait: float = 0.0
    ) -> Reading:
        """See `EventLog.read`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + wait
        known = None if catalogue is None else number_of(catalogue)
        with self._wakeups.waiter(cursors.keys(), catalogue=known is not None) as waiter:
            while True:
                waiter.look()
                reading = await self._read(cursors, known, limit)
                left = until - loop.time()
                # Who has no catalogue's cursor yet must have one before it may be cancelled.
                if reading.records or reading.topics or reading.losses or known == 0 or left <= 0:
                    return reading
                await waiter.wait(min(left, self._wakeups.longest))

    async def _read(self, cursors: Mapping[str, str], catalogue: int | None, limit: int) -> Reading:
        numbers = [number_of(cursor) for cursor in cursors.values()]
        rows = await self._calls.rows(_READ, (list(cursors), numbers, catalogue, limit, MOST_BYTES), repeatable=True)
        records: list[Record] = []
        topics: list[str] = []
        losses: list[Loss] = []
        jumps: dict[str, str] = {}
        found = START
        for kind, topic, seq, count, body in cast("list[tuple[str, str, int, int | None, bytes]]", rows):
            if kind == "e":
                records.append(Record(topic, str(seq), body))
            elif kind == "n":
                topics.append(topic)
            elif kind == "c":
                found = str(seq)
            else:
                losses.append(Loss(topic=topic, reason="lost" if count is None else "trimmed", count=count))
                jumps[topic] = str(seq)
        for record in records if jumps else ():
            jumps.pop(record.topic, None)  # its cursor goes on from there
        return Reading(records=records, topics=topics, catalogue=found, cursors=jumps, losses=losses)

    async def topics(self) -> tuple[list[str], str]:
        """See `EventLog.topics`."""
        ((topics, catalogue),) = await self._calls.rows(
            "SELECT ARRAY(SELECT topic FROM events_topics), topics FROM events_log", repeatable=True
        )
        return sorted(cast("list[str]", topics)), str(catalogue)

    async def end(self, topic: str) -> str:
        """See `EventLog.end`."""
        return await self._position("SELECT last FROM events_topics WHERE topic = %s AND last > born", (topic,))

    async def position_at(self, topic: str, time: datetime) -> str:
        """See `EventLog.position_at`."""
        return await self._position(
            "SELECT events_position_at(id, to_timestamp(%s)) FROM events_topics WHERE topic = %s",
            (time.timestamp(), topic),
        )

    async def _position(self, statement: str, parameters: Sequence[object]) -> str:
        rows = await self._calls.rows(statement, parameters, repeatable=True)
        return str(rows[0][0]) if rows else START

    def order(self, position: str) -> tuple[int, ...]:
        """See `EventLog.order`."""
        return (number_of(position),)

    async def info(self, topic: str) -> TopicInfo | None:
        """See `EventLog.info`."""
        rows = await self._calls.rows(
            "SELECT length, first, last, age, letters, name, consumers, pending, lag, delivered FROM events_info(%s)",
            (topic,),
            repeatable=True,
        )
        return _info(topic, rows) if rows else None

    # ------------------------------------------------------------------------------------------ groups and dead letters

    def member(self, group: str, consumer: str, *, hold: float) -> PostgresMember:
        """See `EventLog.member`."""
        return PostgresMember(
            self._calls,
            self._wakeups,
            group=group,
            consumer=consumer,
            hold=hold,
            max_dead_letters=self._max_dead_letters,
        )

    async def bury(self, topic: str, position: str, body: Body, evidence: bytes) -> str:
        """See `EventLog.bury`."""
        number = await self._calls.number(
            "SELECT events_keep(%s, NULL, %s::bigint, NULL, %b::bytea, %b::bytea, %s::integer)",
            (topic, number_of(position), body, evidence, self._max_dead_letters),
        )
        return str(number)

    async def dead_letters(
        self, topic: str | None, limit: int, *, cursor: str = START
    ) -> tuple[list[StoredLetter], str]:
        """See `EventLog.dead_letters`."""
        where, named = ("", ()) if topic is None else ("topic = %s AND ", (topic,))
        rows = await self._calls.rows(
            f"SELECT {_LETTER} FROM events_letters WHERE {where}id > %s::bigint ORDER BY id LIMIT %s::bigint",  # noqa: S608 - texts of ours
            (*named, number_of(cursor), limit + 1),
            repeatable=True,
        )
        letters = [_letter(row) for row in rows[:limit]]
        return letters, letters[-1].id if len(rows) > limit else START

    async def dead_letter(self, letter: str) -> StoredLetter | None:
        """See `EventLog.dead_letter`."""
        if _LETTER_ID.fullmatch(letter) is None:
            return None
        statement = f"SELECT {_LETTER} FROM events_letters WHERE id = %s::bigint"  # noqa: S608 - texts of ours
        rows = await self._calls.rows(statement, (int(letter),), repeatable=True)
        return _letter(rows[0]) if rows else None

    async def redrive(self, letter: str) -> bool:
        """See `EventLog.redrive`."""
        if _LETTER_ID.fullmatch(letter) is None:
            return False
        return bool(await self._calls.value("SELECT events_redrive(%s::bigint)", (int(letter),)))

    async def purge(self, letters: Sequence[str]) -> int:
        """See `EventLog.purge`."""
        known = [int(letter) for letter in letters if _LETTER_ID.fullmatch(letter)]
        return await self._calls.number(
            "WITH gone AS (DELETE FROM events_letters WHERE id = ANY (%s::bigint[]) RETURNING 1)"
            " SELECT count(*) FROM gone",
            (known,),
        )

    # ------------------------------------------------------------------------------------------ keys

    async def reserve(self, key: str, holder: str, hold: float) -> Reserved:
        """See `EventLog.reserve`."""
        statement = "SELECT events_reserve(%b::bytea, %s, %s::double precision)"
        return cast("Reserved", await self._calls.value(statement, (_key(key), holder, hold), repeatable=True))

    async def keep(self, key: str, holder: str, ttl: float) -> bool:
        """See `EventLog.keep`."""
        statement = "SELECT events_keep_key(%b::bytea, %s, %s::double precision)"
        return bool(await self._calls.value(statement, (_key(key), holder, ttl), repeatable=True))

    async def free(self, key: str, holder: str) -> None:
        """See `EventLog.free`."""
        await self._calls.rows("SELECT events_free(%b::bytea, %s)", (_key(key), holder), repeatable=True)


def _key(key: str) -> bytes:
    """Return a key as it is stored: a column of text takes neither NUL nor half a surrogate pair."""
    return key.encode("utf-8", "surrogatepass")


def _letter(row: Row) -> StoredLetter:
    number, topic, group, seq, body, evidence, buried_at = cast(
        "tuple[int, str, str | None, int, bytes, bytes, float]", row
    )
    return StoredLetter(str(number), topic, group, str(seq), body, evidence, buried_at)


def _info(topic: str, rows: Sequence[Row]) -> TopicInfo:
    (length, first, last, age, letters, *_), *groups = cast("list[tuple[int, int, int, float | None, int]]", rows)
    return TopicInfo(
        topic=topic,
        length=length,
        first=str(first) if length else None,
        last=str(last) if length else None,
        oldest_age=age,
        groups=[_group(row) for row in groups],
        dead_letters=letters,
    )


def _group(row: Row) -> GroupInfo:
    _, _, _, age, _, name, consumers, pending, lag, delivered = row
    return GroupInfo(
        name=cast(str, name),
        consumers=cast(int, consumers),
        pending=cast(int, pending),
        lag=cast(int, lag),
        last_delivered=str(delivered) if delivered else START,
        oldest_pending_age=cast("float | None", age),
    )
