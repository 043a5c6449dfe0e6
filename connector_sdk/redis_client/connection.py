"""One connection to one server, shared by any number of callers."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from typing import TypeAlias, cast

import hiredis

from connector_sdk.redis_client.address import Server
from connector_sdk.redis_client.errors import RedisRefusedError, RedisUnavailableError, refusal
from connector_sdk.redis_client.packing import Reply

__all__ = ["Connection"]

Future: TypeAlias = "asyncio.Future[Reply]"
_NEVER = float("inf")
#: Requests that wait for the same turn of the loop are sent in writes of about this many bytes.
_WRITE_SIZE = 256 * 1024
#: Above this many unsent bytes in the transport, requests wait in ours, from where they can still be taken back.
_HIGH_WATER = 512 * 1024
#: Above this many bytes that wait there, further requests fail at once.
_MOST_UNSENT = 64 * 1024 * 1024
#: Timers fire up to a tick of the clock too early.
_TICK = 0.001


class Connection(asyncio.Protocol):
    """
    Sends requests and hands each reply to the caller whose request it answers.

    Replies come in the order of the requests, so a caller that was cancelled or ran out of time keeps its place in the
    line: its reply is thrown away and nobody gets another's. A request that finds the line empty is written at once;
    those that come while others are unanswered are written together in the next turn of the event loop.

    A server that sends nothing at all for the second half of some request's time is taken for dead: the connection is
    aborted. While replies do come, a request whose time is up fails alone, unless it is its own reply that is coming.

    *sock* is its socket, connected before the first call.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, server: Server, sock: socket.socket) -> None:
        self.server = server
        #: Whether requests can be sent. Once false it stays so.
        self.is_open = False
        #: Whether the server has accepted the login; set by whoever logs in.
        self.is_logged_in = False
        #: Is done when the transport is closed.
        self.closed: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._time = loop.time
        self._socket = sock
        self._reader = hiredis.Reader(replyError=refusal)
        self._transport: asyncio.Transport | None = None
        # (caller, deadline, half of its time) in the order of writing: each is answered, or waits for its reply.
        self._line: deque[tuple[Future, float, float]] = deque()
        # The same and the request, for those not written yet.
        self._unsent: deque[tuple[Future, float, float, bytes]] = deque()
        self._unsent_size = 0
        self._flush: asyncio.Handle | None = None
        self._paused = False
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = _NEVER
        self._heard_at = loop.time()
        self._is_amid_reply = False
        self._retiring = False
        self._failure = "the connection was lost"

    # ------------------------------------------------------------------------------------------ for callers

    def call(self, packed: bytes, timeout: float) -> Future:
        """
        Send the request *packed*; the future gets its reply, a RedisRefusedError or a RedisUnavailableError.

        The future is done within *timeout* seconds. It may be cancelled at any time. Raises RedisUnavailableError at
        once when the connection is not open, *timeout* is not above 0, or 64 MiB wait for a server that does not read.
        """
        if not self.is_open:
            raise self._unavailable(in_doubt=False)
        if timeout <= 0:
            raise RedisUnavailableError(f"{self.server}: there was no time left to ask", in_doubt=False)
        if self._paused and self._unsent_size > _MOST_UNSENT:
            raise RedisUnavailableError(f"{self.server}: it does not keep up with what it is sent", in_doubt=False)
        half = timeout / 2
        deadline = self._time() + timeout
        future: Future = self._loop.create_future()
        if deadline < self._alarm_at:
            self._set_alarm(deadline)
        if self._line or self._unsent or self._paused:
            self._unsent.append((future, deadline, half, packed))
            self._unsent_size += len(packed)
            if self._flush is None and not self._paused:
                self._flush = self._loop.call_soon(self._write_unsent)
        else:
            self._line.append((future, deadline, half))
            cast(asyncio.Transport, self._transport).write(packed)
        return future

    def retire(self) -> None:
        """Take no more requests; close when those that are under way are answered."""
        self.is_open = False
        self._retiring = True
        self._failure = "the connection was given up"
        if not self._line and not self._unsent and self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Close now. Requests under way fail, those that were written in doubt. May be called at any time."""
        self.is_open = False
        self._failure = reason
        if self._transport is not None:
            self._transport.abort()
        self._fail_all()

    async def aclose(self, reason: str) -> None:
        """`abort`, and wait until the transport is closed: a second at most."""
        self.abort(reason)
        await asyncio.wait((self.closed,), timeout=1.0)

    def abandon(self) -> None:
        """
        Close the file descriptor and nothing else: for connections of an event loop that will never run again.

        In the child of a fork the connection of the parent goes on: no farewell is sent, and the parent's selector,
        which the child shares, is left alone.
        """
        self.is_open = False
        self._line.clear()
        self._unsent.clear()
        descriptor = self._socket.detach()
        if descriptor >= 0:
            os.close(descriptor)
        transport, self._transport = self._transport, None
        _mark_closed(transport)
        _mark_closed(getattr(getattr(transport, "_ssl_protocol", None), "_transport", None))

    # ------------------------------------------------------------------------------------------ from the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The transport is there, TLS and all: requests can be sent."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        """Bytes arrived: give each reply in them to the next in line."""
        self._heard_at = self._time()
        self._is_amid_reply = True
        reader, line = self._reader, self._line
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                self._is_amid_reply = False  # or the next bytes will tell
                future = line.popleft()[0]
                if isinstance(reply, RedisRefusedError):
                    _fail(future, reply)
                elif not future.done():  # else its caller left
                    future.set_result(reply)
        except hiredis.ProtocolError:
            self.abort("the server does not speak the Redis protocol")
        except IndexError:
            # A server that is full says so before it was asked anything.
            self.abort(
                f"the server said: {reply}" if isinstance(reply, RedisRefusedError) else "the server is out of step"
            )
        if self._retiring and not line and not self._unsent and self._transport is not None:
            self._transport.close()

    def eof_received(self) -> None:
        """The peer will say no more: whoever comes now is not to be in doubt."""
        self.is_open = False
        self._failure = "the server closed the connection"

    def pause_writing(self) -> None:
        """The peer reads slower than we write: requests wait here from now on."""
        self._paused = True

    def resume_writing(self) -> None:
        """The transport has room again."""
        self._paused = False
        if self._unsent and self._flush is None:
            self._flush = self._loop.call_soon(self._write_unsent)

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is closed, by us or by the peer: nobody in line will get an answer."""
        self.is_open = False
        self._transport = None
        if isinstance(exc, OSError) and exc.errno:
            self._failure += f" ({os.strerror(exc.errno)})"
        self._fail_all()
        if not self.closed.done():
            self.closed.set_result(None)

    # ------------------------------------------------------------------------------------------ inside

    def _write_unsent(self) -> None:
        self._flush = None
        unsent, line, transport = self._unsent, self._line, self._transport
        while unsent and not self._paused and transport is not None:
            batch, size = [], 0
            while unsent and size < _WRITE_SIZE:
                future, deadline, half, packed = unsent.popleft()
                self._unsent_size -= len(packed)
                if future.done():
                    continue  # its caller left in time: nothing is sent
                line.append((future, deadline, half))
                batch.append(packed)
                size += len(packed)
            if batch:
                transport.write(batch[0] if len(batch) == 1 else b"".join(batch))

    def _set_alarm(self, deadline: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = deadline
        self._alarm = self._loop.call_at(deadline, self._on_alarm)

    def _on_alarm(self) -> None:
        """
        Some request's time may be up. The one alarm is set again for the earliest of those that are unanswered.

        Requests are answered long before, as a rule: then this runs about once in a time-out, not once a request.
        """
        self._alarm, self._alarm_at = None, _NEVER
        now = self._time() + _TICK
        silence = now - self._heard_at
        following = _NEVER
        overdue: list[tuple[Future, bool]] = []
        for place, (future, deadline, half) in enumerate(self._line):
            if deadline <= now and place == 0 and silence < half and self._is_amid_reply:
                deadline = now + half  # noqa: PLW2901 - its answer is on the way, and large
            elif deadline <= now:
                if silence >= half:
                    self.abort("the server gave no answer in time")
                    return
                overdue.append((future, True))
                # It is late, and its caller gone, but the answer is still due: the server may fall silent later.
                deadline = now + half  # noqa: PLW2901
            following = min(following, deadline)
        for future, deadline, _, _ in self._unsent:
            if deadline <= now:
                overdue.append((future, False))
            else:
                following = min(following, deadline)
        for future, in_doubt in overdue:
            message = f"{self.server}: no answer in time, behind other requests"
            _fail(future, RedisUnavailableError(message, in_doubt=in_doubt))
        if following < _NEVER:
            self._set_alarm(following)

    def _unavailable(self, *, in_doubt: bool) -> RedisUnavailableError:
        return RedisUnavailableError(f"{self.server}: {self._failure}", in_doubt=in_doubt)

    def _fail_all(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm, self._alarm_at = None, _NEVER
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        for entry in self._line:
            _fail(entry[0], self._unavailable(in_doubt=True))
        for unsent in self._unsent:
            _fail(unsent[0], self._unavailable(in_doubt=False))
        self._line.clear()
        self._unsent.clear()


def _fail(future: Future, error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        # A caller that is cancelled in this very moment never looks at it, and asyncio would log that as a mistake.
        future.exception()


def _mark_closed(transport: object) -> None:
    # asyncio has no way to close a transport whose loop is gone, and warns of a leak when it is collected.
    for attribute, closed in (("_sock", None), ("_closed", True)):
        if hasattr(transport, attribute):
            setattr(transport, attribute, closed)
