"""What a consumer of a group does with entries that it has in hand; GroupReader adds how it comes by them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from typing import Final, TypeVar

from connector_sdk.redis_client import Argument, RedisClient, RedisRefusedError, Reply
from connector_sdk.streams.blocking import Slot
from connector_sdk.streams.entries import GroupEntry, array_of, bytes_of, integer_of
from connector_sdk.streams.group_scripts import GroupScripts
from connector_sdk.streams.keys import StreamKeys, stream_keys

__all__ = ["GroupSettling", "parts", "together"]

ResultT = TypeVar("ResultT")

#: Entries in one request.
_AT_ONCE: Final = 1000
_BEATS_AT_ONCE: Final = 500
_IDS_AT_ONCE: Final = 1000


class GroupSettling:
    """Finishes entries, lets them come again, and says that the consumer lives."""

    def __init__(self, client: RedisClient, group: bytes, consumer: bytes, *, hold: float, timeout: float) -> None:
        self.group = group
        self.consumer = consumer
        self.hold = hold
        self._client = client
        self._timeout = timeout
        self._scripts = GroupScripts(client, group, consumer, hold=hold, timeout=timeout)
        self._streams: dict[bytes, StreamKeys] = {}
        #: Ids by stream of what this consumer was given and has not finished.
        self._in_hand: dict[bytes, set[bytes]] = {}

    def keys_of(self, stream: bytes) -> StreamKeys:
        """Return the keys that this group keeps beside *stream*, for scripts of others."""
        return stream_keys(stream, self.group)

    def in_hand(self) -> int:
        """Return how many entries this consumer was given and has not finished, those included that wait in the reader."""
        return sum(map(len, self._in_hand.values()))

    def has(self, entry: GroupEntry) -> bool:
        """Return whether this consumer was given *entry* and has not finished it."""
        return entry.id in self._in_hand.get(entry.stream, ())

    async def acknowledge(self, entries: Iterable[GroupEntry]) -> int:
        """These are finished; return how many of them were pending. Naming one twice harms nothing."""
        plain: dict[bytes, list[bytes]] = {}
        noted: dict[bytes, list[bytes]] = {}
        for entry in entries:
            # What was never postponed has nothing beside the stream.
            ids = plain if entry.attempt == 1 and not entry.notes else noted
            try:
                ids[entry.stream].append(entry.id)
            except KeyError:
                ids[entry.stream] = [entry.id]
        steps = [self._acknowledge(stream, part) for stream, ids in plain.items() for part in parts(ids)]
        steps += [self._acknowledge_noted(stream, part) for stream, ids in noted.items() for part in parts(ids)]
        return sum(await together(steps))

    async def _acknowledge(self, stream: bytes, ids: Sequence[bytes]) -> int:
        count = integer_of(await self._call("XACK", stream, self.group, *ids, key=stream, repeatable=True))
        self._finished(stream, ids)
        return count

    async def _acknowledge_noted(self, stream: bytes, ids: Sequence[bytes]) -> int:
        count = await self._scripts.acknowledge(self.keys_of(stream), ids)
        self._finished(stream, ids)
        return count

    async def postpone(self, entry: GroupEntry, delay: float, notes: bytes) -> bool:
        """
        Let the entry come again to any consumer, *delay* seconds (0 or more) from now or later, with *notes*.

        It outlives this consumer, and blocks no other entry. Return False when it is not this consumer's any more: somebody
        took it over, or the stream lost it.
        """
        released, trimmed = await self._scripts.release(
            self.keys_of(entry.stream), [(entry.id, entry.attempt)], delay=delay, notes=notes
        )
        self._finished(entry.stream, (entry.id,))
        self._lost(entry.stream, "trimmed", trimmed)
        self._comes_again(delay)
        return released > 0

    async def give_back(self, entries: Iterable[GroupEntry]) -> None:
        """Let entries that were not begun go to any consumer at once; the attempt does not count, notes stay."""
        released: dict[bytes, list[tuple[bytes, int]]] = {}
        for entry in entries:
            released.setdefault(entry.stream, []).append((entry.id, entry.attempt - 1))
        await together([self._give_back(stream, part) for stream, ids in released.items() for part in parts(ids)])

    async def _give_back(self, stream: bytes, entries: Sequence[tuple[bytes, int]]) -> None:
        _, trimmed = await self._scripts.release(self.keys_of(stream), entries, delay=0.0, notes=None)
        self._finished(stream, [entry_id for entry_id, _ in entries])
        self._lost(stream, "trimmed", trimmed)
        self._comes_again(0.0)

    def forget(self, entries: Iterable[GroupEntry]) -> None:
        """These are finished by a script of others: they are not in hand any more."""
        for entry in entries:
            self._finished(entry.stream, (entry.id,))

    async def beat(self) -> None:
        """Say that this consumer lives; call it every `hold` / 3."""
        slots: dict[Slot, list[StreamKeys]] = {}
        held = [stream for stream, ids in self._in_hand.items() if ids]
        for stream in dict.fromkeys((*self._streams, *held)):
            slots.setdefault(self._slot(stream), []).append(self.keys_of(stream))
        await together([self._scripts.beat(part) for keys in slots.values() for part in parts(keys, _BEATS_AT_ONCE)])

    def _slot(self, stream: bytes) -> Slot:
        raise NotImplementedError

    def _comes_again(self, delay: float) -> None:
        raise NotImplementedError

    def _lost(self, stream: bytes, reason: str, count: int | None) -> None:
        raise NotImplementedError

    def _finished(self, stream: bytes, ids: Iterable[bytes]) -> None:
        held = self._in_hand.get(stream)
        if held is not None:
            held.difference_update(ids)

    async def _leave(self, keys: StreamKeys, *, release: bool) -> None:
        while not await self._scripts.leave(keys, release=release):
            pass

    async def _make_group(self, stream: bytes, start: bytes) -> bool:
        try:
            await self._call("XGROUP", "CREATE", stream, self.group, start, "MKSTREAM", key=stream, repeatable=True)
        except RedisRefusedError as error:
            if error.code != "BUSYGROUP":
                raise
            return error.in_doubt  # it may have been the attempt before that made it
        return True

    async def _pending(self, stream: bytes) -> AsyncIterator[list[bytes]]:
        """Give the ids of what is pending for this consumer, page by page."""
        start: bytes = b"-"
        while True:
            try:
                reply = await self._call(
                    "XPENDING", stream, self.group, start, "+", _IDS_AT_ONCE, self.consumer, key=stream, repeatable=True
                )
            except RedisRefusedError as error:
                if error.code != "NOGROUP":
                    raise
                return  # whoever fetches makes it anew
            ids = [bytes_of(array_of(row)[0]) for row in array_of(reply)]
            if ids:
                yield ids
            if len(ids) < _IDS_AT_ONCE:
                return
            start = b"(" + ids[-1]

    async def _call(self, *arguments: Argument, key: bytes, repeatable: bool) -> Reply:
        return await self._client.call(*arguments, key=key, timeout=self._timeout, repeatable=repeatable)


async def together(steps: Sequence[Awaitable[ResultT]]) -> list[ResultT]:
    """Send requests one after the other without waiting for replies in between; raise the first error when all are answered."""
    if len(steps) == 1:
        return [await steps[0]]
    results = await asyncio.gather(*steps, return_exceptions=True)
    good: list[ResultT] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        good.append(result)
    return good


def parts(items: list[ResultT], size: int = _AT_ONCE) -> list[list[ResultT]]:
    """Return *items* in parts of up to *size*."""
    return [items] if len(items) <= size else [items[at : at + size] for at in range(0, len(items), size)]
