"""What a transaction pooler does to a listener, and no more: everything passes but notifications."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["Pooler", "swallowing_pooler"]

_ANSWER = b"A"  # the type of a NotificationResponse, of the frontend/backend protocol 3.0


class Pooler:
    """A proxy on 127.0.0.1 that reads the server's messages and passes on all but notifications."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.swallowed = 0
        self.swallows = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            behind, before = await asyncio.open_connection("127.0.0.1", self._target)
            try:
                async with asyncio.TaskGroup() as both:
                    forward = both.create_task(self._forward(reader, before))
                    await self._backward(behind, writer)
                    forward.cancel()
            finally:
                before.close()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError, ExceptionGroup):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def aclose(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        while self._tasks:
            await asyncio.sleep(0.01)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _backward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                kind = await reader.readexactly(1)
                size = await reader.readexactly(4)
                body = await reader.readexactly(int.from_bytes(size, "big") - 4)
                if kind == _ANSWER and self.swallows:
                    self.swallowed += 1
                    continue
                writer.write(kind + size + body)
                await writer.drain()


@asynccontextmanager
async def swallowing_pooler(port: int) -> AsyncIterator[Pooler]:
    """Put a pooler before the server at *port*; addresses must say `sslmode=disable&gssencmode=disable`."""
    pooler = Pooler(port)
    server = await asyncio.start_server(pooler.serve, "127.0.0.1", 0)
    pooler.port = server.sockets[0].getsockname()[1]
    try:
        yield pooler
    finally:
        server.close()
        await pooler.aclose()
        await server.wait_closed()
