"""Batches of which no answer came: sent again while the store knows their number, and never after."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from connector_sdk.buffers.durable import DurableBuffer
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import Payload
from tests.buffers.memory_store import MemoryStore, refused, unanswered
from tests.buffers.samples import PATIENCE, numbers, summary

pytestmark = pytest.mark.anyio


async def add_in_doubt(buffer: DurableBuffer, store: MemoryStore, *, applied: bool) -> None:
    """Add three events in one batch that has no answer; the store is away from then on."""
    store.break_down(lambda: unanswered(applied=applied), "append")
    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(buffer.add, summary(number))
        with anyio.fail_after(PATIENCE):
            while not store.appends:
                await anyio.lowlevel.checkpoint()
        store.break_down(refused)


async def until_settled(buffer: DurableBuffer) -> None:
    with anyio.fail_after(PATIENCE):
        while buffer._account.in_flight:
            await anyio.sleep(0.01)


async def until_in_service(buffer: DurableBuffer) -> None:
    with anyio.fail_after(PATIENCE):
        while buffer._engine is None or buffer._engine.state == "open":
            await anyio.sleep(0.01)


@pytest.mark.parametrize("applied", [True, False], ids=["it was done", "it was not done"])
async def test_a_batch_whose_number_the_store_forgot_is_dropped_in_doubt_and_not_sent_again(applied: bool) -> None:
    store, told = MemoryStore(known_ids=False), list[Payload]()
    store.memory = 0.4
    async with DurableBuffer(store, on_drop=told.append) as buffer:
        await add_in_doubt(buffer, store, applied=applied)
        assert buffer._account.in_flight == 3, "it may still be sent again"
        await until_settled(buffer)
        store.recover()
        await until_in_service(buffer)
        assert [size for _, size in store.appends] == [3]
        assert sorted(numbers(told)) == [0, 1, 2]
        stats = await buffer.stats()
        assert (dict(stats.ledger.dropped), stats.in_doubt) == ({DropReason.UNAVAILABLE: 3}, 3)
        assert stats.ledger.balanced
        # Sent again it would be stored a second time: the store does not know its number any more.
        assert sorted(numbers(await buffer.drain())) == ([0, 1, 2] if applied else [])
        await buffer.add(summary(3))
        assert numbers(await buffer.drain()) == [3]


@pytest.mark.parametrize("applied", [True, False], ids=["it was done", "it was not done"])
async def test_a_batch_whose_number_the_store_knows_is_sent_again_and_stored_once(applied: bool) -> None:
    store, told = MemoryStore(known_ids=False), list[Payload]()
    async with DurableBuffer(store, on_drop=told.append) as buffer:
        await add_in_doubt(buffer, store, applied=applied)
        store.recover()
        await until_settled(buffer)
        assert [number for number, _ in store.appends] == [1, 1]
        assert sorted(numbers(await buffer.drain())) == [0, 1, 2]
        assert told == []
        assert (await buffer.stats()).in_doubt == 0


async def test_callers_that_wait_until_it_is_stored_have_it_sent_again_whatever_the_store_forgot() -> None:
    """They were promised that it is stored: rather twice than not at all."""
    store = MemoryStore(known_ids=False)
    store.memory = 0.05
    async with DurableBuffer(store, overflow="block") as buffer, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: add_in_doubt(buffer, store, applied=True))
        await anyio.sleep(0.5)
        store.recover()
        await until_settled(buffer)
        with anyio.fail_after(PATIENCE):
            while len(store.appends) < 2:
                await anyio.sleep(0.01)
        await until_settled(buffer)
        assert buffer._account.ledger().dropped == {}
        assert set(numbers(await buffer.drain())) == {0, 1, 2}
