"""The contract of backends, first part: the three methods, and looking, paging and selecting by type."""

# ruff: noqa: D102 - the name of a test says what must be true

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.lowlevel
import pytest

from connector_sdk.buffers import protocol
from connector_sdk.buffers.protocol import BufferBackend, Paged, Peeking, Typed
from connector_sdk.payloads import ActionsPayload, Payload, SummaryPayload, decode_payload
from connector_sdk.testing.backend_case import (
    START,
    BackendCase,
    Opened,
    actions,
    fill,
    lacks,
    numbers,
    summary,
    unknown,
)

__all__ = ["HoldingContract"]


class HoldingContract(BackendCase):
    """Adding and taking."""

    # -- the three methods

    @pytest.mark.anyio
    async def test_it_is_a_buffer_backend(self) -> None:
        async with Opened(self) as backend:
            assert isinstance(backend, BufferBackend)

    @pytest.mark.anyio
    async def test_a_new_backend_is_empty(self) -> None:
        async with Opened(self) as backend:
            assert await backend.size() == 0
            assert await backend.drain() == []

    @pytest.mark.anyio
    async def test_size_counts_what_was_added(self) -> None:
        async with Opened(self) as backend:
            for number in range(3):
                await backend.add(summary(number))
                assert await backend.size() == number + 1

    @pytest.mark.anyio
    async def test_drain_returns_everything_oldest_first_and_leaves_nothing(self) -> None:
        async with Opened(self) as backend:
            await fill(backend, 20)
            assert numbers(await backend.drain()) == list(range(20))
            assert await backend.size() == 0
            assert await backend.drain() == []

    @pytest.mark.anyio
    async def test_what_is_added_after_a_drain_is_in_the_next_one(self) -> None:
        async with Opened(self) as backend:
            await fill(backend, 2)
            first = await backend.drain()
            await backend.add(summary(7))
            assert (numbers(first), numbers(await backend.drain())) == ([0, 1], [7])

    @pytest.mark.anyio
    async def test_equal_payloads_are_separate_events(self) -> None:
        async with Opened(self) as backend:
            # Without an id: a backend may keep the first of equal ids only.
            payload = SummaryPayload("shop", "session-1", "the same", 0, START)
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
            ActionsPayload(session_id=None, forwarded_at=START + 2),
            SummaryPayload("p", "session-1", "prose — with\nlines", 3, START + 3, None),
            unknown(4),
        ]
        async with Opened(self) as backend:
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
                await backend.add(summary(producer * 25 + number))

        async with Opened(self) as backend:
            with anyio.fail_after(self.patience):
                async with anyio.create_task_group() as tasks:
                    for producer in range(20):
                        tasks.start_soon(produce, producer)
            assert sorted(numbers(await backend.drain())) == list(range(500))

    @pytest.mark.anyio
    async def test_concurrent_drains_give_each_event_once(self) -> None:
        drained: list[int] = []
        produced = anyio.Event()

        async def produce() -> None:
            for number in range(200):
                await backend.add(summary(number))
                if number % 10 == 0:
                    await anyio.lowlevel.checkpoint()
            produced.set()

        async def consume() -> None:
            while not produced.is_set():
                drained.extend(numbers(await backend.drain()))
                await anyio.lowlevel.checkpoint()

        async with Opened(self) as backend:
            with anyio.fail_after(self.patience):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(produce)
                    for _ in range(3):
                        tasks.start_soon(consume)
            drained.extend(numbers(await backend.drain()))
        assert sorted(drained) == list(range(200))

    # -- abilities, by themselves or by their fallbacks

    @pytest.mark.anyio
    async def test_peek_shows_the_newest_and_leaves_all(self) -> None:
        async with Opened(self) as backend:
            await fill(backend, 5)
            assert numbers(await protocol.peek(backend, 2)) == [3, 4]
            assert numbers(await protocol.peek(backend, 0)) == []
            assert numbers(await protocol.peek(backend, 9)) == [0, 1, 2, 3, 4]
            assert numbers(await protocol.peek(backend)) == [0, 1, 2, 3, 4]
            assert numbers(await backend.drain()) == [0, 1, 2, 3, 4]

    @pytest.mark.anyio
    async def test_draining_a_type_leaves_the_others_in_order(self) -> None:
        async with Opened(self) as backend:
            kinds: list[Callable[[int], Payload]] = [summary, actions, unknown, summary, actions, summary]
            for number, make in enumerate(kinds):
                await backend.add(make(number))
            assert numbers(await protocol.drain_types(backend, {"summary"}, 2)) == [0, 3]
            assert numbers(await protocol.drain_types(backend, {"survey"})) == [2]
            assert numbers(await protocol.drain_types(backend, set())) == []
            assert numbers(await protocol.drain_by_type(backend, summaries=False)) == [1, 4]
            assert numbers(await backend.drain()) == [5]

    @pytest.mark.anyio
    async def test_draining_a_page_takes_the_oldest(self) -> None:
        async with Opened(self) as backend:
            await fill(backend, 5)
            pages = [numbers(await protocol.drain_page(backend, size)) for size in (2, 0, 2, 2, 2)]
        assert pages == [[0, 1], [], [2, 3], [4], []]

    # -- the abilities proper: what only a backend that has them promises

    @pytest.mark.anyio
    async def test_peeking_costs_no_drain(self) -> None:
        async with Opened(self) as backend:
            if not isinstance(backend, Peeking):
                lacks(backend, "Peeking")
            await fill(backend, 3)
            assert numbers(await backend.peek(2)) == [1, 2]
            assert await backend.size() == 3

    @pytest.mark.anyio
    async def test_concurrent_pages_give_each_event_once(self) -> None:
        taken: list[int] = []

        async def consume() -> None:
            while page := numbers(await paged.drain_page(7)):
                assert len(page) <= 7
                assert page == sorted(page)
                taken.extend(page)

        async with Opened(self) as backend:
            if not isinstance(backend, Paged):
                lacks(backend, "Paged")
            paged = backend
            await fill(backend, 100)
            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(consume)
        assert sorted(taken) == list(range(100))

    @pytest.mark.anyio
    async def test_types_stay_apart_under_concurrent_adds(self) -> None:
        summaries: list[int] = []

        async def produce() -> None:
            for number in range(100):
                await backend.add(summary(number) if number % 2 else actions(number))
                await anyio.lowlevel.checkpoint()

        async def consume() -> None:
            while len(summaries) < 50:
                summaries.extend(numbers(await typed.drain_types({"summary"})))
                await anyio.lowlevel.checkpoint()

        async with Opened(self) as backend:
            if not isinstance(backend, Typed):
                lacks(backend, "Typed")
            typed = backend
            with anyio.fail_after(self.patience):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(produce)
                    tasks.start_soon(consume)
            assert summaries == list(range(1, 100, 2))
            assert numbers(await backend.drain()) == list(range(0, 100, 2))
