"""Mistakes of the program that uses a DurableBuffer: they are told to it, and not taken for a store that is away."""

from __future__ import annotations

import functools
import logging

import anyio
import pytest

from connector_sdk.buffers.blocking import BlockingBuffer
from connector_sdk.buffers.drops import DropHook
from connector_sdk.buffers.durable import DurableBuffer, DurableOverflow
from connector_sdk.errors import ClientStateError, ConfigurationError, ConnectorError
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import Payload
from connector_sdk.redis_client import RedisAddress
from tests.buffers.memory_store import Fault, MemoryStore, refused
from tests.buffers.samples import numbers, summary

pytestmark = pytest.mark.anyio

TOO_LONG = 1e12


class AsyncHook:
    async def __call__(self, payload: Payload) -> None:
        raise AssertionError("nobody awaits it")


# -- what a store finds wrong with the program


@pytest.mark.parametrize("overflow", ["drop_newest", "block"])
@pytest.mark.parametrize("error", [ClientStateError("two loops"), ConfigurationError("redis_url", None, "x")])
async def test_it_is_raised_to_those_who_add(overflow: DurableOverflow, error: ConnectorError) -> None:
    store = MemoryStore()
    told: list[Payload] = []
    async with DurableBuffer(store, overflow=overflow, on_drop=told.append) as buffer:
        store.break_next(Fault(error, applied=False), "append")
        with pytest.raises(type(error)):
            await buffer.add(summary(0))
        await buffer.add(summary(1))
        stats = await buffer.stats()
        assert stats.ledger.balanced
        assert stats.ledger.dropped == {DropReason.UNAVAILABLE: 1}
        assert (stats.state, stats.outages, stats.in_doubt) == ("closed", 0, 0)
        assert numbers(told) == [0]


@pytest.mark.parametrize("shards", [1, 3])
async def test_it_is_raised_to_those_who_read(shards: int) -> None:
    store = MemoryStore(shards)
    async with DurableBuffer(store) as buffer:
        await buffer.add(summary(0))
        store.break_down(lambda: Fault(ClientStateError("two loops"), applied=False))
        for call in (
            buffer.drain,
            functools.partial(buffer.drain, 5),
            functools.partial(buffer.drain_types, {"summary"}),
            buffer.lease().__aenter__,
            buffer.clear,
            buffer.peek,
            buffer.size,
            buffer.sessions,
            buffer.stats,
        ):
            with pytest.raises(ClientStateError):
                await call()
        store.recover()
        assert numbers(await buffer.drain()) == [0]
        stats = await buffer.stats()
        assert (stats.state, stats.outages) == ("closed", 0)


# -- hooks that are not plain functions


@pytest.mark.parametrize("hook", [AsyncHook(), AsyncHook().__call__, functools.partial(AsyncHook())])
def test_an_async_hook_is_refused(hook: DropHook) -> None:
    with pytest.raises(ConfigurationError, match="plain function"):
        DurableBuffer(MemoryStore(), on_drop=hook)


async def test_a_hook_that_returns_a_coroutine_is_told_so_once(caplog: pytest.LogCaptureFixture) -> None:
    # A coroutine that is dropped without being closed is a warning, and warnings are errors here.
    hook = AsyncHook()
    store = MemoryStore()
    store.break_down(refused)
    with caplog.at_level(logging.WARNING):
        async with DurableBuffer(store, on_drop=lambda payload: hook(payload)) as buffer:
            for number in range(3):
                await buffer.add(summary(number))
            assert (await buffer.stats()).hook_errors == 3
    assert len([record for record in caplog.records if "plain function" in record.getMessage()]) == 1


# -- values out of bounds


@pytest.mark.parametrize("option", ["acquire_timeout", "response_timeout", "drain_hold"])
def test_options_of_more_than_ten_years_are_refused(option: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{option}.*ten years"):
        DurableBuffer(MemoryStore(), **{option: TOO_LONG})  # type: ignore[arg-type]  # one of several options


async def test_times_of_more_than_ten_years_are_refused() -> None:
    async with DurableBuffer(MemoryStore()) as buffer:
        await buffer.add(summary(0))
        with pytest.raises(ConfigurationError, match="ten years"):
            buffer.lease(timeout=TOO_LONG)
        with pytest.raises(ConfigurationError, match="ten years"):
            await buffer.aclose(TOO_LONG)
        async with buffer.lease() as lease:
            with pytest.raises(ConfigurationError, match="ten years"):
                await lease.extend(TOO_LONG)
            await lease.extend(9 * 365 * 86_400)


def test_times_of_more_than_ten_years_are_refused_in_threads() -> None:
    with BlockingBuffer(DurableBuffer(MemoryStore())) as buffer, pytest.raises(ConfigurationError, match="ten years"):
        buffer.lease(timeout=TOO_LONG)


async def test_enormous_numbers_of_events_are_all_of_them() -> None:
    store = MemoryStore(known_ids=False)
    async with DurableBuffer(store, page_size=10**30) as buffer:
        for _ in range(3):
            async with anyio.create_task_group() as tasks:
                for number in range(5):
                    tasks.start_soon(buffer.add, summary(number))
            assert len(await buffer.peek(10**30)) == 5
            assert len(await buffer.drain_page(10**30)) == 5
        async with buffer.lease(10**30) as lease:
            assert len(lease) == 0


# -- addresses


@pytest.mark.parametrize("url", [None, b"redis://h", 6379])
def test_an_address_that_is_no_text_is_refused(url: object) -> None:
    with pytest.raises(ConfigurationError, match="redis_url"):
        RedisAddress.parse(url)  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize("url", ["redis://h?hunter2", "redis://h?db=1&hunter2", "redis://:pass?hunter2"])
def test_what_may_be_the_rest_of_a_password_is_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        RedisAddress.parse(url)
    assert "hunter2" not in f"{refusal.value}{refusal.value!r}{refusal.value.__dict__}"
