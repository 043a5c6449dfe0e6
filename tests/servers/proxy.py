"""A TCP proxy that cuts, delays, holds, swallows and refuses on demand: the network of the tests."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias, TypeVar

from connector_sdk.testing.engine import bind

Direction: TypeAlias = Literal["to_server", "to_client"]
DIRECTIONS: Final[tuple[Direction, ...]] = ("to_server", "to_client")

_PATIENCE: Final = 5.0
_CHUNK: Final = 64 * 1024
_T = TypeVar("_T")


class _Lane:
    """One direction of all connections: its rules and its counts. Only for the proxy's loop."""

    def __init__(self) -> None:
        self.received = 0
        self.forwarded = 0
        self.clear()

    def clear(self) -> None:
        self.delay = 0.0
        self.swallow = False
        self.left: int | None = None  # bytes until a cut
        self.reset = False  # how that cut is done


class Proxy:
    """
    Listens on a free port of 127.0.0.1 and connects each client to *target_port*, until it is told not to.

    It has a thread and a loop of its own: use it from sync tests and from async ones on any loop. All methods block
    for less than a millisecond (`wait_...` excepted), and what they say is in force when they return. A *direction* is
    "to_server" (what clients send) or "to_client" (what they get); None is both. `restore()` ends all faults.

    Args:
        target_port: where the server listens.
        target_host: its address.
        tls: clients must speak TLS by this context; the server is spoken to in plain.
    """

    def __init__(self, target_port: int, *, target_host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self._target = (target_host, target_port)
        self._tls = tls
        # Keeps the port ours while refuse() is in force (on Linux): bound, but not listening.
        self._holder = bind(0)
        self.port: Final[int] = self._holder.getsockname()[1]
        self._lanes: dict[Direction, _Lane] = {direction: _Lane() for direction in DIRECTIONS}
        self._changed = threading.Condition()
        self._accepted = 0
        self._open: set[_Connection] = set()
        self._listener: asyncio.Server | None = None
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"Proxy-{self.port}", daemon=True)
        self._closed = False

    # From start to end.

    def start(self) -> Self:
        """Listen; `with` does this."""
        self._thread.start()
        self._on_loop(self._listen())
        return self

    def close(self) -> None:
        """Cut all connections and end the thread; may be called again."""
        if self._closed:
            return
        self._closed = True
        if self._thread.ident is not None:
            self._on_loop(self._stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_PATIENCE)
            assert not self._thread.is_alive()
        self._loop.close()
        self._holder.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The address for a Redis client."""
        return f"{'rediss' if self._tls else 'redis'}://127.0.0.1:{self.port}/0"

    # Faults.

    def cut(self, *, reset: bool = True) -> int:
        """End all connections now, by TCP reset or else by an orderly end; return how many. New ones are taken."""
        return self._on_loop(self._cut(reset=reset))

    def cut_after(self, count: int, direction: Direction = "to_client", *, reset: bool = False) -> None:
        """
        Let *count* more bytes pass in *direction* (over all connections) and end the connection that has the last, once.

        0 ends a connection instead of handing on the next byte: `cut_after(0)` lets the server carry out a command and
        loses the answer. Without *reset* the *count* bytes surely arrive; with it, they may be lost.
        """

        def rule() -> None:
            self._lanes[direction].left, self._lanes[direction].reset = count, reset

        self._on_loop(_call(rule))

    def delay(self, seconds: float, direction: Direction | None = None) -> None:
        """Hand on what comes from now on *seconds* later, in order (a round trip through both is twice as much)."""
        self._rule(direction, lambda lane: setattr(lane, "delay", seconds))

    def swallow(self, direction: Direction | None = None) -> None:
        """Hand on nothing: what comes is lost, also for connections that outlive `restore()`. New ones are taken."""
        self._rule(direction, lambda lane: setattr(lane, "swallow", True))

    def refuse(self) -> None:
        """Refuse new connections, as if nobody listened; open ones go on (see `cut`)."""
        self._on_loop(_call(self._stop_listening))

    def restore(self) -> None:
        """Serve normally again; open connections stay open."""
        self._rule(None, _Lane.clear)
        self._on_loop(self._listen())

    # What happened.

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._open)

    @property
    def accepted(self) -> int:
        """How many were ever taken."""
        return self._accepted

    def received(self, direction: Direction) -> int:
        """How many bytes came in to go in *direction*, those lost included."""
        return self._lanes[direction].received

    def forwarded(self, direction: Direction) -> int:
        """How many bytes were handed on in *direction*."""
        return self._lanes[direction].forwarded

    def wait_for_accepted(self, count: int, timeout: float = _PATIENCE) -> None:
        """Wait until *count* or more connections were ever taken; TimeoutError after *timeout* seconds."""
        self._wait(lambda: self._accepted >= count, timeout)

    def wait_for_connections(self, count: int, timeout: float = _PATIENCE) -> None:
        """Wait until exactly *count* are open; TimeoutError after *timeout* seconds."""
        self._wait(lambda: len(self._open) == count, timeout)

    def wait_until_received(self, count: int, direction: Direction, timeout: float = _PATIENCE) -> None:
        """Wait until `received(direction)` is *count* or more; TimeoutError after *timeout* seconds."""
        self._wait(lambda: self._lanes[direction].received >= count, timeout)

    def _wait(self, condition: Callable[[], bool], timeout: float) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                raise TimeoutError(f"{self._accepted} connections taken, {len(self._open)} open")

    # On the loop.

    def _on_loop(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE)

    def _rule(self, direction: Direction | None, rule: Callable[[_Lane], None]) -> None:
        async def apply() -> None:
            for name in DIRECTIONS if direction is None else (direction,):
                rule(self._lanes[name])

        self._on_loop(apply())

    def _tell(self, change: Callable[[], object]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._serve, sock=bind(self.port), ssl=self._tls)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _cut(self, *, reset: bool) -> int:
        connections = list(self._open)
        for connection in connections:
            connection.end(reset=reset)
        await asyncio.gather(*(connection.ended.wait() for connection in connections))
        return len(connections)

    async def _stop(self) -> None:
        self._stop_listening()
        await self._cut(reset=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self._lanes, self._tell, reader, writer)

        def taken() -> None:
            self._accepted += 1
            self._open.add(connection)

        self._tell(taken)
        try:
            await connection.run(self._target)
        finally:
            self._tell(lambda: self._open.discard(connection))
            connection.ended.set()


class _Connection:
    """One client and its connection to the server."""

    def __init__(
        self,
        lanes: dict[Direction, _Lane],
        tell: Callable[[Callable[[], object]], None],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.ended = asyncio.Event()
        self._lanes = lanes
        self._tell = tell
        self._client = (reader, writer)
        self._writers = [writer]
        self._over = asyncio.Event()
        self._reset = False

    def end(self, *, reset: bool) -> None:
        """Let it end; `ended` says when both its sockets are closed."""
        self._reset = reset
        self._over.set()

    async def run(self, target: tuple[str, int]) -> None:
        tasks = {asyncio.create_task(self._connect(target)), asyncio.create_task(self._until_over())}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _give_up(tasks)
            await asyncio.gather(*(self._close(writer) for writer in self._writers))

    async def _until_over(self) -> None:
        await self._over.wait()

    async def _connect(self, target: tuple[str, int]) -> None:
        try:
            reader, writer = await asyncio.open_connection(*target)
        except OSError:
            self._reset = True
            return
        self._writers.append(writer)
        client_reader, client_writer = self._client
        pumps = {
            asyncio.create_task(self._pump(self._lanes["to_server"], client_reader, writer)),
            asyncio.create_task(self._pump(self._lanes["to_client"], reader, client_writer)),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _give_up(pumps)

    async def _pump(self, lane: _Lane, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hand on what comes until one side ends it, or a rule does."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
        reading = asyncio.create_task(self._read(lane, reader, queue))
        loop = asyncio.get_running_loop()
        try:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(due - loop.time() if lane.delay else 0)
                if not data or not await self._hand_on(lane, data, writer):
                    return
        finally:
            await _give_up({reading})

    async def _read(self, lane: _Lane, reader: asyncio.StreamReader, queue: asyncio.Queue[tuple[float, bytes]]) -> None:
        loop = asyncio.get_running_loop()
        data = b"..."
        while data:
            try:
                data = await reader.read(_CHUNK)
            except OSError:
                data = b""

            def count(more: int = len(data)) -> None:
                lane.received += more

            self._tell(count)
            await queue.put((loop.time() + lane.delay, data))

    async def _hand_on(self, lane: _Lane, data: bytes, writer: asyncio.StreamWriter) -> bool:
        """False when this was the last of the connection."""
        if lane.swallow:
            return True
        cut = lane.left is not None and len(data) >= lane.left
        if lane.left is not None:
            data = data[: lane.left]
            lane.left -= len(data)
        if cut:
            lane.left, self._reset = None, lane.reset
        try:
            writer.write(data)
            await writer.drain()
        except OSError:
            return False
        lane.forwarded += len(data)
        return not cut

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        if self._reset:
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        else:
            writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _give_up(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()  # a mistake in the proxy itself must show


async def _call(action: Callable[[], None]) -> None:
    action()
