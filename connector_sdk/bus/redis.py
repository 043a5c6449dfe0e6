"""RedisLog: a log in Redis or Valkey, a stream for each topic, shared by any number of processes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, cast

from connector_sdk.bus.bounds import check_kept, check_lifetime, check_retention
from connector_sdk.bus.log import START, Body, GroupInfo, Reading, Reserved, StoredLetter, TopicInfo
from connector_sdk.bus.redis_inspection import check_version, findings_of
from connector_sdk.bus.redis_keys import Keys
from connector_sdk.bus.redis_letters import RedisLetters
from connector_sdk.bus.redis_member import RedisMember
from connector_sdk.bus.redis_reading import NOTHING, TopicReader, order_of
from connector_sdk.bus.redis_retention import Places
from connector_sdk.bus.redis_storage import BATCH_BYTES, Retention, Storage, bus_error, milliseconds
from connector_sdk.errors import BusUnavailableError, ConfigurationError
from connector_sdk.forks import start_empty_after_fork
from connector_sdk.options import check_integer, check_seconds
from connector_sdk.redis_client import (
    Argument,
    RedisAddress,
    RedisClient,
    RedisRefusedError,
    RedisUnavailableError,
    Reply,
)

__all__ = ["RedisLog"]

_log = logging.getLogger(__name__)

_BATCH: Final = 1000  # entries
#: Entries that are counted for the lag of a group where the server does not know it.
_LAG_COUNT: Final = 1000
#: What the server says to users and settings that no waiting mends.
_HOPELESS: Final = ("NOAUTH", "WRONGPASS", "NOPERM", "WRONGTYPE")
_UNWANTED: Final = "ERR AUTH "  # to who has one, of a server that wants none


class RedisLog:
    """
    An `EventLog` in Redis (6.2 or later) or Valkey, on one event loop of asyncio's.

    ::

        bus = EventBus(RedisLog("redis://localhost:6379/0"))

    Each topic is a stream, each group a consumer group of it; all keys of one prefix share a hash tag, so that one node of a
    cluster has the bus. All processes must name the same retention. Every key has an expiry: a topic that nobody publishes to
    for *ttl_seconds* (and a fifth) goes, one with groups after *max_backlog_seconds*.

    What is confirmed is as safe as the server's settings make it: `appendonly yes`, or what a crash takes is told as lost.

    A user (ACL) needs the keys `{prefix}:*` and the commands PING, INFO, CLIENT SETNAME, EVAL, EVALSHA, EXISTS, TIME, PEXPIRE,
    PTTL, XADD, XREAD, XRANGE, XREVRANGE, XLEN, XDEL, XTRIM, XINFO, XGROUP, XREADGROUP, XACK, XCLAIM, XPENDING, ZADD, ZCARD,
    ZCOUNT, ZRANGE, ZRANGEBYSCORE, ZREM, ZREMRANGEBYSCORE, ZSCORE, HGET, HSET, HSETNX, HDEL, HINCRBY.

    Args:
        redis_url: as `RedisEventBuffer` has it.
        key_prefix: the namespace of every key, unique for each service or environment; without braces.
        max_events: how many events of each topic are kept, 10 to 100,000, and a tenth more.
        ttl_seconds: how long, 60 to 604,800 (a week), and a tenth longer.
        max_backlog: how many events of a topic are kept at most for groups that have not finished them; at least *max_events*.
        max_backlog_seconds: how long at most, above 0; *ttl_seconds* if that is longer. A topic that nobody publishes to and
            whose groups have no living members goes after it (and a fifth), with these groups.
        retention: (max_events, ttl_seconds) of topics that have others. All processes must name the same.
        max_dead_letters: how many dead letters of each topic are kept, 1 or more; the oldest go.
        dead_letter_seconds: how long a dead letter is kept, above 0.
        connect_timeout: seconds, above 0, that opening a connection may take.
        response_timeout: seconds, above 0, after which a request without an answer has failed.

    Raises:
        ConfigurationError: an option has a value that cannot work.
    """

    def __init__(
        self,
        redis_url: str,
        key_prefix: str = "events",
        *,
        max_events: int = 1000,
        ttl_seconds: float = 3600.0,
        max_backlog: int = 100_000,
        max_backlog_seconds: float = 604_800.0,
        retention: Mapping[str, tuple[int, float]] | None = None,
        max_dead_letters: int = 10_000,
        dead_letter_seconds: float = 604_800.0,
        connect_timeout: float = 1.0,
        response_timeout: float = 1.0,
    ) -> None:
        if (
            not isinstance(key_prefix, str)
            or not key_prefix
            or not key_prefix.isprintable()
            or set(key_prefix) & set("{}")
        ):
            raise ConfigurationError(
                "key_prefix", key_prefix, "a text of 1 or more printable characters without braces"
            )
        check_kept(max_events, ttl_seconds, shortest=self._shortest_ttl)
        check_integer("max_backlog", max_backlog, minimum=max_events)
        check_lifetime("max_backlog_seconds", max_backlog_seconds)

        def rules(events: int, seconds: float) -> Retention:
            return Retention(events, seconds, max(max_backlog, events), max(max_backlog_seconds, seconds))

        self._prefix = key_prefix
        client = RedisClient(
            RedisAddress.parse(redis_url),
            connect_timeout=check_seconds("connect_timeout", connect_timeout, above=0),
            client_name="connector_sdk bus",
        )
        self._storage = Storage(
            client,
            Keys(key_prefix),
            connect_timeout=connect_timeout,
            response_timeout=check_seconds("response_timeout", response_timeout, above=0),
        )
        exceptions = check_retention(retention, shortest=self._shortest_ttl)
        special = {topic: rules(*bounds) for topic, bounds in exceptions.items()}
        self._places = Places(self._storage, rules(max_events, ttl_seconds), special)
        self._letters = RedisLetters(
            self._storage,
            self._places,
            check_integer("max_dead_letters", max_dead_letters, minimum=1),
            check_lifetime("dead_letter_seconds", dead_letter_seconds),
        )
        self._start_anew()
        start_empty_after_fork(self)
        self.findings: list[
            str
        ] = []  #: what is wrong with the server's settings, one sentence each; known after `connect`

    def _start_anew(self) -> None:
        self._reader = TopicReader(self._storage)
        self._members: list[RedisMember] = []

    def after_fork_in_child(self) -> None:
        """Leave members and connections to the parent; another bus may use the log here."""
        self._start_anew()

    #: Tests keep events for shorter.
    _shortest_ttl = 60.0

    @property
    def name(self) -> str:
        """See `EventLog.name`."""
        return f"{self._storage.client.address} {self._prefix!r}"

    @property
    def keeps_objects(self) -> bool:
        """See `EventLog.keeps_objects`."""
        return False

    def __repr__(self) -> str:
        return f"<RedisLog {self.name}>"

    async def connect(self) -> None:
        """See `EventLog.connect`."""
        try:
            facts = await self._storage.facts()
            check_version(facts)
            await self._storage.try_script()
        except RedisRefusedError as error:
            if error.code in _HOPELESS or error.message.startswith(_UNWANTED):
                raise ConfigurationError(
                    "redis_url", None, f"a server that lets this user in, and it says: {error.message}", secret=True
                ) from error
            raise bus_error(error) from error
        except RedisUnavailableError as error:
            raise bus_error(error) from error
        self.findings = list(findings_of(facts))
        for finding in self.findings:
            _log.warning("%s: %s", self.name, finding)

    async def ping(self) -> None:
        """See `EventLog.ping`."""
        await self._storage.call("PING")

    async def aclose(self) -> None:
        """See `EventLog.aclose`. Members that were not closed leave their groups."""
        members, self._members = self._members, []
        for member in members:
            await member.aclose()
        await self._reader.aclose()
        await self._storage.client.aclose()

    # -- entries

    async def append(self, entries: Sequence[tuple[str, Body]]) -> list[str]:
        """See `EventLog.append`."""
        if len(entries) == 1:
            ((topic, body),) = entries
            place = self._places[topic]
            reply = await self._storage.call(
                b"XADD", place.key, b"NOMKSTREAM", b"*", b"b", _bytes(body), repeatable=False
            )
            if reply is not None:
                assert isinstance(reply, bytes)
                await self._places.published(place, 1)
                return [reply.decode()]
        positions: list[str] = []
        for batch in _batches(entries):
            try:
                positions += await self._append(batch)
            except BusUnavailableError as error:
                if positions and not error.in_doubt:
                    raise BusUnavailableError(str(error), in_doubt=True) from error
                raise
        return positions

    async def _append(self, entries: Sequence[tuple[str, Body]]) -> list[str]:
        """Store entries by append.lua, all or none."""
        counts: dict[str, int] = {}
        numbers: dict[str, int] = {}
        arguments: list[Argument] = []
        for topic, body in entries:
            number = numbers.get(topic)
            if number is None:
                number = numbers[topic] = len(numbers) + 1
                counts[topic] = 0
            counts[topic] += 1
            arguments += (number, _bytes(body))
        places = [self._places[topic] for topic in numbers]
        head: list[Argument] = [len(places)]
        for place in places:
            head += (place.name, place.retention.lifetime)
        keys = [place.key for place in places]
        reply = await self._storage.run(self._storage.scripts.append, keys, head + arguments, repeatable=False)
        assert isinstance(reply, list)
        for place in places:
            await self._places.published(place, counts[place.name])
        return [entry.decode() for entry in reply if isinstance(entry, bytes)]

    async def read(
        self, cursors: Mapping[str, str], *, catalogue: str | None = None, limit: int = 1000, wait: float = 0.0
    ) -> Reading:
        """See `EventLog.read`. It waits for up to 5 seconds."""
        return await self._reader.read(cursors, catalogue, limit, wait)

    async def topics(self) -> tuple[list[str], str]:
        """See `EventLog.topics`."""
        return await self._reader.topics()

    async def end(self, topic: str) -> str:
        """See `EventLog.end`."""
        return await self._reader.end(topic)

    async def position_at(self, topic: str, time: datetime) -> str:
        """See `EventLog.position_at`. The server's clock counts, in whole milliseconds."""
        return await self._reader.position_at(topic, time)

    def order(self, position: str) -> tuple[int, ...]:
        """See `EventLog.order`."""
        return order_of(position)

    # -- groups and dead letters

    def member(self, group: str, consumer: str, *, hold: float) -> RedisMember:
        """See `EventLog.member`."""
        member = RedisMember(
            self._storage,
            self._places,
            self._letters,
            self.position_at,
            group=group,
            consumer=consumer,
            hold=hold,
        )
        self._members = [other for other in self._members if not other.is_closed]
        self._members.append(member)
        return member

    async def bury(self, topic: str, position: str, body: Body, evidence: bytes) -> str:
        """See `EventLog.bury`."""
        return await self._letters.bury(topic, position, _bytes(body), evidence)

    async def dead_letters(
        self, topic: str | None, limit: int, *, cursor: str = START
    ) -> tuple[list[StoredLetter], str]:
        """See `EventLog.dead_letters`."""
        return await self._letters.page(topic, limit, cursor)

    async def dead_letter(self, letter: str) -> StoredLetter | None:
        """See `EventLog.dead_letter`."""
        return await self._letters.get(letter)

    async def redrive(self, letter: str) -> bool:
        """See `EventLog.redrive`."""
        return await self._letters.redrive(letter)

    async def purge(self, letters: Sequence[str]) -> int:
        """See `EventLog.purge`."""
        return await self._letters.purge(letters)

    # -- keys

    async def reserve(self, key: str, holder: str, hold: float) -> Reserved:
        """See `EventLog.reserve`."""
        reply = await self._storage.run(
            self._storage.scripts.reserve, (self._storage.keys.once(key),), (holder, milliseconds(hold))
        )
        return cast("Reserved", _text(reply))

    async def keep(self, key: str, holder: str, ttl: float) -> bool:
        """See `EventLog.keep`."""
        reply = await self._storage.run(
            self._storage.scripts.keep, (self._storage.keys.once(key),), (holder, milliseconds(ttl))
        )
        return reply == 1

    async def free(self, key: str, holder: str) -> None:
        """See `EventLog.free`."""
        await self._storage.run(self._storage.scripts.free, (self._storage.keys.once(key),), (holder,))

    async def info(self, topic: str) -> TopicInfo | None:
        """See `EventLog.info`."""
        keys = self._storage.keys
        reply = await self._storage.run(
            self._storage.scripts.info, (keys.topic(topic), keys.dead(topic), keys.again), (topic, _LAG_COUNT)
        )
        return None if reply is None else _info_of(topic, reply)


def _info_of(topic: str, reply: Reply) -> TopicInfo:
    assert isinstance(reply, list)
    now, length, first, last, dead, *groups = reply
    assert isinstance(now, int)
    assert isinstance(length, int)
    assert isinstance(dead, int)
    found = [_group_of(group, now) for group in groups]
    return TopicInfo(
        topic=topic,
        length=length,
        first=_text(first) or None,
        last=_text(last) or None,
        oldest_age=_age(_text(first), now),
        groups=sorted(found, key=lambda group: group.name),
        dead_letters=dead,
    )


def _group_of(reply: Reply, now: int) -> GroupInfo:
    assert isinstance(reply, list)
    name, consumers, pending, lag, delivered, oldest = reply
    assert isinstance(consumers, int)
    assert isinstance(pending, int)
    assert isinstance(lag, int)
    return GroupInfo(
        name=_text(name),
        consumers=consumers,
        pending=pending,
        lag=None if lag < 0 else lag,
        last_delivered=START if delivered == NOTHING.encode() else _text(delivered),
        oldest_pending_age=_age(_text(oldest), now),
    )


def _age(position: str, now: int) -> float | None:
    """Return the seconds since an entry was stored, None without one."""
    return max(0.0, (now - order_of(position)[0]) / 1000) if position else None


def _text(reply: Reply) -> str:
    assert isinstance(reply, bytes)
    return reply.decode()


def _bytes(body: Body) -> bytes:
    assert isinstance(body, bytes), "a log that does not keep objects is given bytes"
    return body


def _batches(entries: Sequence[tuple[str, Body]]) -> list[Sequence[tuple[str, Body]]]:
    """Return *entries* in parts that are not too much for one request."""
    if len(entries) <= _BATCH and sum(len(_bytes(body)) for _, body in entries) <= BATCH_BYTES:
        return [entries] if entries else []
    batches: list[Sequence[tuple[str, Body]]] = []
    batch: list[tuple[str, Body]] = []
    size = 0
    for entry in entries:
        length = len(_bytes(entry[1]))
        if batch and (size + length > BATCH_BYTES or len(batch) == _BATCH):
            batches.append(batch)
            batch, size = [], 0
        batch.append(entry)
        size += length
    return [*batches, batch]
