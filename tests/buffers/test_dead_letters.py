"""Dead letters in memory: bounds, room, the account, evidence."""

from __future__ import annotations

import gc
import threading
import time

import anyio
import pytest

from connector_sdk.buffers.blocking import BlockingBuffer
from connector_sdk.buffers.dead_letters import DeadLetter, Evidence, Replayed
from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.buffers.state import Overflow
from connector_sdk.errors import BufferClosedError, ConfigurationError, EventBufferError
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import Payload, encode_payload
from tests.buffers.samples import PATIENCE, Clock, Crew, dropped, fill, numbers, summary, unknown
from tests.buffers.test_contracts import ListBackend


def bury(buffer: EventBuffer, count: int | None = None, message: str = "poison") -> None:
    with buffer.lease(500 if count is None else count) as lease:
        for event in lease:
            lease.fail(event, ValueError(message))


def payloads(buffer: EventBuffer) -> list[int]:
    return numbers(letter.payload for letter in buffer.dead_letters)


class Recorder:
    """An Observer."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, int]] = []

    def events_dropped(self, *, source: str, reason: str, count: int) -> None:
        self.told.append((source, reason, count))


def test_giving_up_is_counted_and_told_to_the_observer_alone() -> None:
    told, observer = list[Payload](), Recorder()
    buffer = EventBuffer(10, told.append, observer=observer)
    fill(buffer, 3)
    with buffer.lease() as lease:
        lease.fail(lease.events[1], ValueError("poison"))
        stats = buffer.stats()
        assert (stats.ledger.in_flight, stats.dead_letters, stats.ledger.balanced) == (2, 1, True)
    assert dropped(buffer) == {DropReason.DEAD_LETTER: 1}
    assert (buffer.stats().ledger.delivered, told) == (2, [])
    assert observer.told == [("buffer", "dead_letter", 1)]


def test_evidence_says_what_where_and_when() -> None:
    buffer = EventBuffer()
    fill(buffer, 1)
    before = time.time()
    with buffer.lease() as lease:
        try:
            raise OSError("no route")
        except OSError as error:
            lease.fail(lease.events[0], error)
    (letter,) = buffer.dead_letters
    assert (letter.last.error_type, letter.last.message) == ("OSError", "no route")
    assert len(letter.last.traceback_digest) == 12
    assert before <= letter.last.at <= letter.died_at <= time.time()


@pytest.mark.parametrize("error", ["text", None, Evidence(attempts=[])])
def test_what_is_no_evidence_is_refused_and_nothing_happens(error: object) -> None:
    buffer = EventBuffer()
    fill(buffer, 1)
    with buffer.lease() as lease:
        with pytest.raises(ConfigurationError):
            lease.fail(lease.events[0], error)  # type: ignore[arg-type]  # that is the point
        assert (buffer.stats().dead_letters, buffer.stats().ledger.in_flight) == (0, 1)


def test_the_same_object_twice_dies_twice() -> None:
    buffer, payload = EventBuffer(), summary(1)
    buffer.add(payload)
    buffer.add(payload)
    with buffer.lease() as lease:
        lease.fail(payload, ValueError())
        assert buffer.stats().ledger.in_flight == 1
        lease.fail(payload, ValueError())
        lease.fail(payload, ValueError())
    assert (buffer.dead_letters.count(), dropped(buffer)) == (2, {DropReason.DEAD_LETTER: 2})
    assert len({letter.id for letter in buffer.dead_letters}) == 2


def test_the_oldest_dead_letters_go_when_there_are_too_many() -> None:
    buffer = EventBuffer(max_dead_letters=3)
    fill(buffer, 5)
    bury(buffer)
    assert payloads(buffer) == [2, 3, 4]
    assert dropped(buffer) == {DropReason.DEAD_LETTER: 5}
    none = EventBuffer(max_dead_letters=0)
    fill(none, 2)
    bury(none)
    assert (none.dead_letters.count(), dropped(none)) == (0, {DropReason.DEAD_LETTER: 2})
    with pytest.raises(ConfigurationError):
        EventBuffer(max_dead_letters=-1)


def test_a_replayed_event_comes_last_and_counts_as_received_again() -> None:
    buffer = EventBuffer(max_bytes=10_000, max_age=60.0)
    fill(buffer, 2)
    buffer.add(unknown(2))
    bury(buffer, 1)
    assert buffer.dead_letters.replay() == Replayed(matched=1, replayed=1)
    assert (buffer.stats().ledger.received, buffer.stats().dead_letters) == (4, 0)
    assert dropped(buffer) == {DropReason.DEAD_LETTER: 1}
    assert numbers(buffer.drain()) == [1, 2, 0]


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest", "raise", "block"])
def test_a_replay_takes_the_room_there_is_and_gives_nothing_up(overflow: Overflow) -> None:
    told: list[Payload] = []
    buffer = EventBuffer(3, told.append, overflow=overflow)
    fill(buffer, 3)
    bury(buffer)
    fill(buffer, 1, start=3)
    assert buffer.dead_letters.replay() == Replayed(matched=3, replayed=2)
    assert (numbers(buffer.peek()), payloads(buffer), told) == ([3, 0, 1], [2], [])
    assert dropped(buffer) == {DropReason.DEAD_LETTER: 3}
    assert numbers(buffer.drain()) == [3, 0, 1]
    assert buffer.dead_letters.replay() == Replayed(matched=1, replayed=1)


def test_a_replay_does_not_overtake_who_waits_for_room() -> None:
    size = len(encode_payload(summary(0)))
    buffer = EventBuffer(overflow="block", max_bytes=3 * size)
    fill(buffer, 1)
    bury(buffer)
    fill(buffer, 1, start=1)
    with Crew() as crew:
        crew.start(
            buffer.add, summary(2, "x" * 2 * size)
        )  # for which there is no room, but for the dead letter there is
        while not buffer.stats().waiting_adds:
            time.sleep(0.0005)
        assert buffer.dead_letters.replay() == Replayed(matched=1, replayed=0)
        assert numbers(buffer.drain()) == [1]
    assert numbers(buffer.drain()) == [2]
    assert payloads(buffer) == [0]


def test_a_closed_buffer_takes_no_replay_and_keeps_the_letter() -> None:
    buffer = EventBuffer()
    fill(buffer, 1)
    bury(buffer)
    buffer.close()
    with pytest.raises(BufferClosedError):
        buffer.dead_letters.replay()
    assert payloads(buffer) == [0]
    assert buffer.dead_letters.purge() == 1


def test_a_replay_wakes_who_waits_for_events() -> None:
    buffer = EventBuffer()
    fill(buffer, 1)
    bury(buffer)
    with Crew() as crew:
        crew.start(lambda: buffer.wait(timeout=PATIENCE) or pytest.fail("not woken"))
        while not buffer._waiting.for_items:
            time.sleep(0.0005)
        buffer.dead_letters.replay()


def test_deaths_go_on_after_each_replay_and_through_leases_that_come_back() -> None:
    buffer = EventBuffer()
    fill(buffer, 2)
    bury(buffer, 1, "first")
    for message in ("second", "third"):
        buffer.dead_letters.replay()
        with pytest.raises(ZeroDivisionError), buffer.lease():
            raise ZeroDivisionError
        with buffer.lease() as lease:
            (event,) = (event for event in lease if numbers([event]) == [0])
            lease.fail(event, ValueError(message))
            lease.give_back()
    (letter,) = buffer.dead_letters
    assert [attempt.message for attempt in letter.attempts] == ["first", "second", "third"]
    assert (letter.id, letter.replays) == ("0-1", 2)


def test_an_equal_event_has_not_the_past_of_one_that_was_replayed() -> None:
    buffer, payload = EventBuffer(), summary(0)
    buffer.add(payload)
    bury(buffer)
    buffer.dead_letters.replay()
    buffer.add(payload)
    with buffer.lease() as lease:
        lease.fail(lease.events[1], ValueError())
    (letter,) = buffer.dead_letters
    assert (letter.id, letter.replays) == ("0-2", 0)


def test_what_is_remembered_of_replayed_events_is_bounded_and_goes_with_them() -> None:
    buffer = EventBuffer(max_dead_letters=2)
    for number in range(5):
        fill(buffer, 1, start=number)
        with buffer.lease(500) as lease:
            lease.fail(lease.events[-1], ValueError())
            lease.give_back()
        assert buffer.dead_letters.replay().replayed == 1
    assert len(buffer._shelf._replayed) == 2
    buffer.drain()
    assert not buffer._shelf.remembers


def test_a_filter_may_call_the_buffer_and_may_raise() -> None:
    buffer = EventBuffer()
    fill(buffer, 2)
    bury(buffer)

    def first(letter: DeadLetter) -> bool:
        return buffer.stats().dead_letters == 2 and letter.id == "0-1"

    def broken(letter: DeadLetter) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        buffer.dead_letters.replay(where=broken)
    with pytest.raises(ZeroDivisionError):
        buffer.dead_letters.purge(where=broken)
    assert buffer.dead_letters.replay(where=first) == Replayed(matched=1, replayed=1)
    assert repr(buffer.dead_letters) == "<MemoryDeadLetters: 1>"


def test_many_threads_bury_and_replay_and_the_account_balances() -> None:
    buffer, done = EventBuffer(0), threading.Event()
    fill(buffer, 200)

    def work() -> None:
        while not done.is_set():
            with buffer.lease(7) as lease:
                for event in lease.events[:3]:
                    lease.fail(event, ValueError())
                lease.give_back()

    def replay() -> None:
        for _ in range(100):
            buffer.dead_letters.replay(limit=5)
            assert buffer.stats().ledger.balanced
        done.set()

    with Crew() as crew:
        for _ in range(3):
            crew.start(work)
        crew.start(replay)
    buffer.dead_letters.replay()
    assert sorted(numbers(buffer.drain())) == list(range(200))
    assert buffer.dead_letters.count() == 0


# -- leases that are renewed


def test_a_lease_outlives_its_timeout_while_somebody_has_it() -> None:
    clock = Clock()
    buffer = EventBuffer(_clock=clock)
    fill(buffer, 2)
    with buffer.lease(timeout=10.0) as lease:
        for _ in range(5):
            clock.pass_by(1000.0)
            assert buffer.drain() == []
        lease.ack(lease.events[:1])
        clock.pass_by(1000.0)
    assert buffer.stats().ledger.delivered == 2


def test_a_lease_that_nobody_can_leave_any_more_runs_out() -> None:
    clock = Clock()
    buffer = EventBuffer(_clock=clock)
    fill(buffer, 2)
    lease = buffer.lease(timeout=10.0).__enter__()
    clock.pass_by(60.0)
    assert buffer.drain() == []
    del lease
    gc.collect()
    clock.pass_by(9.0)
    assert buffer.drain() == []
    clock.pass_by(1.0)
    assert numbers(buffer.drain()) == [0, 1]


def test_a_generator_that_is_dropped_gives_its_lease_back() -> None:
    buffer = EventBuffer()
    fill(buffer, 2)

    def work() -> object:
        with buffer.lease() as lease:
            yield from lease

    generator = work()
    next(generator)  # type: ignore[call-overload]  # it is a generator
    assert buffer.is_empty
    del generator
    gc.collect()
    assert numbers(buffer.drain()) == [0, 1]


def test_an_extension_of_a_lease_is_checked() -> None:
    buffer = EventBuffer()
    fill(buffer, 1)
    with buffer.lease() as lease, pytest.raises(ConfigurationError):
        lease.extend(0)
    for wrong in (None, 1, "yes"):
        with pytest.raises(ConfigurationError):
            buffer.lease(renew=wrong)  # type: ignore[arg-type]  # that is the point
        with pytest.raises(ConfigurationError):
            buffer.as_backend().lease(renew=wrong)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_waiting_while_a_lease_is_renewed_ends_when_it_comes_back() -> None:
    buffer = EventBuffer()
    fill(buffer, 1)
    woken: list[bool] = []

    async def wait() -> None:
        woken.append(await buffer.as_backend().wait(timeout=PATIENCE))

    async with anyio.create_task_group() as tasks:
        lease = buffer.lease(timeout=0.01).__enter__()
        tasks.start_soon(wait)
        await anyio.sleep(0.1)
        assert woken == []
        lease.give_back()
    assert woken == [True]


# -- the sync face of async dead letters


def test_a_backend_without_dead_letters_says_so() -> None:
    with BlockingBuffer(ListBackend([summary(0)])) as buffer:
        with pytest.raises(EventBufferError, match="ListBackend cannot keep dead letters"):
            _ = buffer.dead_letters
        with buffer.lease() as lease, pytest.raises(EventBufferError, match="dead_letters="):
            lease.fail(lease.events[0], ValueError())


def test_more_dead_letters_than_a_page_are_iterated_over() -> None:
    events = EventBuffer()
    with BlockingBuffer(events.as_backend()) as buffer:
        fill(events, 250)
        bury(events)
        assert numbers(letter.payload for letter in buffer.dead_letters) == list(range(250))
        assert next(iter(buffer.dead_letters)).id == "0-1"
        assert buffer.dead_letters.count() == 250
        assert "HostedDeadLetters" in repr(buffer.dead_letters)


def test_a_blocking_lease_that_nobody_has_any_more_gives_its_events_back() -> None:
    events = EventBuffer()
    with BlockingBuffer(events.as_backend()) as buffer:
        fill(events, 2)
        lease = buffer.lease(timeout=0.05).__enter__()
        time.sleep(0.3)
        assert buffer.size() == 0
        del lease
        gc.collect()
        assert events.wait(2, timeout=PATIENCE)
