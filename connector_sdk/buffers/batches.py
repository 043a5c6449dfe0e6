"""Records that wait to be sent, in groups that share their fate: pure, time is an argument."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from connector_sdk.buffers.store import Record
from connector_sdk.payloads import Payload

__all__ = ["Batch", "BatchQueue", "Group", "Signal"]


class Signal(Protocol):
    """What wakes the callers of a group."""

    def set(self) -> None:
        """Wake all, now and later."""

    async def wait(self) -> object:
        """Wait to be woken."""


class Group:
    """Records whose callers wait for one signal: added within a moment of each other, sent or given up together."""

    __slots__ = ("done", "opened", "payloads", "records", "refused", "size", "waits")

    def __init__(self, done: Signal, opened: float) -> None:
        self.done = done
        self.opened = opened
        self.payloads: list[Payload] = []
        self.records: list[Record] = []
        self.size = 0  #: of the bodies, in bytes
        self.waits = True  #: until it is sent or given up
        self.refused = False  #: its callers are to be told by an error that it was not stored


class Batch:
    """Groups that are sent in one step, and sent again under the same number as long as it is unknown what became of them."""

    __slots__ = ("groups", "in_doubt", "number", "payloads", "records", "release_at", "released", "sent_at", "settled")

    def __init__(self, number: int, groups: Sequence[Group], sent_at: float, release_at: float) -> None:
        self.number = number
        self.groups = groups
        self.sent_at = sent_at  #: for the first time
        self.release_at = release_at  #: when callers are let go without an answer
        self.released = False
        self.in_doubt = False  #: an attempt ended so that it may be stored
        self.settled = False  #: stored or given up: in the ledger
        if len(groups) == 1:
            self.payloads, self.records = groups[0].payloads, groups[0].records
        else:
            self.payloads = [payload for group in groups for payload in group.payloads]
            self.records = [record for group in groups for record in group.records]

    def wake(self) -> None:
        """Let the callers go."""
        self.released = True
        for group in self.groups:
            group.done.set()


class BatchQueue:
    """
    The records of one shard that no worker has taken yet, oldest first.

    A record joins the newest group unless that is full (*max_records*, *max_bytes*) or was opened *span* seconds ago.
    One record larger than *max_bytes* makes a group of its own.
    """

    def __init__(self, *, max_records: int, max_bytes: int, span: float, new_signal: Callable[[], Signal]) -> None:
        #: Records that a group may have, and a batch, from now on.
        self.limit = max_records
        self._max_bytes = max_bytes
        self._span = span
        self._new_signal = new_signal
        self._groups: deque[Group] = deque()
        #: How many records wait.
        self.size = 0

    def put(self, payload: Payload, record: Record, now: float) -> tuple[Group, bool]:
        """Append a record; return its group, and whether the group is new."""
        groups = self._groups
        length = len(record.body)
        group = groups[-1] if groups else None
        opened = (
            group is None
            or len(group.records) >= self.limit
            or group.size + length > self._max_bytes
            or now - group.opened > self._span
        )
        if group is None or opened:
            group = Group(self._new_signal(), now)
            groups.append(group)
        group.payloads.append(payload)
        group.records.append(record)
        group.size += length
        self.size += 1
        return group, opened

    def withdraw(self, group: Group, record: Record) -> bool:
        """Take a record out again; False when its group was sent or given up before."""
        if not group.waits:
            return False
        place = next(place for place, other in enumerate(group.records) if other is record)
        del group.records[place], group.payloads[place]
        group.size -= len(record.body)
        self.size -= 1
        if not group.records:
            group.waits = False
            self._groups.remove(group)
        return True

    def take(self) -> list[Group]:
        """Take the oldest groups, as many as fit in one batch; [] when none waits."""
        taken: list[Group] = []
        records = size = 0
        while self._groups:
            group = self._groups[0]
            records += len(group.records)
            size += group.size
            if taken and (records > self.limit or size > self._max_bytes):
                break
            taken.append(self._remove_first())
        return taken

    def take_older(self, than: float) -> Iterator[Group]:
        """Take, one after the other, the groups that were opened at *than* or before."""
        while self._groups and self._groups[0].opened <= than:
            yield self._remove_first()

    def postpone(self, seconds: float, now: float) -> None:
        """Let the groups that wait be *seconds* younger, none of them younger than *now*."""
        for group in self._groups:
            group.opened = min(group.opened + seconds, now)

    def take_all(self) -> Iterator[Group]:
        """Take every group, one after the other."""
        while self._groups:
            yield self._remove_first()

    @property
    def groups(self) -> int:
        """How many groups wait."""
        return len(self._groups)

    def _remove_first(self) -> Group:
        group = self._groups.popleft()
        group.waits = False
        self.size -= len(group.records)
        return group
