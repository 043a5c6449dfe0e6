"""
A connector that never waits: HTTP/1.1, chunked, one chunk an event, every byte prepared before the answer begins.

A process of its own (`python -m tests.benchmarks.server`), with the standard library only. The URL says what is sent:
`/stream/bench?events=40000&sessions=50` sends a burst, `&rate=500` paces it and writes the sending time on the system's
monotonic clock into `forwarded_at`. The port is the first line of its output; it ends when its input does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from tests.benchmarks.tally import cores, keep_to_core

__all__ = ["ACTIONS", "EVENT_BYTES", "SENT_AT", "running_server", "stream_path"]

EVENT_BYTES: Final = 2048
ACTIONS: Final = 5
#: The field that carries the sending time, as it stands in the bytes.
SENT_AT: Final = b'"forwarded_at":'

_SESSION: Final = "SSSSSSSSSSSS"
_ID: Final = "IIIIIIIIII"
_TIME: Final = "1234567.123456789"
_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_PIECE: Final = 1 << 20
_ROOT: Final = Path(__file__).resolve().parents[2]


def stream_path(*, events: int, sessions: int, rate: float = 0.0) -> str:
    """The path that asks for *events* events of *sessions* sessions in turn; *rate* a second, or 0 for a burst."""
    return f"/stream/bench?events={events}&sessions={sessions}&rate={rate:g}"


@contextlib.contextmanager
def running_server() -> Iterator[str]:
    """Start the server on a free port of the loopback interface; give its URL without a path."""
    command = [sys.executable, "-m", "tests.benchmarks.server"]
    with subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


def template() -> str:
    """One event of 2,048 bytes with five actions, places for id, session and time left open."""

    def event(filler: str) -> str:
        actions = [
            {
                "title": f"Page Load: {index}",
                "description": f"User opened settings {index}{filler}",
                "canonical_url": "https://app.example.com/projects/:id/settings",
                "index": index,
                "type": "pageview",
                "timestamp_start": 1_700_000_000.25 + index,
                "timestamp_end": 1_700_000_001.25 + index,
                "raw_url": f"https://app.example.com/projects/{4711 + index}/settings",
                "session_id": _SESSION,
                "user_id": None,
                "email": None,
                "conversation_id": None,
            }
            for index in range(ACTIONS)
        ]
        payload = {
            "type": "actions",
            "product_id": "bench",
            "session_id": _SESSION,
            "user_id": None,
            "email": None,
            "actions": actions,
            "count": ACTIONS,
            "forwarded_at": float(_TIME),
        }
        text = json.dumps(payload, separators=(",", ":"))
        return f"id: {_ID}\ndata: {text}\n\n"

    short = EVENT_BYTES - len(event(""))
    assert short >= 0
    padded = event("." * (short // ACTIONS))
    return padded.replace("Page Load", "Page Load" + "!" * (short % ACTIONS), 1)


class Prepared:
    """The bytes of one kind of stream."""

    def __init__(self, events: int, sessions: int) -> None:
        whole = template()
        assert len(whole) == EVENT_BYTES
        before, middle, *rest = whole.replace(_ID, "\0").replace(_SESSION, "\0").split("\0")
        frame = f"{EVENT_BYTES:x}\r\n"

        def chunk(number: int) -> str:
            session = f"s{number % sessions:011d}"
            return f"{frame}{before}{number:010d}{middle}{session}{session.join(rest)}\r\n"

        #: Every event as an HTTP chunk, one after the other.
        self.blob = "".join(map(chunk, range(events))).encode()
        self.chunk_bytes = len(frame) + EVENT_BYTES + 2
        self.time_at = chunk(0).index(_TIME)


class Server:
    """One thread for each connection; the bytes of the last kind of stream are kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._prepared: tuple[tuple[int, int], Prepared] | None = None

    def serve(self, listener: socket.socket) -> None:
        """Take connections until the process ends."""
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            request = b""
            while b"\r\n\r\n" not in request:
                received = connection.recv(65536)
                if not received:
                    return
                request += received
            query = parse_qs(urlsplit(request.split(b" ", 2)[1].decode()).query)
            events, sessions, rate = int(query["events"][0]), int(query["sessions"][0]), float(query["rate"][0])
            prepared = self._prepare(events, sessions)
            connection.sendall(_HEAD)
            if rate:
                self._send_paced(connection, prepared, events, rate)
            else:
                whole = memoryview(prepared.blob)
                for start in range(0, len(whole), _PIECE):
                    connection.sendall(whole[start : start + _PIECE])
            while connection.recv(65536):
                pass  # a live stream stays open: the client ends it

    def _send_paced(self, connection: socket.socket, prepared: Prepared, events: int, rate: float) -> None:
        size, at = prepared.chunk_bytes, prepared.time_at
        chunks = [bytearray(prepared.blob[number * size : (number + 1) * size]) for number in range(events)]
        time.sleep(0.1)  # the client finishes its start
        begun = time.monotonic()
        for number, chunk in enumerate(chunks):
            time.sleep(max(0.0, begun + number / rate - time.monotonic()))
            chunk[at : at + len(_TIME)] = b"%17.9f" % time.monotonic()
            connection.sendall(chunk)

    def _prepare(self, events: int, sessions: int) -> Prepared:
        with self._lock:
            if self._prepared is None or self._prepared[0] != (events, sessions):
                self._prepared = None
                self._prepared = ((events, sessions), Prepared(events, sessions))
            return self._prepared[1]


def main() -> None:
    """Serve until standard input ends, so that no server outlives its benchmark."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    keep_to_core(cores()[1])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        threading.Thread(target=Server().serve, args=(listener,), daemon=True).start()
        sys.stdin.read()
        os._exit(0)


if __name__ == "__main__":
    main()
