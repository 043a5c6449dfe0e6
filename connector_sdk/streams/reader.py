"""StreamReader: what is new in one or many streams, for a reader without a group."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from connector_sdk.redis_client import Argument, RedisAddress, Reply
from connector_sdk.streams.blocking import BlockingConnections, Slot, milliseconds
from connector_sdk.streams.entries import RawEntry, raw_entries

__all__ = ["StreamReader"]

#: Seconds after which a blocked request is sent anew, so that a server that is gone is found out soon.
_LONGEST_BLOCK: Final = 2.0
#: Entries of one stream that are asked for at least, if so many are wanted in all.
_FEW: Final = 100
_Cursors: TypeAlias = "tuple[tuple[bytes, bytes], ...]"


class StreamReader:
    """
    Reads entries after given ids, on connections of its own. Constructing it does no I/O.

    Any number of tasks of one event loop may read at once, each on its own connection (in a cluster: one for each slot).
    A read may be cancelled at any time.
    """

    def __init__(
        self,
        address: RedisAddress,
        *,
        connect_timeout: float = 1.0,
        response_timeout: float = 1.0,
        client_name: str = "connector_sdk reader",
    ) -> None:
        self._connections = BlockingConnections(
            address,
            connect_timeout=connect_timeout,
            patience=connect_timeout + response_timeout,
            client_name=client_name,
        )
        self._turn = 0
        #: Requests of a slot that had nothing yet when others had, by what they ask for.
        self._waiting: dict[_Cursors, asyncio.Task[Reply]] = {}

    async def read(self, cursors: Mapping[bytes, bytes], limit: int, wait: float) -> list[tuple[bytes, list[RawEntry]]]:
        """
        Return up to *limit* (1 or more) entries after the id that *cursors* has for each stream, in order within each stream.

        Waits up to *wait* seconds when there are none; a stream that does not exist is one without entries. No stream is
        starved by others that have more than *limit*.

        Raises RedisUnavailableError, RedisRefusedError as `RedisClient.call` does.
        """
        deadline = time.monotonic() + wait
        if not cursors:
            await asyncio.sleep(wait)
            return []
        while True:
            left = max(0.0, deadline - time.monotonic())
            found = await self._read_once(cursors, limit, min(left, _LONGEST_BLOCK))
            if found or left <= _LONGEST_BLOCK:
                return self._shares(found, limit)

    async def _read_once(
        self, cursors: Mapping[bytes, bytes], limit: int, block: float
    ) -> list[tuple[bytes, list[RawEntry]]]:
        count = max(limit // len(cursors), min(limit, _FEW))
        slots: dict[Slot, list[bytes]] = {}
        for stream in cursors:
            slots.setdefault(self._connections.slot(stream), []).append(stream)
        if len(slots) == 1:
            return raw_entries(await self._request(tuple(cursors.items()), count, block))
        return await self._read_slots(slots, cursors, count, block)

    async def _read_slots(
        self, slots: Mapping[Slot, Sequence[bytes]], cursors: Mapping[bytes, bytes], count: int, block: float
    ) -> list[tuple[bytes, list[RawEntry]]]:
        """Ask for each slot at once; the first with an answer ends the waiting, and the others go on for the next call."""
        asked: list[tuple[_Cursors, asyncio.Task[Reply]]] = []
        for streams in slots.values():
            part = tuple((stream, cursors[stream]) for stream in streams)
            task = self._waiting.pop(part, None)
            if task is None or (block == 0 and not task.done()):
                task = asyncio.create_task(self._request(part, count, block), name="connector_sdk: reading streams")
            asked.append((part, task))
        found: list[tuple[bytes, list[RawEntry]]] = []
        try:
            waiting = {task for _, task in asked}
            while waiting and not found:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    found += raw_entries(task.result())
        except BaseException:
            await _cancel(task for _, task in asked)
            raise
        for part, task in asked:
            if not task.done():
                self._waiting[part] = task
        # Those whose cursor nobody has any more have ended, or end within the time that a request blocks.
        for part in [part for part, task in self._waiting.items() if task.done() and part not in dict(asked)]:
            del self._waiting[part]
        return found

    async def _request(self, cursors: _Cursors, count: int, block: float) -> Reply:
        streams, ids = zip(*cursors, strict=True)
        blocking: tuple[Argument, ...] = ("BLOCK", milliseconds(block)) if block > 0 else ()
        arguments = ("XREAD", "COUNT", count, *blocking, "STREAMS", *streams, *ids)
        return await self._connections.call(arguments, key=streams[0], block=block, repeatable=True)

    def _shares(self, found: list[tuple[bytes, list[RawEntry]]], limit: int) -> list[tuple[bytes, list[RawEntry]]]:
        """Cut what is too much; each time another stream comes first."""
        if sum(len(entries) for _, entries in found) <= limit:
            return found
        self._turn += 1
        first = self._turn % len(found)
        kept = []
        for stream, entries in (*found[first:], *found[:first]):
            share = entries[:limit]
            limit -= len(share)
            if share:
                kept.append((stream, share))
        return kept

    async def aclose(self) -> None:
        """Close the connections; a read under way fails. May be called twice."""
        await _cancel(self._waiting.values())
        self._waiting.clear()
        await self._connections.aclose()


async def _cancel(tasks: Iterable[asyncio.Task[Reply]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
