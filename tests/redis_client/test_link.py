"""The one connection that all callers share, and the question whether it still leads to the right server."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import pytest

from connector_sdk.redis_client.address import Server
from connector_sdk.redis_client.connection import Connection
from connector_sdk.redis_client.link import Link
from connector_sdk.redis_client.opening import Login, open_connection
from tests.redis_client.fake import FakeServer

pytestmark = pytest.mark.anyio

PATIENCE = 20.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def use(link: Link) -> None:
    """Do what a request does before it is sent: ask whether the server is the right one when that is due."""
    await until(lambda: asyncio.get_running_loop().time() >= link.verify_at)
    link.verify()


async def test_a_verifier_that_fails_is_told_of_and_asked_again() -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context.get("exception")))
    broken = ValueError("no answer that anybody foresaw")
    answers: list[bool | ValueError] = [broken, True, False]
    asked: list[Connection] = []

    async def verify(connection: Connection) -> bool:
        asked.append(connection)
        answer = answers[len(asked) - 1]
        if isinstance(answer, ValueError):
            raise answer
        return answer

    async with FakeServer() as server:
        place = Server("127.0.0.1", server.port)
        link = Link("here", lambda: open_connection(place, Login(client_name="test"), PATIENCE), verify)
        connection = await link.open(PATIENCE)
        for number in range(3):
            assert connection.is_open
            await use(link)
            await until(lambda count=number + 1: len(asked) == count)  # type: ignore[misc]  # a default, bound now
        await asyncio.wait_for(asyncio.shield(connection.closed), PATIENCE)
        assert asked == [connection] * 3
        assert await link.open(PATIENCE) is not connection
        link.abort("the test is over")
        await link.wait_closed()
    gc.collect()  # asyncio reports what nobody asked for when the task goes
    assert told == [broken]
