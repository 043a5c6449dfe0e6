"""A server that says what a test wants to hear."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self, TypeAlias

import hiredis

#: What to send for a command, in the protocol's bytes; None: nothing. Called with the words of the command.
Answer: TypeAlias = Callable[[list[bytes]], bytes | None]
#: Serves one connection, which is closed when it returns.
Talk: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"+OK\r\n"


class FakeServer:
    """
    Listens on a free port of 127.0.0.1; `answer` may be exchanged at any time, *talk* does without it.

    `seen` holds the commands of all connections in the order of their arrival, but for CLIENT.
    """

    def __init__(self, answer: Answer = lambda _: OK, *, greeting: bytes = b"", talk: Talk | None = None) -> None:
        self.answer = answer
        self.seen: list[list[bytes]] = []
        self.accepted = 0
        self.port = 0
        self._greeting = greeting
        self._talk = talk or self._answer_all
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, family=socket.AF_INET)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def count(self, command: bytes) -> int:
        """How often *command* was seen."""
        return sum(words[0] == command for words in self.seen)

    async def stop(self) -> None:
        """Take no more connections, and end all."""
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.wait_for(self._gone(), 5)

    def cut(self) -> None:
        """End all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def _gone(self) -> None:
        while self._writers:
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.add(writer)
        try:
            writer.write(self._greeting)
            await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self._writers.discard(writer)

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        while data := await reader.read(65536):
            parser.feed(data)
            while (words := parser.gets()) is not False:
                if words[0] == b"CLIENT":
                    writer.write(OK)
                    continue
                self.seen.append(words)
                reply = self.answer(words)
                if reply is not None:
                    writer.write(reply)
