"""The Lua scripts of groups, each with one typed function; what they do is told on top of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from connector_sdk.redis_client import Argument, RedisClient, Reply, load_script
from connector_sdk.streams.entries import GroupEntry, array_of, bytes_of, integer_of
from connector_sdk.streams.keys import StreamKeys

__all__ = ["SIDE_LIFE", "Found", "GroupScripts", "OfStream"]

_LUA: Final = "connector_sdk.streams.lua"
_ACKNOWLEDGE: Final = load_script(_LUA, "acknowledge.lua")
_BEAT: Final = load_script(_LUA, "beat.lua")
_CLAIM: Final = load_script(_LUA, "claim.lua")
_LEAVE: Final = load_script(_LUA, "leave.lua")
_RELEASE: Final = load_script(_LUA, "release.lua")
_TAKE: Final = load_script(_LUA, "take.lua")

#: Milliseconds after which side keys expire that nobody uses: a week.
SIDE_LIFE: Final = 7 * 86_400_000
#: Entries that a consumer that leaves gives back in one step.
_PAGE: Final = 500


@dataclass(slots=True)
class OfStream:
    """What claim.lua says of one stream."""

    stream: bytes
    gone: bool
    trimmed: int
    checked: int
    recovered: int
    entries: list[GroupEntry]


@dataclass(slots=True)
class Found:
    """What claim.lua says."""

    next_due: float | None  #: seconds until the next entry is due
    more: bool  #: whether dead consumers have more
    streams: list[OfStream]


class GroupScripts:
    """The scripts, run for one consumer of one group."""

    def __init__(self, client: RedisClient, group: bytes, consumer: bytes, *, hold: float, timeout: float) -> None:
        self._client = client
        self._group = group
        self._consumer = consumer
        self._hold = max(1, round(hold * 1000))
        self._timeout = timeout

    async def claim(self, streams: Sequence[StreamKeys], limit: int, whose: str | int) -> Found:
        """Run claim.lua for *streams*, all of one slot."""
        keys = [key for one in streams for key in one]
        arguments: list[Argument] = [self._group, self._consumer, self._hold, SIDE_LIFE, limit, whose]
        reply = array_of(await self._client.run(_CLAIM, keys, arguments, timeout=self._timeout))
        next_due = integer_of(reply[0])
        found = Found(None if next_due < 0 else next_due / 1000, reply[1] == 1, [])
        for told in reply[2:]:
            number, gone, trimmed, checked, recovered, entries = array_of(told)
            stream = streams[integer_of(number) - 1].stream
            taken = sorted((_entry(stream, entry) for entry in array_of(entries)), key=_order)
            counts = integer_of(trimmed), integer_of(checked), integer_of(recovered)
            found.streams.append(OfStream(stream, gone == 1, *counts, taken))
        return found

    async def take(self, keys: StreamKeys, ids: Sequence[bytes], *, add: int) -> tuple[int, list[GroupEntry]]:
        """Run take.lua; return how many were trimmed, and the entries."""
        arguments: list[Argument] = [self._group, self._consumer, add, *ids]
        reply = await self._client.run(_TAKE, (keys.stream, keys.due, keys.notes), arguments, timeout=self._timeout)
        trimmed, *entries = array_of(reply)
        return integer_of(trimmed), [_entry(keys.stream, entry) for entry in entries]

    async def beat(self, streams: Sequence[StreamKeys]) -> None:
        """Run beat.lua for *streams*, all of one slot."""
        alive = [one.alive for one in streams]
        await self._client.run(
            _BEAT, alive, (self._consumer, self._hold, SIDE_LIFE), timeout=self._timeout, repeatable=True
        )

    async def release(
        self, keys: StreamKeys, entries: Sequence[tuple[bytes, int]], *, delay: float, notes: bytes | None
    ) -> tuple[int, int]:
        """
        Run release.lua for (id, delivery counter) of *entries*; return how many were released, and how many trimmed.

        *notes* None leaves them as they are.
        """
        pairs = [word for entry in entries for word in entry]
        later = max(0, round(delay * 1000))
        arguments: tuple[Argument, ...] = (
            self._group, self._consumer, SIDE_LIFE, later, 0 if notes is None else 1, notes or b"", *pairs,
        )  # fmt: skip
        reply = await self._client.run(
            _RELEASE, (keys.stream, keys.due, keys.notes), arguments, timeout=self._timeout, repeatable=True
        )
        released, trimmed = array_of(reply)
        return integer_of(released), integer_of(trimmed)

    async def acknowledge(self, keys: StreamKeys, ids: Sequence[bytes]) -> int:
        """Run acknowledge.lua."""
        reply = await self._client.run(
            _ACKNOWLEDGE,
            (keys.stream, keys.due, keys.notes),
            (self._group, *ids),
            timeout=self._timeout,
            repeatable=True,
        )
        return integer_of(reply)

    async def leave(self, keys: StreamKeys, *, release: bool) -> bool:
        """Run leave.lua once; return whether the consumer is gone."""
        names = (keys.stream, keys.due, keys.notes, keys.alive)
        arguments = (self._group, self._consumer, SIDE_LIFE, int(release), _PAGE)
        reply: Reply = await self._client.run(_LEAVE, names, arguments, timeout=self._timeout, repeatable=True)
        return reply == 1


def _entry(stream: bytes, reply: Reply) -> GroupEntry:
    entry_id, fields, attempt, notes = array_of(reply)
    return GroupEntry(
        stream, bytes_of(entry_id), [bytes_of(word) for word in array_of(fields)], integer_of(attempt), bytes_of(notes)
    )


def _order(entry: GroupEntry) -> tuple[int, int]:
    time, _, number = entry.id.partition(b"-")
    return int(time), int(number)
