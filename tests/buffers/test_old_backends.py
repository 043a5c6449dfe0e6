"""Backends written before leases were renewed and events could fail work as well as they can."""

# ruff: noqa: PT012 - what must raise is the leaving of a block

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import pytest

from connector_sdk.buffers import protocol
from connector_sdk.buffers.blocking import BlockingBuffer, LoopKind
from connector_sdk.buffers.leases import AsyncLease
from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.buffers.protocol import BackendLease, DeadLettering, Leasing
from connector_sdk.errors import ConfigurationError, EventBufferError, LeaseError, LeaseExpiredError
from connector_sdk.payloads import Payload
from connector_sdk.testing.contracts import BufferBackendContract
from tests.buffers.samples import PATIENCE, numbers, summary


class OldLoan:
    """A lease of the old shape: no `fail`."""

    def __init__(self, lease: AsyncLease, extended: list[float], extends_before_it_works: list[int]) -> None:
        self._lease = lease
        self._extended = extended
        self._broken = extends_before_it_works

    @property
    def events(self) -> list[Payload]:
        return self._lease.events

    def __iter__(self) -> Iterator[Payload]:
        return iter(self._lease)

    def __len__(self) -> int:
        return len(self._lease)

    async def ack(self, events: Iterable[Payload] | None = None) -> None:
        await self._lease.ack(events)

    async def extend(self, timeout: float) -> None:
        if self._broken[0]:
            self._broken[0] -= 1
            raise OSError("away for a moment")
        await self._lease.extend(timeout)
        self._extended.append(timeout)

    async def give_back(self) -> None:
        await self._lease.give_back()


class OldBackend:
    """Leases that run out, by the two arguments of old."""

    def __init__(self) -> None:
        self.view = EventBuffer().as_backend()
        self.add, self.drain, self.size = self.view.add, self.view.drain, self.view.size
        self.extended: list[float] = []
        self.broken = [0]

    @asynccontextmanager
    async def lease(self, max_events: int = 500, timeout: float = 60.0, /) -> AsyncIterator[OldLoan]:
        async with self.view.lease(max_events, timeout, renew=False) as loan:
            yield OldLoan(loan, self.extended, self.broken)


class HalfOldBackend(OldBackend):
    """Renews by itself, but its leases have no `fail`."""

    @asynccontextmanager
    async def lease(
        self, max_events: int = 500, timeout: float = 60.0, *, renew: bool = True
    ) -> AsyncIterator[OldLoan]:
        async with self.view.lease(max_events, timeout, renew=renew) as loan:
            yield OldLoan(loan, self.extended, self.broken)


class TestOldBackend(BufferBackendContract):
    def make_backend(self) -> OldBackend:
        return OldBackend()


class TestHalfOldBackend(BufferBackendContract):
    def make_backend(self) -> HalfOldBackend:
        return HalfOldBackend()


class NoSignature:
    """A `lease` that cannot tell its parameters."""

    def __init__(self, backend: OldBackend) -> None:
        self.backend = backend
        self.__signature__ = "none"

    def __call__(self, max_events: int, timeout: float) -> AbstractAsyncContextManager[OldLoan]:
        return self.backend.lease(max_events, timeout)


async def filled(backend: OldBackend, count: int) -> OldBackend:
    for number in range(count):
        await backend.add(summary(number))
    return backend


def test_old_backends_are_leasing_and_keep_no_dead_letters() -> None:
    backends: list[object] = [OldBackend(), HalfOldBackend()]
    for backend in backends:
        assert isinstance(backend, Leasing)
        assert not isinstance(backend, DeadLettering)
    assert isinstance(EventBuffer().as_backend(), DeadLettering)


@pytest.mark.anyio
@pytest.mark.parametrize("broken", [0, 1])
async def test_an_old_lease_is_extended_while_its_block_runs(broken: int) -> None:
    backend = await filled(OldBackend(), 1)
    backend.broken[0] = broken
    with anyio.fail_after(PATIENCE):
        async with protocol.lease(backend, 1, 3.0):  # the first at 1 s; the second, if that fails, at 2 s
            while not backend.extended:
                await anyio.sleep(0.02)
    assert backend.extended == [3.0]
    assert await backend.drain() == []


@pytest.mark.anyio
async def test_the_time_that_the_block_asks_for_is_kept() -> None:
    backend = await filled(OldBackend(), 1)
    async with protocol.lease(backend, 1, 60.0) as loan:
        await loan.extend(0.3)
        await loan.extend(90.0)
    assert backend.extended == [0.3, 90.0]
    async with protocol.lease(backend, 1, 0.3, renew=False) as loan:
        await anyio.sleep(0.5)
    assert backend.extended == [0.3, 90.0]


@pytest.mark.anyio
async def test_renewal_ends_with_the_lease_and_not_with_the_block() -> None:
    backend = await filled(OldBackend(), 1)
    async with protocol.lease(backend, 1, 0.03) as loan:
        await loan.ack()
        await anyio.sleep(0.2)
    assert backend.extended == []


@pytest.mark.anyio
async def test_errors_of_the_block_come_as_they_are_and_give_the_events_back() -> None:
    backend = await filled(OldBackend(), 2)
    for error in (ZeroDivisionError(), KeyboardInterrupt(), ExceptionGroup("two", [ValueError(), KeyError()])):
        with pytest.raises(type(error)) as caught:
            async with protocol.lease(backend):
                raise error
        assert caught.value is error
        assert await backend.size() == 2
    with anyio.CancelScope() as scope:
        async with protocol.lease(backend):
            scope.cancel()
            await anyio.sleep(PATIENCE)
    assert scope.cancelled_caught
    assert await backend.size() == 2


@pytest.mark.anyio
async def test_a_lease_that_could_not_be_renewed_in_time_says_so() -> None:
    backend = await filled(OldBackend(), 1)
    backend.broken[0] = 10_000
    with anyio.fail_after(PATIENCE), pytest.raises(LeaseExpiredError):
        async with protocol.lease(backend, 1, 0.1):
            while not await backend.size():
                await anyio.sleep(0.02)
    assert numbers(await backend.drain()) == [0]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [OldBackend, HalfOldBackend])
async def test_fail_without_a_place_leaves_the_event_on_the_lease(kind: type[OldBackend]) -> None:
    backend = await filled(kind(), 2)
    async with protocol.lease(backend, renew=kind is HalfOldBackend) as loan:
        with pytest.raises(EventBufferError, match=r"OldBackend keeps no dead letters.*dead_letters="):
            await loan.fail(loan.events[0], ValueError("poison"))
        assert (len(loan), numbers(loan)) == (2, [0, 1])
        assert "BorrowedLoan" in repr(loan)
        await loan.give_back()
        with pytest.raises(LeaseError):
            await loan.ack()
    assert numbers(await backend.drain()) == [0, 1]


@pytest.mark.anyio
async def test_a_lease_method_without_a_signature_is_taken_for_an_old_one() -> None:
    backend = await filled(OldBackend(), 1)
    backend.lease = NoSignature(backend)  # type: ignore[method-assign, assignment]
    backend.lease.backend = OldBackend()  # type: ignore[attr-defined]
    loan: BackendLease
    async with protocol.lease(backend, 1, 5.0) as loan:
        assert len(loan) == 0


@pytest.mark.anyio
async def test_renew_is_checked() -> None:
    with pytest.raises(ConfigurationError):
        async with protocol.lease(OldBackend(), renew="yes"):  # type: ignore[arg-type]  # that is the point
            pass


@pytest.mark.parametrize("event_loop", ["asyncio", "trio"])
def test_sync_code_leases_from_old_backends_too(event_loop: LoopKind) -> None:
    with BlockingBuffer(OldBackend(), event_loop=event_loop) as buffer:
        buffer.add(summary(0))
        with pytest.raises(ZeroDivisionError), buffer.lease(1, 5.0):
            raise ZeroDivisionError
        with buffer.lease(1, 5.0) as lease:
            with pytest.raises(EventBufferError, match="dead letters"):
                lease.fail(lease.events[0], ValueError())
            lease.ack()
        assert buffer.size() == 0
