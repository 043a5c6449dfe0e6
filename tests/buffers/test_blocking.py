"""BlockingBuffer: async buffers for threads."""

# ruff: noqa: PT012 - what must raise is the leaving of a block

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from connector_sdk import ConnectorClient
from connector_sdk.buffers.blocking import BlockingBuffer, LoopKind
from connector_sdk.buffers.durable import DurableBuffer
from connector_sdk.buffers.durable_stats import DurableStats
from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.errors import (
    BufferClosedError,
    BufferUnavailableError,
    ClientStateError,
    ConfigurationError,
    EventBufferError,
    LeaseError,
    LeaseExpiredError,
)
from connector_sdk.payloads import Payload, SummaryPayload
from connector_sdk.testing import ConnectorServer
from tests.buffers.memory_store import MemoryStore, refused
from tests.buffers.samples import PATIENCE, Crew, actions, numbers, summary
from tests.buffers.test_contracts import ListBackend


@pytest.fixture(params=["asyncio", "trio"])
def event_loop(request: pytest.FixtureRequest) -> LoopKind:
    kind: LoopKind = request.param
    return kind


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(2)


@pytest.fixture
def buffer(event_loop: LoopKind, store: MemoryStore) -> Iterator[BlockingBuffer]:
    with BlockingBuffer(DurableBuffer(store, acquire_timeout=PATIENCE), event_loop=event_loop) as buffer:
        yield buffer


def fill(buffer: BlockingBuffer, count: int) -> None:
    for number in range(count):
        buffer.add(summary(number))


def test_it_does_what_the_buffer_does(buffer: BlockingBuffer) -> None:
    fill(buffer, 6)
    buffer.add(actions(6))
    assert buffer.size() == 7
    assert len(buffer.peek(2)) == 2
    assert buffer.sessions() == {"s": 7}
    assert numbers(buffer.drain_by_type(summaries=False)) == [6]
    assert numbers(buffer.drain_page(1)) == [0]
    assert numbers(buffer.drain(1, types={"summary"})) == [1]
    assert numbers(buffer.drain(1, session_id="s")) == [2]
    assert buffer.drain(session_id="other") == []
    assert [numbers(page) for page in buffer.drain_pages(2)] == [[3, 4], [5]]
    fill(buffer, 0)
    buffer.add(summary(10))
    buffer.clear()
    assert buffer.drain() == []
    stats = buffer.stats()
    assert isinstance(stats, DurableStats)
    assert stats.ledger.balanced


def test_it_works_without_with(store: MemoryStore) -> None:
    buffer = BlockingBuffer(DurableBuffer(store))
    fill(buffer, 2)
    assert numbers(buffer.drain()) == [0, 1]
    buffer.close()
    buffer.close()
    assert store.closed == 1
    assert repr(buffer).endswith(" closed>")
    for call in (buffer.drain, buffer.size, lambda: buffer.add(summary(0)), buffer.__enter__, buffer.lease().__enter__):
        with pytest.raises(BufferClosedError):
            call()
    assert buffer.stats().ledger.delivered == 2


def test_a_buffer_never_used_can_be_closed(store: MemoryStore) -> None:
    buffer = BlockingBuffer(DurableBuffer(store))
    buffer.close()
    assert store.closed == 1


def test_threads_that_add_at_once_share_commits(buffer: BlockingBuffer, store: MemoryStore) -> None:
    barrier = threading.Barrier(20)

    def add(thread: int) -> None:
        barrier.wait(PATIENCE)
        for number in range(20):
            buffer.add(summary(20 * thread + number))

    with Crew() as crew:
        for thread in range(20):
            crew.start(add, thread)
    assert sorted(numbers(buffer.drain())) == list(range(400))
    assert len(store.appends) < 400


def test_leases(buffer: BlockingBuffer) -> None:
    fill(buffer, 5)
    with buffer.lease(3) as lease:
        assert numbers(lease.events) == numbers(lease) == [0, 1, 2]
        assert len(lease) == 3
        lease.extend(60.0)
        lease.ack(lease.events[:1])
        assert buffer.size() == 2
        with pytest.raises(LeaseError):
            lease.ack([summary(0)])
        lease.give_back()
        with pytest.raises(LeaseError):
            lease.ack()
    assert numbers(buffer.drain()) == [1, 2, 3, 4]


def test_leaving_a_lease_acknowledges_and_an_error_gives_back(buffer: BlockingBuffer, store: MemoryStore) -> None:
    fill(buffer, 3)
    with pytest.raises(ZeroDivisionError), buffer.lease():
        raise ZeroDivisionError
    assert buffer.size() == 3
    with buffer.lease(2):
        pass
    assert buffer.size() == 1
    with pytest.raises(LeaseExpiredError), buffer.lease():
        store.run_out()
        assert buffer.size() == 1


def test_a_lease_is_entered_once(buffer: BlockingBuffer) -> None:
    lease = buffer.lease()
    with pytest.raises(EventBufferError):
        lease.ack()
    assert (len(lease), lease.events) == (0, [])
    with lease, pytest.raises(EventBufferError):
        lease.__enter__()


def test_a_lease_of_a_store_that_is_away_raises(buffer: BlockingBuffer, store: MemoryStore) -> None:
    store.break_down(refused)
    with pytest.raises(BufferUnavailableError):
        buffer.lease().__enter__()
    assert buffer.drain() == []


def test_closing_gives_open_leases_back(event_loop: LoopKind, store: MemoryStore) -> None:
    buffer = BlockingBuffer(DurableBuffer(store), event_loop=event_loop)
    fill(buffer, 3)
    with pytest.raises(BufferClosedError), buffer.lease():
        buffer.close()
    assert len(store.shard_list[store.shard_of("s")].waiting) == 3


def test_a_close_ends_calls_that_wait(event_loop: LoopKind, store: MemoryStore) -> None:
    buffer = BlockingBuffer(DurableBuffer(store, overflow="block"), event_loop=event_loop)
    store.break_down(refused)
    refusals: list[Exception] = []

    def add() -> None:
        try:
            buffer.add(summary(0))
        except BufferClosedError as error:
            refusals.append(error)

    with Crew() as crew:
        crew.start(add)
        until(lambda: "append" in store.calls)
        buffer.close(timeout=0.05)
    assert len(refusals) == 1


def test_a_hook_that_calls_the_buffer_is_told_that_it_would_wait_for_itself(store: MemoryStore) -> None:
    errors: list[Exception] = []

    def hook(payload: Payload) -> None:
        try:
            asked.size()
        except ClientStateError as error:
            errors.append(error)

    store.break_down(refused)
    with BlockingBuffer(DurableBuffer(store, on_drop=hook)) as asked:
        asked.add(summary(0))
    assert "own thread" in str(errors[0])


def test_the_view_of_an_event_buffer_works_too(event_loop: LoopKind) -> None:
    events = EventBuffer()
    with BlockingBuffer(events.as_backend(), event_loop=event_loop) as buffer:
        fill(buffer, 3)
        with pytest.raises(EventBufferError, match="session"):
            buffer.drain(session_id="s")
        with pytest.raises(EventBufferError, match="session"):
            buffer.sessions()
        with buffer.lease(1) as lease:
            assert numbers(lease) == [0]
        assert buffer.stats().ledger.delivered == 1
        buffer.clear()
    assert events.is_empty


def test_what_a_backend_lacks_is_done_by_its_three_methods(event_loop: LoopKind) -> None:
    with BlockingBuffer(ListBackend(), event_loop=event_loop) as buffer:
        fill(buffer, 4)
        assert numbers(buffer.peek(1)) == [3]
        assert numbers(buffer.drain(1)) == [0]
        assert numbers(buffer.drain(1, types={"summary"})) == [1]
        with pytest.raises(ZeroDivisionError), buffer.lease(1):
            raise ZeroDivisionError
        assert sorted(numbers(buffer.drain())) == [2, 3]
        with pytest.raises(EventBufferError, match="statistics"):
            buffer.stats()
        buffer.add(summary(5))
        buffer.clear()
        assert buffer.size() == 0


def test_what_is_no_async_buffer_is_refused() -> None:
    for backend in (EventBuffer(), object()):
        with pytest.raises(ConfigurationError):
            BlockingBuffer(backend)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(ConfigurationError):
        BlockingBuffer(ListBackend(), event_loop="uvloop")  # type: ignore[arg-type]
    buffer = BlockingBuffer(ListBackend())
    for call in (
        lambda: buffer.drain(-1),
        lambda: buffer.lease(0),
        lambda: buffer.drain_pages(0),
        lambda: buffer.peek(-1),
    ):
        with pytest.raises(ConfigurationError):
            call()


def test_a_client_without_async_puts_its_events_into_it(buffer: BlockingBuffer) -> None:
    events = [SummaryPayload("p", f"session-{number % 3}", f"event {number}") for number in range(30)]
    with ConnectorServer(events) as server, ConnectorClient(server.url).into(buffer) as client:
        client.run_in_background()
        until(lambda: buffer.size() == 30)
    assert {payload.to_text() for payload in buffer.drain()} == {payload.to_text() for payload in events}


INTERRUPTED = """
import signal, threading, time
from connector_sdk.buffers.blocking import BlockingBuffer
from connector_sdk.buffers.durable import DurableBuffer
from tests.buffers.memory_store import MemoryStore
from tests.buffers.samples import numbers, summary

store = MemoryStore()
with BlockingBuffer(DurableBuffer(store, response_timeout=60.0)) as buffer:
    for number in range(3):
        buffer.add(summary(number))
    stop = store.stop("take")
    def interrupt():
        while "take" not in store.calls:
            time.sleep(0.001)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    threading.Thread(target=interrupt).start()
    try:
        buffer.drain()
    except KeyboardInterrupt:
        pass
    else:
        raise SystemExit("no KeyboardInterrupt")
    store.recover()
    while not (drained := buffer.drain()):
        store.run_out()
    assert numbers(drained) == [0, 1, 2]
print("balanced", buffer.stats().ledger.balanced)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals to threads")
def test_an_interrupt_cancels_the_call_and_loses_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], timeout=60, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "balanced True\n"), done.stderr


FORKED = """
import os
from connector_sdk.buffers.blocking import BlockingBuffer
from connector_sdk.buffers.durable import DurableBuffer
from tests.buffers.memory_store import MemoryStore
from tests.buffers.samples import numbers, summary

buffer = BlockingBuffer(DurableBuffer(MemoryStore()))
buffer.add(summary(0))
child = os.fork()
if not child:
    buffer.add(summary(1))
    ledger = buffer.stats().ledger
    os._exit(0 if (ledger.received, ledger.delivered) == (1, 1) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
buffer.add(summary(2))
assert buffer.stats().ledger.delivered == 2
buffer.close()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="there is no fork here")
def test_a_forked_child_has_a_thread_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], timeout=60, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.001)
