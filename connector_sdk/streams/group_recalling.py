"""What a consumer has by the word of the server and does not know of is found again: nothing waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from typing import Final

from connector_sdk.redis_client import RedisClient, RedisRefusedError, RedisUnavailableError, Reply
from connector_sdk.streams.blocking import Slot
from connector_sdk.streams.entries import GroupEntry
from connector_sdk.streams.group_settling import GroupSettling, parts
from connector_sdk.streams.keys import StreamKeys

__all__ = ["LOOK_INTERVAL", "GroupRecalling"]

#: Seconds that a request blocks at most, and after which a reader looks again for what others gave back.
LOOK_INTERVAL: Final = 1.0
_BODIES_AT_ONCE: Final = 100


class GroupRecalling(GroupSettling):
    """Looks for entries that are pending for this consumer and not in its hand, whenever there may be some."""

    def __init__(self, client: RedisClient, group: bytes, consumer: bytes, *, hold: float, timeout: float) -> None:
        super().__init__(client, group, consumer, hold=hold, timeout=timeout)
        #: Entries that were fetched and not handed out yet.
        self._ready: deque[GroupEntry] = deque()
        #: Requests that are blocked while other slots had something.
        self._reading: dict[Slot, asyncio.Task[Reply]] = {}
        #: Entries that are pending for this consumer and that it has to be given, and what to add to their attempts.
        self._missing: deque[tuple[StreamKeys, list[bytes], int]] = deque()
        #: When to look for them, by the monotonic clock.
        self._reread_at: list[float] = []
        #: How many connections the client had opened when they were looked for last.
        self._openings: int | None = None
        #: Ids by stream of what was found while requests were blocked, which may bring the same.
        self._recalled: dict[bytes, set[bytes]] = {}

    def _doubt(self, block: float) -> None:
        """
        A reply was lost that may have brought entries.

        They are looked for at once. A server that has not noticed that the connection is gone may still give some to the lost
        request while it blocks, so they are looked for once more when that time is over.
        """
        now = time.monotonic()
        self._reread_at = [now, now + block + LOOK_INTERVAL]

    def _doubt_new_connections(self) -> None:
        """
        The server may be another one now, a replica of which no reply was lost.

        What the old one heard of in its last moments, acknowledgements say, the new one may not know.
        """
        openings = self._client.openings
        if self._openings not in (None, openings):
            # Once more for what was still on its way to the old one.
            self._doubt(self._timeout)
        self._openings = openings

    async def _reread(self) -> None:
        """Find entries that are pending for this consumer and not in hand."""
        due, self._reread_at = self._reread_at, self._reread_at[1:]
        try:
            for keys in list(self._streams.values()):
                await self._find_missing(keys, add=0)
        except BaseException:
            self._reread_at = due
            raise

    async def _find_missing(self, keys: StreamKeys, *, add: int) -> None:
        async for ids in self._pending(keys.stream):
            known = self._in_hand.setdefault(keys.stream, set())
            missing = [one for one in ids if one not in known]
            known.update(missing)
            if self._reading:
                self._recalled.setdefault(keys.stream, set()).update(missing)
            self._missing.extend((keys, part, add) for part in parts(missing, _BODIES_AT_ONCE) if part)

    def _not_recalled(self, stream: bytes, entries: list[GroupEntry]) -> list[GroupEntry]:
        """Leave out of what a blocked request brought what was found meanwhile."""
        recalled = self._recalled.get(stream)
        return [entry for entry in entries if entry.id not in recalled] if recalled else entries

    async def _take_missing(self) -> None:
        keys, ids, add = self._missing[0]
        trimmed, entries = await self._scripts.take(keys, ids, add=add)
        self._missing.popleft()
        self._finished(keys.stream, set(ids) - {entry.id for entry in entries})
        self._lost(keys.stream, "trimmed", trimmed)
        self._ready.extend(entries)

    async def _fetch_missing(self) -> None:
        """Fetch what was given and never handed out, so that it can be given back: that attempt does not count."""
        with contextlib.suppress(RedisUnavailableError, RedisRefusedError):
            if self._reread_at:
                await self._reread()
            while self._missing:
                await self._take_missing()
