"""A file of an SQLiteEventBuffer for one test: stores and buffers over it, and other processes that use it."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio

from connector_sdk.buffers.sqlite import SQLiteEventBuffer
from connector_sdk.buffers.sqlite_clock import StoreClock
from connector_sdk.buffers.sqlite_store import SQLiteStore, SQLiteStoreOptions
from connector_sdk.payloads import Payload, SummaryPayload
from connector_sdk.testing.store_case import Shard
from tests.buffers.samples import Crew

#: Seconds after which what must happen has not happened.
PATIENCE: Final = 20.0

_PROGRAM: Final = """
import sys, time, anyio
from connector_sdk import SQLiteEventBuffer, SummaryPayload

path, start, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def event(number):
    return SummaryPayload("shop", "s", str(number), 0, time.time(), f"id-{number}")

def say(text):
    print(text, flush=True)

async def main():
    buffer = SQLiteEventBuffer(path, overflow="block", response_timeout=20.0)
"""


class SQLitePlace:
    """One path."""

    def __init__(self, folder: Path, stack: contextlib.AsyncExitStack) -> None:
        self.folder = folder
        self.path = folder / "events.db"
        self._stack = stack

    @classmethod
    @asynccontextmanager
    async def at(cls, folder: Path) -> AsyncIterator[SQLitePlace]:
        """Everything made here is closed at the end."""
        async with contextlib.AsyncExitStack() as stack:
            yield cls(folder, stack)

    def store(self, *, clock: StoreClock | None = None, patience: float = PATIENCE, **options: Any) -> Shard:
        """Make a store; times in seconds."""
        store = SQLiteStore(self.path, SQLiteStoreOptions(**options), clock=clock)
        self._stack.push_async_callback(store.aclose)
        return Shard(store, 0, patience)

    def buffer(self, **options: Any) -> SQLiteEventBuffer:
        """Make a buffer that is patient with a busy machine."""
        buffer = SQLiteEventBuffer(self.path, **{"response_timeout": PATIENCE, "acquire_timeout": PATIENCE, **options})
        self._stack.push_async_callback(buffer.aclose)
        return buffer

    def beside(self, end: str) -> Path:
        """Return the path of a file beside the buffer's."""
        return Path(f"{self.path}{end}")

    def set_aside(self) -> list[Path]:
        """Return the damaged files, without their logs."""
        found = self.folder.glob("events.db.corrupt-*")
        return sorted(path for path in found if not path.name.endswith(("-wal", "-shm")))

    @contextlib.contextmanager
    def program(self, body: str, start: int = 0, count: int = 0) -> Iterator[Program]:
        """Run lines of an async function in another process; they have `buffer`, `event`, `say`, `start` and `count`."""
        lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
        program = Program(_PROGRAM + lines + "\nanyio.run(main)\n", [str(self.path), str(start), str(count)])
        try:
            yield program
        finally:
            program.end()

    def raw(self) -> contextlib.closing[sqlite3.Connection]:
        """Open the file beside the buffer."""
        return contextlib.closing(sqlite3.connect(self.path, isolation_level=None, timeout=PATIENCE))


class Program:
    """Another process."""

    def __init__(self, text: str, arguments: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", text, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        """Return the next line that it says, "" when it has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def rest(self) -> list[str]:
        """Return all further lines, and require a good end."""
        assert self._process.stdout is not None
        lines = [line.strip() for line in self._process.stdout]
        assert self._process.wait(PATIENCE) == 0
        return lines

    def kill(self) -> list[str]:
        """Kill it with SIGKILL; return what it had said and nobody read."""
        self._process.kill()
        assert self._process.stdout is not None
        return [line.strip() for line in self._process.stdout if line.endswith("\n")]

    def pause(self) -> None:
        """Stop it with SIGSTOP."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)

    def resume(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """See to it that it is gone."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def event(number: int, session: str | None = "s", *, age: float = 0.0, event_id: str | None = "") -> SummaryPayload:
    """Make an event that happened *age* seconds ago; "" as id stands for its number."""
    return SummaryPayload(
        "shop", session, str(number), 0, time.time() - age, f"id-{number}" if event_id == "" else event_id
    )


def numbers_of(payloads: list[Payload]) -> list[int]:
    """Return the numbers of events."""
    return [int(payload.summary) for payload in payloads if isinstance(payload, SummaryPayload)]


def run_in_thread(work: Callable[..., Awaitable[object]], *arguments: int) -> None:
    """Run a coroutine function in a child whose only thread was in an event loop when it was forked."""
    with Crew() as crew:
        crew.start(anyio.run, work, *arguments)
