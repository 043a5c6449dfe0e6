"""Records that wait to be sent: groups, batches, withdrawal, without an event loop."""

from __future__ import annotations

import pytest

from connector_sdk.buffers.batches import Batch, BatchQueue, Group
from connector_sdk.buffers.store import Record
from tests.buffers.samples import summary


class Flag:
    def __init__(self) -> None:
        self.up = False

    def set(self) -> None:
        self.up = True

    async def wait(self) -> None:
        raise AssertionError("nobody waits here")


def queue(max_records: int = 3, max_bytes: int = 100, span: float = 1.0) -> BatchQueue:
    return BatchQueue(max_records=max_records, max_bytes=max_bytes, span=span, new_signal=Flag)


def put(queue: BatchQueue, number: int, *, now: float = 0.0, size: int = 1) -> tuple[Group, Record, bool]:
    record = Record("s", float(number), "summary", b"x" * size)
    group, opened = queue.put(summary(number), record, now)
    return group, record, opened


def times(groups: list[Group]) -> list[list[float]]:
    return [[record.time for record in group.records] for group in groups]


def test_records_join_the_newest_group_until_it_is_full() -> None:
    waiting = queue()
    assert [put(waiting, number)[2] for number in range(5)] == [True, False, False, True, False]
    assert (waiting.size, waiting.groups) == (5, 2)
    assert times(waiting.take()) == [[0, 1, 2]]
    assert times(waiting.take()) == [[3, 4]]
    assert waiting.take() == []
    assert waiting.size == 0


def test_a_group_is_full_by_bytes_too_and_one_large_record_is_alone() -> None:
    waiting = queue(max_records=10)
    opened = [put(waiting, number, size=size)[2] for number, size in enumerate([60, 40, 1, 500, 1])]
    assert opened == [True, False, True, True, True]
    assert times(waiting.take()) == [[0, 1]]
    assert times(waiting.take()) == [[2]]
    assert times(waiting.take()) == [[3]]


def test_nobody_joins_a_group_that_was_opened_long_ago() -> None:
    waiting = queue(span=0.5)
    assert [put(waiting, number, now=number / 4)[2] for number in range(4)] == [True, False, False, True]


def test_small_groups_are_sent_together() -> None:
    waiting = queue(max_records=3, span=0.0)
    for number in range(4):
        put(waiting, number, now=float(number))
    taken = waiting.take()
    batch = Batch(7, taken, 0.0, 0.0)
    assert times(taken) == [[0], [1], [2]]
    assert [record.time for record in batch.records] == [0, 1, 2]
    assert [payload.event_id for payload in batch.payloads] == ["0", "1", "2"]
    assert waiting.size == 1


def test_a_record_can_be_withdrawn_until_its_group_is_taken() -> None:
    waiting = queue()
    group, first, _ = put(waiting, 0)
    put(waiting, 1)
    _, third, _ = put(waiting, 2)
    assert waiting.withdraw(group, first)
    assert waiting.size == 2
    waiting.take()
    assert not waiting.withdraw(group, third)
    assert times([group]) == [[1, 2]]
    assert len(group.payloads) == 2


def test_the_last_record_takes_its_group_with_it() -> None:
    waiting = queue()
    group, record, _ = put(waiting, 0)
    assert waiting.withdraw(group, record)
    assert (waiting.size, waiting.groups) == (0, 0)
    assert not waiting.withdraw(group, record)
    assert put(waiting, 1)[2]


def test_old_groups_are_taken_by_their_opening() -> None:
    waiting = queue(span=0.0)
    for number in range(3):
        put(waiting, number, now=float(number))
    assert times(list(waiting.take_older(1.0))) == [[0], [1]]
    assert times(list(waiting.take_older(1.5))) == []
    assert times(list(waiting.take_all())) == [[2]]


def test_what_waits_can_be_postponed_and_stays_in_order() -> None:
    waiting = queue(max_records=1)
    for number in range(3):
        put(waiting, number, now=float(number))
    waiting.postpone(1.5, now=2.5)
    assert times(list(waiting.take_older(1.4))) == []
    assert times(list(waiting.take_older(1.5))) == [[0]]
    assert times(list(waiting.take_older(2.5))) == [[1], [2]]  # as if they came just now, not later


@pytest.mark.parametrize("groups", [1, 2])
def test_waking_a_batch_wakes_every_group(groups: int) -> None:
    waiting = queue(max_records=2, span=0.0)
    for number in range(groups):
        put(waiting, number, now=float(number))
    batch = Batch(1, waiting.take(), 0.0, 0.0)
    batch.wake()
    assert batch.released
    assert all(isinstance(group.done, Flag) and group.done.up for group in batch.groups)
