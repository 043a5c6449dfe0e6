"""Where a run keeps its things, and the buffers of its processes. Import it after the clock is set."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from connector_sdk.buffers.bridge import OutageBridge
from connector_sdk.buffers.durable import DurableBuffer
from connector_sdk.buffers.redis import RedisEventBuffer
from connector_sdk.buffers.sqlite import SQLiteEventBuffer
from connector_sdk.payloads import Payload, SummaryPayload
from tests.chaos.plan import BufferKind

__all__ = ["LEASE", "SESSIONS", "Index", "Place", "events", "told"]

#: Seconds until the events of a dead job come again.
LEASE: Final = 2.0
SESSIONS: Final = 20
_PREFIX: Final = "chaos"


class Place(msgspec.Struct, frozen=True):
    """What a process is told on its command line, as JSON."""

    folder: str
    kind: BufferKind
    stream: str  #: the URL of the connector
    redis: str  #: the URL of Redis, "" without

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.folder)

    @property
    def index(self) -> Path:
        """The index: a line for each event that the job got."""
        return self.path / "index"

    @property
    def database(self) -> Path:
        """The buffer of "sqlite", or what is behind the bridge."""
        return self.path / "disk" / "events.db"

    @property
    def prefix(self) -> str:
        """What all keys in Redis begin with: not that of another run on the same server."""
        return f"{_PREFIX}-{self.path.name}"

    def job_buffer(self) -> DurableBuffer:
        """The buffer as the job uses it: behind a bridge that is the remote."""
        if self.kind == "sqlite":
            return SQLiteEventBuffer(self.database, overflow="block")
        # By arrival: these events must not leave the window because a clock jumps.
        return RedisEventBuffer(
            self.redis, self.prefix, 100_000.0, window_on="arrival", overflow="block", response_timeout=0.5
        )

    def client_buffer(self) -> DurableBuffer | OutageBridge:
        """The buffer as the client uses it."""
        if self.kind == "bridge":
            remote = RedisEventBuffer(self.redis, self.prefix, 100_000.0, window_on="arrival", response_timeout=0.5)
            return OutageBridge(remote, SQLiteEventBuffer(self.database, overflow="block"), overflow="block")
        return self.job_buffer()


class Index:
    """The finished work: written through to the disk, a line for each event."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, payloads: list[Payload]) -> None:
        """Index a batch; SIGKILL and a full disk leave all of it or none."""
        lines = "".join(f"{each.event_id} {_text(each)}\n" for each in payloads).encode()
        end = os.fstat(self._file).st_size
        if os.write(self._file, lines) < len(lines):
            os.ftruncate(self._file, end)
            raise OSError(errno.ENOSPC, "the index is full")
        os.fsync(self._file)


def _text(payload: Payload) -> str:
    if not isinstance(payload, SummaryPayload):
        raise TypeError(f"the server sends summaries, and this is a {type(payload).__name__}")
    return payload.summary


def events(count: int, time: float) -> Iterator[dict[str, object]]:
    """What the server sends: event n has id n + 1, its session, and the number within that as text."""
    for number in range(count):
        session = f"s-{number * 7919 % SESSIONS}"
        yield {
            "type": "summary",
            "product_id": "demo",
            "session_id": session,
            "summary": f"{session} {number}",
            "replaces": 0,
            "forwarded_at": time + number / 1000,
        }


def told() -> Place:
    """The place that this process was told on its command line."""
    return msgspec.json.decode(sys.argv[1], type=Place)
