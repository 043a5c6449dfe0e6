"""Requests over a few connections, which are opened when they are needed and replaced when they are lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from connector_sdk.errors import ClientStateError
from connector_sdk.forks import start_empty_after_fork
from connector_sdk.options import check_integer
from connector_sdk.postgres_client.address import PostgresAddress
from connector_sdk.postgres_client.connection import Connection, abandon, close, connect, is_alive, sever
from connector_sdk.postgres_client.driver import load_psycopg
from connector_sdk.postgres_client.errors import PostgresRefusedError, PostgresUnavailableError, failure_of

__all__ = ["PostgresClient"]

AnswerT = TypeVar("AnswerT")

_READ_ONLY: Final = "25006"
#: Pauses in seconds before the second attempt, the third, ...; the last one repeats.
_PAUSES: Final = (0.0, 0.01, 0.02, 0.05)


class PostgresClient:
    """
    A client for one database. Constructing it does no network I/O.

    Any number of tasks of one event loop (asyncio's) may use it at once; *connections* (1 or more) of them are served at the
    same time, the others wait. After the event loop was closed, or in the child of a fork, it starts anew.
    """

    def __init__(self, address: PostgresAddress, *, connections: int = 2, connect_timeout: float = 1.0) -> None:
        self.address = address
        self._most = check_integer("connections", connections, minimum=1)
        self._connect_timeout = connect_timeout
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._start_anew()
        start_empty_after_fork(self)

    def _start_anew(self) -> None:
        self._places = asyncio.Semaphore(self._most)
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"PostgresClient({str(self.address)!r})"

    async def run(
        self, work: Callable[[Connection], Awaitable[AnswerT]], *, timeout: float, repeatable: bool = False
    ) -> AnswerT:
        """
        Call *work* with a connection that nobody else uses meanwhile, in autocommit, and return what it returns.

        It ends within *timeout* seconds (and a turn of the event loop): then the connection is severed. A caller that is
        cancelled leaves at once: what was begun goes on to its end without it, what was not is not begun. *work* is called
        again while there is time when the server undid it because of others (a deadlock), and *repeatable* work also when
        the connection was lost: name work so that may be done twice.

        Raises:
            PostgresUnavailableError: no usable answer in time; `in_doubt` says whether it may have been done.
            PostgresRefusedError: the server answered with an error.
            ClientStateError: the client was closed, or belongs to another event loop that runs.
        """
        loop = self._enter()
        request = _Request(work, loop.time() + timeout, repeatable)
        task = loop.create_task(self._serve(request), name=f"connector_sdk: asking {self.address}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_look_at)
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            if not request.begun:
                task.cancel()
            raise
        if task.cancelled():
            raise PostgresUnavailableError(f"{self.address}: the client was closed", in_doubt=request.begun)
        return task.result()

    async def run_here(
        self, work: Callable[[Connection], Awaitable[AnswerT]], *, timeout: float, repeatable: bool = False
    ) -> AnswerT:
        """As `run`, for a caller that is a task of its own, which nobody cancels in the middle: it saves another one."""
        return await self._serve(_Request(work, self._enter().time() + timeout, repeatable))

    async def fetch(
        self, query: str, parameters: Sequence[object] = (), *, timeout: float, repeatable: bool = False
    ) -> list[tuple[object, ...]]:
        """Send one statement, `%s` for each parameter (`%b` in binary), and return its rows, read in binary. As `run`."""

        async def work(connection: Connection) -> list[tuple[object, ...]]:
            # Statements are texts of ours; whoever calls this never puts a value into one.
            cursor = await connection.execute(query.encode(), parameters or None, binary=True)
            return await cursor.fetchall() if cursor.description is not None else []

        return await self.run(work, timeout=timeout, repeatable=repeatable)

    async def aclose(self) -> None:
        """Close every connection; requests under way fail. The client is of no more use. May be called twice, from any loop."""
        self._closed = True
        if self._loop is None or self._loop is not _running_loop():
            self._let_go()
            return
        for connection in self._busy:
            sever(connection)
        tasks = list(self._tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=1.0)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=1.0)
        self._close_idle()

    # ------------------------------------------------------------------------------------------ one request

    async def _serve(self, request: _Request[AnswerT]) -> AnswerT:
        loop = asyncio.get_running_loop()
        attempt = 0
        in_doubt = False
        while True:
            try:
                return await self._attempt(request)
            except PostgresRefusedError as error:
                error.in_doubt = in_doubt
                raise
            except PostgresUnavailableError as error:
                in_doubt = in_doubt or error.in_doubt
                pause = _PAUSES[min(attempt, len(_PAUSES) - 1)]
                again = error.conflict or (request.repeatable and request.begun and error.in_doubt)
                if not again or self._closed or loop.time() + pause >= request.deadline:
                    raise PostgresUnavailableError(str(error), in_doubt=in_doubt) from error
            attempt += 1
            await asyncio.sleep(pause)

    async def _attempt(self, request: _Request[AnswerT]) -> AnswerT:
        loop = asyncio.get_running_loop()
        places = self._places
        try:
            if not places.locked():
                await places.acquire()  # waits for nobody
            else:
                async with asyncio.timeout_at(request.deadline):
                    await places.acquire()
        except TimeoutError as error:
            message = f"{self.address}: no connection came free in time, behind other requests"
            raise PostgresUnavailableError(message) from error
        try:
            connection = await self._open(request.deadline - loop.time())
            return await self._use(connection, request)
        finally:
            places.release()

    async def _open(self, left: float) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if is_alive(connection):
                return connection
            close(connection)
        self._require_open()
        if left <= 0:
            raise PostgresUnavailableError(f"{self.address}: there was no time left to ask")
        connection = await connect(self.address, timeout=min(left, self._connect_timeout))
        try:
            self._require_open()
        except PostgresUnavailableError:
            close(connection)
            raise
        return connection

    def _close_idle(self) -> None:
        for connection in self._idle:
            close(connection)
        self._idle.clear()

    def _require_open(self) -> None:
        if self._closed:
            raise PostgresUnavailableError(f"{self.address}: the client was closed")

    async def _use(self, connection: Connection, request: _Request[AnswerT]) -> AnswerT:
        self._busy.add(connection)
        alarm = asyncio.get_running_loop().call_at(request.deadline, sever, connection)
        request.begun = True
        try:
            return await request.work(connection)
        except load_psycopg().Error as error:
            # Who is severed is told that the server closed the connection.
            if error.sqlstate == _READ_ONLY:
                # Another server is the primary by now, perhaps: the next request looks for it.
                close(connection)
                self._close_idle()
            late = alarm.when() <= asyncio.get_running_loop().time()
            if late and error.sqlstate is None:
                raise PostgresUnavailableError(f"{self.address}: no answer in time", in_doubt=True) from error
            raise failure_of(error, self.address, sent=True) from error
        finally:
            alarm.cancel()
            self._busy.discard(connection)
            # Whatever is not at rest, because of an error or a cancellation, is not used again.
            if not self._closed and is_alive(connection):
                self._idle.append(connection)
            else:
                close(connection)

    # ------------------------------------------------------------------------------------------ event loops

    def _enter(self) -> asyncio.AbstractEventLoop:
        loop = _running_loop()
        if self._closed:
            raise ClientStateError(f"{self!r} was closed")
        if loop is None:
            raise ClientStateError(f"{self!r} works in an event loop of asyncio only")
        if loop is not self._loop:
            self._let_go()
            self._loop = loop
        return loop

    def _let_go(self) -> None:
        """Forget the event loop that had the connections, and close them as far as that is possible without it."""
        if self._loop is not None and self._loop.is_running():
            raise ClientStateError(
                f"{self!r} is in use by another event loop, which runs; give each loop its own client"
            )
        for connection in (*self._idle, *self._busy):
            close(connection)
        self._loop = None
        self._start_anew()

    def after_fork_in_child(self) -> None:
        """Leave the connections to the parent."""
        for connection in (*self._idle, *self._busy):
            abandon(connection)
        self._loop = None
        self._start_anew()


class _Request(Generic[AnswerT]):
    def __init__(self, work: Callable[[Connection], Awaitable[AnswerT]], deadline: float, repeatable: bool) -> None:
        self.work = work
        self.deadline = deadline
        self.repeatable = repeatable
        #: Whether it was given a connection, once at least.
        self.begun = False


def _look_at(task: asyncio.Task[AnswerT]) -> None:
    """Who was cancelled never looks at the error, and asyncio would log that as a mistake."""
    if not task.cancelled():
        task.exception()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None  # trio, perhaps
