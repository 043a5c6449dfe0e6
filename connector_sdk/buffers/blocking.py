"""BlockingBuffer: any async buffer for sync code and threads, on an event loop of its own in one thread."""

from __future__ import annotations

import concurrent.futures
import inspect
import socket
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Literal, Self, TypeAlias, TypeVar, TypeVarTuple, Unpack, cast, get_args

import anyio
import anyio.from_thread
import anyio.lowlevel
from anyio.from_thread import BlockingPortal
from msgspec import UNSET

from connector_sdk.at_exit import EXIT_TIMEOUT, Stage, finish_at_exit, time_to_give_up
from connector_sdk.buffers import protocol
from connector_sdk.buffers.arguments import check_flag, check_limit, check_span, check_types, names_of
from connector_sdk.buffers.blocking_dead_letters import HostedDeadLetters
from connector_sdk.buffers.blocking_lease import BlockingLease, Holding
from connector_sdk.buffers.dead_letters import BlockingDeadLetters
from connector_sdk.buffers.durable import DurableBuffer
from connector_sdk.buffers.durable_stats import DurableStats
from connector_sdk.buffers.forks import start_empty_after_fork, wakeup_sockets
from connector_sdk.buffers.protocol import BufferBackend, DeadLettering
from connector_sdk.buffers.stats import BufferStats
from connector_sdk.buffers.store import SessionFilter
from connector_sdk.callbacks import is_async_callable
from connector_sdk.errors import BufferClosedError, ClientStateError, ConfigurationError, EventBufferError
from connector_sdk.ledger import DropReason
from connector_sdk.options import check_choice, check_integer
from connector_sdk.payloads import Payload

__all__ = ["BlockingBuffer", "BlockingLease", "LoopKind"]

ResultT = TypeVar("ResultT")
Arguments = TypeVarTuple("Arguments")

#: The event loop that runs the buffer.
LoopKind: TypeAlias = Literal["asyncio", "trio"]

#: Seconds that giving back leases may take when the buffer is closed.
_GRACE = 2.0
#: Portals of a parent process: to drop one would make it wait for a thread that is not here.
_left_behind: list[object] = []


class BlockingBuffer:
    """
    An async buffer as seen by sync code: any number of threads, no event loop of yours.

    ::

        with BlockingBuffer(RedisEventBuffer("redis://localhost")) as buffer:
            client.into(buffer)
            for payload in buffer.drain(): ...

    The buffer runs in a thread of its own, started by `with` or the first call, and belongs to it from then on: use it
    through this object only. Threads that add at the same time share group commits. Every call waits for its answer; a
    KeyboardInterrupt meanwhile cancels the call. What the methods do is said where the buffer says it; methods that it lacks
    are done by `connector_sdk.buffers.protocol`, with the weaknesses named there, or raise EventBufferError.

    Calls raise BufferClosedError after `close()`, and ClientStateError inside the thread of the buffer (an `on_drop` hook
    runs there: it would wait for itself).

    Args:
        backend: the buffer; `close` closes it, if it has `aclose`.
        event_loop: "asyncio" or "trio": what runs it.
        exit_timeout: seconds that closing it may take when the process ends and it is open: see `BlockingDrainJob`; 0 for
            not at all. Default 2.
    """

    def __init__(
        self, backend: BufferBackend, *, event_loop: LoopKind = "asyncio", exit_timeout: float = EXIT_TIMEOUT
    ) -> None:
        if not isinstance(backend, BufferBackend) or not is_async_callable(backend.add):
            raise ConfigurationError("backend", backend, "an async buffer, with coroutines add, drain and size")
        self._event_loop = check_choice("event_loop", event_loop, get_args(LoopKind))
        self._backend = backend
        self._exit_timeout = check_span("exit_timeout", exit_timeout)
        self._not_at_exit: Callable[[], None] = _nothing
        self._lock = threading.Lock()
        self._portal: BlockingPortal | None = None
        self._running: AbstractContextManager[BlockingPortal] | None = None
        self._leases: set[Holding] = set()
        self._wakeups: list[socket.socket] = []
        self._closed = False
        start_empty_after_fork(self)

    @property
    def overflow(self) -> str:
        """What the buffer does with an event that it cannot take, "" when it does not say."""
        return str(getattr(self._backend, "overflow", ""))

    @property
    def backend(self) -> BufferBackend:
        """The async buffer."""
        return self._backend

    # -- adding and taking

    def add(self, payload: Payload) -> None:
        """Store a payload: see `add` of the buffer."""
        self.wait_for(self._backend.add, payload)

    def drain(
        self,
        max_items: int | None = None,
        *,
        types: Collection[str] | None = None,
        session_id: SessionFilter = UNSET,
    ) -> list[Payload]:
        """
        Take events out, oldest first: see `DurableBuffer.drain`.

        Raises EventBufferError for a *session_id* when the buffer cannot select by session.
        """
        limit = check_limit("max_items", max_items)
        names = None if types is None else check_types(types)
        backend = self._backend

        async def drain() -> list[Payload]:
            if isinstance(backend, DurableBuffer):
                return await backend.drain(limit, types=names, session_id=session_id)
            if session_id is not UNSET:
                raise _lacking(backend, "drain by session")
            if names is not None:
                return await protocol.drain_types(backend, names, limit)
            return await backend.drain() if limit is None else await protocol.drain_page(backend, limit)

        return self.wait_for(drain)

    def drain_by_type(self, *, actions: bool = True, summaries: bool = True) -> list[Payload]:
        """Take out the events of the chosen types, oldest first; all others stay, in order."""
        return self.wait_for(protocol.drain_types, self._backend, names_of(actions=actions, summaries=summaries))

    def drain_page(self, max_items: int) -> list[Payload]:
        """Take out the oldest events, at most *max_items* (0 or more)."""
        return self.wait_for(protocol.drain_page, self._backend, check_integer("max_items", max_items, minimum=0))

    def drain_pages(self, max_items: int = 500) -> Iterator[list[Payload]]:
        """Drain page by page: lists of 1 to *max_items* (1 or more) events, until none waits."""
        check_integer("max_items", max_items, minimum=1)
        return iter(lambda: self.drain_page(max_items), [])

    def lease(
        self,
        max_events: int = 500,
        timeout: float = 60.0,
        *,
        renew: bool = True,
        types: Collection[str] | None = None,
    ) -> BlockingLease:
        """
        Return a lease for up to *max_events* (1 or more) of the oldest events; `with` takes them: see `protocol.lease`.

        With *renew*, the default, it does not run out while its block runs. With *types*, one name or more, it takes only
        payloads whose `type` is in it.
        """
        check_integer("max_events", max_events, minimum=1)
        timeout = check_span("timeout", timeout, above=0)
        names = protocol.check_types_of_lease(self._backend, types)
        return BlockingLease(self, max_events, timeout, renew=check_flag("renew", renew), types=names)

    def clear(self) -> None:
        """Discard every waiting event. A buffer that has no `clear` is drained, and the events count as delivered."""
        self.wait_for(cast("Callable[[], Awaitable[object]]", getattr(self._backend, "clear", self._backend.drain)))

    # -- looking

    def peek(self, n: int | None = None) -> list[Payload]:
        """Return the *n* newest events (0 or more; None, the default, for all), oldest first, and leave them."""
        return self.wait_for(protocol.peek, self._backend, check_limit("n", n))

    def size(self) -> int:
        """Return how many events wait."""
        return self.wait_for(self._backend.size)

    def sessions(self) -> dict[str | None, int]:
        """Return the sessions that have waiting events, with how many; EventBufferError when the buffer cannot."""
        sessions: Callable[[], Awaitable[dict[str | None, int]]] | None = getattr(self._backend, "sessions", None)
        if sessions is None:
            raise _lacking(self._backend, "tell sessions")
        return self.wait_for(sessions)

    def stats(self) -> DurableStats | BufferStats:
        """Return one reading of the buffer's account; EventBufferError when it keeps none. Works after `close()`, too."""
        read: Callable[[], object] | None = getattr(self._backend, "stats", None)
        if read is None:
            raise _lacking(self._backend, "tell statistics")

        async def stats() -> DurableStats | BufferStats:
            reading = read()
            if inspect.isawaitable(reading):
                reading = await reading
            return cast("DurableStats | BufferStats", reading)

        if self._closed:
            return anyio.run(stats, backend=self._event_loop)
        return self.wait_for(stats)

    @property
    def dead_letters(self) -> BlockingDeadLetters:
        """The events that were given up (`BlockingLease.fail`); EventBufferError when the buffer keeps none."""
        if not isinstance(self._backend, DeadLettering):
            raise _lacking(self._backend, "keep dead letters")
        return HostedDeadLetters(self._backend.dead_letters, self.wait_for)

    def __repr__(self) -> str:
        return f"<BlockingBuffer of {self._backend!r}{' closed' if self._closed else ''}>"

    # -- from here to there

    def wait_for(self, call: Callable[[Unpack[Arguments]], Awaitable[ResultT]], *arguments: *Arguments) -> ResultT:
        """
        Run a coroutine function in the event loop of the buffer, and wait for its result.

        Any exception that interrupts the wait, KeyboardInterrupt say, cancels the call and is raised at once.
        """
        future = self.start(call, *arguments)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise BufferClosedError(f"{self!r} was closed during the call") from None
        finally:
            future.cancel()  # does nothing when it is done

    def start(
        self, call: Callable[[Unpack[Arguments]], Awaitable[ResultT]], *arguments: *Arguments
    ) -> concurrent.futures.Future[ResultT]:
        """Run a coroutine function in the event loop of the buffer; cancelling the future cancels it."""
        portal = self._portal or self._started_portal()
        try:
            return portal.start_task_soon(call, *arguments)
        except RuntimeError as error:
            if self._closed:
                raise BufferClosedError(f"{self!r} was closed") from None
            raise ClientStateError(
                f"{self!r} was called in its own thread, where it would wait for itself: "
                "a hook that runs there must leave that to another thread"
            ) from error

    def _started_portal(self) -> BlockingPortal:
        with self._lock:
            if self._closed:
                raise BufferClosedError(f"{self!r} was closed")
            if self._portal is None:
                running = anyio.from_thread.start_blocking_portal(self._event_loop, name="blocking buffer")
                portal = running.__enter__()
                self._wakeups = portal.call(wakeup_sockets)
                self._portal, self._running = portal, running
                self._not_at_exit = finish_at_exit(Stage.STORE, self._finish_at_exit, self._exit_timeout)
            return self._portal

    # -- the end

    def close(self, timeout: float = 5.0) -> None:
        """
        Close the buffer, and end its thread. Open leases give their events back. May be called twice.

        *timeout* is what `aclose` of a `DurableBuffer` is given; other buffers decide for themselves.
        """
        check_span("timeout", timeout)
        with self._lock:
            running, portal, self._running, self._portal = self._running, self._portal, None, None
            self._wakeups = []  # they go with the loop
            closed, self._closed = self._closed, True
        if closed:
            return
        self._not_at_exit()
        if running is None or portal is None:
            anyio.run(self._close_backend, timeout, backend=self._event_loop)
            return
        try:
            portal.call(self._end, timeout)
        finally:
            portal.call(portal.stop, True)
            running.__exit__(None, None, None)

    def _finish_at_exit(self, timeout: float) -> str:
        before = self._given_up()
        self.close(time_to_give_up(timeout))
        lost = self._given_up() - before
        return f"{lost} events were not stored in {self!r}" if lost else ""

    def _given_up(self) -> int:
        """How many events were neither stored nor refused by the store."""
        if not isinstance(self._backend, DurableBuffer):
            return 0
        dropped = self._backend._account.ledger().dropped
        return dropped.get(DropReason.ABANDONED, 0) + dropped.get(DropReason.UNAVAILABLE, 0)

    def __enter__(self) -> Self:
        if self._portal is None:
            self._started_portal()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def after_fork_in_child(self) -> None:
        """Start anew: the thread is the parent's."""
        _left_behind.append(self._running)
        self._lock = threading.Lock()
        self._portal = self._running = None
        for shared in self._wakeups:  # a byte that is sent here would arrive there
            shared.close()
        self._wakeups = []
        for holding in self._leases:
            holding.left_behind = True
        self._leases = set()

    async def _end(self, timeout: float) -> None:
        with anyio.move_on_after(_GRACE):
            for holding in list(self._leases):
                await holding.abort()
        await self._close_backend(timeout)

    async def _close_backend(self, timeout: float) -> None:
        if isinstance(self._backend, DurableBuffer):
            await self._backend.aclose(timeout)
            return
        aclose: Callable[[], Awaitable[object]] | None = getattr(self._backend, "aclose", None)
        if aclose is not None:
            await aclose()

    # -- for leases

    def opened(self, holding: Holding) -> None:
        """Note that a lease is open, for `close`."""
        self._leases.add(holding)

    def ended(self, holding: Holding) -> None:
        """Note that it is over."""
        self._leases.discard(holding)


def _nothing() -> None:
    pass


def _lacking(backend: BufferBackend, what: str) -> EventBufferError:
    return EventBufferError(f"{type(backend).__name__} cannot {what}")
