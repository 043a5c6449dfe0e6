"""asyncio alone; every buffer that a test makes is closed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from connector_sdk.buffers.redis import RedisEventBuffer
from tests.faults.books import Books, MakeBuffer


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


@pytest.fixture
def books() -> Books:
    """The books of this test."""
    return Books()


@pytest.fixture
async def make_buffer(books: Books) -> AsyncIterator[MakeBuffer]:
    """Make buffers that tell the test's books of what they drop; they are closed after the test."""
    async with contextlib.AsyncExitStack() as buffers:

        def make(url: str, key_prefix: str = "faults", **options: object) -> RedisEventBuffer:
            options.setdefault("on_drop", books.told)
            buffer = RedisEventBuffer(url, key_prefix, **options)  # type: ignore[arg-type]  # whatever the test wants
            # It is no option: 15 s are too long to wait for what a drain took whose answer was lost.
            buffer._terms = msgspec.structs.replace(buffer._terms, hold=1.0)
            buffers.push_async_callback(buffer.aclose, 1.0)
            return buffer

        yield make
