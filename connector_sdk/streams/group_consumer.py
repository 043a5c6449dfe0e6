"""GroupConsumer: one member of a consumer group over one or many Redis Streams."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, TypeAlias, get_args

from connector_sdk.errors import ConfigurationError
from connector_sdk.options import check_choice, check_seconds
from connector_sdk.redis_client import RedisRefusedError, RedisUnavailableError
from connector_sdk.streams.entries import GroupEntry, array_of, bytes_of
from connector_sdk.streams.entry import Entry
from connector_sdk.streams.face import BaseConsumer, text_of
from connector_sdk.streams.group_reader import GroupReader
from connector_sdk.streams.positions import Start, StreamName, name_of, position
from connector_sdk.streams.stats import ConsumerStats, StreamLag

__all__ = ["Backlog", "GroupConsumer"]

_log = logging.getLogger(__name__)

Backlog: TypeAlias = Literal["none", "own", "group"]

#: Seconds that an acknowledgement waits for others to go with it, when nothing is fetched meanwhile.
_ACKNOWLEDGE_WITHIN: Final = 0.005
_MOST_UNSENT: Final = 1000
_SHORTEST_HOLD: Final = 0.5
_LONGEST_HOLD: Final = 86_400.0
_LONGEST_DELAY: Final = 7 * 86_400.0


class GroupConsumer(BaseConsumer):
    """
    Takes entries of streams as one member of a group: each entry goes to one member, until it is acknowledged.

    ::

        async with GroupConsumer("redis://localhost:6379/0", ["orders"], "billing") as consumer:
            async for stream, entry in consumer.forever():
                await charge(entry.fields)
                await consumer.acknowledge(entry)

    At least once: an entry that was handed out and not acknowledged comes again. While this process lives nobody else gets
    what it was given, however long it takes; *hold* seconds after its last sign of life the others take that over, all of it,
    and its name is removed in the same step. Entries that were buffered and not handed out go to the others when the
    block is left. Entries that the stream has no more, and groups that the server lost, are passed over or made anew, counted
    (`stats`) and logged. A server that is away is waited for.

    Args:
        redis_url: where Redis is, as for `RedisEventBuffer`: one server, a cluster, or sentinels.
        streams: a name, names, or a mapping of names to where their group starts if it is made.
        group: the name of the group.
        consumer: the name of this member, used by no other that lives. None makes one of host, process and chance. With
            a name given, what was handed out and not acknowledged stays pending for it when the block is left, and comes
            first when a consumer of this name is back; without, it goes to the others at once.
        start: where a group begins that is made: "beginning", "latest", an id, or a time; see `Consumer`.
        auto_create: make groups (and streams) that do not exist. False: entering raises ConfigurationError that names them.
        auto_acknowledge: acknowledge each entry as it is handed out, not as it is fetched: what is buffered is never lost.
        backlog: whose unacknowledged entries to take, before new ones: "group" (of this name's earlier life, and of dead
            members, at any time), "own" (of this name's earlier life), or "none". What `nack` let come again is always taken.
        timeout: seconds, 0 or more, to wait for an entry before an iteration ends or `get_entry` gives (None, None).
        buffer_size: how many entries are fetched beyond the one that is asked for, 0 to 100,000. 0 takes none before its
            time, save that the server may give one of each stream at once.
        hold: seconds, 0.5 to 86,400, after its last sign of life that a member counts as dead; the same for all of a group.
        connect_timeout: seconds, above 0, that opening a connection may take.
        response_timeout: seconds, above 0, after which a request without an answer has failed; see `Consumer`.

    Raises:
        ConfigurationError: an option has a value that cannot work; or when entering, see *auto_create*.
        BusUnavailableError: when entering: the server cannot be reached.

    For asyncio only. Any number of tasks may take and acknowledge entries. The event loop must not be blocked for *hold*
    seconds: nobody could tell this process from a dead one.
    """

    def __init__(
        self,
        redis_url: str,
        streams: StreamName | Iterable[StreamName] | Mapping[StreamName, Start],
        group: str,
        consumer: str | None = None,
        *,
        start: Start | Literal["latest", "beginning"] = "beginning",
        auto_create: bool = True,
        auto_acknowledge: bool = False,
        backlog: Backlog = "group",
        timeout: float = 0.0,
        buffer_size: int = 0,
        hold: float = 60.0,
        connect_timeout: float = 1.0,
        response_timeout: float = 5.0,
    ) -> None:
        super().__init__(
            redis_url,
            streams,
            start=start,
            timeout=timeout,
            buffer_size=buffer_size,
            connect_timeout=connect_timeout,
            response_timeout=response_timeout,
        )
        self.group = _checked_name("group", group)
        self._is_stable = consumer is not None
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        if consumer is not None:
            self.name = _checked_name("consumer", consumer)
        self._auto_create = auto_create
        self._auto_acknowledge = auto_acknowledge
        self._backlog = check_choice("backlog", backlog, get_args(Backlog))
        self._hold = check_seconds("hold", hold, minimum=_SHORTEST_HOLD, maximum=_LONGEST_HOLD)
        self._reader: GroupReader | None = None
        self._unsent: list[GroupEntry] = []
        self._has_unsent = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._acknowledged = self._nacked = self._recovered = self._trimmed = self._healed = 0

    # ------------------------------------------------------------------------------------------ from start to end

    async def _open(self) -> None:
        reader = self._reader = GroupReader(
            self._client,
            self.group.encode(),
            self.name.encode(),
            hold=self._hold,
            recovers=self._backlog == "group",
            connect_timeout=self._connect_timeout,
            response_timeout=self._response_timeout,
        )
        if not self._auto_create:
            await self._check_groups(self._starts)
        for stream, start in self._starts.items():
            await self._begin(reader, stream, start)
        self._keeper = asyncio.create_task(self._keep(reader), name=f"connector_sdk: keeping {self.name} alive")

    async def _begin(self, reader: GroupReader, stream: bytes, start: bytes) -> None:
        await reader.follow(stream, start)
        if self._backlog == "none":
            await reader.ignore_own(stream)
        elif self._is_stable:
            await reader.take_own(stream)
        self._names[stream] = text_of(stream)

    async def _check_groups(self, streams: Iterable[bytes]) -> None:
        missing = [text_of(stream) for stream in streams if not await self._has_group(stream)]
        if missing:
            raise ConfigurationError(
                "streams", missing, f"streams that have the group {self.group!r} (or auto_create must be True)"
            )

    async def _has_group(self, stream: bytes) -> bool:
        return await self._group_facts(stream) is not None

    async def _group_facts(self, stream: bytes) -> dict[bytes, object] | None:
        try:
            groups = array_of(await self._ask("XINFO", "GROUPS", stream, key=stream))
        except RedisRefusedError as error:
            if "no such key" not in error.message:
                raise
            return None
        for group in map(array_of, groups):
            facts: dict[bytes, object] = dict(zip(map(bytes_of, group[::2]), group[1::2], strict=True))
            if facts[b"name"] == self.group.encode():
                return facts
        return None

    async def _close(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
        reader = self._reader
        if reader is None:
            return
        buffered = list(self._buffer)
        self._buffer.clear()
        try:
            await self._send_acknowledgements(reader)
            await reader.give_back(buffered)
        except (RedisUnavailableError, RedisRefusedError) as error:
            self._log.warning("leaving", "%s; what it has in hand comes again after its hold", error)
        finally:
            await reader.aclose(release=not self._is_stable)

    async def _keep(self, reader: GroupReader) -> None:
        """Say that this consumer lives, and send acknowledgements that nothing else takes along."""
        beat_at = time.monotonic() + self._hold / 3
        while True:
            with contextlib.suppress(TimeoutError):
                # Not `wait_for`, which on Python 3.11 swallows a cancellation that comes together with the event.
                async with asyncio.timeout(max(0.0, beat_at - time.monotonic())):
                    await self._has_unsent.wait()
            try:
                if self._has_unsent.is_set():
                    await asyncio.sleep(_ACKNOWLEDGE_WITHIN)
                    await self._send_acknowledgements(reader)
                if time.monotonic() >= beat_at:
                    beat_at = time.monotonic() + self._hold / 3
                    await reader.beat()
            except (RedisUnavailableError, RedisRefusedError) as error:
                self._log.warning("keeping", "%s; waiting for it", error)
                await asyncio.sleep(min(1.0, self._hold / 10))

    # ------------------------------------------------------------------------------------------ entries

    async def _take(self, wait: float) -> None:
        reader = self._open_reader()
        if self._unsent:
            await self._send_acknowledgements(reader)
        claim = await reader.claim(self._limit, wait)
        self._buffer.extend(claim.entries)
        self._recovered += claim.recovered
        for loss in claim.losses:
            if loss.reason == "trimmed":
                self._trimmed += loss.count or 0
            else:
                self._healed += 1
            self._log.warning(
                f"{loss.reason} {loss.stream!r}",
                "entries of %s that the group %s should have had are %s: %s",
                text_of(loss.stream), self.group, loss.reason, "number unknown" if loss.count is None else loss.count,
            )  # fmt: skip

    def _handed_out(self, entry: GroupEntry) -> None:
        if self._auto_acknowledge:
            self._unsent.append(entry)
            self._has_unsent.set()

    async def acknowledge(self, *entries: Entry) -> None:
        """
        These are finished. Naming one twice harms nothing.

        They are sent together: with the next request for entries, within some milliseconds when there is none, and when the
        block is left. Until they are, a process that dies gets or leaves them again; `flush` returns when they are.
        """
        reader = self._open_reader()
        unsent = self._unsent
        if not unsent:
            self._has_unsent.set()
        for entry in entries:
            unsent.append(entry.origin)
        if len(unsent) > _MOST_UNSENT + self._limit:
            await self._quietly(self._send_acknowledgements(reader))

    async def flush(self) -> None:
        """Send acknowledgements now; return when the server has them. Raises BusUnavailableError when that failed."""
        await self._asking(self._send_acknowledgements(self._open_reader()))

    async def nack(self, entry: Entry, delay: float = 0.0) -> None:
        """
        Let *entry* come again to any member, *delay* seconds (0 to 604,800) from now or later, as a further attempt.

        Raises BusUnavailableError: it is still this consumer's then.
        """
        reader = self._open_reader()
        check_seconds("delay", delay, maximum=_LONGEST_DELAY)
        await self._asking(reader.postpone(entry.origin, delay, entry.origin.notes))
        self._nacked += 1

    async def handled(self, entry: Entry) -> None:
        """Acknowledge it, unless the handler let it come again."""
        if self._open_reader().has(entry.origin):
            await self.acknowledge(entry)

    async def run_ended(self) -> None:
        """Send what is acknowledged."""
        await self._quietly(self._send_acknowledgements(self._open_reader()))

    async def not_handled(self, begun: Sequence[Entry], waiting: Sequence[Entry]) -> None:
        """Let them come again: to be begun elsewhere, or once more."""
        reader = self._open_reader()
        await self._quietly(reader.give_back([entry.origin for entry in waiting]))
        for entry in begun:
            if reader.has(entry.origin):
                await self._quietly(reader.postpone(entry.origin, 0.0, entry.origin.notes))

    async def _send_acknowledgements(self, reader: GroupReader) -> None:
        sent, self._unsent = self._unsent, []
        self._has_unsent.clear()
        if not sent:
            return
        try:
            count = await reader.acknowledge(sent)
        except BaseException:
            self._unsent[:0] = sent
            self._has_unsent.set()
            raise
        self._acknowledged += count

    def _open_reader(self) -> GroupReader:
        if self._state != "open" or self._reader is None:
            self._check_open()
        assert self._reader is not None
        return self._reader

    # ------------------------------------------------------------------------------------------ streams

    async def add_stream(self, stream: StreamName, start: Start | None = None) -> bool:
        """
        Take entries of *stream* as well; return False if it is one already.

        *start*: where its group begins if it is made, by default as the constructor says. Raises as entering does.
        """
        reader = self._open_reader()
        key = name_of(stream)
        if key in self._names:
            return False
        begin = self._start if start is None else position("start", start)
        if not self._auto_create:
            await self._asking(self._check_groups([key]))
        await self._asking(self._begin(reader, key, begin))
        return True

    async def remove_stream(self, stream: StreamName) -> bool:
        """Take no more entries of *stream*; what is buffered goes to the others. Return False if it is not one."""
        reader = self._open_reader()
        key = name_of(stream)
        if self._names.pop(key, None) is None:
            return False
        self._paused.discard(key)
        await self._asking(reader.give_back(self._take_from_buffer([key])))
        await self._asking(reader.unfollow(key))
        return True

    async def pause(self, *streams: StreamName) -> None:
        """Take nothing of *streams* (all, without any) until `resume`; what is buffered goes to the others."""
        reader = self._open_reader()
        chosen = self._those(streams)
        self._paused.update(chosen)
        await self._asking(reader.pause(chosen))
        await self._asking(reader.give_back(self._take_from_buffer(chosen)))

    async def resume(self, *streams: StreamName) -> None:
        """Take entries of *streams* (all, without any) again."""
        chosen = self._those(streams)
        self._paused.difference_update(chosen)
        self._open_reader().resume(chosen)

    async def seek(self, stream: StreamName, start: Start) -> None:
        """Let the whole group go on with *stream* at *start*, forward or back. What is pending stays so."""
        reader = self._open_reader()
        key = self._known(stream)
        begin = position("start", start)
        await self._asking(reader.give_back(self._take_from_buffer([key])))
        await self._asking(self._ask("XGROUP", "SETID", key, self.group, begin, key=key))

    async def lag(self, stream: StreamName) -> StreamLag:
        """
        Return how far *stream* is ahead of the group. Entries of another attempt count as pending.

        Everything is counted, unless the server (Redis 7, Valkey) knows the number: a million entries take seconds.
        """
        return await self._asking(self._lag_of(self._known(stream)))

    async def _lag_of(self, stream: bytes) -> StreamLag:
        facts = await self._group_facts(stream)
        if facts is None:
            return await self._lag_after(stream, b"0-0")
        last, pending = facts[b"last-delivered-id"], facts[b"pending"]
        assert isinstance(last, bytes)
        assert isinstance(pending, int)
        return await self._lag_after(stream, last, pending, known=facts.get(b"lag"))

    def stats(self) -> ConsumerStats:
        """Return what happened so far."""
        reader = self._reader
        buffered = len(self._buffer) + (reader.waiting() if reader else 0)
        return ConsumerStats(
            streams=self.streams,
            paused=tuple(sorted(map(text_of, self._paused))),
            received=self._received,
            redelivered=self._redelivered,
            acknowledged=self._acknowledged,
            nacked=self._nacked,
            recovered=self._recovered,
            trimmed=self._trimmed,
            healed=self._healed,
            failed=self._failed,
            outages=self._outages,
            buffered=buffered,
            in_hand=max(0, (reader.in_hand() if reader else 0) - buffered),
        )

    def __repr__(self) -> str:
        return f"GroupConsumer({str(self._address)!r}, {list(map(text_of, self._starts))!r}, {self.group!r})"


def _checked_name(option: str, name: object) -> str:
    if not isinstance(name, str) or not name or not name.isprintable() or name == "-":
        raise ConfigurationError(option, name, 'printable text of 1 or more characters, other than "-"')
    return name
