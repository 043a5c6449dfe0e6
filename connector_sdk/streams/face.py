"""What `Consumer` and `GroupConsumer` have in common: waiting, iterating, handlers, outages, lag."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from types import TracebackType
from typing import Final, Self, TypeVar

from connector_sdk.errors import BusClosedError, BusUnavailableError
from connector_sdk.observe import RateLimitedLogger
from connector_sdk.options import check_integer, check_seconds
from connector_sdk.redis_client import (
    Argument,
    RedisAddress,
    RedisClient,
    RedisRefusedError,
    RedisUnavailableError,
    Reply,
    load_script,
)
from connector_sdk.streams.entries import GroupEntry, array_of, bytes_of, integer_of
from connector_sdk.streams.entry import Entry
from connector_sdk.streams.positions import Start, StreamName, name_of, position, streams_of, time_of
from connector_sdk.streams.running import FailureHook, Handler, KeyedRun, KeyFunction
from connector_sdk.streams.stats import StreamLag

__all__ = ["BaseConsumer", "text_of"]

ResultT = TypeVar("ResultT")

_log = logging.getLogger(__name__)

_LAG: Final = load_script("connector_sdk.streams.lua", "lag.lua")
_COUNTED_AT_ONCE: Final = 5000
#: Seconds of one wait for entries; a stream that is added, and a stop, are noticed in between.
_LONGEST_WAIT: Final = 1.0
#: Seconds between two attempts to reach a server that is away: at first, and at most.
_PAUSES: Final = (0.05, 1.0)


class BaseConsumer(ABC):
    """A consumer of streams; see `Consumer` and `GroupConsumer`."""

    _client: RedisClient

    def __init__(
        self,
        redis_url: str,
        streams: object,
        *,
        start: Start,
        timeout: float,
        buffer_size: int,
        connect_timeout: float,
        response_timeout: float,
    ) -> None:
        self._address = RedisAddress.parse(redis_url)
        self._start = position("start", start)
        self._starts = streams_of(streams, self._start)
        self._wait = check_seconds("timeout", timeout)
        self._limit = check_integer("buffer_size", buffer_size, minimum=0, maximum=100_000) + 1
        self._connect_timeout = check_seconds("connect_timeout", connect_timeout, above=0)
        self._response_timeout = check_seconds("response_timeout", response_timeout, above=0)
        self._log = RateLimitedLogger(_log)
        self._state = "not entered yet"
        self._filling = asyncio.Lock()
        self._buffer: deque[GroupEntry] = deque()
        self._names: dict[bytes, str] = {}
        self._paused: set[bytes] = set()
        self._away_since: float | None = None
        self._failed_attempts = 0
        self._received = self._redelivered = self._outages = self._failed = 0
        self._stopping = asyncio.Event()

    # ------------------------------------------------------------------------------------------ from start to end

    async def __aenter__(self) -> Self:
        if self._state != "not entered yet":
            raise BusClosedError(f"{self!r} was entered before: make another one")
        self._client = RedisClient(
            self._address, connect_timeout=self._connect_timeout, client_name="connector_sdk streams"
        )
        self._state = "open"
        try:
            await self._open()
        except BaseException as error:
            self._state = "closed"
            await self._close()
            await self._client.aclose()
            if isinstance(error, RedisRefusedError | RedisUnavailableError):
                raise BusUnavailableError(str(error), in_doubt=error.in_doubt) from error
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._state = "closed"
        try:
            await self._close()
        finally:
            await self._client.aclose()

    @abstractmethod
    async def _open(self) -> None: ...

    @abstractmethod
    async def _close(self) -> None: ...

    def _check_open(self) -> None:
        if self._state != "open":
            raise BusClosedError(f"{self!r} is {self._state}: use it inside `async with`")

    # ------------------------------------------------------------------------------------------ reading

    async def get_entry(self, timeout: float | None = None) -> tuple[str, Entry] | tuple[None, None]:
        """
        Return the next entry with the name of its stream, (None, None) when none came within *timeout* seconds.

        *timeout* is that of the constructor unless it is given here. A server that is away is waited for in that time.

        Raises BusUnavailableError when it is still away then, or refuses; BusClosedError outside of `async with`.
        """
        if not self._buffer or self._state != "open":
            wait = self._wait if timeout is None else check_seconds("timeout", timeout)
            if not await self._fill(wait):
                return None, None
        return self._hand_out()

    def __aiter__(self) -> AsyncIterator[tuple[str, Entry]]:
        return self.until_idle()

    async def until_idle(self, timeout: float | None = None) -> AsyncIterator[tuple[str, Entry]]:
        """Give entries until none came for *timeout* seconds (default: that of the constructor). Raises as `get_entry`."""
        wait = self._wait if timeout is None else check_seconds("timeout", timeout)
        while await self._fill(wait):
            while self._buffer and self._state == "open":
                yield self._hand_out()

    async def forever(self) -> AsyncIterator[tuple[str, Entry]]:
        """Give entries without end; a server that is away is waited for."""
        while await self._fill(math.inf):
            while self._buffer and self._state == "open":
                yield self._hand_out()

    async def run(
        self,
        handler: Handler,
        *,
        concurrency: int = 1,
        key: KeyFunction | None = None,
        retry_delays: Sequence[float] = (0.1, 1.0, 5.0),
        on_failure: FailureHook | None = None,
        until_idle: bool = False,
    ) -> None:
        """
        Call `await handler(entry)` for each entry, up to *concurrency* (1 or more) at once, until `stop` is called.

        With *key*, a function of an entry, entries of equal keys are handled one after the other, in order, also when one of
        them fails. Without it entries begin in order. In a group an entry is acknowledged after its handler
        returned, unless the handler let it come again (`nack`).

        A handler that raises is called again after each of *retry_delays* (seconds), while other keys go on. After the last
        failure `await on_failure(entry, error)` is called and the entry counts as handled. Without *on_failure* `run` ends: it
        raises HandlerError, the entry comes again to the group, and those that were not begun are given back.

        Both are async functions: a plain one raises ConfigurationError, and its entry comes again.

        With *until_idle* it returns when nothing came for the constructor's `timeout` and all is handled. Cancelling it cancels
        the handlers; their entries come again to the group.
        """
        check_integer("concurrency", concurrency, minimum=1, maximum=10_000)
        delays = [check_seconds("retry_delays", delay) for delay in retry_delays]
        self._check_open()
        self._stopping.clear()

        async def take() -> Entry | None:
            while not self._stopping.is_set():
                wait = self._wait if until_idle else math.inf
                if not await self._fill(wait, stoppable=True):
                    return None
                if self._buffer:
                    return self._hand_out()[1]
            return None

        running = KeyedRun(self, handler, key, delays, on_failure)
        # More than one for each handler, or one key that has many entries would keep the others from being found.
        await running.run(take, concurrency, room=4 * concurrency + self._limit - 1)
        await self.run_ended()

    def stop(self) -> None:
        """Let `run` take no more entries and return, within about a second, when those that it took are handled."""
        self._stopping.set()

    async def _fill(self, wait: float, *, stoppable: bool = False) -> bool:
        """See to it that there is an entry in the buffer; return whether there is one, after *wait* seconds at most."""
        self._check_open()
        deadline = time.monotonic() + wait
        async with self._filling:
            while not self._buffer:
                self._check_open()
                left = max(0.0, deadline - time.monotonic())
                try:
                    await self._take(min(left, _LONGEST_WAIT))
                except RedisUnavailableError as error:
                    await self._wait_out(error, deadline)
                except RedisRefusedError as error:
                    raise BusUnavailableError(str(error), in_doubt=error.in_doubt) from error
                else:
                    self._away_since, self._failed_attempts = None, 0
                    is_over = time.monotonic() >= deadline or (stoppable and self._stopping.is_set())
                    if is_over and not self._buffer:
                        return False
            return True

    async def _wait_out(self, error: RedisUnavailableError, deadline: float) -> None:
        """The server is away: wait a little, or raise when the time is over."""
        if self._away_since is None:
            self._away_since = time.monotonic()
            self._outages += 1
        self._failed_attempts += 1
        pause = random.uniform(0.5, 1.0) * min(_PAUSES[0] * 2**self._failed_attempts, _PAUSES[1])
        left = deadline - time.monotonic()
        if left <= 0:
            raise BusUnavailableError(str(error), in_doubt=error.in_doubt) from error
        self._log.warning("away", "%s; waiting for it", error)
        await asyncio.sleep(min(pause, left))

    @abstractmethod
    async def _take(self, wait: float) -> None:
        """Put entries into the buffer, after *wait* seconds at most."""

    def _hand_out(self) -> tuple[str, Entry]:
        entry = self._buffer.popleft()
        self._received += 1
        if entry.attempt > 1:
            self._redelivered += 1
        self._handed_out(entry)
        return self._names[entry.stream], Entry(entry)

    @abstractmethod
    def _handed_out(self, entry: GroupEntry) -> None: ...

    # -- for KeyedRun

    @abstractmethod
    async def handled(self, entry: Entry) -> None:
        """A handler of `run` is done with *entry*."""

    @abstractmethod
    async def run_ended(self) -> None:
        """`run` took no more, and all is handled."""

    @abstractmethod
    async def not_handled(self, begun: Sequence[Entry], waiting: Sequence[Entry]) -> None:
        """`run` ends, and these are not handled."""

    def handler_failed(self) -> None:
        """A handler of `run` raised."""
        self._failed += 1

    # ------------------------------------------------------------------------------------------ streams

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that are read, those that are paused included."""
        return tuple(self._names.values())

    def _known(self, stream: StreamName) -> bytes:
        """Return the key of a stream that is read; KeyError for others."""
        self._check_open()
        key = name_of(stream)
        if key not in self._names:
            raise KeyError(f"{self!r} does not read {stream!r}")
        return key

    def _those(self, streams: Iterable[StreamName]) -> list[bytes]:
        return [self._known(stream) for stream in streams] or list(self._names)

    def _take_from_buffer(self, streams: Iterable[bytes]) -> list[GroupEntry]:
        """Remove what is buffered of *streams* and return it."""
        chosen = set(streams)
        taken = [entry for entry in self._buffer if entry.stream in chosen]
        if taken:
            self._buffer = deque(entry for entry in self._buffer if entry.stream not in chosen)
        return taken

    async def _lag_after(self, stream: bytes, entry_id: bytes, pending: int = 0, known: object = None) -> StreamLag:
        """Count what *stream* has after *entry_id*: all of it, so this takes time when there is much, unless it is *known*."""
        entries, seconds = 0, 0.0
        most = 1 if isinstance(known, int) else _COUNTED_AT_ONCE
        while True:
            arguments = (entry_id, most)
            reply = await self._client.run(_LAG, [stream], arguments, timeout=self._response_timeout, repeatable=True)
            count, first, last, now = array_of(reply)
            if entries == 0 and integer_of(count):
                seconds = max(0.0, integer_of(now) / 1000 - time_of(bytes_of(first)))
            entries += integer_of(count)
            if isinstance(known, int):
                return StreamLag(stream=text_of(stream), entries=known, seconds=seconds, pending=pending)
            if integer_of(count) < _COUNTED_AT_ONCE:
                return StreamLag(stream=text_of(stream), entries=entries, seconds=seconds, pending=pending)
            entry_id = bytes_of(last)

    async def _ask(self, *arguments: Argument, key: bytes) -> Reply:
        return await self._client.call(*arguments, key=key, timeout=self._response_timeout, repeatable=True)

    async def _asking(self, request: Awaitable[ResultT]) -> ResultT:
        """Await *request*; raise what went wrong as our own error."""
        try:
            return await request
        except (RedisUnavailableError, RedisRefusedError) as error:
            raise BusUnavailableError(str(error), in_doubt=error.in_doubt) from error

    async def _quietly(self, request: Awaitable[object]) -> None:
        """Await *request*, which somebody does again later if it fails."""
        try:
            await request
        except (RedisUnavailableError, RedisRefusedError) as error:
            self._log.warning("away", "%s; waiting for it", error)

    async def _last_id(self, stream: bytes) -> bytes:
        """Return the id of the newest entry that *stream* ever had."""
        try:
            reply = await self._ask("XINFO", "STREAM", stream, key=stream)
        except RedisRefusedError as error:
            if "no such key" not in error.message:
                raise
            return b"0-0"
        facts = array_of(reply)
        return bytes_of(facts[facts.index(b"last-generated-id") + 1])


def text_of(name: bytes) -> str:
    """Return the name of a stream as text; whatever bytes it has, `name_of` makes the same of it."""
    return name.decode("utf-8", "surrogateescape")
