"""Consumer: entries of one or many Redis Streams, for a reader without a group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from connector_sdk.streams.entries import GroupEntry
from connector_sdk.streams.entry import Entry
from connector_sdk.streams.face import BaseConsumer, text_of
from connector_sdk.streams.positions import LATEST, Start, StreamName, name_of, position
from connector_sdk.streams.reader import StreamReader
from connector_sdk.streams.stats import ConsumerStats, StreamLag

__all__ = ["Consumer"]


class Consumer(BaseConsumer):
    """
    Reads one or many streams of Redis or Valkey, each entry in order within its stream.

    ::

        async with Consumer("redis://localhost:6379/0", ["clicks", "orders"], start="beginning") as consumer:
            async for stream, entry in consumer:  # ends when nothing is left; `consumer.forever()` goes on
                print(stream, entry.identifier, entry.fields)

    It remembers its place in memory only: `GroupConsumer` is for work that must survive the process. A server that is away
    is waited for. For asyncio only; any number of tasks may take entries, and each entry is handed out once.

    Args:
        redis_url: where Redis is, as for `RedisEventBuffer`: one server, a cluster, or sentinels.
        streams: a name, names, or a mapping of names to where to start. A stream that does not exist is one without entries.
        start: "latest" (what is added after entering the block), "beginning", an id (what comes after it), or a time (Unix
            seconds, or a datetime with its time zone: what was added then or later).
        timeout: seconds, 0 or more, to wait for an entry before an iteration ends or `get_entry` gives (None, None).
        buffer_size: how many entries are fetched beyond the one that is asked for, 0 to 100,000.
        connect_timeout: seconds, above 0, that opening a connection may take.
        response_timeout: seconds, above 0, after which a request without an answer has failed. Time that the server is asked to
            wait does not count, so any *timeout* works with it.

    Raises:
        ConfigurationError: an option has a value that cannot work. Nothing is sent before the block is entered.
        BusUnavailableError: when entering: the server cannot be reached.
    """

    def __init__(
        self,
        redis_url: str,
        streams: StreamName | Iterable[StreamName] | Mapping[StreamName, Start],
        *,
        start: Start | Literal["latest", "beginning"] = "latest",
        timeout: float = 0.0,
        buffer_size: int = 100,
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
        #: Ids after which to read, and those of the entries handed out last.
        self._cursors: dict[bytes, bytes] = {}
        self._handed: dict[bytes, bytes] = {}
        self._reader = StreamReader(self._address, connect_timeout=connect_timeout, response_timeout=response_timeout)

    async def _open(self) -> None:
        for stream, start in self._starts.items():
            await self._begin(stream, start)

    async def _close(self) -> None:
        await self._reader.aclose()

    async def _begin(self, stream: bytes, start: bytes) -> None:
        cursor = await self._last_id(stream) if start == LATEST else start
        self._cursors[stream] = self._handed[stream] = cursor
        self._names[stream] = text_of(stream)

    async def _take(self, wait: float) -> None:
        cursors = {stream: cursor for stream, cursor in self._cursors.items() if stream not in self._paused}
        for stream, entries in await self._reader.read(cursors, self._limit, wait):
            if self._cursors.get(stream) is cursors[stream] and stream not in self._paused:  # nobody moved it meanwhile
                self._cursors[stream] = entries[-1][0]
                self._buffer.extend([GroupEntry(stream, entry_id, fields) for entry_id, fields in entries])

    def _handed_out(self, entry: GroupEntry) -> None:
        self._handed[entry.stream] = entry.id

    async def handled(self, entry: Entry) -> None:
        """Do nothing: there is nobody to tell."""

    async def run_ended(self) -> None:
        """Do nothing."""

    async def not_handled(self, begun: Sequence[Entry], waiting: Sequence[Entry]) -> None:
        """Put what was not begun back in front; what was begun is over."""
        self._buffer.extendleft(entry.origin for entry in reversed(waiting) if entry.origin.stream in self._cursors)

    # ------------------------------------------------------------------------------------------ streams

    async def add_stream(self, stream: StreamName, start: Start | None = None) -> bool:
        """Read *stream* as well, from *start* (default: that of the constructor); return False if it was read already."""
        self._check_open()
        key = name_of(stream)
        if key in self._cursors:
            return False
        await self._begin(key, self._start if start is None else position("start", start))
        return True

    async def remove_stream(self, stream: StreamName) -> bool:
        """Do not read *stream* any more, nor hand out what is buffered of it; return False if it was not read."""
        self._check_open()
        key = name_of(stream)
        if self._cursors.pop(key, None) is None:
            return False
        self._take_from_buffer([key])
        self._paused.discard(key)
        del self._names[key], self._handed[key]
        return True

    async def pause(self, *streams: StreamName) -> None:
        """Hand out nothing of *streams* (all that are read, without any) until `resume`. Raises KeyError for unknown ones."""
        chosen = self._those(streams)
        self._paused.update(chosen)
        self._take_from_buffer(chosen)
        for stream in chosen:
            self._cursors[stream] = self._handed[stream]

    async def resume(self, *streams: StreamName) -> None:
        """Go on with *streams* (all, without any) where they were paused."""
        self._paused.difference_update(self._those(streams))

    async def seek(self, stream: StreamName, start: Start) -> None:
        """Go on with *stream* at *start*, forward or back. Raises KeyError when it is not read."""
        key = self._known(stream)
        begin = position("start", start)
        begin = await self._last_id(key) if begin == LATEST else begin
        self._take_from_buffer([key])
        # Another object even if the id is the same: a read under way must not take it for its own.
        self._cursors[key] = self._handed[key] = bytes(bytearray(begin))

    async def lag(self, stream: StreamName) -> StreamLag:
        """Return how far *stream* is ahead of what was handed out. Everything is counted: a million entries take seconds."""
        key = self._known(stream)
        return await self._asking(self._lag_after(key, self._handed[key]))

    def stats(self) -> ConsumerStats:
        """Return what happened so far."""
        return ConsumerStats(
            streams=self.streams,
            paused=tuple(sorted(map(text_of, self._paused))),
            received=self._received,
            redelivered=0,
            acknowledged=0,
            nacked=0,
            recovered=0,
            trimmed=0,
            healed=0,
            failed=self._failed,
            outages=self._outages,
            buffered=len(self._buffer),
            in_hand=0,
        )

    def __repr__(self) -> str:
        return f"Consumer({str(self._address)!r}, {list(map(text_of, self._starts))!r})"
