"""
The promises of a protocol as a test suite: subclass it, give it your implementation, and pytest runs it.

::

    from connector_sdk.testing.contracts import BufferBackendContract


    class TestMyBackend(BufferBackendContract):
        def make_backend(self) -> MyBackend:
            return MyBackend("an empty place")

Each test runs on asyncio and on trio, through the pytest plugin of anyio. To run on one only, give your module a fixture
`anyio_backend` that returns its name. An ability (`Leasing`, `Peeking`, `Typed`, `Paged`) is tested when the backend has
it and skipped with a reason when not; the fallbacks of `connector_sdk.buffers.protocol` are tested on every backend.
"""

# ruff: noqa: D102 - the name of a test says what must be true
# ruff: noqa: PT012 - what must raise is the leaving of a block

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable, Iterable
from typing import NoReturn

import anyio
import anyio.lowlevel
import pytest

from connector_sdk.buffers import protocol
from connector_sdk.buffers.protocol import BackendLease, BufferBackend, Leasing, Paged, Peeking, Typed
from connector_sdk.errors import LeaseError, LeaseExpiredError
from connector_sdk.payloads import ActionsPayload, Payload, SummaryPayload, UnknownPayload, decode_payload

__all__ = ["BufferBackendContract"]

_START = 1_700_000_000.0


def _summary(number: int) -> SummaryPayload:
    """Make a payload that is younger than those with a lower number, of one session."""
    return SummaryPayload("shop", "session-1", f"summary {number}", number, _START + number, f"id-{number}")


def _actions(number: int) -> ActionsPayload:
    return ActionsPayload("shop", "session-1", forwarded_at=_START + number, event_id=f"id-{number}")


def _unknown(number: int) -> UnknownPayload:
    raw = b'{"type": "survey", "session_id": "session-1", "forwarded_at": %d, "answer": {"deep": [1]}}' % (
        _START + number
    )
    payload = decode_payload(raw, event_id=f"id-{number}")
    assert isinstance(payload, UnknownPayload)
    return payload


def _numbers(payloads: Iterable[Payload]) -> list[int]:
    return [int((payload.event_id or "id-0")[3:]) for payload in payloads]


class BufferBackendContract(abc.ABC):
    """
    What every `BufferBackend` must do. Subclass it under a name that pytest collects, and give `make_backend`.

    Payloads are added in the order of their `forwarded_at`, within one session, so that order of arrival and order of
    time agree; a test adds 500 at most, all within the last few years. Tests of leases take up to `patience` seconds.
    """

    #: Seconds after which a lease of the tests runs out; longer for a backend that counts in whole seconds.
    lease_timeout: float = 0.2
    #: Seconds that a test waits for what must happen before it fails.
    patience: float = 10.0

    @abc.abstractmethod
    def make_backend(self) -> BufferBackend | Awaitable[BufferBackend]:
        """Return a new, empty backend with room for 500 payloads; may be a coroutine function."""

    async def close_backend(self, backend: BufferBackend) -> None:  # noqa: B027 - most have nothing to close
        """Release what `make_backend` opened; does nothing unless overridden."""

    # -- the three methods

    @pytest.mark.anyio
    async def test_it_is_a_buffer_backend(self) -> None:
        async with _Opened(self) as backend:
            assert isinstance(backend, BufferBackend)

    @pytest.mark.anyio
    async def test_a_new_backend_is_empty(self) -> None:
        async with _Opened(self) as backend:
            assert await backend.size() == 0
            assert await backend.drain() == []

    @pytest.mark.anyio
    async def test_size_counts_what_was_added(self) -> None:
        async with _Opened(self) as backend:
            for number in range(3):
                await backend.add(_summary(number))
                assert await backend.size() == number + 1

    @pytest.mark.anyio
    async def test_drain_returns_everything_oldest_first_and_leaves_nothing(self) -> None:
        async with _Opened(self) as backend:
            await _fill(backend, 20)
            assert _numbers(await backend.drain()) == list(range(20))
            assert await backend.size() == 0
            assert await backend.drain() == []

    @pytest.mark.anyio
    async def test_what_is_added_after_a_drain_is_in_the_next_one(self) -> None:
        async with _Opened(self) as backend:
            await _fill(backend, 2)
            first = await backend.drain()
            await backend.add(_summary(7))
            assert (_numbers(first), _numbers(await backend.drain())) == ([0, 1], [7])

    @pytest.mark.anyio
    async def test_equal_payloads_are_separate_events(self) -> None:
        async with _Opened(self) as backend:
            # Without an id: a backend may keep the first of equal ids only.
            payload = SummaryPayload("shop", "session-1", "the same", 0, _START)
            for _ in range(3):
                await backend.add(payload)
            assert await backend.drain() == [payload] * 3

    @pytest.mark.anyio
    async def test_every_field_comes_out_as_it_went_in(self) -> None:
        raw = (
            b'{"type":"actions","product_id":"p","session_id":"session-1","user_id":"u","email":"e@x","actions":[{"title":'
            b'"T","index":3,"type":"click","timestamp_start":1.5,"conversation_id":"c-1","new_in_action":[1,null]}],"count"'
            b':1,"forwarded_at":1700000000.25,"conversation_id":"c-2","new_field":{"deep":"\xc3\xa9"}}'
        )
        payloads = [
            decode_payload(raw, event_id="id-1"),
            ActionsPayload(session_id=None, forwarded_at=_START + 2),
            SummaryPayload("p", "session-1", "prose — with\nlines", 3, _START + 3, None),
            _unknown(4),
        ]
        async with _Opened(self) as backend:
            for payload in payloads:
                await backend.add(payload)
            drained = sorted(await backend.drain(), key=lambda payload: payload.forwarded_at)
        assert drained == payloads
        assert [payload.event_id for payload in drained] == ["id-1", None, None, "id-4"]
        assert [payload.to_dict() for payload in drained] == [payload.to_dict() for payload in payloads]

    @pytest.mark.anyio
    async def test_concurrent_adds_are_all_there(self) -> None:
        async def produce(producer: int) -> None:
            for number in range(25):
                await backend.add(_summary(producer * 25 + number))

        async with _Opened(self) as backend:
            with anyio.fail_after(self.patience):
                async with anyio.create_task_group() as tasks:
                    for producer in range(20):
                        tasks.start_soon(produce, producer)
            assert sorted(_numbers(await backend.drain())) == list(range(500))

    @pytest.mark.anyio
    async def test_concurrent_drains_give_each_event_once(self) -> None:
        drained: list[int] = []
        produced = anyio.Event()

        async def produce() -> None:
            for number in range(200):
                await backend.add(_summary(number))
                if number % 10 == 0:
                    await anyio.lowlevel.checkpoint()
            produced.set()

        async def consume() -> None:
            while not produced.is_set():
                drained.extend(_numbers(await backend.drain()))
                await anyio.lowlevel.checkpoint()

        async with _Opened(self) as backend:
            with anyio.fail_after(self.patience):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(produce)
                    for _ in range(3):
                        tasks.start_soon(consume)
            drained.extend(_numbers(await backend.drain()))
        assert sorted(drained) == list(range(200))

    # -- abilities, by themselves or by their fallbacks

    @pytest.mark.anyio
    async def test_peek_shows_the_newest_and_leaves_all(self) -> None:
        async with _Opened(self) as backend:
            await _fill(backend, 5)
            assert _numbers(await protocol.peek(backend, 2)) == [3, 4]
            assert _numbers(await protocol.peek(backend, 0)) == []
            assert _numbers(await protocol.peek(backend, 9)) == [0, 1, 2, 3, 4]
            assert _numbers(await protocol.peek(backend)) == [0, 1, 2, 3, 4]
            assert _numbers(await backend.drain()) == [0, 1, 2, 3, 4]

    @pytest.mark.anyio
    async def test_draining_a_type_leaves_the_others_in_order(self) -> None:
        async with _Opened(self) as backend:
            kinds: list[Callable[[int], Payload]] = [_summary, _actions, _unknown, _summary, _actions, _summary]
            for number, make in enumerate(kinds):
                await backend.add(make(number))
            assert _numbers(await protocol.drain_types(backend, {"summary"}, 2)) == [0, 3]
            assert _numbers(await protocol.drain_types(backend, {"survey"})) == [2]
            assert _numbers(await protocol.drain_types(backend, set())) == []
            assert _numbers(await protocol.drain_by_type(backend, summaries=False)) == [1, 4]
            assert _numbers(await backend.drain()) == [5]

    @pytest.mark.anyio
    async def test_draining_a_page_takes_the_oldest(self) -> None:
        async with _Opened(self) as backend:
            await _fill(backend, 5)
            pages = [_numbers(await protocol.drain_page(backend, size)) for size in (2, 0, 2, 2, 2)]
        assert pages == [[0, 1], [], [2, 3], [4], []]

    @pytest.mark.anyio
    async def test_leaving_a_lease_acknowledges_it(self) -> None:
        async with _Opened(self) as backend:
            await _fill(backend, 5)
            async with protocol.lease(backend, 3) as lease:
                assert _numbers(lease.events) == _numbers(lease) == [0, 1, 2]
                assert len(lease) == 3
                assert await backend.size() == 2
            assert _numbers(await backend.drain()) == [3, 4]

    @pytest.mark.anyio
    async def test_an_error_gives_a_lease_back(self) -> None:
        async with _Opened(self) as backend:
            await _fill(backend, 3)
            with pytest.raises(ZeroDivisionError):
                async with protocol.lease(backend) as lease:
                    await lease.ack(lease.events[1:2])
                    raise ZeroDivisionError
            assert _numbers(await backend.drain()) == [0, 2]

    @pytest.mark.anyio
    async def test_a_cancelled_lease_is_given_back(self) -> None:
        async with _Opened(self) as backend:
            await _fill(backend, 3)
            with anyio.CancelScope() as scope:
                async with protocol.lease(backend):
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()
            assert _numbers(await backend.drain()) == [0, 1, 2]

    @pytest.mark.anyio
    async def test_an_empty_backend_gives_an_empty_lease(self) -> None:
        async with _Opened(self) as backend:
            async with protocol.lease(backend) as lease:
                assert list(lease.events) == []
            assert await backend.size() == 0

    # -- the abilities proper: what only a backend that has them promises

    @pytest.mark.anyio
    async def test_peeking_costs_no_drain(self) -> None:
        async with _Opened(self) as backend:
            if not isinstance(backend, Peeking):
                _lacks(backend, "Peeking")
            await _fill(backend, 3)
            assert _numbers(await backend.peek(2)) == [1, 2]
            assert await backend.size() == 3

    @pytest.mark.anyio
    async def test_concurrent_pages_give_each_event_once(self) -> None:
        taken: list[int] = []

        async def consume() -> None:
            while page := _numbers(await paged.drain_page(7)):
                assert len(page) <= 7
                assert page == sorted(page)
                taken.extend(page)

        async with _Opened(self) as backend:
            if not isinstance(backend, Paged):
                _lacks(backend, "Paged")
            paged = backend
            await _fill(backend, 100)
            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(consume)
        assert sorted(taken) == list(range(100))

    @pytest.mark.anyio
    async def test_types_stay_apart_under_concurrent_adds(self) -> None:
        summaries: list[int] = []

        async def produce() -> None:
            for number in range(100):
                await backend.add(_summary(number) if number % 2 else _actions(number))
                await anyio.lowlevel.checkpoint()

        async def consume() -> None:
            while len(summaries) < 50:
                summaries.extend(_numbers(await typed.drain_types({"summary"})))
                await anyio.lowlevel.checkpoint()

        async with _Opened(self) as backend:
            if not isinstance(backend, Typed):
                _lacks(backend, "Typed")
            typed = backend
            with anyio.fail_after(self.patience):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(produce)
                    tasks.start_soon(consume)
            assert summaries == list(range(1, 100, 2))
            assert _numbers(await backend.drain()) == list(range(0, 100, 2))

    @pytest.mark.anyio
    async def test_leases_are_exclusive(self) -> None:
        async with _Opened(self) as backend:
            if not isinstance(backend, Leasing):
                _lacks(backend, "Leasing")
            await _fill(backend, 4)
            async with backend.lease(2) as first, backend.lease(2) as second:
                assert (_numbers(first), _numbers(second)) == ([0, 1], [2, 3])
                assert await backend.drain() == []
            assert await backend.size() == 0

    @pytest.mark.anyio
    async def test_leases_given_back_in_any_order_restore_the_order(self) -> None:
        async with _Opened(self) as backend:
            if not isinstance(backend, Leasing):
                _lacks(backend, "Leasing")
            await _fill(backend, 6)
            async with backend.lease(2) as first, backend.lease(2) as second:
                await backend.add(_summary(6))
                await second.ack(second.events[:1])
                await second.give_back()
                await first.give_back()
            assert _numbers(await backend.drain()) == [0, 1, 3, 4, 5, 6]

    @pytest.mark.anyio
    async def test_an_ended_lease_cannot_be_used(self) -> None:
        async with _Opened(self) as backend:
            if not isinstance(backend, Leasing):
                _lacks(backend, "Leasing")
            await _fill(backend, 1)
            async with backend.lease() as lease:
                await lease.ack()
                for use in (lease.ack, lease.give_back, lambda: lease.extend(1.0)):
                    with pytest.raises(LeaseError):
                        await use()

    @pytest.mark.anyio
    async def test_only_events_of_the_lease_can_be_acknowledged(self) -> None:
        async with _Opened(self) as backend:
            if not isinstance(backend, Leasing):
                _lacks(backend, "Leasing")
            await _fill(backend, 2)
            with pytest.raises(LeaseError):
                async with backend.lease() as lease:
                    await lease.ack([lease.events[0], _summary(1)])
            assert _numbers(await backend.drain()) == [0, 1]

    @pytest.mark.anyio
    async def test_a_lease_that_runs_out_gives_its_events_back(self) -> None:
        async with _Opened(self) as backend:
            if not isinstance(backend, Leasing):
                _lacks(backend, "Leasing")
            await _fill(backend, 2)
            with pytest.raises(LeaseExpiredError):
                async with backend.lease(timeout=self.lease_timeout) as lease:
                    await self._until_size(backend, 2)
                    await _refused(lease)
            assert _numbers(await backend.drain()) == [0, 1]

    @pytest.mark.anyio
    async def test_an_extended_lease_does_not_run_out(self) -> None:
        async with _Opened(self) as backend:
            if not isinstance(backend, Leasing):
                _lacks(backend, "Leasing")
            await _fill(backend, 2)
            async with backend.lease(1, timeout=self.lease_timeout) as extended:
                await extended.extend(60.0)
                with pytest.raises(LeaseExpiredError):
                    async with backend.lease(1, timeout=self.lease_timeout):
                        await self._until_size(backend, 1)
            assert _numbers(await backend.drain()) == [1]

    async def _until_size(self, backend: BufferBackend, size: int) -> None:
        with anyio.fail_after(self.patience):
            while await backend.size() < size:  # noqa: ASYNC110 - a protocol of three methods has nothing to wait on
                await anyio.sleep(self.lease_timeout / 10)


class _Opened:
    """A backend for the length of a test."""

    def __init__(self, contract: BufferBackendContract) -> None:
        self._contract = contract
        self._backend: BufferBackend | None = None

    async def __aenter__(self) -> BufferBackend:
        made = self._contract.make_backend()
        self._backend = made if isinstance(made, BufferBackend) else await made
        return self._backend

    async def __aexit__(self, *error: object) -> None:
        if self._backend is not None:
            await self._contract.close_backend(self._backend)


def _lacks(backend: BufferBackend, ability: str) -> NoReturn:
    pytest.skip(f"{type(backend).__name__} is not {ability}, and only a backend that is promises this")


async def _fill(backend: BufferBackend, count: int) -> None:
    for number in range(count):
        await backend.add(_summary(number))


async def _refused(lease: BackendLease) -> None:
    with pytest.raises(LeaseExpiredError):
        await lease.ack()
    with pytest.raises(LeaseExpiredError):
        await lease.extend(60.0)
    await lease.give_back()
