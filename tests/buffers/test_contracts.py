"""Our own buffer passes the public contract suite, and so do backends that have nothing but the three methods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import anyio
import anyio.lowlevel
import pytest

from connector_sdk.buffers import protocol
from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.buffers.protocol import (
    BufferBackend,
    Leasing,
    Paged,
    Peeking,
    PutBackError,
    Typed,
)
from connector_sdk.buffers.view import EventBufferView
from connector_sdk.errors import ConfigurationError, LeaseError
from connector_sdk.payloads import Payload
from connector_sdk.testing.contracts import BufferBackendContract
from tests.buffers.samples import actions, numbers, summary


class ListBackend:
    """The least that is a backend."""

    def __init__(self, payloads: Iterable[Payload] = ()) -> None:
        self.payloads = list(payloads)

    async def add(self, payload: Payload) -> None:
        self.payloads.append(payload)

    async def drain(self) -> list[Payload]:
        drained, self.payloads = self.payloads, []
        return drained

    async def size(self) -> int:
        return len(self.payloads)


class FragileBackend(ListBackend):
    """Refuses an event on its way back."""

    def __init__(self, payloads: Iterable[Payload], refused: Payload) -> None:
        super().__init__(payloads)
        self.refused = refused

    async def add(self, payload: Payload) -> None:
        if payload is self.refused:
            raise OSError("disk full")
        await super().add(payload)


class TestEventBufferView(BufferBackendContract):
    def make_backend(self) -> EventBufferView:
        return EventBuffer().as_backend()


class TestBlockingEventBufferView(BufferBackendContract):
    def make_backend(self) -> EventBufferView:
        return EventBuffer(500, overflow="block", max_bytes=10**6, max_age=3600.0).as_backend()


class TestListBackend(BufferBackendContract):
    async def make_backend(self) -> ListBackend:
        return ListBackend()


def test_the_view_has_every_ability_and_the_list_none() -> None:
    view, plain = EventBuffer().as_backend(), ListBackend()
    for ability in (Leasing, Peeking, Typed, Paged):
        assert isinstance(view, ability)
        assert not isinstance(plain, ability)
    assert isinstance(plain, BufferBackend)
    assert not isinstance(EventBuffer.lease, BufferBackend)


PAYLOADS: Sequence[Payload] = [summary(0), actions(1), summary(2), actions(3)]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fallback", "held"),
    [
        (lambda backend: protocol.peek(backend), [2, 3]),
        (lambda backend: protocol.drain_page(backend, 1), [0, 2, 3]),
        (lambda backend: protocol.drain_types(backend, {"actions"}), [1, 3, 2]),
    ],
    ids=["peek", "page", "types"],
)
async def test_a_fallback_that_cannot_put_events_back_hands_them_over(fallback: object, held: list[int]) -> None:
    backend = FragileBackend(PAYLOADS, PAYLOADS[2])
    assert callable(fallback)
    with pytest.raises(PutBackError) as caught:
        await fallback(backend)
    assert numbers(caught.value.events) == held
    assert isinstance(caught.value.__cause__, OSError)
    assert sorted(numbers(caught.value.events + backend.payloads)) == [0, 1, 2, 3]


@pytest.mark.anyio
async def test_a_fallback_finishes_putting_back_when_it_is_cancelled() -> None:
    class SlowBackend(ListBackend):
        async def add(self, payload: Payload) -> None:
            scope.cancel()
            await anyio.lowlevel.checkpoint()
            await super().add(payload)

    backend = SlowBackend(PAYLOADS)
    with anyio.CancelScope() as scope:
        await protocol.peek(backend)
        await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert numbers(backend.payloads) == [0, 1, 2, 3]


@pytest.mark.anyio
async def test_a_lease_by_fallback_keeps_the_rules_of_leases() -> None:
    backend = ListBackend(PAYLOADS)
    async with protocol.lease(backend, 2) as lease:
        with pytest.raises(LeaseError):
            await lease.ack([summary(0)])
        await lease.ack([lease.events[0]])
        await lease.extend(1.0)
        await lease.give_back()
        for use in (lease.ack, lease.give_back, lambda: lease.extend(1.0)):
            with pytest.raises(LeaseError):
                await use()
    assert numbers(backend.payloads) == [2, 3, 1]


@pytest.mark.anyio
async def test_a_page_of_a_leasing_backend_leaves_the_rest_in_place() -> None:
    class LeasingBackend(ListBackend):
        def __init__(self) -> None:
            super().__init__()
            self.view = EventBuffer().as_backend()
            self.add = self.view.add  # type: ignore[method-assign]
            self.size = self.view.size  # type: ignore[method-assign]
            self.lease = self.view.lease

        async def drain(self) -> list[Payload]:
            raise AssertionError("a lease is the better way")

    backend = LeasingBackend()
    for payload in PAYLOADS:
        await backend.add(payload)
    assert numbers(await protocol.drain_page(backend, 3)) == [0, 1, 2]
    assert await protocol.drain_page(backend, 0) == []
    assert await backend.size() == 1


@pytest.mark.anyio
async def test_functions_check_their_arguments_on_every_backend() -> None:
    backend = ListBackend(PAYLOADS)

    async def lease(max_events: int, timeout: float) -> None:
        async with protocol.lease(backend, max_events, timeout):
            raise AssertionError("not to be reached")

    for call in (
        lambda: protocol.peek(backend, -1),
        lambda: protocol.drain_page(backend, -1),
        lambda: protocol.drain_types(backend, "actions"),
        lambda: protocol.drain_types(backend, {"actions"}, -1),
        lambda: lease(0, 1.0),
        lambda: lease(1, 0.0),
    ):
        with pytest.raises(ConfigurationError):
            await call()
    assert len(backend.payloads) == 4
