"""
A buffer of your own: any object with `add`, `drain` and `size` can take the events of a client.

    python examples/custom_backend.py http://127.0.0.1:8765/stream/demo [file]

Without arguments the URL is taken from CONNECTOR_URL and the file is events.jsonl. Events are appended to the file, one
line each, and drained at the end. Ends when the server says that nothing more will come (204), or at Ctrl-C.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from pathlib import Path

import anyio.to_thread
import msgspec

from connector_sdk import AsyncConnectorClient, BufferBackend, ConnectorError, Payload, decode_payload, encode_payload


class JsonLinesBackend:
    """Holds payloads in a file, one line each. They outlive the process (not a power cut: nothing is synced)."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()

    async def add(self, payload: Payload) -> None:
        """Append a line. The id and, for types unknown to this version, the type are not part of the JSON."""
        line = (payload.event_id, payload.type, encode_payload(payload).decode())
        await anyio.to_thread.run_sync(self._append, msgspec.json.encode(line) + b"\n")

    async def drain(self) -> list[Payload]:
        """Take everything out, oldest first."""
        lines = await anyio.to_thread.run_sync(self._take)
        return [
            decode_payload(text.encode(), event_id=event_id, event_name=kind)
            for event_id, kind, text in (msgspec.json.decode(line, type=tuple[str | None, str, str]) for line in lines)
        ]

    async def size(self) -> int:
        """Count the lines."""
        return len(await anyio.to_thread.run_sync(self._read))

    def _append(self, line: bytes) -> None:
        with self._lock, self._path.open("ab") as file:
            file.write(line)

    def _read(self) -> list[bytes]:
        with self._lock:
            return self._path.read_bytes().splitlines() if self._path.exists() else []

    def _take(self) -> list[bytes]:
        with self._lock:
            lines = self._path.read_bytes().splitlines() if self._path.exists() else []
            self._path.unlink(missing_ok=True)
        return lines


async def receive(url: str, path: str) -> None:
    backend = JsonLinesBackend(path)
    assert isinstance(backend, BufferBackend)
    async with AsyncConnectorClient(url, overflow="block").into(backend) as client:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, client.stop)
        await client.run()
    print(f"ended ({client.closed_reason}): {await backend.size()} events in {path}")
    for payload in await backend.drain():
        print(payload.to_text())


def main() -> None:
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return
    arguments = [*sys.argv[1:], "", ""]
    try:
        asyncio.run(receive(arguments[0], arguments[1] or "events.jsonl"))
    except ConnectorError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
