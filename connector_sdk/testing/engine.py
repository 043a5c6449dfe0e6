"""The inside of a ConnectorServer: what runs on its event loop. It listens, accepts, paces events and cuts connections."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Final

from connector_sdk.testing.connection import Connection, Settings
from connector_sdk.testing.log import EventLog
from connector_sdk.testing.records import Scoreboard
from connector_sdk.testing.script import Plan

__all__ = ["Engine", "bind"]

_BACKLOG: Final = 1024
_MOST_EVENTS_AT_ONCE: Final = 256


def bind(port: int) -> socket.socket:
    """Return a socket bound to *port* of 127.0.0.1 (0: any that is free) which does not listen yet."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Connections of a server that was here before may linger in TIME_WAIT; they must not keep the port from us.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


class Engine:
    """
    Serves *log* by *settings* and *plans* (one for each connection) on the socket that `run()` is given and then owns.

    `notify()` may be called from any thread; everything else only on the event loop.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        settings: Settings,
        log: EventLog,
        board: Scoreboard,
        plans: Iterator[Plan],
        rate: float | None,
    ) -> None:
        self.settings = settings
        self.log = log
        self.board = board
        #: Mistakes of the server itself, for `close()` to raise.
        self.errors: list[BaseException] = []
        self._loop = loop
        self._plans = plans
        self._rate = rate
        self._listener: socket.socket | None = None
        self._accepts = False
        self._producing: asyncio.Task[None] | None = None
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self._grew = asyncio.Event()
        self._stopped = asyncio.Event()
        self._notify_lock = threading.Lock()
        self._notify_pending = False

    async def run(self, listener: socket.socket) -> None:
        """Serve on *listener* until `stop()`; every task and socket is gone when it returns."""
        self._listener = listener
        self.start_accepting()
        try:
            await self._stopped.wait()
        finally:
            if self._accepts:
                self._loop.remove_reader(self._listener)
            self._listener.close()
            await self.cut()
            if self._producing is not None:
                self._producing.cancel()
                await asyncio.wait([self._producing])
            with self._notify_lock:
                self._notify_pending = True  # for good: the loop is about to end, and nobody waits any more

    def stop(self) -> None:
        """Let `run()` return."""
        self._stopped.set()

    def start_accepting(self) -> None:
        """Take connections, if it does not yet."""
        if self._accepts or self._listener is None:
            return
        self._accepts = True
        self._listener.listen(_BACKLOG)
        self._loop.add_reader(self._listener, self._accept, self._listener)

    def stop_accepting(self) -> None:
        """Refuse new connections from now on, and keep the port."""
        if not self._accepts or self._listener is None:
            return
        self._accepts = False
        port: int = self._listener.getsockname()[1]
        self._loop.remove_reader(self._listener)
        self._listener.close()
        # Bound and not listening: the kernel refuses connections, and gives the port to nobody else.
        self._listener = bind(port)

    def cut_soon(self, *, reset: bool = False) -> list[asyncio.Task[None]]:
        """Tell all open connections to end; return their tasks."""
        for task, connection in self._connections.items():
            connection.reset = connection.reset or reset
            task.cancel()
        return list(self._connections)

    async def cut(self, *, reset: bool = False) -> int:
        """End all open connections; return how many there were, once they are closed."""
        tasks = self.cut_soon(reset=reset)
        if tasks:
            await asyncio.wait(tasks)
        return len(tasks)

    async def restart(self) -> None:
        """End all connections and listen anew; meanwhile new ones are refused."""
        self.stop_accepting()
        await self.cut()
        self.start_accepting()

    # What connections ask for: the Service protocol.

    def next_plan(self) -> Plan:
        """Take the next step of the script; after the last one, normal service."""
        return next(self._plans, Plan())

    def reader_began(self) -> None:
        """Start the clock, if there is a rate, with the first connection."""
        if self._rate is not None and self._producing is None:
            self._producing = self._loop.create_task(self._produce(self._rate))
            self._producing.add_done_callback(self._note_error)

    def trim_log(self) -> None:
        """Forget what no connection and no history needs."""
        positions = [c.position for c in self._connections.values() if c.position is not None]
        self.log.trim(min(positions, default=self.log.end))

    async def log_grew(self, timeout: float | None) -> bool:
        """Wait for more events; False when *timeout* seconds passed without."""
        try:
            async with asyncio.timeout(timeout):
                await self._grew.wait()
        except TimeoutError:
            return False
        return True

    def notify(self) -> None:
        """Wake the connections that wait for events, soon; from any thread."""
        with self._notify_lock:  # many events are published before the loop gets to run once: one wake-up is enough
            if self._notify_pending:
                return
            self._notify_pending = True
        self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        with self._notify_lock:
            self._notify_pending = False
        grew, self._grew = self._grew, asyncio.Event()
        grew.set()

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # it was gone before we came to it
        except OSError as error:  # no more file descriptors: refusing is honest, and close() says why
            self.errors.append(error)
            self.stop_accepting()
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(self, sock)
        task = self._loop.create_task(connection.run())
        self._connections[task] = connection
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._connections.pop(task).close()  # a task that was cancelled before it began has closed nothing
        self._note_error(task)

    def _note_error(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.errors.append(error)

    async def _produce(self, rate: float) -> None:
        """Let events happen by the clock, whoever listens; an event that is late changes nothing for the next."""
        start = self._loop.time()
        count = 0
        while not self.log.exhausted:
            due = int((self._loop.time() - start) * rate) + 1 - count
            if due > 0:
                count += self.log.pull(min(due, _MOST_EVENTS_AT_ONCE))
                self._wake()
            await asyncio.sleep(max(0.0, start + count / rate - self._loop.time()))
