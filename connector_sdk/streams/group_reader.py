"""GroupReader: one consumer of one group, over one or many streams."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from connector_sdk.redis_client import Argument, RedisClient, RedisRefusedError, RedisUnavailableError, Reply
from connector_sdk.streams.blocking import BlockingConnections, Slot, milliseconds
from connector_sdk.streams.entries import (
    GroupClaim,
    GroupEntry,
    RawEntry,
    StreamLoss,
    raw_entries,
)
from connector_sdk.streams.group_recalling import LOOK_INTERVAL, GroupRecalling
from connector_sdk.streams.group_scripts import Found, OfStream
from connector_sdk.streams.group_settling import parts, together
from connector_sdk.streams.keys import StreamKeys

__all__ = ["GroupReader"]

_log = logging.getLogger(__name__)

#: Seconds that are added for each stream that is followed, so that many of them do not keep the server busy.
_LOOK_PER_STREAM: Final = 0.01
#: Streams in one script.
_STREAMS_AT_ONCE: Final = 100


class GroupReader(GroupRecalling):
    """
    Takes entries of streams as one consumer of one group, and finishes them. Constructing it does no I/O.

    While the consumer lives nobody else gets what it was given. It gives a sign of life with each `beat`, and about once in
    a second with `claim`; *hold* seconds after the last one it counts as dead, and the others take over all that it has. Times
    are those of the server's clock. Consumers that are not of this class count as dead when they are idle for *hold*.

    All entries that it was ever given are in hand until they are acknowledged, postponed, given back or forgotten. One whose
    reply was lost, or whose claim was cancelled, is found among what is pending for the consumer, and given again.

    The client is shared and stays the caller's; blocked requests go over connections of the reader's own. With *recovers* false
    it leaves alone what dead consumers have. One task claims at a time; everything else may be called by any task.

    Methods raise RedisUnavailableError and RedisRefusedError as `RedisClient.call` does.
    """

    def __init__(
        self,
        client: RedisClient,
        group: bytes,
        consumer: bytes,
        *,
        hold: float,
        recovers: bool = True,
        connect_timeout: float = 1.0,
        response_timeout: float = 1.0,
    ) -> None:
        super().__init__(client, group, consumer, hold=hold, timeout=response_timeout)
        self._whose = "dead" if recovers else "none"
        self._connections = BlockingConnections(
            client.address,
            connect_timeout=connect_timeout,
            patience=connect_timeout + response_timeout,
            client_name="connector_sdk consumer",
        )
        self._losses: list[StreamLoss] = []
        #: When to look for what comes again, by the monotonic clock.
        self._look_at = 0.0
        #: How many streams had something the last time: what is wanted is divided among so many.
        self._busy = 1
        #: Set when there are other streams to wait for than a request under way names.
        self._changed = False
        #: Ends a wait for new entries.
        self._sooner: asyncio.Future[None] | None = None
        self._claims = 0
        #: Whether there was as much as was asked for the last time.
        self._flows = False
        self._paused: set[bytes] = set()
        self._left: set[bytes] = set()

    @property
    def streams(self) -> tuple[bytes, ...]:
        """The streams that are followed."""
        return tuple(self._streams)

    def waiting(self) -> int:
        """Return how many entries are fetched, or about to be, and not handed out."""
        return len(self._ready) + sum(len(ids) for _, ids, _ in self._missing)

    # ------------------------------------------------------------------------------------------ which streams

    async def follow(self, stream: bytes, start: bytes) -> bool:
        """
        Take part in the group of *stream*; return whether the group was made now, with the stream if need be.

        *start*: the id after which the group begins if it is made, b"0" for the beginning, b"$" for what comes from now on.
        May be called while `claim` waits, which then begins to wait for this stream, too.
        """
        made = await self._make_group(stream, start)
        keys = self.keys_of(stream)
        await self._scripts.beat([keys])
        self._streams[stream] = keys
        self._left.discard(stream)
        self._busy = len(self._streams)
        self._change()
        return made

    async def unfollow(self, stream: bytes) -> None:
        """Take no more entries of *stream*. What is in the caller's hand stays there; what is not goes to the others."""
        if self._streams.pop(stream, None) is None:
            return
        self._left.add(stream)
        self._change()
        ready = [entry for entry in self._ready if entry.stream == stream]
        self._ready = deque(entry for entry in self._ready if entry.stream != stream)
        await self.give_back(ready)
        if not self._in_hand.get(stream):
            await self._leave(self.keys_of(stream), release=True)

    def _slot(self, stream: bytes) -> Slot:
        return self._connections.slot(stream)

    def _comes_again(self, delay: float) -> None:
        look_at = time.monotonic() + delay
        if look_at < self._look_at:
            self._look_at = look_at
            self._wake()

    def _wake(self) -> None:
        if self._sooner is not None and not self._sooner.done():
            self._sooner.set_result(None)

    async def pause(self, streams: Iterable[bytes]) -> None:
        """Take no more entries of *streams* until `resume`, but stay a consumer; others may have them."""
        self._paused.update(streams)
        self._change()
        ready = [entry for entry in self._ready if entry.stream in self._paused]
        self._ready = deque(entry for entry in self._ready if entry.stream not in self._paused)
        await self.give_back(ready)

    def resume(self, streams: Iterable[bytes]) -> None:
        """Take entries of *streams* again."""
        self._paused.difference_update(streams)
        self._change()

    def _change(self) -> None:
        """The streams are others than those that a request under way asks for."""
        self._look_at = 0.0
        self._changed = True
        self._connections.interrupt()
        self._wake()

    # ------------------------------------------------------------------------------------------ taking

    async def claim(self, limit: int, wait: float) -> GroupClaim:
        """
        Take up to *limit* (1 or more) entries: due ones that come again, what dead consumers had, then new ones.

        Waits up to *wait* seconds for the first. A group or stream that the server lost is made anew, at the beginning of
        what is there now, and told as a loss.
        """
        self._claims += 1
        try:
            return await self._claim(limit, wait)
        finally:
            self._claims -= 1

    async def return_unclaimed(self) -> None:
        """
        Let others have what came for a claim that did not wait for it, unless somebody claims now; the attempt does not count.

        Call it from time to time while the caller has its hands full.
        """
        if self._claims:
            return
        with contextlib.suppress(RedisUnavailableError, RedisRefusedError):  # the next claim asks again, and is told
            self._collect()
        ready = list(self._ready)
        self._ready.clear()
        try:
            await self.give_back(ready)
        except BaseException:
            self._ready.extendleft(reversed(ready))
            raise

    async def _claim(self, limit: int, wait: float) -> GroupClaim:
        deadline = time.monotonic() + wait
        checked = recovered = 0
        while True:
            self._doubt_new_connections()
            now = time.monotonic()
            if self._reread_at and self._reread_at[0] <= now:
                await self._reread()
            while self._missing and len(self._ready) < limit:
                await self._take_missing()
            if now >= self._look_at and self._streams:
                found = await self._look(self._running(), limit, self._whose, self._ready)
                checked += sum(one.checked for one in found)
                recovered += sum(one.recovered for one in found)
            if not self._ready:
                left = deadline - time.monotonic()
                # Without a stream nobody looks: a look that is overdue must not make this a loop without a pause.
                look_in = self._look_at - time.monotonic() if self._streams else left
                block = max(0.0, min(left, look_in, LOOK_INTERVAL, *self._reread_in()))
                await self._fetch(limit, block)
            if self._paused or self._left:
                await self._return_strangers()
            if self._ready or self._losses or time.monotonic() >= deadline:
                return self._handed_out(limit, checked, recovered)

    async def recover(self, limit: int, idle: float) -> GroupClaim:
        """Take over now what consumers had that gave no sign of life for *idle* seconds (0 or more), up to *limit* entries."""
        taken: list[GroupEntry] = []
        try:
            found = await self._look(self._running(), limit, round(idle * 1000), taken)
        except BaseException:
            self._ready.extend(taken)
            raise
        losses, self._losses = self._losses, []
        checked, recovered = sum(one.checked for one in found), sum(one.recovered for one in found)
        return GroupClaim(entries=taken, checked=checked, recovered=recovered, losses=losses)

    async def take_own(self, stream: bytes) -> None:
        """Let entries of *stream* that an earlier consumer of this name left come again, as a further attempt."""
        await self._find_missing(self.keys_of(stream), add=1)

    async def ignore_own(self, stream: bytes) -> None:
        """Never give what an earlier consumer of this name left of *stream*."""
        async for ids in self._pending(stream):
            self._in_hand.setdefault(stream, set()).update(ids)

    async def _return_strangers(self) -> None:
        """Give back what a request brought of streams that were left or paused while it was under way."""
        strangers = [e for e in self._ready if e.stream in self._paused or e.stream not in self._streams]
        if strangers:
            self._ready = deque(e for e in self._ready if e.stream in self._streams and e.stream not in self._paused)
            await self.give_back(strangers)

    def _running(self) -> list[StreamKeys]:
        return [keys for stream, keys in self._streams.items() if stream not in self._paused]

    def _reread_in(self) -> list[float]:
        return [self._reread_at[0] - time.monotonic()] if self._reread_at else []

    def _handed_out(self, limit: int, checked: int, recovered: int) -> GroupClaim:
        ready = self._ready
        if len(ready) <= limit:
            entries = list(ready)
            ready.clear()
        else:
            entries = [ready.popleft() for _ in range(limit)]
        losses, self._losses = self._losses, []
        return GroupClaim(entries=entries, checked=checked, recovered=recovered, losses=losses)

    def _receive(
        self, stream: bytes, entries: Sequence[GroupEntry], into: deque[GroupEntry] | list[GroupEntry]
    ) -> None:
        if entries:
            self._in_hand.setdefault(stream, set()).update([entry.id for entry in entries])
            into.extend(entries)

    def _lost(self, stream: bytes, reason: str, count: int | None) -> None:
        if count != 0:
            self._losses.append(StreamLoss(stream, reason, count))

    # -- new ones

    async def _fetch(self, limit: int, block: float) -> None:
        """Wait up to *block* seconds for new entries of any stream, or until there is another reason to look."""
        self._changed = False
        slots: dict[Slot, list[bytes]] = {}
        for keys in self._running():
            slots.setdefault(self._slot(keys.stream), []).append(keys.stream)
        count = -(-limit // self._busy)
        if len(slots) == 1 and not self._reading and (self._flows or block == 0):
            # There will be some at once, as a rule: it is not worth a task.
            self._take_new([await self._read(next(iter(slots.values())), count, 0.0)])
            self._flows = len(self._ready) >= count
            if block == 0 or self._ready or self._losses:
                return
        new = set()
        for slot, streams in slots.items():
            if slot not in self._reading:
                name = "connector_sdk: reading streams of a group"
                self._reading[slot] = asyncio.create_task(self._read(streams, count, block), name=name)
                new.add(self._reading[slot])
        # A request that was to wait longer goes on, and its reply is for the next call: cancelling this loses nothing.
        if block > 0:
            self._sooner = asyncio.get_running_loop().create_future()
            waiting: list[asyncio.Future[Reply] | asyncio.Future[None]] = [*self._reading.values(), self._sooner]
            await asyncio.wait(waiting, timeout=block, return_when=asyncio.FIRST_COMPLETED)
        elif new:
            await asyncio.wait(new)
        self._collect()
        self._flows = len(self._ready) >= count

    def _collect(self) -> None:
        """Take what the requests brought that are done."""
        done = [slot for slot, task in self._reading.items() if task.done()]
        replies: list[Reply] = []
        errors: list[BaseException] = []
        for task in [self._reading.pop(slot) for slot in done]:
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if error is None:
                replies.append(task.result())
            elif not task.cancelled():
                errors.append(error)
        self._take_new(replies)
        if not self._reading:
            self._recalled.clear()
        if errors:
            raise errors[0]

    async def _read(self, streams: list[bytes], count: int, block: float) -> Reply:
        blocking: tuple[Argument, ...] = ("BLOCK", milliseconds(block)) if block > 0 else ()
        words = ("XREADGROUP", "GROUP", self.group, self.consumer, "COUNT", count, *blocking, "STREAMS")
        arguments = (*words, *streams, *itertools.repeat(b">", len(streams)))
        try:
            return await self._connections.call(arguments, key=streams[0], block=block, repeatable=False)
        except RedisRefusedError as error:
            if error.code != "NOGROUP":
                raise
            await self._heal(streams)
        except RedisUnavailableError:
            self._doubt(block)
            if not self._changed:
                raise
        except asyncio.CancelledError:
            self._doubt(block)
            raise
        return None

    def _take_new(self, replies: Iterable[Reply]) -> None:
        busy = 0
        for reply in replies:
            found: list[tuple[bytes, list[RawEntry]]] = raw_entries(reply)
            busy += len(found)
            for stream, raw in found:
                entries = [GroupEntry(stream, entry_id, fields) for entry_id, fields in raw]
                self._receive(stream, self._not_recalled(stream, entries), self._ready)
        self._busy = max(1, busy)

    async def _heal(self, streams: Iterable[bytes]) -> None:
        """Make groups anew that are gone."""
        for stream in streams:
            if stream in self._streams and await self._make_group(stream, b"0"):
                self._lost(stream, "lost", None)
                # What is in the caller's hand comes again if it is still there, and is nobody's else.
                self._in_hand.pop(stream, None)
                self._look_at = 0.0

    # -- those that come again

    async def _look(
        self, streams: list[StreamKeys], limit: int, whose: str | int, into: deque[GroupEntry] | list[GroupEntry]
    ) -> list[OfStream]:
        """Run claim.lua; what it gives goes *into* there."""
        slots: dict[Slot, list[StreamKeys]] = {}
        for keys in streams:
            slots.setdefault(self._slot(keys.stream), []).append(keys)
        interval = min(LOOK_INTERVAL + _LOOK_PER_STREAM * len(streams), max(self.hold / 3, 0.01))
        told: list[OfStream] = []
        for same_slot in slots.values():
            for part in parts(same_slot, _STREAMS_AT_ONCE):
                found = await self._look_at_slot(part, limit, whose)
                for one in found.streams:
                    limit -= len(one.entries)
                    self._receive(one.stream, one.entries, into)
                    self._lost(one.stream, "trimmed", one.trimmed)
                told += found.streams
                await self._heal(one.stream for one in found.streams if one.gone)
                if found.more and whose == self._whose:
                    interval = 0.0
                elif found.next_due is not None:
                    interval = min(interval, found.next_due)
        self._look_at = time.monotonic() + interval
        return told

    async def _look_at_slot(self, streams: Sequence[StreamKeys], limit: int, whose: str | int) -> Found:
        try:
            return await self._scripts.claim(streams, limit, whose)
        except (RedisUnavailableError, asyncio.CancelledError):
            self._doubt(0.0)
            raise

    async def aclose(self, *, release: bool = True) -> None:
        """
        Leave the group: what is not finished goes to the others at once. Nothing is raised when the server is away.

        With *release* false what the caller has in hand stays pending for a consumer of the same name that comes later;
        consumers that recover take it over *hold* seconds after its last sign of life. May be called twice.
        """
        tasks = list(self._reading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._connections.aclose()
        with contextlib.suppress(RedisUnavailableError, RedisRefusedError):
            self._collect()
        if release:
            await self._fetch_missing()
        streams = dict.fromkeys((*self._streams, *(stream for stream, ids in self._in_hand.items() if ids)))
        ready = list(self._ready)
        self._ready.clear()
        try:
            if ready:
                await self.give_back(ready)
            await together([self._leave(self.keys_of(stream), release=release) for stream in streams])
        except (RedisUnavailableError, RedisRefusedError) as error:
            _log.debug("leaving the group without the server's knowledge: %s", type(error).__name__)
        self._streams.clear()
        self._in_hand.clear()
