"""The buffer that a job works through, whatever kind it is."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final, Protocol, runtime_checkable

import anyio

from connector_sdk.buffers import protocol
from connector_sdk.buffers.blocking import BlockingBuffer
from connector_sdk.buffers.bridge import OutageBridge
from connector_sdk.buffers.durable import DurableBuffer
from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.buffers.protocol import BackendLease, BufferBackend, DeadLettering, Leasing, Peeking, Typed
from connector_sdk.callbacks import is_async_callable
from connector_sdk.errors import BufferUnavailableError, ConfigurationError
from connector_sdk.jobs.options import JobOptions

__all__ = ["Source"]

_LONGEST_NAME: Final = 100  # characters of the name of a job that stand in the names of its leases
_SHORTEST_POLL: Final = 0.05  # seconds
_LONGEST_POLL: Final = 1.0
_MOST_TO_COUNT: Final = 10_000  # events that are looked at to count those of some types
_REST: Final = 0.01  # seconds before a buffer is asked again that said that it has enough


@runtime_checkable
class _Waiting(Protocol):
    """The ability to wait for events without polling."""

    async def wait(self, min_items: int = 1, timeout: float | None = None) -> bool:
        """Wait until *min_items* are there."""


class Source:
    """Leases events from a buffer, and waits until there are enough."""

    def __init__(self, buffer: BufferBackend | EventBuffer | BlockingBuffer, options: JobOptions) -> None:
        self.backend = _backend_of(buffer)
        self._options = options
        self._holder = f"{options.name[:_LONGEST_NAME]} {uuid.uuid4().hex}" if options.exclusive else None
        trigger = options.trigger_size
        bound = buffer.max_size if isinstance(buffer, EventBuffer) else 0
        if trigger is not None and bound and trigger > bound:
            raise ConfigurationError("trigger_size", trigger, f"from 1 to the max_size of the buffer, {bound}")
        protocol.check_types_of_lease(self.backend, options.types)
        if options.types is not None and not isinstance(self.backend, Leasing | Typed):
            raise ConfigurationError(
                "types",
                set(options.types),
                f"None for {type(self.backend).__name__}, which hands out everything or nothing: let it have a method "
                "`lease` with a parameter `types`, or `drain_types`",
            )
        has_place = options.bury is not None or options.max_attempts is None
        if not has_place and not isinstance(self.backend, DeadLettering):
            raise ConfigurationError(
                "dead_letters",
                None,
                f"a place for events that are given up, for {type(self.backend).__name__} keeps none: an object with "
                "add(payload, evidence), or a function (or max_attempts=None, to try for ever)",
            )

    def lease(self) -> AbstractAsyncContextManager[BackendLease]:
        """Return a lease of one batch, that is renewed while its block runs."""
        options = self._options
        return protocol.lease(
            self.backend, options.batch_size, options.lease_timeout, holder=self._holder, types=options.types
        )

    async def left(self, timeout: float) -> int | None:
        """Return how many events wait for this job; None when that cannot be had within *timeout* seconds."""
        with anyio.move_on_after(timeout):
            try:
                size = await self._size()
                return size if self._options.types is None or not size else await self._count(size, self._options.types)
            except BufferUnavailableError:
                return None
        return None

    async def _waiting(self) -> int:
        """Return how many events wait for whomever; 0 when that cannot be had."""
        with anyio.move_on_after(_LONGEST_POLL), suppress(BufferUnavailableError):
            return await self._size() or 0
        return 0

    async def _count(self, size: int, types: Collection[str]) -> int | None:
        if size > _MOST_TO_COUNT or not isinstance(self.backend, Peeking):
            return None
        events = await self.backend.peek(_MOST_TO_COUNT)
        # Nothing is what a store says that is away.
        return sum(payload.type in types for payload in events) if events else None

    async def _size(self) -> int | None:
        backend = self.backend.remote if isinstance(self.backend, OutageBridge) else self.backend
        if not isinstance(backend, DurableBuffer):
            return await backend.size()
        # Its size() says 0 when the store is away.
        shared = (await backend.stats()).shared
        return None if shared is None else shared.buffered

    async def until_enough(self, *, found_nothing: bool) -> None:
        """
        Wait until `trigger_size` events wait, for ever without it.

        For a job with types what waits when it *found_nothing* does not count, nor what waited then and is replaced.
        """
        trigger, types = self._options.trigger_size, self._options.types
        if trigger is not None and types is None and isinstance(self.backend, _Waiting):
            if await self.backend.wait(trigger):
                await anyio.sleep(_REST)
                return
            trigger = None  # it was closed: no more will come
        others = await self._waiting() if trigger is not None and types is not None and found_nothing else 0
        pause = min(max(self._options.interval / 10, _SHORTEST_POLL), _LONGEST_POLL)
        while trigger is not None:
            # First a pause: what waits may be out of reach, while another has a lease.
            await anyio.sleep(pause)
            waiting = await self._waiting()
            if waiting - others >= trigger:
                return
            others = min(others, waiting)
        await anyio.sleep_forever()


def _backend_of(buffer: BufferBackend | EventBuffer | BlockingBuffer) -> BufferBackend:
    if isinstance(buffer, EventBuffer):
        return buffer.as_backend()
    if isinstance(buffer, BlockingBuffer):
        return buffer.backend
    if isinstance(buffer, BufferBackend) and is_async_callable(buffer.add):
        return buffer
    raise ConfigurationError("buffer", buffer, "an EventBuffer, or a buffer with coroutines add, drain and size")
