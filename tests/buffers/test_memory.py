"""EventBuffer by itself: the source API, bounds, overflow policies, what the hook and the Observer are told."""

from __future__ import annotations

import gc
import inspect
import logging
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, get_args

import msgspec
import pytest

from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.buffers.state import Overflow
from connector_sdk.errors import BufferClosedError, BufferFullError, ConfigurationError, PayloadError
from connector_sdk.ledger import DropReason
from connector_sdk.observe import Observer
from connector_sdk.payloads import Payload, encode_payload
from tests.buffers.samples import PATIENCE, Clock, Crew, actions, dropped, fill, number_of, numbers, summary, unknown

# -- the source API


def test_a_new_buffer_is_empty_and_holds_1000() -> None:
    buffer = EventBuffer()
    assert (buffer.size, len(buffer), buffer.is_empty, buffer.max_size, buffer.closed) == (0, 0, True, 1000, False)
    assert repr(buffer) == "<EventBuffer size=0 max_size=1000>"
    assert buffer.drain() == buffer.peek() == buffer.drain_by_type() == []


def test_drain_returns_all_in_order_of_arrival_and_clears() -> None:
    buffer = EventBuffer()
    fill(buffer, 5)
    assert (buffer.size, len(buffer), buffer.is_empty) == (5, 5, False)
    assert numbers(buffer.drain()) == [0, 1, 2, 3, 4]
    assert buffer.is_empty
    assert buffer.drain() == []


def test_the_very_payloads_come_out() -> None:
    buffer, payload = EventBuffer(), summary(1)
    buffer.add(payload)
    assert buffer.peek()[0] is payload
    assert buffer.drain()[0] is payload


@pytest.mark.parametrize(("limit", "first", "rest"), [(0, [], [0, 1, 2]), (2, [0, 1], [2]), (9, [0, 1, 2], [])])
def test_drain_takes_the_oldest_up_to_its_limit(limit: int, first: list[int], rest: list[int]) -> None:
    buffer = EventBuffer()
    fill(buffer, 3)
    assert (numbers(buffer.drain(limit)), numbers(buffer.drain())) == (first, rest)


@pytest.mark.parametrize(("n", "shown"), [(0, []), (2, [3, 4]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])])
def test_peek_shows_the_newest_oldest_first_and_changes_nothing(n: int, shown: list[int]) -> None:
    buffer = EventBuffer()
    fill(buffer, 5)
    assert numbers(buffer.peek(n)) == shown
    assert numbers(buffer.peek()) == numbers(buffer.drain()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("flags", "taken", "left"),
    [
        ({}, [0, 1, 3, 4], [2]),
        ({"actions": False}, [0, 3], [1, 2, 4]),
        ({"summaries": False}, [1, 4], [0, 2, 3]),
        ({"actions": False, "summaries": False}, [], [0, 1, 2, 3, 4]),
    ],
)
@pytest.mark.parametrize("options", [{}, {"max_bytes": 10_000, "max_age": 60.0}], ids=["plain", "measured"])
def test_drain_by_type_takes_the_chosen_types_and_leaves_the_rest_in_order(
    flags: dict[str, bool], taken: list[int], left: list[int], options: dict[str, Any]
) -> None:
    buffer = EventBuffer(**options)
    for payload in (summary(0), actions(1), unknown(2), summary(3), actions(4)):
        buffer.add(payload)
    assert numbers(buffer.drain_by_type(**flags)) == taken
    assert numbers(buffer.drain()) == left
    assert buffer.stats().ledger.balanced


@pytest.mark.parametrize("options", [{}, {"max_bytes": 10_000, "max_age": 60.0}], ids=["plain", "measured"])
def test_drain_filters_by_any_type_and_limit(options: dict[str, Any]) -> None:
    buffer = EventBuffer(**options)
    for payload in (unknown(0), actions(1), unknown(2, "usertour_trigger"), unknown(3), unknown(4)):
        buffer.add(payload)
    assert numbers(buffer.drain(2, types={"survey", "usertour_trigger"})) == [0, 2]
    assert numbers(buffer.drain(0, types={"survey"})) == []
    assert numbers(buffer.drain(types=["nothing"])) == []
    assert numbers(buffer.drain(9, types={"survey"})) == [3, 4]
    assert numbers(buffer.drain()) == [1]


def test_the_names_of_known_types_mean_their_payloads_whatever_way_is_taken() -> None:
    for options in ({}, {"max_bytes": 10_000}):
        for names in ({"actions"}, {"actions", "summary"}, {"actions", "survey"}):
            buffer = EventBuffer(**options)  # type: ignore[arg-type]
            for payload in (actions(0), unknown(1, "actions"), unknown(2)):
                buffer.add(payload)
            assert numbers(buffer.drain(types=names)) == ([0, 2] if "survey" in names else [0])


def test_clear_discards_everything_and_counts_it() -> None:
    told: list[Payload] = []
    buffer = EventBuffer(on_drop=told.append)
    fill(buffer, 3)
    buffer.clear()
    buffer.clear()
    assert (buffer.size, told, dropped(buffer)) == (0, [], {DropReason.CLEARED: 3})


def test_zero_means_no_bound() -> None:
    buffer = EventBuffer(0)
    fill(buffer, 5000)
    assert (buffer.size, buffer.max_size, dropped(buffer)) == (5000, 0, {})
    assert numbers(buffer.drain()) == list(range(5000))


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("max_size", {"max_size": -1}),
        ("max_size", {"max_size": 1.5}),
        ("max_size", {"max_size": True}),
        ("max_size", {"max_size": None}),
        ("max_bytes", {"max_bytes": 0}),
        ("max_bytes", {"max_bytes": "1 MB"}),
        ("max_age", {"max_age": 0}),
        ("max_age", {"max_age": float("nan")}),
        ("overflow", {"overflow": "spill"}),
        ("block_timeout", {"block_timeout": 1.0}),
        ("block_timeout", {"block_timeout": -1.0, "overflow": "block"}),
        ("on_drop", {"on_drop": 3}),
    ],
)
def test_an_option_that_cannot_work_is_refused_by_name(option: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        EventBuffer(**arguments)
    assert isinstance(caught.value, ValueError)
    assert (caught.value.option, caught.value.given) == (option, repr(arguments[option]))


def test_an_async_hook_is_refused() -> None:
    async def hook(payload: Payload) -> None: ...

    with pytest.raises(ConfigurationError, match="on_drop"):
        EventBuffer(on_drop=hook)


@pytest.mark.parametrize(
    "call",
    [
        lambda buffer: buffer.drain(-1),
        lambda buffer: buffer.drain(types="actions"),
        lambda buffer: buffer.drain(types=[1]),
        lambda buffer: buffer.peek(-1),
        lambda buffer: buffer.peek(1.0),
        lambda buffer: buffer.wait(0),
        lambda buffer: buffer.wait(11),
        lambda buffer: buffer.wait(timeout=-1),
        lambda buffer: buffer.pages(0),
        lambda buffer: buffer.lease(0),
        lambda buffer: buffer.lease(timeout=0),
    ],
)
def test_an_argument_that_cannot_work_is_refused(call: Callable[[EventBuffer], object]) -> None:
    buffer = EventBuffer(10)
    fill(buffer, 3)
    with pytest.raises(ConfigurationError):
        call(buffer)
    assert buffer.size == 3


@pytest.mark.parametrize("thing", [None, {"type": "actions"}, b"{}", summary])
def test_only_payloads_are_taken(thing: Any) -> None:
    buffer = EventBuffer()
    with pytest.raises(PayloadError, match=type(thing).__name__):
        buffer.add(thing)
    assert buffer.stats().ledger.received == 0


def test_the_buffer_cannot_be_iterated_by_accident() -> None:
    buffer = EventBuffer()
    fill(buffer, 1)
    accidents: list[Callable[[Any], object]] = [list, iter, lambda it: summary(0) in it]
    for accident in accidents:
        with pytest.raises(TypeError):
            accident(buffer)
    assert buffer.size == 1


# -- overflow


@pytest.mark.parametrize(("max_size", "survivors"), [(1, [9]), (3, [7, 8, 9]), (10, list(range(10)))])
def test_drop_oldest_keeps_the_newest_and_hands_over_the_others_in_order(max_size: int, survivors: list[int]) -> None:
    told: list[Payload] = []
    buffer = EventBuffer(max_size, on_drop=told.append)
    fill(buffer, 10)
    assert numbers(told) == list(range(10 - max_size))
    assert dropped(buffer) == ({DropReason.OVERFLOW: len(told)} if told else {})
    assert numbers(buffer.drain()) == survivors


def test_drop_newest_keeps_the_oldest() -> None:
    told: list[Payload] = []
    buffer = EventBuffer(3, told.append, overflow="drop_newest")
    fill(buffer, 6)
    assert numbers(buffer.drain(1)) == [0]
    fill(buffer, 2, start=6)
    assert numbers(told) == [3, 4, 5, 7]
    assert dropped(buffer) == {DropReason.OVERFLOW: 4}
    assert numbers(buffer.drain()) == [1, 2, 6]


def test_raise_refuses_and_counts_as_rejected_without_the_hook() -> None:
    told: list[Payload] = []
    buffer = EventBuffer(2, told.append, overflow="raise")
    fill(buffer, 2)
    for number in (2, 3):
        with pytest.raises(BufferFullError, match="2 events wait"):
            buffer.add(summary(number))
    assert (told, dropped(buffer)) == ([], {DropReason.REJECTED: 2})
    assert numbers(buffer.drain()) == [0, 1]


def test_block_gives_up_after_its_timeout() -> None:
    told: list[Payload] = []
    buffer = EventBuffer(1, told.append, overflow="block", block_timeout=0.02)
    fill(buffer, 1)
    with pytest.raises(BufferFullError, match="block_timeout"):
        buffer.add(summary(1))
    assert (told, dropped(buffer), buffer.stats().waiting_adds) == ([], {DropReason.REJECTED: 1}, 0)
    assert numbers(buffer.drain()) == [0]
    fill(buffer, 1, start=2)
    assert numbers(buffer.drain()) == [2]


def test_block_lets_callers_in_as_they_came() -> None:
    buffer = EventBuffer(1, overflow="block")
    fill(buffer, 1)
    taken: list[int] = []
    with Crew() as crew:
        for number in range(1, 6):
            crew.start(buffer.add, summary(number))
            _until(lambda count=number: buffer.stats().waiting_adds == count)  # type: ignore[misc]
        while len(taken) < 6:
            assert buffer.wait(timeout=PATIENCE)
            taken += numbers(buffer.drain())
    assert taken == list(range(6))
    assert dropped(buffer) == {}


@pytest.mark.parametrize("free", ["drain", "drain_by_type", "clear", "lease", "expiry"])
def test_whatever_makes_room_lets_a_blocked_caller_in(free: str) -> None:
    buffer = EventBuffer(1, overflow="block", max_age=0.05 if free == "expiry" else None)
    fill(buffer, 1)
    with Crew() as crew:
        adding = crew.start(buffer.add, summary(1))
        if free != "expiry":
            _until(lambda: buffer.stats().waiting_adds == 1)
        if free == "lease":
            buffer.lease(1).__enter__()
        elif free != "expiry":
            getattr(buffer, free)()
        adding.join(PATIENCE)
    if free != "expiry":
        assert numbers(buffer.drain()) == [1]
    ledger = buffer.stats().ledger
    assert (ledger.received, ledger.balanced) == (2, True)


def test_close_sends_blocked_callers_away_uncounted() -> None:
    buffer = EventBuffer(1, overflow="block")
    fill(buffer, 1)
    errors: list[BaseException] = []

    def add() -> None:
        with pytest.raises(BufferClosedError) as caught:
            buffer.add(summary(1))
        errors.append(caught.value)

    with Crew() as crew:
        for _ in range(3):
            crew.start(add)
        _until(lambda: buffer.stats().waiting_adds == 3)
        buffer.close()
    assert len(errors) == 3
    stats = buffer.stats()
    assert (stats.ledger.received, stats.ledger.balanced, stats.waiting_adds, stats.closed) == (1, True, 0, True)


def test_a_closed_buffer_takes_nothing_and_gives_what_it_has() -> None:
    buffer = EventBuffer(2)
    fill(buffer, 2)
    buffer.close()
    buffer.close()
    with pytest.raises(BufferClosedError):
        buffer.add(summary(2))
    assert "closed" in repr(buffer)
    assert numbers(buffer.peek()) == numbers(buffer.drain()) == [0, 1]
    assert buffer.stats().ledger.received == 2


# -- bytes and age


def test_max_bytes_is_honoured_and_combines_with_the_count() -> None:
    size = len(encode_payload(summary(0)))
    told: list[Payload] = []
    buffer = EventBuffer(4, told.append, max_bytes=3 * size + size // 2)
    fill(buffer, 5)
    assert (buffer.size, buffer.stats().bytes) == (3, 3 * size)
    buffer.add(summary(5, "x" * size))
    assert (numbers(buffer.peek()), buffer.stats().bytes) == ([4, 5], 3 * size)
    assert numbers(told) == [0, 1, 2, 3]
    small = EventBuffer(2, max_bytes=100 * size)
    fill(small, 5)
    assert small.size == 2


def test_one_event_larger_than_max_bytes_is_kept_alone() -> None:
    buffer = EventBuffer(max_bytes=10)
    fill(buffer, 3)
    assert numbers(buffer.peek()) == [2]
    newest = EventBuffer(max_bytes=10, overflow="drop_newest")
    fill(newest, 3)
    assert numbers(newest.peek()) == [0]


def test_bytes_follow_every_way_out() -> None:
    buffer = EventBuffer(max_bytes=10**6)

    def held() -> int | None:
        assert buffer.stats().bytes == sum(len(encode_payload(payload)) for payload in buffer.peek())
        return buffer.stats().bytes

    for number in range(6):
        buffer.add(summary(number, "x" * number) if number % 2 else actions(number))
    assert held()
    buffer.drain(1)
    assert held()
    buffer.drain(types={"summary"}, max_items=2)
    assert held()
    lease = buffer.lease(2)
    with lease:
        held()
        lease.give_back()
    assert held()
    buffer.clear()
    assert held() == 0


@pytest.mark.parametrize(
    "read",
    [
        EventBuffer.drain,
        EventBuffer.peek,
        EventBuffer.drain_by_type,
        lambda buffer: buffer.lease().__enter__().events,
        lambda buffer: [summary(1)] * buffer.size,
        lambda buffer: [summary(1)] * buffer.stats().size,
        lambda buffer: [] if buffer.is_empty else [summary(1)],
        lambda buffer: [summary(1)] * buffer.wait(timeout=0),
    ],
)
def test_events_too_old_are_dropped_on_every_read(read: Callable[[EventBuffer], list[Payload]]) -> None:
    clock, told = Clock(), list[Payload]()
    buffer = EventBuffer(max_age=10.0, on_drop=told.append, _clock=clock)
    fill(buffer, 1)
    clock.pass_by(9.9)
    fill(buffer, 1, start=1)
    assert told == []
    clock.pass_by(0.1)
    assert numbers(read(buffer)) == [1]
    assert numbers(told) == [0]
    assert dropped(buffer) == {DropReason.EXPIRED: 1}


def test_events_too_old_are_dropped_on_write() -> None:
    clock, told = Clock(), list[Payload]()
    buffer = EventBuffer(2, max_age=10.0, on_drop=told.append, overflow="drop_newest", _clock=clock)
    fill(buffer, 2)
    clock.pass_by(10.0)
    fill(buffer, 1, start=2)
    assert numbers(told) == [0, 1]
    assert numbers(buffer.drain()) == [2]


def test_time_on_lease_counts_towards_age() -> None:
    clock, told = Clock(), list[Payload]()
    buffer = EventBuffer(max_age=10.0, on_drop=told.append, _clock=clock)
    fill(buffer, 2)
    with buffer.lease(1) as lease:
        clock.pass_by(5.0)
        fill(buffer, 1, start=2)
        clock.pass_by(5.0)
        lease.give_back()
    assert numbers(buffer.drain()) == [2]
    assert sorted(numbers(told)) == [0, 1]


# -- age of the oldest


def test_the_age_of_the_oldest_is_exact_with_max_age() -> None:
    clock = Clock()
    buffer = EventBuffer(max_age=100.0, _clock=clock)
    assert buffer.stats().oldest_age is None
    for number in range(3):
        fill(buffer, 1, start=number)
        clock.pass_by(1.0)
    assert buffer.stats().oldest_age == 3.0
    buffer.drain(1)
    assert buffer.stats().oldest_age == 2.0


def test_the_age_of_the_oldest_starts_anew_when_the_buffer_was_empty() -> None:
    clock = Clock()
    buffer = EventBuffer(_clock=clock)
    for _ in range(3):
        fill(buffer, 2)
        clock.pass_by(5.0)
        assert buffer.stats().oldest_age == 5.0
        buffer.drain()
        assert buffer.stats().oldest_age is None
        clock.pass_by(5.0)


@pytest.mark.parametrize("way", ["evict", "drain", "types", "lease"])
def test_the_age_is_never_too_low_and_too_high_by_1024_arrivals_at_most(way: str) -> None:
    clock, started = Clock(), dict[int, float]()
    buffer = EventBuffer(3000 if way == "evict" else 0, lambda payload: None, _clock=clock)
    for number in range(20_000):
        started[number] = clock.now
        buffer.add(summary(number) if number % 3 else actions(number))
        clock.pass_by(0.001)
        if number % 500 == 499:
            if way == "drain":
                buffer.drain(300)
            elif way == "types" and number % 1500 == 1499:
                buffer.drain(types={"summary"})
                buffer.drain(100)
            elif way == "lease":
                lease = buffer.lease(400).__enter__()
                lease.ack(lease.events[:300])
                if number % 1000 == 999:
                    lease.give_back()
                else:
                    lease.ack()
            age = buffer.stats().oldest_age
            true = clock.now - started[number_of(buffer.drain(1)[0])]
            assert age is not None
            assert true - 1e-6 <= age <= true + 1.025 + 1.0


def test_reading_makes_the_age_of_later_events_known() -> None:
    clock = Clock()
    buffer = EventBuffer(_clock=clock)
    for number in range(20):
        fill(buffer, 1, start=number)
        clock.pass_by(1.0)
        buffer.stats()
    assert buffer.stats().oldest_age == 20.0
    buffer.drain(10)
    age = buffer.stats().oldest_age
    assert age is not None
    assert 10.0 <= age <= 11.0


def test_events_that_never_got_in_do_not_make_the_oldest_look_younger() -> None:
    clock = Clock()
    buffer = EventBuffer(2, lambda payload: None, overflow="drop_newest", _clock=clock)
    fill(buffer, 2)
    for number in range(5):
        clock.pass_by(2.0)
        fill(buffer, 1, start=number)
    assert buffer.stats().oldest_age == 10.0


def test_marks_of_the_age_do_not_pile_up() -> None:
    clock = Clock()
    buffer = EventBuffer(100, lambda payload: None, _clock=clock)
    for number in range(20_000):
        buffer.add(summary(number) if number % 2 else actions(number))
        clock.pass_by(2.0)
        if number % 7 == 0:
            buffer.stats()
            buffer.drain(types={"summary"}, max_items=1)
    assert len(buffer._window.marks) < 200


# -- the hook


def test_reading_the_buffer_in_the_hook_does_not_deadlock() -> None:
    """X5: autoplay-sdk calls the hook under a plain lock."""
    seen: list[tuple[int, int, int, bool]] = []

    def hook(payload: Payload) -> None:
        seen.append((number_of(payload), buffer.size, len(buffer.peek()), buffer.stats().ledger.balanced))

    buffer = EventBuffer(2, hook)
    with Crew() as crew:
        crew.start(fill, buffer, 5)
    assert seen == [(0, 2, 2, True), (1, 2, 2, True), (2, 2, 2, True)]


@pytest.mark.parametrize("observer", [None, Observer()], ids=["bare", "observed"])
def test_a_hook_may_call_any_method(observer: Observer | None) -> None:
    told: list[int] = []

    def hook(payload: Payload) -> None:
        told.append(number_of(payload))
        if len(told) == 1:
            assert not buffer.is_empty
            assert buffer.wait(timeout=0)
            with buffer.lease(1) as lease:
                taken.extend(numbers(lease))
            taken.extend(numbers(buffer.drain_by_type(summaries=False)))
            taken.extend(numbers(buffer.drain(1)))
            buffer.add(summary(100))
            assert "size=1" in repr(buffer)
            buffer.clear()
            buffer.close()

    taken: list[int] = []
    buffer = EventBuffer(2, hook, observer=observer)
    fill(buffer, 3)
    assert (told, taken) == ([0], [1, 2])
    assert dropped(buffer) == {DropReason.OVERFLOW: 1, DropReason.CLEARED: 1}


def test_a_hook_that_raises_is_counted_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    told: list[int] = []

    def hook(payload: Payload) -> None:
        told.append(number_of(payload))
        raise OSError("no metrics today")

    buffer = EventBuffer(2, hook)
    fill(buffer, 50)
    assert told == list(range(48))
    assert buffer.stats().hook_errors == 48
    assert dropped(buffer) == {DropReason.OVERFLOW: 48}
    assert numbers(buffer.drain()) == [48, 49]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "on_drop raised OSError" in caplog.text


def test_adds_within_the_hook_are_told_in_order_without_recursion() -> None:
    arrived: list[int] = []
    told: list[int] = []
    depth = deepest = 0

    def add(number: int) -> None:
        arrived.append(number)
        buffer.add(summary(number))

    def hook(payload: Payload) -> None:
        nonlocal depth, deepest
        depth += 1
        deepest = max(depth, deepest)
        told.append(number_of(payload))
        if number_of(payload) < 100:
            for child in range(10):
                add(1000 + 10 * number_of(payload) + child)
        depth -= 1

    buffer = EventBuffer(3, hook)
    for number in range(13):
        add(number)
    assert deepest == 1
    assert len(arrived) > 100
    assert told + numbers(buffer.drain()) == arrived


def test_a_hook_that_adds_for_ever_does_not_keep_the_caller() -> None:
    calls = 0

    def hook(payload: Payload) -> None:
        nonlocal calls
        calls += 1
        buffer.add(payload)

    buffer = EventBuffer(2, hook)
    with Crew() as crew:
        crew.start(fill, buffer, 3)
    assert 0 < calls <= 2000
    calls_so_far = calls
    stats = buffer.stats()
    assert stats.ledger.balanced
    assert stats.size == 2
    assert stats.ledger.dropped[DropReason.OVERFLOW] >= calls_so_far


def test_an_interrupt_in_the_hook_reaches_the_caller_and_later_drops_are_told() -> None:
    told: list[int] = []

    def hook(payload: Payload) -> None:
        told.append(number_of(payload))
        if len(told) == 2:
            raise KeyboardInterrupt

    for observer in (None, Observer()):
        told.clear()
        buffer = EventBuffer(1, hook, observer=observer)
        fill(buffer, 2)
        with pytest.raises(KeyboardInterrupt):
            buffer.add(summary(2))
        fill(buffer, 2, start=3)
        assert told == [0, 1, 2, 3]
        assert buffer.stats().ledger.balanced


def test_a_slow_hook_delays_neither_other_threads_nor_the_order() -> None:
    told: list[int] = []
    entered, release = threading.Event(), threading.Event()

    def hook(payload: Payload) -> None:
        told.append(number_of(payload))
        if len(told) == 1:
            entered.set()
            assert release.wait(PATIENCE)

    buffer = EventBuffer(1, hook)
    fill(buffer, 1)
    with Crew() as crew:
        slow = crew.start(buffer.add, summary(1))
        assert entered.wait(PATIENCE)
        other = crew.start(fill, buffer, 50, 2)
        other.join(PATIENCE)
        assert not other.is_alive()
        assert (told, buffer.stats().untold_drops, buffer.size) == ([0], 50, 1)
        release.set()
        slow.join(PATIENCE)
    assert told == list(range(51))
    assert buffer.stats().untold_drops == 0


@pytest.mark.parametrize("observer", [None, Observer()], ids=["bare", "observed"])
def test_each_drop_is_told_once_and_in_order_whatever_thread_drops(observer: Observer | None) -> None:
    told: list[Payload] = []
    inside = 0

    def hook(payload: Payload) -> None:
        nonlocal inside
        inside += 1
        assert inside == 1, "two threads tell at once"
        told.append(payload)
        if len(told) % 500 == 0:
            time.sleep(0.001)
        inside -= 1

    buffer = EventBuffer(10, hook, observer=observer)
    per_thread = 3000
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with Crew() as crew:
            for producer in range(4):
                crew.start(fill, buffer, per_thread, producer * per_thread)
    finally:
        sys.setswitchinterval(switch)
    buffer.stats()  # tells what the last turn may have left
    told += buffer.drain()
    assert sorted(numbers(told)) == list(range(4 * per_thread))
    for producer in range(4):
        mine = [number for number in numbers(told) if number // per_thread == producer]
        assert mine == sorted(mine)


class Recorder(Observer):
    def __init__(self) -> None:
        self.drops: list[tuple[str, str, int]] = []

    def events_dropped(self, *, source: str, reason: str, count: int) -> None:
        self.drops.append((source, reason, count))


def test_the_observer_is_told_every_drop_with_its_reason() -> None:
    clock, observer, told = Clock(), Recorder(), list[Payload]()
    buffer = EventBuffer(2, told.append, max_age=10.0, observer=observer, _clock=clock)
    fill(buffer, 3)
    clock.pass_by(10.0)
    fill(buffer, 2, start=3)
    buffer.clear()
    raising = EventBuffer(1, told.append, overflow="raise", observer=observer)
    fill(raising, 1)
    with pytest.raises(BufferFullError):
        raising.add(summary(9))
    assert numbers(told) == [0, 1, 2]
    assert observer.drops == [
        ("buffer", "overflow", 1),
        ("buffer", "expired", 1),
        ("buffer", "expired", 1),
        ("buffer", "cleared", 2),
        ("buffer", "rejected", 1),
    ]


def test_an_observer_that_raises_is_counted_and_harms_nothing() -> None:
    class Broken(Observer):
        def events_dropped(self, *, source: str, reason: str, count: int) -> None:
            raise RuntimeError

    told: list[Payload] = []
    buffer = EventBuffer(2, told.append, observer=Broken())
    fill(buffer, 5)
    assert (numbers(told), buffer.stats().observer_errors, buffer.stats().hook_errors) == ([0, 1, 2], 3, 0)


def test_without_a_hook_a_warning_is_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        buffer = EventBuffer(2)
        fill(buffer, 100)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "full" in caplog.text
    assert dropped(buffer) == {DropReason.OVERFLOW: 98}


# -- the rest


def test_stats_are_ready_for_json() -> None:
    buffer = EventBuffer(2, lambda payload: None)
    fill(buffer, 3)
    stats = msgspec.json.decode(msgspec.json.encode(buffer.stats()))
    assert stats["ledger"] == {
        "received": 3,
        "delivered": 0,
        "buffered": 2,
        "in_flight": 0,
        "dropped": {"overflow": 1},
    }
    assert (stats["size"], stats["bytes"], stats["max_size"], stats["closed"]) == (2, None, 2, False)


def test_a_buffer_that_nobody_holds_goes_away() -> None:
    buffer = EventBuffer(1, lambda payload: None)
    fill(buffer, 3)
    gone = weakref.ref(buffer)
    del buffer
    gc.collect()
    assert gone() is None


def test_overflow_policies_are_those_documented() -> None:
    document = inspect.getdoc(EventBuffer) or ""
    for policy in get_args(Overflow):
        assert f'"{policy}"' in document


@pytest.mark.parametrize("way", ["append", "evict", "drain"])
def test_an_interrupt_anywhere_leaves_the_buffer_usable_and_balanced(way: str) -> None:
    """A signal handler that raises strikes between any two steps; a lock held for ever would hang all else."""
    max_size = 0 if way == "append" else 5
    strikes = 0

    def strike(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    told: list[Payload] = []
    buffer = EventBuffer(max_size, told.append)
    fill(buffer, 10)
    before = signal.signal(signal.SIGALRM, strike)
    try:
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0003)
                for number in range(10_000):
                    buffer.add(summary(number))
                    if way == "drain":
                        buffer.drain()
            except KeyboardInterrupt:
                strikes += 1
            with Crew() as crew:
                crew.start(lambda: buffer.stats().ledger.balanced or pytest.fail(str(buffer.stats().ledger)))
            if max_size == 0:
                buffer.clear()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert strikes > 50
    assert buffer.stats().ledger.balanced
    assert max_size == 0 or buffer.size <= max_size
    told.clear()
    fill(buffer, 10, start=100)
    assert numbers(buffer.drain())[-3:] == [107, 108, 109]
    assert not max_size or numbers(told)[-3:] == [102, 103, 104]


def _until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does and nobody announces."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)
