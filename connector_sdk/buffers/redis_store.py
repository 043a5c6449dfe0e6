"""
RedisStore: an EventStore on Redis or Valkey, a ZSET per session.

Each step is one Lua script of `connector_sdk/buffers/lua`, so it is atomic; what the keys are is told in
`lua/shared.lua`. Works on Redis 6.2 and later and Valkey 7.2 and later, with commands that all of them have.
"""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from struct import pack
from typing import Final, Literal, TypeAlias
from zlib import crc32

from msgspec import UNSET

from connector_sdk.buffers.forks import start_empty_after_fork
from connector_sdk.buffers.redis_batches import BatchNumbers
from connector_sdk.buffers.redis_dead_letters import RedisDeadLetters
from connector_sdk.buffers.redis_inspection import findings_of
from connector_sdk.buffers.redis_members import is_label, known_as, label_of, member_of, session_of, tag_of
from connector_sdk.buffers.redis_scripts import (
    Answer,
    Scan,
    Scripts,
    Seen,
    array_of,
    bytes_of,
    events_of,
    integer_of,
    integers_of,
    milliseconds,
    reasons_of,
    size_of_state,
)
from connector_sdk.buffers.store import (
    Appended,
    Census,
    Page,
    Quarantined,
    Record,
    SessionFilter,
    StoredEvent,
)
from connector_sdk.errors import BufferUnavailableError
from connector_sdk.ledger import DropReason, Ledger
from connector_sdk.redis_client import RedisClient, RedisRefusedError, RedisUnavailableError, Reply, Script

__all__ = ["RedisStore", "RedisStoreOptions", "WindowOn"]

_log = logging.getLogger(__name__)

WindowOn: TypeAlias = Literal["event", "arrival"]

_HOUSEKEEPING: Final = 1000  # events that one call moves at most for others
_LOOK_AT: Final = 2000  # events that one call looks at to find some of a type
_PEEK_PAGE: Final = 500
_PAGE_BYTES: Final = 4 * 1024 * 1024  # after which a page ends
_MOST_SCANS: Final = 100
_QUARANTINED: Final = 1000
_FULL: Final = ("OOM", "MISCONF")


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisStoreOptions:
    """What a RedisStore keeps and for how long; all times in seconds. See `RedisEventBuffer` for each."""

    key_prefix: str = "default"
    window: float = 120.0
    grace: float = 60.0
    window_on: WindowOn = "event"
    dedupe: float = 600.0
    max_per_session: int = 0
    max_sessions: int = 0
    shards: int = 1
    max_dead_letters: int = 10_000
    dead_letter_seconds: float = 604_800.0


class RedisStore(RedisDeadLetters):
    """
    An `EventStore` on Redis; see there for what each method promises.

    `max_sessions` and `max_dead_letters` hold for each shard: divided by their number, rounded up. The client is the
    store's: `aclose` closes it.
    """

    def __init__(self, client: RedisClient, options: RedisStoreOptions) -> None:
        self._client = client
        self._options = options
        self._scripts = Scripts()
        most_dead_letters = -(-options.max_dead_letters // options.shards)
        super().__init__(self._scripts, most_dead_letters, milliseconds(options.dead_letter_seconds))
        self._tags = [tag_of(options.key_prefix, shard) for shard in range(options.shards)]
        self._batches = [BatchNumbers() for _ in self._tags]
        self._seen = [Seen() for _ in self._tags]
        self._scans: dict[str, Scan] = {}
        lifetime = options.window + options.grace
        self._lifetime = lifetime
        #: ARGV[1] of every script: see `lua/shared.lua`.
        self._configuration = pack(
            ">dddddd",
            *(milliseconds(seconds) for seconds in (options.window, lifetime, options.dedupe)),
            _HOUSEKEEPING,
            options.window_on == "event",
            _PAGE_BYTES,
        )
        self._most_sessions = -(-options.max_sessions // options.shards)
        start_empty_after_fork(self)

    @property
    def name(self) -> str:
        """Kind and place, no secrets."""
        return f"{self._client.address} {self._options.key_prefix!r}"

    @property
    def shards(self) -> int:
        """How many hash tags the keys are spread over."""
        return len(self._tags)

    @property
    def look_every(self) -> float:
        """More than twice in the life of an idle key, so that what expires is counted."""
        return max(0.01, 0.45 * self._lifetime)

    @property
    def remembers_batches(self) -> float:
        """Nearly the life of an idle key."""
        return 0.9 * self._lifetime

    def shard_of(self, session: str | None) -> int:
        """Return the shard of a session: CRC-32 of its name."""
        if len(self._tags) == 1:
            return 0
        return crc32(label_of(session)) % len(self._tags)

    # -- in

    async def append(self, shard: int, records: Sequence[Record], *, batch: int, timeout: float) -> Appended:
        """Store a batch: `lua/append.lua`."""
        batches = self._batches[shard]
        groups: dict[str | None, list[bytes]] = {}
        for record in records:
            group = groups.get(record.session)
            if group is None:
                group = groups[record.session] = []
            group += (
                repr(record.time).encode(),
                known_as(record.origin, record.event_id) if record.event_id is not None else b"",
                member_of(record),
            )
        arguments: list[bytes | str | int] = [
            batches.writer,
            batches.number(batch),
            self._options.max_per_session,
            self._most_sessions,
            len(groups),
        ]
        for session, group in groups.items():
            arguments += (label_of(session), len(group) // 3)
            arguments += group
        answer = await self._run(self._scripts.append, shard, arguments, timeout, repeatable=True)
        stored, duplicates, skewed = integers_of(answer.rest)
        return Appended(
            stored=stored,
            duplicates=duplicates,
            size=answer.waiting,
            skewed=skewed,
            dropped=_without_duplicates(answer),
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
        """Take events: `lua/take.lua` or `lua/take_any.lua`, or with a filter `lua/take_matching.lua`."""
        if session is UNSET and kinds is None:
            script = self._scripts.take if in_order else self._scripts.take_any
            arguments: list[bytes | str | int] = [lease, milliseconds(hold), limit, holder]
            answer = await self._keeping_house(script, shard, arguments, timeout)
            first_ticket = integer_of(answer.rest[1])
            events = events_of(answer.rest[2:], first_ticket)
            more = "more" if answer.waiting else ""
            return Page(events=events, left=answer.waiting, cursor=more, dropped=answer.dropped)
        scan = self._scans.pop(cursor, None)
        if scan is None:
            if session is UNSET:
                # The census first: it lets events wait again whose lease ran out.
                sessions = await self.sessions(shard, timeout=timeout)
                labels = [label_of(name) for name in sessions]
                random.shuffle(labels)  # or some sessions would always come last
            else:
                labels = [label_of(session)]
            scan = Scan(labels)
        return await self._take_matching(shard, lease, limit, scan, kinds, hold=hold, timeout=timeout)

    async def _take_matching(
        self,
        shard: int,
        lease: str,
        limit: int,
        scan: Scan,
        kinds: Collection[str] | None,
        *,
        hold: float,
        timeout: float,
    ) -> Page:
        labels = scan.labels[:_LOOK_AT]
        arguments: list[bytes | str | int] = [lease, milliseconds(hold), limit, _LOOK_AT]
        arguments += (
            -1 if kinds is None else len(kinds),
            *(kind.encode("utf-8", "surrogatepass") for kind in kinds or ()),
            len(labels),
        )
        for label in labels:
            arguments += (label, scan.time, scan.arrival)
            scan.time, scan.arrival = b"-inf", b""
        answer = await self._keeping_house(self._scripts.take_matching, shard, arguments, timeout)
        first_ticket, finished = integer_of(answer.rest[1]), integer_of(answer.rest[2])
        scan.time, scan.arrival = bytes_of(answer.rest[3]), bytes_of(answer.rest[4])
        del scan.labels[:finished]
        events = events_of(answer.rest[5:], first_ticket)
        cursor = ""
        if scan.labels:
            cursor = uuid.uuid4().hex
            self._scans[cursor] = scan
            if len(self._scans) > _MOST_SCANS:  # whoever began it has gone; a cursor that is not known begins anew
                del self._scans[next(iter(self._scans))]
        return Page(events=events, left=answer.waiting, cursor=cursor, dropped=answer.dropped)

    async def acknowledge(
        self,
        shard: int,
        lease: str,
        events: Sequence[StoredEvent] | None,
        *,
        timeout: float,
        reason: DropReason | None = None,
    ) -> bool:
        """Let events go: `lua/acknowledge.lua`."""
        arguments: list[bytes | str | int] = [lease, "" if reason is None else reason.value]
        if events is None:
            arguments += (-1, 0)
        else:
            names = [known_as(event.origin, event.event_id) for event in events if event.event_id is not None]
            arguments += (len(events), *(event.ticket for event in events), len(names), *names)
        answer = await self._run(self._scripts.acknowledge, shard, arguments, timeout)
        return integer_of(answer.rest[0]) == 1

    async def extend(self, shard: int, lease: str, *, hold: float, timeout: float) -> bool:
        """Move the end of a lease: `lua/extend.lua`."""
        arguments: list[bytes | str | int] = [lease, milliseconds(hold)]
        answer = await self._run(self._scripts.extend, shard, arguments, timeout, repeatable=True)
        return integer_of(answer.rest[0]) == 1

    async def give_back(self, shard: int, lease: str, *, timeout: float) -> bool:
        """Return events: `lua/give_back.lua`."""
        answer = await self._run(self._scripts.give_back, shard, [lease, 1], timeout)
        was_held = integer_of(answer.rest[0]) == 1
        while integer_of(answer.rest[1]) == 1:
            answer = await self._run(self._scripts.give_back, shard, [lease, 0], timeout)
        return was_held

    async def quarantine(self, shard: int, lease: str, events: Sequence[StoredEvent], *, timeout: float) -> bool:
        """Put events aside: `lua/quarantine.lua`."""
        arguments: list[bytes | str | int] = [lease, _QUARANTINED, *(event.ticket for event in events)]
        answer = await self._run(self._scripts.quarantine, shard, arguments, timeout, repeatable=True)
        return integer_of(answer.rest[0]) == 1

    # -- looking

    async def quarantined(self, shard: int, *, timeout: float) -> list[Quarantined]:
        """Return what was put aside: `LRANGE`."""
        entries = array_of(
            await self._call(shard, "LRANGE", self._tags[shard] + b":quarantine", 0, -1, timeout=timeout)
        )
        return [
            Quarantined(session_of(bytes_of(label)), bytes_of(member))
            for label, member in zip(entries[::2], entries[1::2], strict=False)
        ]

    async def peek(self, shard: int, limit: int | None, *, timeout: float) -> list[StoredEvent]:
        """
        Show the newest: `lua/peek.lua`, page by page.

        Events that come or go meanwhile may be in the answer or not; each is in it once.
        """
        found: dict[tuple[float, int], StoredEvent] = {}
        session = skip = 0
        oldest = b"-inf"
        while session >= 0 and limit != 0:
            most = -1 if limit is None else limit
            arguments: list[bytes | str | int] = [most, oldest, session, skip, _PEEK_PAGE]
            answer = await self._keeping_house(self._scripts.peek, shard, arguments, timeout)
            session, skip = integer_of(answer.rest[1]), integer_of(answer.rest[2])
            for event in events_of(answer.rest[3:]):
                found[event.time, event.arrival] = event
            if limit is not None and len(found) > limit:
                newest = sorted(found)[-limit:]
                found = {place: found[place] for place in newest}
                oldest = repr(newest[0][0]).encode()
        return [found[place] for place in sorted(found)]

    async def sessions(self, shard: int, *, timeout: float) -> dict[str | None, int]:
        """Return the sessions: `HSCAN`."""
        await self.census(shard, timeout=timeout)
        return await self._sessions(shard, timeout)

    async def census(self, shard: int, *, timeout: float) -> Census:
        """Count: `lua/census.lua`."""
        answer = await self._keeping_house(self._scripts.census, shard, self._bounds, timeout)
        received, delivered, skewed, sessions, leases, quarantined, dead, oldest = integers_of(answer.rest[1:9])
        return Census(
            ledger=Ledger(
                received=received,
                delivered=delivered,
                buffered=answer.waiting,
                in_flight=answer.leased,
                dropped=reasons_of(answer.rest[9:]),
            ),
            sessions=sessions,
            leases=leases,
            skewed=skewed,
            quarantined=quarantined,
            dead_letters=dead,
            oldest_age=None if oldest < 0 else oldest / 1000,
            dropped=answer.dropped,
        )

    async def inspect(self, *, timeout: float) -> list[str]:
        """Say whether a server is too old, or may evict what it was given to keep: `INFO`."""
        findings: set[str] = set()
        for shard in range(self.shards):
            try:
                text = bytes_of(await self._call(shard, "INFO", timeout=timeout)).decode("utf-8", "replace")
            except BufferUnavailableError as error:
                if not isinstance(error.__cause__, RedisRefusedError):
                    raise
                findings.add("cannot see whether the server may evict events: the user may not call INFO")
                continue
            findings.update(findings_of(dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line)))
        return sorted(findings)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def after_fork_in_child(self) -> None:
        """Number batches anew: the parent goes on with its own."""
        self._batches = [BatchNumbers() for _ in self._tags]
        self._scans = {}

    def __repr__(self) -> str:
        return f"<RedisStore {self.name}>"

    # -- inner

    async def _sessions(self, shard: int, timeout: float) -> dict[str | None, int]:
        found: dict[str | None, int] = {}
        key, cursor = self._tags[shard] + b":state", b"0"
        while True:
            reply = array_of(await self._call(shard, "HSCAN", key, cursor, "COUNT", 1000, timeout=timeout))
            cursor, entries = bytes_of(reply[0]), array_of(reply[1])
            for field, state in zip(entries[::2], entries[1::2], strict=True):
                if is_label(label := bytes_of(field)):
                    found[session_of(label)] = size_of_state(bytes_of(state))
            if cursor == b"0":
                return found

    async def _keeping_house(
        self, script: Script, shard: int, arguments: Sequence[bytes | str | int], timeout: float
    ) -> Answer:
        """Run a script whose answer may be that other work comes first."""
        dropped: dict[DropReason, int] = {}
        while True:
            answer = await self._run(script, shard, arguments, timeout)
            for reason, number in answer.dropped.items():
                dropped[reason] = dropped.get(reason, 0) + number
            if integer_of(answer.rest[0]) == 0:
                answer.dropped = dropped
                return answer

    async def _run(
        self,
        script: Script,
        shard: int,
        arguments: Sequence[bytes | str | int],
        timeout: float,
        *,
        repeatable: bool = False,
    ) -> Answer:
        seen, now = self._seen[shard], time.monotonic()
        # Of what waited a lifetime ago nobody can say whether it was drained since, or expired.
        is_recent = now - seen.at < 0.9 * self._lifetime
        head = (self._configuration, seen.epoch, seen.events if is_recent else 0, DropReason.LOST.value)
        key = self._tags[shard] + b":state"
        try:
            reply = await self._client.run(script, [key], [*head, *arguments], timeout=timeout, repeatable=repeatable)
        except (RedisUnavailableError, RedisRefusedError) as error:
            raise _unavailable(error) from error
        answer = Answer.read(reply)
        if seen.events and not is_recent and answer.epoch != seen.epoch:
            _log.warning(
                "%s: nothing is left of what was there when this process looked last, longer than window and grace ago: "
                "%d events, which were drained by others or have expired uncounted",
                self.name,
                seen.events,
            )
        seen.epoch, seen.events, seen.at = answer.epoch, answer.waiting + answer.leased, now
        return answer

    async def _call(self, shard: int, *command: bytes | str | int, timeout: float) -> Reply:
        try:
            return await self._client.call(
                *command, key=self._tags[shard] + b":state", timeout=timeout, repeatable=True
            )
        except (RedisUnavailableError, RedisRefusedError) as error:
            raise _unavailable(error) from error


def _unavailable(error: RedisUnavailableError | RedisRefusedError) -> BufferUnavailableError:
    if isinstance(error, RedisRefusedError):
        return BufferUnavailableError(str(error), in_doubt=error.in_doubt, full=error.code in _FULL)
    return BufferUnavailableError(str(error), in_doubt=error.in_doubt)


def _without_duplicates(answer: Answer) -> dict[DropReason, int]:
    return {reason: number for reason, number in answer.dropped.items() if reason is not DropReason.DUPLICATE}
