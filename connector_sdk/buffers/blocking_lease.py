"""BlockingLease: a lease of any async buffer for a `with` block of a thread."""

from __future__ import annotations

import concurrent.futures
import weakref
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Protocol, Self, TypeVar, TypeVarTuple, Unpack

import anyio

from connector_sdk.buffers import protocol
from connector_sdk.buffers.dead_letters import Evidence
from connector_sdk.buffers.protocol import BackendLease, BufferBackend
from connector_sdk.errors import BufferClosedError, EventBufferError, LeaseError
from connector_sdk.payloads import Payload

__all__ = ["BlockingLease", "Holding"]

ResultT = TypeVar("ResultT")
Arguments = TypeVarTuple("Arguments")


class Host(Protocol):
    """What a lease asks of its `BlockingBuffer`."""

    @property
    def backend(self) -> BufferBackend:
        """The async buffer."""

    def wait_for(self, call: Callable[[Unpack[Arguments]], Awaitable[ResultT]], *arguments: *Arguments) -> ResultT:
        """Run a coroutine function in the event loop of the buffer, and wait for its result."""

    def start(
        self, call: Callable[[Unpack[Arguments]], Awaitable[ResultT]], *arguments: *Arguments
    ) -> concurrent.futures.Future[ResultT]:
        """Run a coroutine function in the event loop of the buffer."""

    def opened(self, holding: Holding) -> None:
        """Note that a lease is open, for `close`."""

    def ended(self, holding: Holding) -> None:
        """Note that it is over."""


class BlockingLease:
    """
    Events on loan, for a `with` block: see `DurableLease`, or whatever the buffer hands out. For one thread at a time.

    A lease that nobody has any more before its block was left gives its events back within its time-out.
    """

    def __init__(
        self,
        buffer: Host,
        max_events: int,
        timeout: float,
        *,
        renew: bool = True,
        types: Collection[str] | None = None,
    ) -> None:
        self._buffer = buffer
        enter = partial(protocol.lease, buffer.backend, max_events, timeout, renew=renew, types=types)
        self._holding = Holding(self, buffer, enter, timeout)
        self._loan: BackendLease | None = None
        self._task: concurrent.futures.Future[None] | None = None

    @property
    def events(self) -> list[Payload]:
        """All events of this lease, oldest first, acknowledged or not."""
        return [] if self._loan is None else list(self._loan.events)

    def __iter__(self) -> Iterator[Payload]:
        return iter(self.events)

    def __len__(self) -> int:
        return 0 if self._loan is None else len(self._loan)

    def __repr__(self) -> str:
        return f"<BlockingLease {'not entered' if self._loan is None else self._loan!r}>"

    def ack(self, events: Iterable[Payload] | None = None) -> None:
        """Acknowledge *events*, the very objects handed out, or (None) all that remain, which ends the lease."""
        self._buffer.wait_for(self._entered().ack, events)

    def fail(self, event: Payload, error: BaseException | Evidence) -> None:
        """
        Give *event* up: it moves to the dead letters of the buffer, with *error* as the evidence.

        Raises EventBufferError when the buffer keeps none; the event is still on the lease then.
        """
        self._buffer.wait_for(self._entered().fail, event, error)

    def extend(self, timeout: float) -> None:
        """Let the lease run out *timeout* seconds (above 0) from now."""
        self._buffer.wait_for(self._entered().extend, timeout)

    def give_back(self) -> None:
        """End the lease and put back what was not acknowledged."""
        self._buffer.wait_for(self._entered().give_back)

    def __enter__(self) -> Self:
        if self._task is not None:
            raise EventBufferError("a lease can be entered once")
        entered: concurrent.futures.Future[BackendLease] = concurrent.futures.Future()
        self._task = task = self._buffer.start(self._holding.hold, entered)
        task.add_done_callback(lambda task: entered.cancel())
        try:
            self._loan = entered.result()
        except concurrent.futures.CancelledError:
            task.result()
            raise BufferClosedError(f"{self._buffer!r} was closed") from None
        except BaseException:
            task.cancel()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task = self._task
        assert task is not None
        if self._holding.left_behind:
            return  # it is the parent's; leaving its block in the child of a fork does nothing
        aborted = False
        if not task.done():
            self._buffer.wait_for(self._holding.leave, error is not None)
        try:
            task.result()  # an interrupt while this waits does not undo the leaving
        except concurrent.futures.CancelledError:
            aborted = True
        if (aborted or self._holding.aborted) and error is None:
            raise BufferClosedError(f"{self._buffer!r} was closed; the events of the lease come again")

    def _entered(self) -> BackendLease:
        if self._loan is None:
            raise EventBufferError("the lease was not entered")
        if self._holding.left_behind:
            raise LeaseError("the lease is the parent's: the child of a fork starts without")
        return self._loan


class Holding:
    """
    The task that enters and leaves a lease, in the thread of the buffer: a backend's lease may hold what belongs to a task.

    It does not keep the `BlockingLease` alive, and looks each *timeout* whether it is.
    """

    def __init__(
        self,
        lease: BlockingLease,
        buffer: Host,
        enter: Callable[[], AbstractAsyncContextManager[BackendLease]],
        timeout: float,
    ) -> None:
        self._lease = weakref.ref(lease)
        self._buffer = buffer
        self._enter = enter
        self._timeout = timeout
        self._leaving: anyio.Event | None = None
        self._over: anyio.Event | None = None
        self._failed = False
        #: Whether the buffer was closed before the block ended.
        self.aborted = False
        #: Whether this is the child of a fork, in which the task is not.
        self.left_behind = False

    async def hold(self, entered: concurrent.futures.Future[BackendLease]) -> None:
        """Enter the lease, hand it over, and leave it when told to."""
        leaving, self._over = anyio.Event(), anyio.Event()
        self._leaving = leaving
        self._buffer.opened(self)
        try:
            async with self._enter() as loan:
                entered.set_result(loan)
                del entered
                await self._until_left(leaving)
                if self._failed:
                    raise _Leave
        except _Leave:
            pass
        finally:
            self._buffer.ended(self)
            self._over.set()

    async def leave(self, failed: bool) -> None:
        """Let `hold` leave the lease: acknowledge, or give back if the block *failed*."""
        self._failed = failed
        if self._leaving is not None:
            self._leaving.set()

    async def abort(self) -> None:
        """Give the events back, for the buffer is being closed."""
        self.aborted = True
        await self.leave(True)
        if self._over is not None:
            await self._over.wait()

    async def _until_left(self, leaving: anyio.Event) -> None:
        while not leaving.is_set():
            with anyio.move_on_after(self._timeout):
                await leaving.wait()
            if self._lease() is None and not leaving.is_set():
                self._failed = True
                return


class _Leave(Exception):  # noqa: N818 - no error: it says that the block failed
    pass
