"""A client that hides nothing: every byte of an answer, as a socket got it."""

from __future__ import annotations

import re
import socket
from types import TracebackType
from typing import Self

from connector_sdk.testing import ConnectorServer

__all__ = ["Wire", "read_body"]

PATIENCE = 5.0
EVENTS = [b'{"type":"summary","summary":"%d"}' % number for number in range(1, 6)]


def block(number: int, data: bytes | None = None) -> bytes:
    """Event *number* of EVENTS as it goes over the wire, with its id."""
    return b"id: %d\ndata: %b\n\n" % (number, EVENTS[number - 1] if data is None else data)


class Wire:
    """One request to *server*, sent at once; every wait is bounded."""

    def __init__(
        self, server: ConnectorServer, last_event_id: str | None = None, *, start: str = "", headers: str = ""
    ) -> None:
        self._received = bytearray()
        self._sock = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
        if last_event_id is not None:
            headers += f"Last-Event-ID: {last_event_id}\r\n"
        start = start or "GET /stream/demo HTTP/1.1"
        self._sock.sendall(f"{start}\r\nHost: x\r\n{headers}\r\n".encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._sock.close()

    def read_until(self, mark: bytes) -> bytes:
        """Read until *mark* was received; return everything received so far."""
        while mark not in self._received:
            assert self.read(), f"the connection ended before {mark!r}: {self.received!r}"
        return self.received

    def read_stream(self, body: bytes) -> None:
        """Read until the event stream is, so far, *body*."""
        while len(self.body) < len(body):
            assert self.read(), f"the connection ended before {body!r}: {self.received!r}"
        assert self.body == body

    def read_all(self) -> bytes:
        """Read until the server ends the connection; a reset raises ConnectionResetError."""
        while self.read():
            pass
        return self.received

    def stays_silent(self, seconds: float) -> bool:
        """Whether nothing comes for *seconds*, not even the end."""
        self._sock.settimeout(seconds)
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        else:
            return False
        finally:
            self._sock.settimeout(PATIENCE)

    def read(self) -> bytes:
        """Read what is there, or wait for it; nothing is the end."""
        data = self._sock.recv(65536)
        self._received += data
        return data

    # What an answer says.

    @property
    def received(self) -> bytes:
        """Every byte so far."""
        return bytes(self._received)

    @property
    def status(self) -> int:
        """The status code."""
        return int(self.received.split(b" ", 2)[1])

    @property
    def headers(self) -> dict[str, str]:
        """The headers, lower-case names."""
        lines = self.received.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    @property
    def payload(self) -> bytes:
        """What follows the head, as it came."""
        return self.received.partition(b"\r\n\r\n")[2]

    @property
    def chunks(self) -> list[bytes]:
        """The chunks, the unfinished last one as far as it came; the closing empty one is left out."""
        return split_chunks(self.payload)[0]

    @property
    def body(self) -> bytes:
        """The event stream."""
        return b"".join(self.chunks)

    @property
    def is_finished(self) -> bool:
        """Whether the answer was ended properly."""
        return split_chunks(self.payload)[1]


def split_chunks(payload: bytes) -> tuple[list[bytes], bool]:
    """The chunks of a body as far as it came, and whether its end came too."""
    chunks: list[bytes] = []
    place = 0
    while match := re.compile(rb"([0-9a-f]+)\r\n").match(payload, place):
        place = match.end() + int(match[1], 16)
        chunks.append(payload[match.end() : place])
        if place == match.end():
            assert payload[match.start() :] == b"0\r\n\r\n"
            return chunks[:-1], True
        if place >= len(payload):
            break
        assert payload[place : place + 2] == b"\r\n"
        place += 2
    return chunks, False


def read_body(server: ConnectorServer, last_event_id: str | None = None) -> bytes:
    """Make a request, read to its end, return the event stream."""
    with Wire(server, last_event_id) as wire:
        wire.read_all()
        return wire.body
