"""PostgresClient on a real server: time-outs, cancelled callers, lost connections, event loops, forks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

import anyio
import psycopg
import pytest

from connector_sdk.errors import ClientStateError
from connector_sdk.postgres_client import (
    Connection,
    PostgresAddress,
    PostgresClient,
    PostgresRefusedError,
    PostgresUnavailableError,
    close,
    connect,
    is_alive,
    sever,
)
from connector_sdk.testing import PostgresServer

pytestmark = pytest.mark.anyio

PATIENCE = 30.0
MakeClient: TypeAlias = Callable[..., PostgresClient]
PID = "SELECT pg_backend_pid()"


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


@pytest.fixture
async def make_client(postgres: str) -> AsyncIterator[MakeClient]:
    """Make clients for the server that tests share, or another one; they are closed after the test."""
    async with contextlib.AsyncExitStack() as clients:

        def make(dsn: str = postgres, *, connections: int = 2, connect_timeout: float = PATIENCE) -> PostgresClient:
            client = PostgresClient(
                PostgresAddress.parse(dsn), connections=connections, connect_timeout=connect_timeout
            )
            clients.push_async_callback(client.aclose)
            return client

        yield make


async def ask(client: PostgresClient, query: str, *, timeout: float = PATIENCE, repeatable: bool = False) -> object:
    rows = await client.fetch(query, timeout=timeout, repeatable=repeatable)
    return rows[0][0]


async def test_values_go_there_and_back(make_client: MakeClient) -> None:
    rows = await make_client().fetch(
        "SELECT %b::bytea, %b::bigint[], %s::text", (b"\0\xff", [1, 2], "é"), timeout=PATIENCE
    )
    assert rows == [(b"\0\xff", [1, 2], "é")]


async def test_connections_are_kept_and_no_more_than_allowed(make_client: MakeClient) -> None:
    client = make_client(connections=2)
    assert await ask(client, PID) == await ask(client, PID)
    pids: set[object] = set()
    async with anyio.create_task_group() as tasks:

        async def once() -> None:
            pids.add(await ask(client, "SELECT pg_backend_pid() FROM pg_sleep(0.02)"))

        for _ in range(8):
            tasks.start_soon(once)
    assert len(pids) == 2


async def test_no_answer_in_time_is_in_doubt_and_the_next_request_works(make_client: MakeClient) -> None:
    client = make_client(connections=1)
    pid = await ask(client, PID)
    with pytest.raises(PostgresUnavailableError, match="no answer in time") as caught:
        await ask(client, "SELECT pg_sleep(60)", timeout=0.1)
    assert caught.value.in_doubt
    assert await ask(client, PID) != pid


class Slow:
    """Work that has its connection until it is let go."""

    def __init__(self) -> None:
        self.begun = anyio.Event()
        self.may_end = anyio.Event()

    async def __call__(self, connection: Connection) -> object:
        self.begun.set()
        await self.may_end.wait()
        return await (await connection.execute("SELECT 'not yours'")).fetchone()


async def test_who_waits_behind_others_is_not_in_doubt(make_client: MakeClient) -> None:
    client, slow = make_client(connections=1), Slow()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: client.run(slow, timeout=PATIENCE))
        await slow.begun.wait()
        with pytest.raises(PostgresUnavailableError, match="behind other requests") as caught:
            await ask(client, PID, timeout=0.1)
        slow.may_end.set()
    assert not caught.value.in_doubt


async def test_a_cancelled_caller_leaves_at_once_and_its_connection_in_step(make_client: MakeClient) -> None:
    client, slow = make_client(connections=1), Slow()
    pid = await ask(client, PID)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: client.run(slow, timeout=PATIENCE))
        await slow.begun.wait()
        tasks.cancel_scope.cancel()
    assert not slow.may_end.is_set()
    slow.may_end.set()
    assert await ask(client, PID) == pid  # it waited for the other's end


async def test_a_cancelled_caller_that_waited_has_nothing_done(make_client: MakeClient, postgres_url: str) -> None:
    client, slow = make_client(postgres_url, connections=1), Slow()
    await client.fetch("CREATE TABLE done (x int)", timeout=PATIENCE)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: client.run(slow, timeout=PATIENCE))
        await slow.begun.wait()
        with anyio.move_on_after(0.05):
            await client.fetch("INSERT INTO done VALUES (1)", timeout=PATIENCE)
        slow.may_end.set()
    assert await ask(client, "SELECT count(*) FROM done") == 0


async def test_a_connection_that_was_lost_while_idle_is_replaced_without_a_word(make_client: MakeClient) -> None:
    client, other = make_client(connections=1), make_client()
    pid = await ask(client, PID)
    assert isinstance(pid, int)
    await other.fetch("SELECT pg_terminate_backend(%s, 20000)", (pid,), timeout=PATIENCE)
    assert await ask(client, PID) != pid


async def test_a_connection_that_is_lost_in_the_middle_is_in_doubt_unless_repeatable(make_client: MakeClient) -> None:
    client = make_client(connections=1)
    suicide = "SELECT pg_terminate_backend(pg_backend_pid()) FROM pg_sleep(0.01)"
    with pytest.raises(PostgresUnavailableError) as caught:
        await ask(client, suicide)
    assert caught.value.in_doubt
    calls: list[object] = []

    async def work(connection: Connection) -> object:
        calls.append(connection)
        if len(calls) < 3:
            await connection.execute(suicide.encode())
        return "at last"

    assert await client.run(work, timeout=PATIENCE, repeatable=True) == "at last"
    assert len(calls) == 3


async def test_a_deadlock_is_tried_again(make_client: MakeClient) -> None:
    attempts: list[int] = []

    async def work(connection: Connection) -> str:
        attempts.append(1)
        if len(attempts) == 1:
            await connection.execute("DO $$ BEGIN RAISE EXCEPTION 'oh' USING ERRCODE = '40P01'; END $$")
        return "done"

    assert await make_client().run(work, timeout=PATIENCE) == "done"
    assert len(attempts) == 2


async def test_a_refusal_has_its_code_and_no_values(make_client: MakeClient) -> None:
    client = make_client(connections=1)
    with pytest.raises(PostgresRefusedError) as caught:
        await client.fetch("SELECT %s::text::int", ("hush",), timeout=PATIENCE)
    assert (caught.value.code, caught.value.in_doubt, caught.value.full) == ("22P02", False, False)
    with pytest.raises(PostgresRefusedError) as caught:
        await client.fetch("DO $$ BEGIN RAISE EXCEPTION 'no disk' USING ERRCODE = '53100'; END $$", timeout=PATIENCE)
    assert caught.value.full
    pid = await ask(client, PID)
    with pytest.raises(PostgresRefusedError):
        await ask(client, "SELECT nonsense")
    assert await ask(client, PID) == pid


async def test_a_transaction_that_is_left_open_is_not_handed_on(make_client: MakeClient) -> None:
    client = make_client(connections=1)

    async def work(connection: Connection) -> None:
        await connection.execute("BEGIN")

    pid = await ask(client, PID)
    await client.run(work, timeout=PATIENCE)
    assert await ask(client, PID) != pid


async def test_mistakes_of_the_program_are_raised_as_they_are(make_client: MakeClient) -> None:
    client = make_client(connections=1)
    with pytest.raises(psycopg.ProgrammingError, match="placeholders"):
        await client.fetch("SELECT %s", (1, 2), timeout=PATIENCE)

    async def work(connection: Connection) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await client.run(work, timeout=PATIENCE)
    assert await ask(client, "SELECT 1") == 1


async def test_nobody_there_is_no_doubt(make_client: MakeClient) -> None:
    with pytest.raises(PostgresUnavailableError) as caught:
        await ask(make_client("postgresql://u:hush@127.0.0.1:1/d"), "SELECT 1")
    assert not caught.value.in_doubt
    assert "hush" not in str(caught.value)


async def test_a_server_that_hangs_while_connecting_is_given_up_in_time(
    make_client: MakeClient, postgres_server: PostgresServer
) -> None:
    client = make_client(postgres_server.url, connect_timeout=0.2)
    postgres_server.pause()
    started = time.monotonic()
    with pytest.raises(PostgresUnavailableError, match=r"no connection within 0\.2 s") as caught:
        await ask(client, "SELECT 1")
    assert time.monotonic() - started < 10.0
    assert not caught.value.in_doubt
    postgres_server.resume()
    with anyio.fail_after(PATIENCE):
        while True:
            with contextlib.suppress(PostgresUnavailableError):
                assert await ask(client, "SELECT 1") == 1
                return


async def test_closing_ends_what_is_under_way(make_client: MakeClient) -> None:
    client = make_client()
    await ask(client, PID)

    async def hang() -> None:
        with pytest.raises(PostgresUnavailableError) as caught:
            await ask(client, "SELECT pg_sleep(60)")
        assert caught.value.in_doubt

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hang)
        await anyio.sleep(0.1)
        await client.aclose()
    await client.aclose()
    with pytest.raises(ClientStateError, match="closed"):
        await ask(client, PID)


async def test_a_connection_of_ones_own(postgres: str) -> None:
    connection = await connect(PostgresAddress.parse(postgres), timeout=PATIENCE)
    assert is_alive(connection)
    rows = await (await connection.execute("SHOW application_name")).fetchall()
    assert rows == [("connector_sdk",)]
    sever(connection)
    with pytest.raises(psycopg.OperationalError):
        await connection.execute("SELECT 1")
    assert not is_alive(connection)
    close(connection)


def test_one_event_loop_after_the_other_and_never_two_at_once(postgres: str) -> None:
    client = PostgresClient(PostgresAddress.parse(postgres), connect_timeout=PATIENCE)
    first = anyio.run(ask, client, PID)
    second = anyio.run(ask, client, PID)
    assert first != second

    async def both() -> None:
        await ask(client, PID)

        def other_loop() -> None:
            with pytest.raises(ClientStateError, match="another event loop"):
                anyio.run(ask, client, PID)

        await anyio.to_thread.run_sync(other_loop)
        await client.aclose()

    anyio.run(both)


def test_trio_is_refused(postgres: str) -> None:
    client = PostgresClient(PostgresAddress.parse(postgres))
    with pytest.raises(ClientStateError, match="asyncio only"):
        anyio.run(ask, client, PID, backend="trio")
    anyio.run(client.aclose, backend="trio")
