"""One connection of a ConnectorServer: reads a request, asks for its plan, and carries the plan out byte by byte."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

import msgspec

from connector_sdk.testing import http11, script
from connector_sdk.testing.log import EventLog
from connector_sdk.testing.records import Request, Scoreboard

__all__ = ["Connection", "Service", "Settings"]

_MOST_HEAD_BYTES: Final = 64 * 1024
_MOST_EVENTS: Final = 256  # in one write; their size is bounded too
_LINGER: Final = 1.0  # seconds that a client has to read an answer before its socket goes
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER, on, 0 seconds: close() sends RST in place of FIN


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a ConnectorServer that concern a connection; ConnectorServer documents them."""

    product_id: str
    token: str | None
    heartbeat: float | None
    heartbeat_block: bytes
    retry: int | None
    end: str
    replay: bool


class Service(Protocol):
    """What a connection needs of its server."""

    settings: Settings
    log: EventLog
    board: Scoreboard

    def next_plan(self) -> script.Plan:
        """Take the next step of the script."""

    def reader_began(self) -> None:
        """A connection has begun to read the log."""

    def trim_log(self) -> None:
        """Forget what no connection and no history needs."""

    async def log_grew(self, timeout: float | None) -> bool:
        """Wait for more events; False when *timeout* seconds passed without."""


class _Part(msgspec.Struct):
    """A block on its way: `done` of its bytes are sent."""

    block: bytes
    is_event: bool
    done: int = 0


class _StreamOver(Exception):  # noqa: N818 - no error: the way out of the stream from wherever its last event was sent
    pass


class Connection:
    """
    Serves one request on *sock*, which it owns, then closes it. Cancel the task that runs `run()` to cut it.

    Lives on the server's event loop; nothing here is thread-safe.
    """

    def __init__(self, service: Service, sock: socket.socket) -> None:
        self._service = service
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._log = service.log
        self._settings = service.settings
        self._plan = script.Plan()
        self._events = 0  # complete ones, sent on this connection
        self._bytes = 0  # of the event stream, sent on this connection
        self._front: list[bytes] = []  # what comes before the events of the log
        self._part: _Part | None = None
        #: Where in the log this connection has come to; None when it does not read it.
        self.position: int | None = None
        #: Whether the socket is closed with a TCP reset.
        self.reset = False

    async def run(self) -> None:
        """Serve; returns when the connection is over, whoever ended it."""
        try:
            head = await self._read_head()
            if head is not None:
                await self._serve(head)
        except OSError:
            pass  # the client went away in the middle of a write: nothing to tell, nobody to tell it to
        finally:
            self.close()

    async def _serve(self, head: http11.RequestHead) -> None:
        request = self._service.board.request_came(head.method, head.target, head.headers)
        self._loop.add_reader(self._sock.fileno(), self._look_for_end, asyncio.current_task())
        try:
            await self._answer(request)
        finally:
            self._loop.remove_reader(self._sock.fileno())
            # The socket goes before the count, so that a test that saw the count go down sees the connection closed.
            self.close()
            self._service.board.connection_ended()

    async def _answer(self, request: Request) -> None:
        refusal = self._refusal(request)
        if refusal is not None:
            await self._respond(refusal)
            return
        self._plan = self._service.next_plan()
        await asyncio.sleep(self._plan.wait)
        match self._plan.answer:
            case None:
                await self._stream(request)
            case script.Refuse():
                self.reset = True
            case script.Status() as status:
                await self._respond(status)
            case script.Redirect(url=url, status=code):
                await self._respond(script.Status(code, {"Location": url}))
            case script.Garbage(data=data):
                await self._send(data)
            case script.Silence():
                await self._loop.create_future()

    def _refusal(self, request: Request) -> script.Status | None:
        path = unquote(urlsplit(request.path).path)
        if path != f"/stream/{self._settings.product_id}":
            return script.Status(404, body=b"there is no such stream\n")
        if request.method != "GET":
            return script.Status(405, {"Allow": "GET"}, b"a stream can only be read\n")
        if self._settings.token is not None and request.authorization != f"Bearer {self._settings.token}":
            return script.Status(401, {"WWW-Authenticate": "Bearer"}, b"the token is missing or wrong\n")
        return None

    async def _respond(self, status: script.Status) -> None:
        headers = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(status.body))}
        if status.status in (204, 304):
            headers.clear()  # RFC 9110, section 8.6: these have no content, and say nothing about its length
        given = {name.lower() for name in status.headers}
        headers = {name: value for name, value in headers.items() if name.lower() not in given} | dict(status.headers)
        await self._send(http11.render_head(status.status, headers) + status.body)
        # Closing while bytes of the client (a request body) wait unread sends RST, which may overtake the answer.
        self._sock.shutdown(socket.SHUT_WR)
        await asyncio.sleep(_LINGER)  # cut short as soon as the client closes its side

    async def _stream(self, request: Request) -> None:
        plan = self._plan
        resume = plan.no_resume is None
        position, answered = self._log.begin(request.last_event_id, replay=self._settings.replay, resume=resume)
        if self._settings.end == "stop" and plan.raw is None and self._log.is_over(position):
            await self._respond(script.Status(204))
            return
        self.position = position
        self._service.reader_began()
        if plan.no_resume is not None and plan.no_resume.announce:
            answered = "earliest"
        headers = {"Content-Type": plan.content_type, "Cache-Control": "no-store", "Transfer-Encoding": "chunked"}
        if answered is not None:
            headers["Last-Event-ID"] = answered
        await self._send(http11.render_head(200, headers))
        if plan.raw is not None:
            self._front = [plan.raw.data] if plan.raw.data else []
        elif self._settings.retry is not None:
            self._front = [b"retry: %d\n\n" % self._settings.retry]
        try:
            for step in plan.placed:
                await self._advance_to(step)
                if await self._is_last(step):
                    return
            while True:
                await self._send_some(_MOST_EVENTS)
        except _StreamOver:
            await self._send(http11.LAST_CHUNK)

    async def _is_last(self, step: script.Placed) -> bool:
        """Do what *step* says; True when the connection ends with it."""
        match step:
            case script.Cut(how=how):
                self.reset = how == "reset"
                if how == "clean":
                    await self._send(http11.LAST_CHUNK)
                return True
            case script.Stall(seconds=seconds):
                await asyncio.sleep(seconds)
            case script.Silence():
                await self._loop.create_future()
            case script.Comment(text=text):
                await self._send_part(_Part(b": %b\n" % text.encode(), is_event=False))
            case script.Garbage(data=data, where="framing"):
                await self._send(data)
                return True
            case script.Garbage(data=data):
                await self._send_part(_Part(data, is_event=False))
            case script.Duplicate(count=count) if self.position is not None:
                self.position = max(self._log.earliest(), self.position - count)
            case _:
                pass
        return False

    # How far to go: each of these sends up to a place and not a byte further.

    async def _advance_to(self, step: script.Placed) -> None:
        mid_chunk = isinstance(step, script.Silence) or (isinstance(step, script.Cut) and step.how != "clean")
        if step.after_bytes is not None:
            while self._bytes < step.after_bytes:
                part = self._part or await self._next_part()
                await self._send_part(part, part.done + step.after_bytes - self._bytes, mid_chunk=mid_chunk)
            return
        while self._events < step.after_events:
            await self._send_some(step.after_events - self._events)
        while step.into_next:
            part = self._part or await self._next_part()
            if part.is_event:
                await self._send_part(part, min(step.into_next, len(part.block) - 1), mid_chunk=mid_chunk)
                break
            await self._send_part(part)

    async def _send_some(self, most_events: int) -> None:
        """Send the rest of a part, or else up to *most_events* events in one write."""
        if self._part is not None:
            await self._send_part(self._part)
            return
        blocks, are_events = await self._take(most_events)
        if self._plan.split:
            for block in blocks:
                await self._send_part(_Part(block, are_events))
            return
        await self._send(b"".join([http11.chunk(block) for block in blocks]))
        self._bytes += sum(map(len, blocks))
        if are_events:
            self._count_events(len(blocks))
        await asyncio.sleep(0)  # a write that succeeds at once does not yield, and other connections want to go on

    async def _send_part(self, part: _Part, upto: int | None = None, *, mid_chunk: bool = False) -> None:
        """
        Send *part* up to its byte *upto* (None: all of it), as a chunk of its own.

        With *mid_chunk* the chunk announces all that is left of the part: what comes next is the end of the connection.
        """
        stop = len(part.block) if upto is None else min(max(upto, part.done), len(part.block))
        piece = part.block[part.done : stop]
        is_complete = stop == len(part.block)
        self._part = None if is_complete else part
        if self._plan.split:
            for byte in piece:
                await self._send(b"1\r\n%c\r\n" % byte)
                await asyncio.sleep(
                    0
                )  # a write that succeeds at once does not yield, and other connections want to go on
        elif mid_chunk and not is_complete:
            await self._send(b"%x\r\n%b" % (len(part.block) - part.done, piece))
        elif piece:
            await self._send(http11.chunk(piece))
        part.done = stop
        self._bytes += len(piece)
        if is_complete and part.is_event:
            self._count_events(1)

    async def _next_part(self) -> _Part:
        blocks, are_events = await self._take(1)
        return _Part(blocks[0], are_events)

    async def _take(self, most_events: int) -> tuple[list[bytes], bool]:
        """Wait for the next blocks, at least one, and whether they are events; raises _StreamOver when there are none."""
        if self._front:
            return [self._front.pop(0)], False
        if self._plan.raw is not None:
            if self._plan.raw.then == "close":
                raise _StreamOver
        elif self.position is not None:
            while True:
                blocks = self._log.read(self.position, most_events)
                if blocks:
                    self.position += len(blocks)
                    self._service.trim_log()
                    return blocks, True
                if self._settings.end != "hold" and self._log.exhausted:
                    raise _StreamOver
                if not await self._service.log_grew(self._settings.heartbeat):
                    return [self._settings.heartbeat_block], False
        await asyncio.wait([self._loop.create_future()], timeout=self._settings.heartbeat)
        return [self._settings.heartbeat_block], False

    def _count_events(self, count: int) -> None:
        self._events += count
        self._service.board.events_sent(count)

    # The socket.

    async def _read_head(self) -> http11.RequestHead | None:
        received = b""
        while b"\r\n\r\n" not in received:
            data = await self._loop.sock_recv(self._sock, 8192)
            received += data
            if not data or len(received) > _MOST_HEAD_BYTES:
                return None
        head = http11.parse_head(received.partition(b"\r\n\r\n")[0])
        if head is None:
            await self._respond(script.Status(400, body=b"this is no HTTP/1.1 request\n"))
        return head

    async def _send(self, data: bytes) -> None:
        await self._loop.sock_sendall(
            self._sock, data
        )  # returns when the kernel has all of it: that is the backpressure

    def _look_for_end(self, task: asyncio.Task[None] | None) -> None:
        """Called when the client sent something; nothing more is expected of it, so it is the end, or does not matter."""
        try:
            data = self._sock.recv(8192)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data and task is not None:
            self._loop.remove_reader(self._sock.fileno())
            task.cancel()

    def close(self) -> None:
        """Close the socket; may be called again."""
        if self.reset and self._sock.fileno() >= 0:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._sock.close()
