"""A lease of a DurableBuffer is renewed while its block runs, and by nothing and nobody after it."""

# ruff: noqa: PT012 - what must raise is the leaving of a block

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from connector_sdk.buffers.durable import DurableBuffer
from connector_sdk.buffers.leases import LeaseState
from connector_sdk.buffers.store import Page
from connector_sdk.errors import (
    BufferClosedError,
    BufferUnavailableError,
    ConfigurationError,
    LeaseError,
    LeaseExpiredError,
)
from tests.buffers.memory_store import MemoryStore, refused, unanswered
from tests.buffers.samples import PATIENCE, numbers, summary
from tests.buffers.test_fork import in_child

pytestmark = pytest.mark.anyio

#: Seconds that leases hold; a renewal may be late by two thirds of it.
HOLD = 1.2


@contextlib.asynccontextmanager
async def buffers(store: MemoryStore, count: int = 3) -> AsyncIterator[tuple[DurableBuffer, DurableBuffer]]:
    """A buffer with *count* events, and one of another process."""
    async with DurableBuffer(store) as buffer, DurableBuffer(store.another_process()) as other:
        for number in range(count):
            await buffer.add(summary(number))
        yield buffer, other


def renewals() -> int:
    """How many leases are being renewed."""
    return sum(task.name == "renewal of a lease" for task in anyio.get_running_tasks())


async def until_calls(store: MemoryStore, operation: str, count: int) -> None:
    with anyio.fail_after(PATIENCE):
        while store.calls.count(operation) < count:
            await anyio.sleep(0.005)


@pytest.mark.parametrize("shards", [1, 3])
async def test_a_block_that_takes_long_keeps_its_events(shards: int) -> None:
    async with buffers(MemoryStore(shards)) as (buffer, other):
        async with buffer.lease(timeout=HOLD) as lease:
            assert renewals() == 1
            end = time.monotonic() + 3 * HOLD
            while time.monotonic() < end:
                assert await other.drain() == []
                await anyio.sleep(0.05)
            assert len(lease) == 3
        assert renewals() == 0
        assert await other.drain() == []
        stats = await other.stats()
        assert stats.shared is not None
        assert stats.shared.delivered == 3


async def test_without_renewal_a_lease_runs_out_in_the_middle_of_its_block() -> None:
    store = MemoryStore()
    async with buffers(store) as (buffer, other):
        with pytest.raises(LeaseExpiredError):
            async with buffer.lease(timeout=0.05, renew=False):
                await anyio.sleep(0.1)
                assert numbers(await other.drain()) == [0, 1, 2]
        assert "extend" not in store.calls


async def test_a_lease_without_events_needs_no_renewal() -> None:
    async with buffers(MemoryStore(), 0) as (buffer, _), buffer.lease(timeout=0.05):
        assert renewals() == 0


@pytest.mark.parametrize("end", ["leave", "fail", "cancel", "ack", "give_back"])
async def test_renewal_ends_with_the_block_however_that_ends(end: str) -> None:
    store = MemoryStore()
    async with buffers(store) as (buffer, _):
        with contextlib.suppress(ZeroDivisionError), anyio.CancelScope() as scope:
            async with buffer.lease(timeout=0.03) as lease:
                await until_calls(store, "extend", 2)
                if end == "fail":
                    raise ZeroDivisionError
                if end == "cancel":
                    scope.cancel()
                    await anyio.sleep_forever()
                if end == "ack":
                    await lease.ack()
                if end == "give_back":
                    await lease.give_back()
        assert renewals() == 0
        calls = store.calls.count("extend")
        await anyio.sleep(0.1)
        assert store.calls.count("extend") == calls
        assert numbers(await buffer.drain()) == ([] if end in ("leave", "ack") else [0, 1, 2])


async def test_what_was_acknowledged_is_not_renewed() -> None:
    store = MemoryStore(2)
    async with DurableBuffer(store) as buffer:
        for number in range(2):
            await buffer.add(type(summary(0))("shop", "ab"[number], "", 0, 0.0, str(number)))
        async with buffer.lease(timeout=0.03) as lease:
            await lease.ack(lease.events[:1])
            await anyio.sleep(0.1)
            leases = [shard.leases for shard in store.shard_list]
            assert sorted(map(len, leases)) == [0, 1]
        assert await buffer.drain() == []


async def test_a_lease_that_nobody_has_any_more_is_not_renewed() -> None:
    store = MemoryStore()
    async with buffers(store) as (buffer, other):
        lease = await buffer.lease(timeout=0.2).__aenter__()
        await until_calls(store, "extend", 1)
        del lease
        gc.collect()
        with anyio.fail_after(PATIENCE):
            while not await other.drain():
                await anyio.sleep(0.02)


async def test_a_lease_that_the_store_has_not_any_more_is_expired_at_its_next_use() -> None:
    store = MemoryStore()
    async with buffers(store) as (buffer, other):
        with pytest.raises(LeaseExpiredError):
            async with buffer.lease(timeout=0.06) as lease:
                store.run_out()
                assert numbers(await other.drain()) == [0, 1, 2]
                calls = store.calls.count("extend")
                await until_calls(store, "extend", calls + 1)
                await anyio.sleep(0.1)
                assert store.calls.count("extend") == calls + 1, "one answer is enough"
                with pytest.raises(LeaseExpiredError):
                    await lease.ack()
                with pytest.raises(LeaseExpiredError):
                    await lease.extend(1.0)
                with pytest.raises(LeaseExpiredError):
                    await lease.fail(lease.events[0], ValueError())
                assert lease.state is LeaseState.EXPIRED
                await lease.give_back()


async def test_renewal_tries_again_while_the_store_is_away() -> None:
    store = MemoryStore()
    async with buffers(store) as (buffer, other), buffer.lease(timeout=3.0):
        store.break_down(refused, "extend")
        await until_calls(store, "extend", 1)
        store.break_down(refused)
        await anyio.sleep(0.5)
        store.recover()
        calls = store.calls.count("extend")
        await until_calls(store, "extend", calls + 1)
        assert await other.drain() == []
        await anyio.sleep(2.5)
        assert await other.drain() == []


async def test_renewal_ends_when_the_store_was_away_for_too_long() -> None:
    store = MemoryStore()
    async with buffers(store) as (buffer, _):
        with pytest.raises(LeaseExpiredError):
            async with buffer.lease(timeout=0.1) as lease:
                store.break_down(refused)
                assert lease._renewal is not None
                assert lease._renewal._task is not None
                with anyio.fail_after(PATIENCE):
                    await lease._renewal._task.wait()
                store.recover()
                with anyio.fail_after(PATIENCE):
                    while buffer._engine is None or buffer._engine.state == "open":
                        await anyio.sleep(0.01)
        assert numbers(await buffer.drain()) == [0, 1, 2]


@pytest.mark.parametrize("applied", [True, False])
async def test_an_acknowledgement_in_doubt_is_not_taken_for_a_lease_that_ran_out(applied: bool) -> None:
    store = MemoryStore()
    async with buffers(store) as (buffer, _):
        async with buffer.lease(timeout=1.0) as lease:
            store.break_next(unanswered(applied=applied), "acknowledge")
            with pytest.raises(BufferUnavailableError):
                await lease.ack()
            calls = store.calls.count("extend")
            await until_calls(store, "extend", calls + 1)
            await anyio.sleep(1.2)
            await lease.ack()
        assert await buffer.drain() == []
        stats = await buffer.stats()
        assert (stats.drained, stats.shared and stats.shared.delivered) == (3, 3)


async def test_extending_a_lease_lengthens_the_renewal_and_never_shortens_it() -> None:
    store = MemoryStore()
    async with buffers(store) as (buffer, _), buffer.lease(timeout=50.0) as lease:
        await lease.extend(0.01)
        (held,) = store.shard_list[0].leases.values()
        assert held.runs_out > time.monotonic() + 40
        await lease.extend(500.0)
        assert held.runs_out > time.monotonic() + 400
        await anyio.sleep(0.05)
        assert store.calls.count("extend") == 2


async def test_closing_the_buffer_ends_the_renewal_and_the_lease_runs_out() -> None:
    store = MemoryStore()
    async with DurableBuffer(store.another_process()) as other:
        buffer = DurableBuffer(store)
        await buffer.add(summary(0))
        with pytest.raises(BufferClosedError):
            async with buffer.lease(timeout=0.2):
                with anyio.fail_after(PATIENCE):
                    await buffer.aclose()
                assert renewals() == 0
        with anyio.fail_after(PATIENCE):
            while not await other.drain():
                await anyio.sleep(0.02)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
async def test_the_child_of_a_fork_neither_uses_nor_renews_the_lease_of_its_parent() -> None:
    store = MemoryStore()
    async with buffers(store) as (buffer, _):
        async with buffer.lease(timeout=60.0) as lease:
            events = lease.events

            def check() -> None:
                calls = len(store.calls)
                uses = [lease.ack(events), lease.extend(1.0), lease.give_back(), lease.fail(events[0], ValueError())]
                for use in uses:
                    with pytest.raises(LeaseError, match="fork"):
                        use.send(None)
                for error in (None, ZeroDivisionError()):
                    with pytest.raises(StopIteration):
                        lease.__aexit__(None if error is None else type(error), error, None).send(None)
                assert len(store.calls) == calls

            in_child(check)
        assert await buffer.drain() == []


@pytest.mark.parametrize("renew", [1, "yes", None])
async def test_renew_is_true_or_false(renew: object) -> None:
    buffer = DurableBuffer(MemoryStore())
    with pytest.raises(ConfigurationError, match="renew"):
        buffer.lease(renew=renew)  # type: ignore[arg-type]  # what must be refused


def test_a_lease_that_goes_to_another_event_loop_is_renewed_there_once_it_is_extended(anyio_backend_name: str) -> None:
    store = MemoryStore()
    buffer = DurableBuffer(store)

    async def enter() -> None:
        await buffer.add(summary(0))
        await lease.__aenter__()

    async def go_on() -> None:
        await lease.extend(0.06)
        calls = store.calls.count("extend")
        await until_calls(store, "extend", calls + 3)
        await lease.__aexit__(None, None, None)
        assert renewals() == 0
        assert await buffer.drain() == []
        await buffer.aclose()

    lease = buffer.lease(timeout=30.0)
    anyio.run(enter, backend=anyio_backend_name)
    assert lease._renewal is not None
    lease._renewal.hold = 0.06  # or the first renewal would be in ten seconds
    anyio.run(go_on, backend=anyio_backend_name)


async def test_who_names_himself_waits_for_the_leases_of_others() -> None:
    async with DurableBuffer(MemoryStore()) as buffer:
        for number in range(4):
            await buffer.add(summary(number))
        async with buffer.lease(1) as other, buffer.lease(holder="me") as mine:
            assert (len(other), len(mine)) == (1, 0)
        async with buffer.lease(1, holder="me") as one, buffer.lease(1, holder="me") as two:
            assert numbers([*one, *two]) == [1, 2]


@pytest.mark.parametrize("holder", ["", "x" * 201, "a\nb", 7])
async def test_a_holder_is_a_printable_name(holder: object) -> None:
    async with DurableBuffer(MemoryStore()) as buffer:
        with pytest.raises(ConfigurationError, match="holder"):
            buffer.lease(holder=holder)  # type: ignore[arg-type]  # what must be refused


async def test_who_wants_some_types_waits_for_nobody() -> None:
    async with DurableBuffer(MemoryStore()) as buffer:
        for number in range(4):
            await buffer.add(summary(number))
        async with buffer.lease(1) as other, buffer.lease(holder="me", types={"summary"}) as mine:
            assert (numbers(other), numbers(mine)) == ([0], [1, 2, 3])


class LongWay(MemoryStore):
    """Has nothing of the wanted types on the first pages."""

    async def take(self, shard: int, lease: str, limit: int, **options: Any) -> Page:
        if len(options["cursor"]) < 4:
            await anyio.sleep(0.2)
            return Page(left=10, cursor=options["cursor"] + "x")
        return await super().take(shard, lease, limit, **options)


async def test_a_lease_looks_on_until_it_has_found_something_of_its_types() -> None:
    async with DurableBuffer(LongWay(), overflow="block") as buffer:
        await buffer.add(summary(0))
        with contextlib.suppress(LeaseExpiredError):  # on a busy machine, when it is left
            async with buffer.lease(timeout=1.0, types={"summary"}) as lease:
                pass
        assert numbers(lease.events) == [0]


@pytest.mark.parametrize("types", [None, {"summary"}])
async def test_a_lease_that_was_taken_without_an_answer_comes_back_before_all_others(types: set[str] | None) -> None:
    store = MemoryStore()
    async with DurableBuffer(store, overflow="block") as buffer:
        for number in range(2):
            await buffer.add(summary(number))
        faults = {"take": unanswered(applied=True), "give_back": refused()}
        store.choose = lambda operation, shard: faults.pop(operation, None)
        with pytest.raises(BufferUnavailableError):
            async with buffer.lease(1, holder="me", types=types):
                pass
        await buffer.add(summary(2))
        with anyio.fail_after(PATIENCE):
            while True:
                with contextlib.suppress(BufferUnavailableError):
                    async with buffer.lease(holder="me", types=types) as lease:
                        if lease.events:
                            break
                await anyio.sleep(0.01)
        assert numbers(lease.events) == [0, 1, 2]


async def test_what_is_being_given_back_slowly_is_waited_for() -> None:
    store = MemoryStore()
    async with DurableBuffer(store, overflow="block", response_timeout=0.1) as buffer:
        for number in range(4):
            await buffer.add(summary(number))
        stop = store.stop("give_back")
        with pytest.raises(ZeroDivisionError):
            async with buffer.lease(2, holder="me"):
                raise ZeroDivisionError
        with pytest.raises(BufferUnavailableError, match="could not be given back yet"):
            async with buffer.lease(holder="me"):
                pass
        async with buffer.lease(1) as other:
            assert numbers(other) == [2], "whoever names no holder is not concerned"
        store.recover()
        stop.resume()
        found: list[int] = []
        with anyio.fail_after(PATIENCE):
            while not found:
                await anyio.sleep(0.01)
                with contextlib.suppress(BufferUnavailableError):
                    async with buffer.lease(holder="me") as lease:
                        found = numbers(lease)
        assert found == [0, 1, 3]


def test_what_one_event_loop_left_behind_the_next_one_brings_back() -> None:
    store = MemoryStore()
    buffer = DurableBuffer(store, overflow="block")

    async def leave() -> None:
        for number in range(3):
            await buffer.add(summary(number))
        faults = {"take": unanswered(applied=True), "give_back": refused()}
        store.choose = lambda operation, shard: faults.pop(operation, None)
        with pytest.raises(BufferUnavailableError):
            async with buffer.lease(2, holder="me"):
                pass

    async def go_on() -> list[int]:
        async with buffer, buffer.lease(holder="me") as lease:
            return numbers(lease)

    asyncio.run(leave())
    store.recover()
    assert asyncio.run(go_on()) == [0, 1, 2]


async def test_attempts_at_a_store_that_is_away_leave_nothing_behind() -> None:
    store = MemoryStore()
    async with DurableBuffer(store) as buffer:
        store.break_down()
        for _ in range(5):
            with pytest.raises(BufferUnavailableError):
                async with buffer.lease(holder="me"):
                    pass
        assert buffer._engine is not None
        assert not buffer._engine._strays
